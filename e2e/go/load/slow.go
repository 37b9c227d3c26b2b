package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// durations are how long uploads take. An API server gives a write 34 seconds, its body included.
var durations = []time.Duration{20 * time.Second, 25 * time.Second, 30 * time.Second}

// pieces is into how many parts a body is cut.
const pieces = 20

// upload is a create whose body comes slowly, as over a bad line: a request that is under way for long, and no watch.
func (w *writer) upload(ctx context.Context, number int) {
	object := w.object()
	body, err := json.Marshal(object)
	if err != nil {
		return
	}
	duration := durations[number%len(durations)]
	sending, end := context.WithTimeout(context.Background(), duration+answer)
	defer end()
	err = w.counted("create", func() error {
		request := w.rest.Post().SetHeader("Content-Type", "application/json").Body(drip(ctx, body, duration))
		return w.send(sending, request, &corev1.ConfigMap{}, "ADDED")
	})
	if err == nil {
		_ = w.rest.Delete().Namespace(w.namespace).Resource("configmaps").Name(object.Name).Do(sending).Error()
		return
	}
	sleep(ctx, time.Second)
}

// dripping is a body that comes piece by piece; all of the rest at once when the context ends.
type dripping struct {
	ctx   context.Context
	rest  *bytes.Reader
	piece int64
	wait  time.Duration
}

func drip(ctx context.Context, body []byte, duration time.Duration) io.Reader {
	return &dripping{ctx, bytes.NewReader(body), int64(len(body)/pieces + 1), duration / pieces}
}

func (d *dripping) Read(into []byte) (int, error) {
	if d.ctx.Err() != nil || d.rest.Len() == 0 {
		return d.rest.Read(into)
	}
	sleep(d.ctx, d.wait)
	return io.LimitReader(d.rest, d.piece).Read(into)
}
