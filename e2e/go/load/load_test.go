package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestGapIsBetweenSuccesses(t *testing.T) {
	begun := time.Unix(100, 0)
	at := func(seconds int) time.Time { return begun.Add(time.Duration(seconds) * time.Second) }
	tally := &tally{}
	tally.count(at(0), at(1), "get", nil)
	tally.count(at(2), at(3), "get", errors.New("EOF"))
	tally.count(at(4), at(6), "get", nil)
	told := tally.report(fresh, http1)
	if told.Requests != 3 || told.Failed.Count != 1 || told.LongestGap != 5 {
		t.Errorf("%+v", told)
	}
	if told.P50 != 1 || told.P99 != 1 || quantile(nil, 0.5) != 0 {
		t.Errorf("%+v", told)
	}
}

func TestFirstFailuresAreKept(t *testing.T) {
	all := failures{}
	for number := range 2 * most {
		all.add(time.Unix(0, 0), "get", fmt.Errorf("failure %d", number))
	}
	told := all.report()
	if told.Count != 2*most || len(told.First) != most || told.First[0].Words != "failure 0" {
		t.Errorf("%+v", told)
	}
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, "a")
	if !strings.HasPrefix(words(gone), "404 NotFound: ") {
		t.Error(words(gone))
	}
}

func TestChangesAreMissingOrRepeatedOrNeither(t *testing.T) {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "7"}}
	changes, heard := newChanges(), newTold()
	changes.answer(time.Unix(1, 0), written("ADDED", object))
	changes.answer(time.Unix(2, 0), deleted(object))
	heard.tell(time.Unix(4, 0), written("ADDED", object))
	// Of a write whose answer was lost.
	heard.tell(time.Unix(9, 0), "ADDED b 8")
	missing, wait := changes.compare(heard)
	if !slices.Equal(missing, []string{"DELETED a"}) || heard.repeated != nil || wait != 3*time.Second {
		t.Errorf("%v %v %v", missing, heard.repeated, wait)
	}
	heard.tell(time.Unix(9, 0), "ADDED b 8")
	if !slices.Equal(heard.repeated, []string{"ADDED b 8"}) {
		t.Error(heard.repeated)
	}
}

func TestBodyComesSlowlyAndWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := []byte(strings.Repeat("body ", 50))
		begun := time.Now()
		read, err := io.ReadAll(drip(t.Context(), body, 20*time.Second))
		if err != nil || string(read) != string(body) {
			t.Errorf("%q %v", read, err)
		}
		if took := time.Since(begun); took < 15*time.Second || took > 21*time.Second {
			t.Error(took)
		}
	})
}

func TestOnlyAPodThatStaysIsChosen(t *testing.T) {
	ready := func(status corev1.ConditionStatus) *corev1.Pod {
		conditions := []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
		return &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: conditions}}
	}
	going := ready(corev1.ConditionTrue)
	going.DeletionTimestamp = &metav1.Time{Time: time.Unix(0, 0)}
	if !stays(ready(corev1.ConditionTrue)) || stays(ready(corev1.ConditionFalse)) || stays(going) || stays(&corev1.Pod{}) {
		t.Error("a pod that is not ready, or is about to end, was chosen")
	}
}
