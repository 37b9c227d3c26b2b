package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What may be wrong.
const (
	crash       = "crash"
	neverReady  = "never-ready"
	slow        = "slow"
	failsWrites = "fails-writes"
)

// delay of a slow server: longer than anybody bears, shorter than anybody gives up.
const delay = 2500 * time.Millisecond

type server struct {
	fault, version string
	after          time.Duration
	// spoil is called at the time when it begins.
	spoil func()
	// known leads clients with a certificate to the true server, others the rest.
	known, others http.Handler

	mutex sync.Mutex
	ready time.Time
}

// to is a proxy to the true server. It speaks HTTP/1.1 there: what is upgraded (exec) cannot be sent over HTTP/2.
func to(address string, config *tls.Config) http.Handler {
	transport := &http.Transport{
		TLSClientConfig:     config,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", address
		},
	}
}

// is tells whether the fault is this one, and has begun.
func (s *server) is(fault string) bool {
	if s.fault != fault {
		return false
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.after == 0 || !s.ready.IsZero() && time.Since(s.ready) >= s.after
}

// seen is called each time that it says that it is ready.
func (s *server) seen() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.ready.IsZero() {
		s.ready = time.Now()
		if s.spoil != nil {
			time.AfterFunc(s.after, s.spoil)
		}
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	probe := r.URL.Path == "/livez" || r.URL.Path == "/readyz" || r.URL.Path == "/healthz"
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case r.URL.Path == "/readyz" && s.is(neverReady):
		http.Error(w, "it never is", http.StatusInternalServerError)
		return
	case !reads && s.is(failsWrites):
		refuse(w)
		return
	case !probe && s.is(slow):
		time.Sleep(delay)
	}
	r.Header.Del("X-Remote-User")
	r.Header.Del("X-Remote-Group")
	next := s.others
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		subject := r.TLS.PeerCertificates[0].Subject
		r.Header.Set("X-Remote-User", subject.CommonName)
		for _, group := range subject.Organization {
			r.Header.Add("X-Remote-Group", group)
		}
		next = s.known
	}
	switch r.URL.Path {
	case "/readyz":
		status := &recorder{ResponseWriter: w}
		next.ServeHTTP(status, r)
		if status.code == http.StatusOK {
			s.seen()
		}
	case "/version":
		s.tellVersion(next, w, r)
	default:
		next.ServeHTTP(w, r)
	}
}

// refuse is how an API server tells that its storage is not what it should be.
func refuse(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",`+
		`"message":"Internal error occurred: it writes nothing","reason":"InternalError","code":500}`)
}

// recorder keeps the code of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// whole keeps an answer.
type whole struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *whole) Header() http.Header            { return a.header }
func (a *whole) WriteHeader(code int)           { a.code = code }
func (a *whole) Write(text []byte) (int, error) { return a.body.Write(text) }

// tellVersion says another version than the true server does.
func (s *server) tellVersion(next http.Handler, w http.ResponseWriter, r *http.Request) {
	answer := &whole{header: w.Header(), code: http.StatusOK}
	next.ServeHTTP(answer, r)
	var text strings.Builder
	for line := range strings.Lines(answer.body.String()) {
		if strings.Contains(line, `"gitVersion"`) {
			line = fmt.Sprintf("  \"gitVersion\": %q,\n", s.version)
		}
		text.WriteString(line)
	}
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.WriteHeader(answer.code)
	_, _ = io.WriteString(w, text.String())
}
