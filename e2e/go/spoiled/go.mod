module kaas.dev/e2e/spoiled

go 1.26.8
