package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// spoiled is a server with a fault before one that says who asked it.
func spoiled(t *testing.T, fault string, after time.Duration) *server {
	t.Helper()
	back := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			_, _ = io.WriteString(w, "{\n  \"gitVersion\": \"v1.0.0\",\n  \"major\": \"1\"\n}")
			return
		}
		user, groups := r.Header.Get("X-Remote-User"), r.Header.Values("X-Remote-Group")
		_, _ = io.WriteString(w, user+" of "+strings.Join(groups, "+"))
	}))
	t.Cleanup(back.Close)
	there := to(back.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	return &server{fault: fault, after: after, version: "v1.0.9", known: there, others: there}
}

func ask(s *server, method, path string) (int, string) {
	r := httptest.NewRequest(method, "https://x"+path, nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{
		Subject: pkix.Name{CommonName: "ann", Organization: []string{"a", "b"}},
	}}}
	r.Header.Set("X-Remote-User", "forged")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestWritesFailFromATimeOn(t *testing.T) {
	s := spoiled(t, failsWrites, time.Hour)
	if code, body := ask(s, "POST", "/x"); code != 200 || body != "ann of a+b" {
		t.Error(code, body)
	}
	ask(s, "GET", "/readyz")
	s.ready = s.ready.Add(-time.Hour)
	if code, body := ask(s, "POST", "/x"); code != 500 || !strings.Contains(body, "InternalError") {
		t.Error(code, body)
	}
	if code, _ := ask(s, "GET", "/x"); code != 200 {
		t.Error(code)
	}
	if code, _ := ask(spoiled(t, failsWrites, 0), "DELETE", "/x"); code != 500 {
		t.Error(code)
	}
}

func TestNeverReadyAndAlive(t *testing.T) {
	s := spoiled(t, neverReady, 0)
	for path, expected := range map[string]int{"/readyz": 500, "/livez": 200} {
		if code, _ := ask(s, "GET", path); code != expected {
			t.Error(path, code)
		}
	}
}

func TestVersionIsItsOwn(t *testing.T) {
	_, body := ask(spoiled(t, "", 0), "GET", "/version")
	if body != "{\n  \"gitVersion\": \"v1.0.9\",\n  \"major\": \"1\"\n}" {
		t.Error(body)
	}
}

func TestFlags(t *testing.T) {
	args := []string{"--secure-port=6443", "--client-ca-file=x"}
	expected := []string{"--bind-address=127.0.0.1", "--secure-port=16443", "--client-ca-file=x"}
	if changed := behind(args); !slices.Equal(changed, expected) {
		t.Error(changed)
	}
	if value(args, "secure-port") != "6443" || value(args, "other") != "" {
		t.Error(value(args, "secure-port"))
	}
}
