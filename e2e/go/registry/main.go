// The registry of a local cluster: distribution's own program, with files as its only storage (the clouds' would
// triple the time of the build), and one thing more. Workers take it for the mirror of every registry; a mirror
// is asked for `/v2/NAME?ns=REGISTRY`, which is found here as the repository `REGISTRY/NAME`. So images of one
// name from two registries stay apart.
package main

import (
	"net/http"
	"os"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

const api = "/v2/"

func main() {
	registry.RegisterHandler(mirrorOfAll)
	if err := registry.RootCmd.Execute(); err != nil {
		os.Exit(1)
	}
}

func mirrorOfAll(_ *configuration.Configuration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace := r.URL.Query().Get("ns")
		repository, found := strings.CutPrefix(r.URL.Path, api)
		if namespace == "" || !found || repository == "" {
			next.ServeHTTP(w, r)
			return
		}
		// A registry's port cannot be part of a repository's name as it is written.
		namespace = strings.ReplaceAll(strings.ToLower(namespace), ":", "_")
		mirrored := r.Clone(r.Context())
		mirrored.URL.Path = api + namespace + "/" + repository
		mirrored.URL.RawPath = ""
		next.ServeHTTP(w, mirrored)
	})
}
