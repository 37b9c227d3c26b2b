package main

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

const (
	// silence is how long a stream may say nothing before it counts as ended: what it follows speaks every second.
	silence = 10 * time.Second
	// choice is the time before a pod is looked for again.
	choice = 200 * time.Millisecond
)

// errSilent is the end of a stream that nobody closed.
var errSilent = errors.New("nothing was heard for " + silence.String())

// opener follows one pod until its stream ends; what it says goes to the writer.
type opener struct {
	kind string
	open func(ctx context.Context, s *stream, pod *corev1.Pod, out io.Writer) error
}

// execute runs a program that goes on for ever, as kubectl exec does.
var execute = opener{"exec", func(ctx context.Context, s *stream, pod *corev1.Pod, out io.Writer) error {
	command := []string{"sh", "-c", "while echo still here; do sleep 1; done"}
	url := s.client.CoreV1().RESTClient().Post().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).
		SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).
		URL()
	executor, err := remotecommand.NewWebSocketExecutor(s.config, "GET", url.String())
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: out})
}}

// follow reads a log that goes on, as kubectl logs -f does.
var follow = opener{"logs", func(ctx context.Context, s *stream, pod *corev1.Pod, out io.Writer) error {
	tail := int64(1)
	options := &corev1.PodLogOptions{Follow: true, TailLines: &tail}
	lines, err := s.client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
	if err != nil {
		return err
	}
	defer lines.Close()
	_, err = io.Copy(out, lines)
	return err
}}

// stream is one that is opened again whenever it ends.
type stream struct {
	opener
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
	pods      string
	opened    int
	refused   failures
	ends      failures
	lives     []life
}

// life is how long an opened stream lived, in seconds.
type life struct {
	Seconds float64 `json:"seconds"`
	// End is what ended it: the pod, the load, or else the way to it.
	End string `json:"end"`
}

func newStream(config *rest.Config, client kubernetes.Interface, o options, opener opener) *stream {
	return &stream{opener: opener, config: config, client: client, namespace: o.namespace, pods: o.pods}
}

func (s *stream) run(ctx context.Context) {
	for turn := 0; ctx.Err() == nil; turn++ {
		pod := s.choose(ctx, turn)
		if pod == nil {
			sleep(ctx, choice)
			continue
		}
		s.once(ctx, pod)
	}
}

// choose takes one of the pods that are ready and stay, each in its turn.
func (s *stream) choose(ctx context.Context, turn int) *corev1.Pod {
	ctx, end := context.WithTimeout(ctx, answer)
	defer end()
	list, err := s.client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: s.pods})
	if err != nil {
		return nil
	}
	var able []*corev1.Pod
	for index := range list.Items {
		if stays(&list.Items[index]) {
			able = append(able, &list.Items[index])
		}
	}
	if len(able) == 0 {
		return nil
	}
	return able[turn%len(able)]
}

// stays says whether a pod serves, and nobody has told it to end.
func stays(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return false
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// once follows a pod until the stream ends.
func (s *stream) once(ctx context.Context, pod *corev1.Pod) {
	following, end := context.WithCancelCause(ctx)
	defer end(nil)
	ear := &ear{}
	watchdog := time.AfterFunc(silence, func() { end(errSilent) })
	defer watchdog.Stop()
	ear.heard = func() { watchdog.Reset(silence) }
	asked := time.Now()
	err := s.open(following, s, pod, ear)
	if cause := context.Cause(following); cause != nil {
		err = cause
	}
	if err == nil {
		err = io.EOF
	}
	now := time.Now()
	first := ear.first.Load()
	switch {
	case first == nil && ctx.Err() != nil:
	case first == nil && !s.still(pod):
		// It went away after it was chosen.
		sleep(ctx, choice)
	case first == nil:
		s.refused.add(asked, s.kind, err)
		sleep(ctx, choice)
	default:
		s.opened++
		s.lives = append(s.lives, life{now.Sub(*first).Seconds(), s.end(ctx, pod)})
		if ctx.Err() == nil {
			s.ends.add(now, s.kind, err)
		}
	}
}

func (s *stream) end(ctx context.Context, pod *corev1.Pod) string {
	switch {
	case ctx.Err() != nil:
		return "load"
	case !s.still(pod):
		return "pod"
	default:
		return "way"
	}
}

// still asks whether the same pod is there and stays.
func (s *stream) still(pod *corev1.Pod) bool {
	ctx, end := context.WithTimeout(context.Background(), answer)
	defer end()
	now, err := s.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return !apierrors.IsNotFound(err)
	}
	return now.UID == pod.UID && stays(now)
}

// ear hears what a stream says.
type ear struct {
	first atomic.Pointer[time.Time]
	heard func()
}

func (e *ear) Write(words []byte) (int, error) {
	now := time.Now()
	e.first.CompareAndSwap(nil, &now)
	e.heard()
	return len(words), nil
}
