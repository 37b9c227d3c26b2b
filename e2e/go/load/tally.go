package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// most is how many failures of one kind are kept: the first ones.
const most = 20

// failure is a request that failed.
type failure struct {
	At    time.Time `json:"at"`
	Verb  string    `json:"verb"`
	Words string    `json:"words"`
}

// failures are counted, and the first of them kept.
type failures struct {
	count int
	kept  []failure
}

func (f *failures) add(at time.Time, verb string, err error) {
	f.count++
	if len(f.kept) < most {
		f.kept = append(f.kept, failure{at.UTC(), verb, words(err)})
	}
}

func (f *failures) report() failuresReport {
	return failuresReport{f.count, append([]failure{}, f.kept...)}
}

// words are an error's, with the number of the answer where there was one.
func words(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return fmt.Sprintf("%d %s: %s", status.Status().Code, status.Status().Reason, err)
	}
	return err.Error()
}

// tally is what one client went through.
type tally struct {
	mutex    sync.Mutex
	requests int
	failures failures
	last     time.Time
	gap      time.Duration
	took     []time.Duration
}

func (t *tally) count(begun, now time.Time, verb string, err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.requests++
	if err != nil {
		t.failures.add(begun, verb, err)
		return
	}
	t.took = append(t.took, now.Sub(begun))
	if !t.last.IsZero() {
		t.gap = max(t.gap, now.Sub(t.last))
	}
	t.last = now
}

func (t *tally) sum() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.requests
}

// quantile is the time within which this part of the requests was answered.
func quantile(sorted []time.Duration, part float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(part*float64(len(sorted)-1))].Seconds()
}

// report is what a load says in the end. Times are in seconds.
type report struct {
	Begun   time.Time       `json:"begun"`
	Seconds float64         `json:"seconds"`
	Clients []clientsReport `json:"clients"`
	Watches []watchReport   `json:"watches"`
	Streams []streamReport  `json:"streams"`
}

type failuresReport struct {
	Count int       `json:"count"`
	First []failure `json:"first"`
}

type clientsReport struct {
	Kind       kind           `json:"kind"`
	Protocol   protocol       `json:"protocol"`
	Requests   int            `json:"requests"`
	Failed     failuresReport `json:"failed"`
	LongestGap float64        `json:"longestGap"`
	P50        float64        `json:"p50"`
	P99        float64        `json:"p99"`
}

type watchReport struct {
	Kind     kind           `json:"kind"`
	Protocol protocol       `json:"protocol"`
	Told     int            `json:"told"`
	Lost     namesReport    `json:"lost"`
	Repeated namesReport    `json:"repeated"`
	Streams  int            `json:"streams"`
	Expired  int            `json:"expired"`
	Refused  failuresReport `json:"refused"`
	Cut      failuresReport `json:"cut"`
	// LongestWait is the longest time from the answer to a change until it was told.
	LongestWait float64 `json:"longestWait"`
}

type namesReport struct {
	Count int      `json:"count"`
	First []string `json:"first"`
}

type streamReport struct {
	Kind    string         `json:"kind"`
	Opened  int            `json:"opened"`
	Refused failuresReport `json:"refused"`
	Ended   failuresReport `json:"ended"`
	Lives   []life         `json:"lives"`
}

func (t *tally) report(kind kind, protocol protocol) clientsReport {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	slices.Sort(t.took)
	return clientsReport{
		Kind: kind, Protocol: protocol, Requests: t.requests, Failed: t.failures.report(), LongestGap: t.gap.Seconds(),
		P50: quantile(t.took, 0.5), P99: quantile(t.took, 0.99),
	}
}

func (w *watcher) report(changes *changes) watchReport {
	lost, wait := changes.compare(w.told)
	return watchReport{
		Kind: w.kind, Protocol: w.protocol, Told: len(w.told.known), Lost: names(lost), Repeated: names(w.told.repeated),
		Streams: w.streams, Expired: w.expired, Refused: w.refused.report(), Cut: w.cuts.report(),
		LongestWait: wait.Seconds(),
	}
}

func (s *stream) report() streamReport {
	return streamReport{
		Kind: s.kind, Opened: s.opened, Refused: s.refused.report(), Ended: s.ends.report(),
		Lives: append([]life{}, s.lives...),
	}
}

func names(all []string) namesReport {
	return namesReport{len(all), append([]string{}, all[:min(most, len(all))]...)}
}
