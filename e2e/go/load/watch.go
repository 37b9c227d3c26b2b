package main

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// again is the time before a watch that was refused, or told nothing, is asked for once more.
const again = 10 * time.Millisecond

// changes are those that writers were told of by an answer, and when.
type changes struct {
	mutex    sync.Mutex
	answered map[string]time.Time
}

func newChanges() *changes { return &changes{answered: map[string]time.Time{}} }

func (c *changes) answer(at time.Time, change string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.answered[change] = at
}

// compare says which changes a watch has not told, and how long one has waited at most from its answer until it was told.
func (c *changes) compare(told *told) (missing []string, wait time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	told.mutex.Lock()
	defer told.mutex.Unlock()
	for change, answered := range c.answered {
		if at, has := told.known[change]; has {
			wait = max(wait, at.Sub(answered))
		} else {
			missing = append(missing, change)
		}
	}
	return missing, wait
}

// written names a change as a writer's answer and a watch's event both know it.
func written(kind string, object *corev1.ConfigMap) string {
	return kind + " " + object.Name + " " + object.ResourceVersion
}

// deleted does so for an end: its answer has no version.
func deleted(object *corev1.ConfigMap) string { return "DELETED " + object.Name }

// told are the changes that a watch told, and when.
type told struct {
	mutex    sync.Mutex
	known    map[string]time.Time
	repeated []string
}

func newTold() *told { return &told{known: map[string]time.Time{}} }

func (t *told) tell(at time.Time, change string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if _, has := t.known[change]; has {
		t.repeated = append(t.repeated, change)
		return
	}
	t.known[change] = at
}

// watcher follows what the writers write.
type watcher struct {
	kind      kind
	protocol  protocol
	namespace string
	rest      rest.Interface
	selection metav1.ListOptions
	told      *told
	version   string
	streams   int
	expired   int
	refused   failures
	cuts      failures
}

func newWatcher(config *rest.Config, kind kind, protocol protocol, writers *writers) (*watcher, error) {
	client, err := clientset(config, protocol, kind == fresh)
	if err != nil {
		return nil, err
	}
	return &watcher{
		kind:      kind,
		protocol:  protocol,
		namespace: writers.namespace,
		rest:      client.CoreV1().RESTClient(),
		selection: writers.selection(),
		told:      newTold(),
	}, nil
}

func (w *watcher) request(options metav1.ListOptions) *rest.Request {
	request := w.rest.Get().Namespace(w.namespace).Resource("configmaps").VersionedParams(&options, scheme.ParameterCodec)
	if w.kind != retried {
		request = request.MaxRetries(0)
	}
	return request
}

// run says once that it has begun, and goes on until the context ends.
func (w *watcher) run(ctx context.Context, ready chan<- struct{}) {
	for w.begin(ctx) != nil && ctx.Err() == nil {
		sleep(ctx, again)
	}
	ready <- struct{}{}
	for ctx.Err() == nil {
		options := w.selection
		options.ResourceVersion = w.version
		options.AllowWatchBookmarks = true
		options.Watch = true
		stream, err := w.request(options).Watch(ctx)
		if err != nil {
			w.fail(ctx, "watch", err)
			continue
		}
		w.streams++
		if heard := w.hear(ctx, stream); heard == 0 {
			sleep(ctx, again)
		}
	}
}

// begin reads from where to watch: what was before it is told by nobody.
func (w *watcher) begin(ctx context.Context) error {
	ctx, end := context.WithTimeout(ctx, answer)
	defer end()
	list := &corev1.ConfigMapList{}
	if err := w.request(w.selection).Do(ctx).Into(list); err != nil {
		w.refused.add(time.Now(), "list", err)
		return err
	}
	w.version = list.ResourceVersion
	return nil
}

func (w *watcher) fail(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		w.expired++
		_ = w.begin(ctx)
		return
	}
	w.refused.add(time.Now(), verb, err)
	sleep(ctx, again)
}

// hear follows one stream to its end, and says how much it told.
func (w *watcher) hear(ctx context.Context, stream watch.Interface) (heard int) {
	defer stream.Stop()
	for event := range stream.ResultChan() {
		heard++
		if event.Type == watch.Error {
			err := apierrors.FromObject(event.Object)
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				w.fail(ctx, "watch", err)
			} else if ctx.Err() == nil {
				// The stream was cut, and the next one goes on where it ended.
				w.cuts.add(time.Now(), "watch", err)
			}
			return heard
		}
		object, ok := event.Object.(*corev1.ConfigMap)
		if !ok {
			continue
		}
		w.version = object.ResourceVersion
		switch event.Type {
		case watch.Bookmark:
		case watch.Deleted:
			w.told.tell(time.Now(), deleted(object))
		default:
			w.told.tell(time.Now(), written(string(event.Type), object))
		}
	}
	return heard
}
