# What is built and downloaded stays here; a local cluster's own state is in .local.
export KAAS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kaas
export CARGO_TARGET_DIR := $(KAAS_CACHE)/target
# What incremental builds keep for the next edit fills the cache with gigabytes for every clone.
export CARGO_INCREMENTAL := 0

local := cargo run --quiet --package kaas-e2e --bin kaas-local --

.DEFAULT_GOAL := help
.PHONY: help up down status load test e2e soak bench fmt generate bootstrap

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: bootstrap ## A local management cluster with the operator and a demo tenant; VERSION=v1.36.3: one minor back
	@$(local) up $(if $(VERSION),--kubernetes '$(VERSION)')

down: bootstrap ## End it and leave nothing
	@$(local) down

status: bootstrap ## What runs
	@$(local) status

load: bootstrap ## Put an image where every worker can pull it: make load IMAGE=archive.tar
	@$(local) load '$(or $(IMAGE),$(error IMAGE is not set: make load IMAGE=archive.tar))'

test: bootstrap ## Everything that must pass, on a local cluster of its own
	@$(local) test

e2e: bootstrap ## The flows alone; KAAS_KUBECONFIG=... runs them on a cluster that has the operator
	@$(local) e2e

soak: bootstrap ## All flows, the long ones too (about half an hour)
	@$(local) soak

bench: bootstrap ## Measure on a local cluster of its own, for example ARGS='--quick'; raw samples are kept
	@$(local) bench $(ARGS)

fmt: ## Format all code
	@cargo fmt --all
	@gofmt -w e2e/go

generate: ## Render CRDs, roles and the API reference from the Rust types
	@cargo run --quiet --package kaas-crds --bin manifests

# Everything else is checked, and on Debian installed, by kaas-local itself.
bootstrap:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust from https://rustup.rs' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'cc is missing: install a C compiler (Debian: apt-get install gcc libc6-dev)' >&2; exit 1; }
	@command -v go >/dev/null || { echo 'go is missing: install Go 1.26 or newer from https://go.dev/dl' >&2; exit 1; }
