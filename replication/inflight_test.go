package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// model is Inflight written for the reader: it remembers everything and looks through
// all of it at every question.
type model struct {
	start, idle LSN
	txns        []*modelTxn
}

type modelTxn struct {
	committed   bool
	commit, end LSN
	done        []bool // by event, whose indexes are its ordinals times indexStep
	runs        []int  // that have ended: events before their ends
}

const indexStep = 3 // as if every third change were an event

func (t *modelTxn) finished() bool { return t.committed && !slices.Contains(t.done, false) }

func (m *model) flushed() LSN {
	flushed := max(m.start, m.idle)
	for _, t := range m.txns {
		if !t.finished() {
			return flushed
		}
		flushed = max(flushed, t.end)
	}
	return flushed
}

// endRun ends a run behind the last event, if there is one.
func (t *modelTxn) endRun() {
	if n := len(t.done); n > 0 && (len(t.runs) == 0 || t.runs[len(t.runs)-1] < n) {
		t.runs = append(t.runs, n)
	}
}

// progress counts the events of the finished runs at the head of the first unfinished transaction.
func (m *model) progress() Progress {
	p := Progress{Flushed: m.flushed()}
	for _, t := range m.txns {
		if t.finished() {
			continue
		}
		for _, n := range t.runs {
			if !slices.Contains(t.done[:n], false) {
				p.Commit, p.Index = t.commit, uint64(n)
			}
		}
		return p
	}
	return p
}

func (m *model) keepalive(walEnd LSN) {
	for _, t := range m.txns {
		if !t.finished() {
			return
		}
	}
	m.idle = max(m.idle, walEnd)
}

// event is one added, unacknowledged event in both implementations.
type event struct {
	done  func(error)
	model *modelTxn
	index int
}

// windowMax is the bound of the windows of these tests.
const windowMax = 1 << 14

// run plays a random history on both and compares after every step.
func runModel(seed uint64, steps int) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	lsn := LSN(rng.Uint64N(1 << 33))
	m := &model{start: lsn}
	f := NewInflight(lsn, windowMax, Hooks{Failed: func(error) {}})
	f.perRun = 1 + rng.IntN(4)
	var events []event
	failRate := rng.IntN(3) // one run in three has no failures
	for step := range steps {
		lsn += LSN(1 + rng.Uint64N(100))
		switch rng.IntN(7) {
		case 0:
			if !f.Open() {
				f.Begin(lsn, time.Time{})
				m.txns = append(m.txns, &modelTxn{commit: lsn})
			}
		case 1, 2:
			if f.Open() {
				t := m.txns[len(m.txns)-1]
				if begun := slices.Max(append(t.runs, 0)); len(t.done)-begun == f.perRun {
					t.endRun()
				}
				done, _ := f.Add(context.Background(), uint64(len(t.done))*indexStep)
				if rng.IntN(10) == 0 {
					f.Withdraw(uint64(len(t.done)) * indexStep)
					break
				}
				events = append(events, event{done, t, len(t.done)})
				t.done = append(t.done, false)
			}
		case 3:
			if f.Open() {
				if err := f.Commit(lsn); err != nil {
					return fmt.Errorf("step %d: %w", step, err)
				}
				t := m.txns[len(m.txns)-1]
				t.committed, t.end = true, lsn
			}
		case 4:
			if n := len(events); n > 0 {
				i := rng.IntN(n)
				e := events[i]
				events[i] = events[n-1]
				events = events[:n-1]
				if failRate > 0 && rng.IntN(200) == 0 {
					e.done(errors.New("failed"))
					break
				}
				e.done(nil)
				e.model.done[e.index] = true
			}
		case 5:
			// Now and then a keepalive that is older than what is known.
			walEnd := lsn - LSN(rng.Uint64N(2)*rng.Uint64N(50))
			f.Idle(walEnd)
			m.keepalive(walEnd)
		case 6:
			if f.EndRun(); f.Open() {
				m.txns[len(m.txns)-1].endRun()
			}
		}
		if got, want := f.Flushed(), m.flushed(); got != want {
			return fmt.Errorf("step %d: Flushed %s, the model says %s", step, got, want)
		}
		got := f.Progress()
		got.Index = (got.Index + indexStep - 1) / indexStep // events before that index
		if want := m.progress(); got != want {
			return fmt.Errorf("step %d: Progress %+v, the model says %+v", step, got, want)
		}
	}
	return nil
}

func TestInflightAgainstModel(t *testing.T) {
	const seeds, steps = 3000, 200
	for seed := range uint64(seeds) {
		if err := runModel(seed, steps); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d seeds of %d steps", seeds, steps)
}

// transaction adds a transaction of some events and returns what finishes them.
func transaction(t testing.TB, f *Inflight, end LSN, events int) (done []func(error)) {
	t.Helper()
	f.Begin(end, time.Time{})
	for i := range events {
		finish, err := f.Add(t.Context(), uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, finish)
	}
	if err := f.Commit(end); err != nil {
		t.Fatal(err)
	}
	return done
}

func TestInflightPublishesOnlyTheFinishedPrefix(t *testing.T) {
	f := NewInflight(100, windowMax, Hooks{})
	var done []func(error)
	for end := LSN(200); end <= 400; end += 100 {
		done = append(done, transaction(t, f, end, 1)...)
	}
	for _, step := range []struct {
		finish int
		want   LSN
	}{{2, 100}, {0, 200}, {1, 400}} {
		done[step.finish](nil)
		if got := f.Flushed(); got != step.want {
			t.Errorf("after transaction %d: Flushed %s, want %s", step.finish, got, step.want)
		}
	}
}

func TestInflightLatchesBehindAFailure(t *testing.T) {
	var failed error
	f := NewInflight(100, windowMax, Hooks{Failed: func(err error) { failed = err }})
	first, second := transaction(t, f, 200, 1), transaction(t, f, 300, 1)
	boom := errors.New("boom")
	first[0](boom)
	second[0](nil)
	f.Idle(400)
	if f.Flushed() != 100 {
		t.Errorf("Flushed passed a failed event: %s", f.Flushed())
	}
	if !errors.Is(failed, boom) {
		t.Errorf("the failure was reported as %v", failed)
	}
	if got := f.Pending(); got != 1 {
		t.Errorf("Pending %d, want the failed event", got)
	}
}

func TestInflightIdleOnlyWhenNothingIsPending(t *testing.T) {
	f := NewInflight(100, windowMax, Hooks{})
	f.Idle(150)
	if got := f.Flushed(); got != 150 {
		t.Errorf("idle: Flushed %s, want 0/96", got)
	}
	f.Idle(120)
	if got := f.Flushed(); got != 150 {
		t.Errorf("an older keepalive moved Flushed back to %s", got)
	}
	f.Begin(170, time.Time{})
	f.Idle(200)
	done, _ := f.Add(t.Context(), 0)
	f.Idle(200)
	if err := f.Commit(180); err != nil {
		t.Fatal(err)
	}
	f.Idle(200)
	if got := f.Flushed(); got != 150 {
		t.Errorf("a keepalive moved Flushed to %s past a pending transaction", got)
	}
	done(nil)
	if got := f.Flushed(); got != 180 {
		t.Errorf("Flushed %s, want exactly the commit's end LSN", got)
	}
}

func TestInflightEmptyTransactionsTakeNoRoomBehindAStuckOne(t *testing.T) {
	f := NewInflight(0, windowMax, Hooks{})
	stuck := transaction(t, f, 10, 1)
	const last = 1_000_000
	for end := LSN(11); end <= last; end++ {
		transaction(t, f, end, 0)
	}
	if got := f.size(); got != 1 {
		t.Errorf("%d runs in the window, want 1", got)
	}
	stuck[0](nil)
	if got := f.Flushed(); got != last {
		t.Errorf("Flushed %s, want the last empty transaction's end %s", got, LSN(last))
	}
}

// Behind a stuck event the window fills up to its bound, and no further.
func TestInflightAddWaitsWhileTheWindowIsFull(t *testing.T) {
	f := NewInflight(0, windowMax, Hooks{})
	stuck := transaction(t, f, 1, 1)
	for end := LSN(2); end <= windowMax; end++ {
		transaction(t, f, end, 1)[0](nil)
	}
	full, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	cancel(boom)
	f.Begin(windowMax+1, time.Time{})
	if _, err := f.Add(full, 0); !errors.Is(err, boom) {
		t.Fatalf("Add to a full window: %v, want the context's cause", err)
	}
	added := make(chan error)
	go func() {
		_, err := f.Add(t.Context(), 0)
		added <- err
	}()
	stuck[0](nil)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if got := f.Flushed(); got != windowMax {
		t.Errorf("Flushed %s, want %s", got, LSN(windowMax))
	}
}

func TestInflightRefusesRepeatedCommits(t *testing.T) {
	for _, end := range []LSN{100, 50} {
		f := NewInflight(100, windowMax, Hooks{})
		f.Begin(end, time.Time{})
		if err := f.Commit(end); err == nil {
			t.Errorf("a commit that ends at %s was taken behind 0/64", end)
		}
	}
}

func TestInflightPanics(t *testing.T) {
	for name, misuse := range map[string]func(f *Inflight){
		"more is done than added": func(f *Inflight) {
			done := transaction(t, f, 200, 1)
			done[0](nil)
			done[0](nil)
		},
		"Begin inside of a transaction": func(f *Inflight) {
			f.Begin(200, time.Time{})
			f.Begin(300, time.Time{})
		},
		"Add without a transaction":    func(f *Inflight) { _, _ = f.Add(t.Context(), 0) },
		"Commit without a transaction": func(f *Inflight) { _ = f.Commit(200) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			misuse(NewInflight(100, windowMax, Hooks{}))
		}()
	}
}

func TestInflightIsSafeForConcurrentDone(t *testing.T) {
	var finished int
	f := NewInflight(0, windowMax, Hooks{Finished: func(time.Time) { finished++ }})
	f.perRun = 2
	events := make(chan func(error), 1024)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := range events {
				done(nil)
			}
		})
	}
	const txns = 20_000
	for end := LSN(1); end <= txns; end++ {
		f.Begin(end, time.Time{})
		for i := range 1 + end%5 {
			done, _ := f.Add(t.Context(), uint64(i))
			events <- done
		}
		if err := f.Commit(end); err != nil {
			t.Fatal(err)
		}
	}
	close(events)
	wg.Wait()
	if got := f.Progress(); got != (Progress{Flushed: txns}) || f.Pending() != 0 || finished != txns {
		t.Errorf("%+v, pending %d, %d finished; want Flushed %s, 0, %d", got, f.Pending(), finished, LSN(txns), txns)
	}
}

func TestInflightDoesNotAllocate(t *testing.T) {
	f := NewInflight(0, windowMax, Hooks{})
	end := LSN(0)
	ctx := t.Context()
	allocs := testing.AllocsPerRun(10_000, func() {
		end++
		f.Begin(end, time.Time{})
		done, _ := f.Add(ctx, 0)
		if err := f.Commit(end); err != nil {
			t.Fatal(err)
		}
		done(nil)
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a transaction of one event", allocs)
	}
}

func BenchmarkInflight(b *testing.B) {
	f := NewInflight(0, windowMax, Hooks{})
	end := LSN(0)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		end++
		f.Begin(end, time.Time{})
		done, _ := f.Add(ctx, 0)
		_ = f.Commit(end)
		done(nil)
	}
}

func TestInflightAheadIsWhatThereWillBe(t *testing.T) {
	f := NewInflight(100, windowMax, Hooks{})
	at := func(when string, want Progress) {
		t.Helper()
		if got := f.Ahead(); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	at("at the start", Progress{Flushed: 100})
	f.Begin(200, time.Time{})
	at("without events", Progress{Flushed: 100})
	first, _ := f.Add(t.Context(), 0)
	at("with one", Progress{Flushed: 100, Commit: 200, Index: 1})
	second, _ := f.Add(t.Context(), 5)
	at("behind what was passed over", Progress{Flushed: 100, Commit: 200, Index: 6})
	_, _ = f.Add(t.Context(), 9)
	f.Withdraw(9)
	at("before what was taken back", Progress{Flushed: 100, Commit: 200, Index: 9})
	if err := f.Commit(210); err != nil {
		t.Fatal(err)
	}
	at("behind the commit", Progress{Flushed: 210})
	f.Begin(300, time.Time{})
	if err := f.Commit(310); err != nil {
		t.Fatal(err)
	}
	at("behind an empty transaction", Progress{Flushed: 310})
	if got := f.Flushed(); got != 100 {
		t.Errorf("%s is flushed before anything is done", got)
	}
	first(nil)
	second(nil)
	if got := f.Flushed(); got != 310 {
		t.Errorf("%s is flushed, want 310", got)
	}
	f.Idle(400)
	at("idle", Progress{Flushed: 400})
}
