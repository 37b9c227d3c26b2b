// Clients of a Kubernetes API, with the real client-go, that go on until they are told to stop, and then say in one line
// of JSON what they went through. Nothing is judged here.
//
// Kinds of clients, each over HTTP/1.1 and over HTTP/2:
//
//   - fresh: a new connection for each request, which is never tried again;
//   - reused: one connection, and no request is tried again;
//   - retried: one connection, and client-go's own rules: up to ten times where the server says when to come again, and
//     reads whose connection ended before an answer;
//   - slow: a new connection for a write whose body takes 20 to 30 seconds to send, never tried again;
//   - watches that follow all of these writes, and go on where a stream ended: fresh ones on a new connection, retried ones
//     as client-go does, on the connection that they had.
//
// What Go's transport sends again by itself is one request here: what HTTP/2 servers refuse with GOAWAY or
// REFUSED_STREAM, and what was not sent at all because the server had closed the connection before.
//
// With -pods an exec and a log are followed all the time.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// late is how long watches are waited for when the writers have stopped.
const late = 10 * time.Second

// resultLabel is on the ConfigMaps with results.
const resultLabel = "kaas-load-result"

type options struct {
	kubeconfig, server, namespace, pods, result string
	duration, pause                             time.Duration
	atLeast                                     int
	untilStdinCloses                            bool
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "whom to be and where to go; without it the pod's own account")
	flag.StringVar(&o.server, "server", "", "URL of the API instead of the one there")
	flag.StringVar(&o.namespace, "namespace", "default", "namespace of all that is written")
	flag.StringVar(&o.pods, "pods", "", "label selector of pods, with a shell and a log that goes on, for exec and logs")
	flag.StringVar(&o.result, "result", "", "name of a ConfigMap for the result, besides the standard output")
	flag.DurationVar(&o.duration, "duration", 0, "how long to go on; 0: until SIGTERM or SIGINT")
	flag.DurationVar(&o.pause, "pause", 25*time.Millisecond, "time between two requests of one client")
	flag.IntVar(&o.atLeast, "at-least", 0, "go on until so many requests were made, also when told to stop")
	flag.BoolVar(&o.untilStdinCloses, "until-stdin-closes", false, "stop at the end of the standard input too")
	flag.Parse()
	// What goes wrong is told in the result.
	klog.SetLogger(logr.Discard())
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	config, err := configuration(o.kubeconfig, o.server)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if o.duration > 0 {
		ctx, stop = context.WithTimeout(ctx, o.duration)
		defer stop()
	}
	if o.untilStdinCloses {
		ctx, stop = context.WithCancel(ctx)
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	load, err := newLoad(config, o)
	if err != nil {
		return err
	}
	line, err := json.Marshal(load.play(ctx, o.atLeast))
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	if o.result == "" {
		return nil
	}
	return load.publish(o.result, string(line))
}

// load is all clients, and what they share.
type load struct {
	*writers
	client  *kubernetes.Clientset
	watches []*watcher
	streams []*stream
}

func newLoad(config *rest.Config, o options) (*load, error) {
	client, err := clientset(config, http2, false)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	run := fmt.Sprintf("load-%s-%d-%d", host, os.Getpid(), time.Now().Unix())
	if len(run) > 63 {
		run = "load" + run[len(run)-59:]
	}
	shared := &writers{run: run, namespace: o.namespace, pause: o.pause, changes: newChanges()}
	load := &load{writers: shared, client: client}
	for _, protocol := range []protocol{http1, http2} {
		for _, kind := range []kind{fresh, reused, retried, slow} {
			if err := shared.add(config, kind, protocol); err != nil {
				return nil, err
			}
		}
		for _, kind := range []kind{fresh, retried} {
			watcher, err := newWatcher(config, kind, protocol, shared)
			if err != nil {
				return nil, err
			}
			load.watches = append(load.watches, watcher)
		}
	}
	if o.pods != "" {
		for _, open := range []opener{execute, follow} {
			load.streams = append(load.streams, newStream(config, client, o, open))
		}
	}
	return load, nil
}

// play runs all clients until the context ends and enough requests were made, lets the watches tell what is under way,
// and says what was seen.
func (l *load) play(ctx context.Context, atLeast int) report {
	begun := time.Now()
	watching, end := context.WithCancel(context.Background())
	defer end()
	var watches, others sync.WaitGroup
	ready := make(chan struct{}, len(l.watches))
	for _, watch := range l.watches {
		watches.Go(func() { watch.run(watching, ready) })
	}
	// What is written before a watch has begun is nothing that it could miss.
	for range l.watches {
		select {
		case <-ready:
		case <-ctx.Done():
		}
	}
	ctx = l.enough(ctx, atLeast)
	for _, writer := range l.writers.all {
		others.Go(func() { writer.run(ctx) })
	}
	for _, stream := range l.streams {
		others.Go(func() { stream.run(ctx) })
	}
	others.Wait()
	for deadline := time.Now().Add(late); l.missing() && time.Now().Before(deadline); {
		time.Sleep(again)
	}
	end()
	watches.Wait()
	result := l.report(begun)
	l.clear()
	return result
}

// enough ends with the given context, but not before so many requests were made.
func (l *load) enough(ctx context.Context, atLeast int) context.Context {
	enough, end := context.WithCancel(context.Background())
	go func() {
		defer end()
		<-ctx.Done()
		for l.requests() < atLeast {
			time.Sleep(again)
		}
	}()
	return enough
}

// requests are those of all clients, failed ones too.
func (l *load) requests() int {
	sum := 0
	for _, writer := range l.writers.all {
		sum += writer.tally.sum()
	}
	return sum
}

func (l *load) missing() bool {
	for _, watch := range l.watches {
		if missing, _ := l.changes.compare(watch.told); len(missing) > 0 {
			return true
		}
	}
	return false
}

func (l *load) report(begun time.Time) report {
	result := report{Begun: begun, Seconds: time.Since(begun).Seconds(), Streams: []streamReport{}}
	for _, writer := range l.writers.all {
		result.Clients = append(result.Clients, writer.tally.report(writer.kind, writer.protocol))
	}
	for _, watch := range l.watches {
		result.Watches = append(result.Watches, watch.report(l.changes))
	}
	for _, stream := range l.streams {
		result.Streams = append(result.Streams, stream.report())
	}
	return result
}

// publish writes the result where it is found when this process and its log are gone.
func (l *load) publish(name, line string) error {
	ctx, end := context.WithTimeout(context.Background(), 2*answer)
	defer end()
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{resultLabel: "true"}},
		Data:       map[string]string{"result": line},
	}
	for {
		_, err := l.client.CoreV1().ConfigMaps(l.namespace).Create(ctx, object, metav1.CreateOptions{})
		if err == nil || ctx.Err() != nil {
			return err
		}
		sleep(ctx, choice)
	}
}

// clear removes what writers left when they were stopped or a request failed. It may fail: nobody counts on it.
func (l *load) clear() {
	ctx, end := context.WithTimeout(context.Background(), answer)
	defer end()
	_ = l.client.CoreV1().ConfigMaps(l.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, l.selection())
}
