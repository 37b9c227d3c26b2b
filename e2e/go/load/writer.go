package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

const (
	fresh   kind = "fresh"
	reused  kind = "reused"
	retried kind = "retried"
	slow    kind = "slow"
	// answer is longer than any gap that is allowed somewhere, so that a gap is measured and not cut; with client-go's
	// rules a request may wait for a server's five seconds once.
	answer = 15 * time.Second
	// label is on everything that a load writes, with its run as the value.
	label = "kaas-load"
)

type kind string

// writers are all clients that write, and what they share.
type writers struct {
	all       []*writer
	run       string
	namespace string
	pause     time.Duration
	number    atomic.Int64
	changes   *changes
}

func (w *writers) add(config *rest.Config, kind kind, protocol protocol) error {
	clients, err := clientset(config, protocol, kind == fresh || kind == slow)
	if err != nil {
		return err
	}
	w.all = append(w.all, &writer{w, kind, protocol, clients.CoreV1().RESTClient(), &tally{}})
	return nil
}

func (w *writers) selection() metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: label + "=" + w.run}
}

// object is one that nobody has written before: what became of a failed write is not known.
func (w *writers) object() *corev1.ConfigMap {
	name := fmt.Sprintf("%s-%d", w.run, w.number.Add(1))
	labels := map[string]string{label: w.run}
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace, Labels: labels},
		Data:       map[string]string{"step": "created"},
	}
}

// writer is one client.
type writer struct {
	*writers
	kind     kind
	protocol protocol
	rest     rest.Interface
	tally    *tally
}

func (w *writer) run(ctx context.Context) {
	for number := 0; ctx.Err() == nil; number++ {
		if w.kind == slow {
			w.upload(ctx, number)
		} else {
			w.live(ctx)
		}
	}
}

// live is the life of one object, which is left behind where a request fails.
func (w *writer) live(ctx context.Context) {
	object := w.object()
	steps := []func() error{
		func() error {
			return w.once("create", w.rest.Post().Body(object), object, "ADDED")
		},
		func() error {
			return w.once("get", w.rest.Get().Name(object.Name), object, "")
		},
		func() error {
			options := w.selection()
			list := w.rest.Get().VersionedParams(&options, scheme.ParameterCodec)
			return w.once("list", list, &corev1.ConfigMapList{}, "")
		},
		func() error {
			object.Data["step"] = "updated"
			return w.once("update", w.rest.Put().Name(object.Name).Body(object), object, "MODIFIED")
		},
		func() error {
			patch := []byte(`{"data":{"step":"patched"}}`)
			return w.once("patch", w.rest.Patch(types.MergePatchType).Name(object.Name).Body(patch), object, "MODIFIED")
		},
		func() error {
			err := w.once("delete", w.rest.Delete().Name(object.Name), nil, "")
			if err == nil {
				w.changes.answer(time.Now(), deleted(object))
			}
			return err
		},
	}
	for _, step := range steps {
		if ctx.Err() != nil || step() != nil {
			return
		}
		sleep(ctx, w.pause)
	}
}

// once makes one request and counts it. A stop of the load does not cut it.
func (w *writer) once(verb string, request *rest.Request, into runtime.Object, change string) error {
	ctx, end := context.WithTimeout(context.Background(), answer)
	defer end()
	return w.counted(verb, func() error { return w.send(ctx, request, into, change) })
}

func (w *writer) counted(verb string, send func() error) error {
	begun := time.Now()
	err := send()
	w.tally.count(begun, time.Now(), verb, err)
	return err
}

func (w *writer) send(ctx context.Context, request *rest.Request, into runtime.Object, change string) error {
	if w.kind != retried {
		request = request.MaxRetries(0)
	}
	result := request.Namespace(w.namespace).Resource("configmaps").Do(ctx)
	if into == nil {
		return result.Error()
	}
	err := result.Into(into)
	if config, ok := into.(*corev1.ConfigMap); ok && err == nil && change != "" {
		w.changes.answer(time.Now(), written(change, config))
	}
	return err
}
