package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	http1 protocol = "HTTP/1.1"
	http2 protocol = "HTTP/2"
	// connect is the time for a connection and its handshake.
	connect = 5 * time.Second
)

type protocol string

// configuration is that of a kubeconfig, or of the pod.
func configuration(kubeconfig, server string) (*rest.Config, error) {
	read := rest.InClusterConfig
	if kubeconfig != "" {
		read = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	config, err := read()
	if err != nil {
		return nil, err
	}
	if server != "" {
		config.Host = server
	}
	// What is to be measured is not slowed down here.
	config.QPS = -1
	// Never through a proxy, and no two clients share a connection: client-go shares none that has this set.
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	return config, nil
}

// clientset makes a client with connections of its own.
func clientset(config *rest.Config, protocol protocol, fresh bool) (*kubernetes.Clientset, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "kaas-load"
	config.NextProtos = []string{"http/1.1"}
	if protocol == http2 {
		config.NextProtos = []string{"h2"}
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return checked{next, protocol} })
	if !fresh {
		return kubernetes.NewForConfig(config)
	}
	settings, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(config, single{settings, protocol})
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfigAndClient(config, &http.Client{Transport: transport})
}

// single makes a connection for each request.
type single struct {
	settings *tls.Config
	protocol protocol
}

func (s single) RoundTrip(request *http.Request) (*http.Response, error) {
	return (&http.Transport{
		TLSClientConfig:     s.settings.Clone(),
		TLSHandshakeTimeout: connect,
		DialContext:         (&net.Dialer{Timeout: connect}).DialContext,
		DisableKeepAlives:   true,
		ForceAttemptHTTP2:   s.protocol == http2,
	}).RoundTrip(request)
}

// checked fails a request that was answered in another protocol than the one that is counted.
type checked struct {
	next     http.RoundTripper
	protocol protocol
}

func (c checked) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := c.next.RoundTrip(request)
	if err == nil && (response.ProtoMajor == 2) != (c.protocol == http2) {
		_ = response.Body.Close()
		return nil, fmt.Errorf("answered in %s instead of %s", response.Proto, c.protocol)
	}
	return response, err
}

// WrappedRoundTripper lets client-go reach the transport below.
func (c checked) WrappedRoundTripper() http.RoundTripper { return c.next }

// sleep returns early when the context ends.
func sleep(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
