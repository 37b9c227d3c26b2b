// An API server with a fault, for flows in which an upgrade has to find it out. It stands where kube-apiserver stands and
// takes its flags; the true one runs behind it, as kube-apiserver.true.
//
// The environment says what is wrong: SPOILED_FAULT is one of those below, SPOILED_AFTER the time from its first readiness
// until that begins (nothing: from the start), SPOILED_VERSION the version that it says of itself. It says what the true
// one says otherwise, to everybody as whom they come.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	truePort = "16443"
	// What API servers' certificates all have.
	serverName = "kubernetes.default.svc"
	// Outlives a container, not its pod: who crashes crashes again at once.
	crashed = "/dev/shm/spoiled"
)

func main() {
	log.SetPrefix("spoiled: ")
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		log.Fatal(err)
	}
}

func run(args []string) error {
	after, err := time.ParseDuration(os.Getenv("SPOILED_AFTER"))
	if err != nil && os.Getenv("SPOILED_AFTER") != "" {
		return err
	}
	fault := os.Getenv("SPOILED_FAULT")
	if _, err := os.Stat(crashed); fault == crash && (after == 0 || err == nil) {
		return errors.New("it crashes")
	}
	s := &server{fault: fault, after: after, version: os.Getenv("SPOILED_VERSION")}
	if fault == crash {
		s.spoil = func() {
			log.Print("it crashes from now on")
			_ = os.WriteFile(crashed, nil, 0o600)
			os.Exit(1)
		}
	}
	front, err := s.listen(args)
	if err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(own+".true", behind(args)...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if err := child.Start(); err != nil {
		return err
	}
	go func() {
		for one := range signals {
			_ = child.Process.Signal(one)
		}
	}()
	go func() { log.Fatal(front()) }()
	return child.Wait()
}

// behind is what the true server is started with: the same, where only this one reaches it.
func behind(args []string) []string {
	changed := []string{"--bind-address=127.0.0.1", "--secure-port=" + truePort}
	for _, arg := range args {
		if !strings.HasPrefix(arg, "--secure-port=") && !strings.HasPrefix(arg, "--bind-address=") {
			changed = append(changed, arg)
		}
	}
	return changed
}

// value of a flag, which the operator always writes with a sign of equality.
func value(args []string, name string) string {
	for _, arg := range args {
		if value, found := strings.CutPrefix(arg, "--"+name+"="); found {
			return value
		}
	}
	return ""
}

// listen prepares what the true server would do with these flags, as far as its clients see it.
func (s *server) listen(args []string) (func() error, error) {
	text, err := os.ReadFile(value(args, "client-ca-file"))
	if err != nil {
		return nil, err
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(text) {
		return nil, errors.New("no certificate in --client-ca-file")
	}
	// Whom clients are known to be by their certificate is told as an aggregating proxy tells it.
	own, err := tls.LoadX509KeyPair(value(args, "proxy-client-cert-file"), value(args, "proxy-client-key-file"))
	if err != nil {
		return nil, fmt.Errorf("the front proxy's certificate: %w", err)
	}
	there := "127.0.0.1:" + truePort
	s.known = to(there, &tls.Config{RootCAs: authority, ServerName: serverName, Certificates: []tls.Certificate{own}})
	s.others = to(there, &tls.Config{RootCAs: authority, ServerName: serverName})
	front := &http.Server{
		Addr:    ":" + value(args, "secure-port"),
		Handler: s,
		TLSConfig: &tls.Config{
			ClientAuth: tls.VerifyClientCertIfGiven,
			ClientCAs:  authority,
		},
	}
	certificate, key := value(args, "tls-cert-file"), value(args, "tls-private-key-file")
	return func() error { return front.ListenAndServeTLS(certificate, key) }, nil
}
