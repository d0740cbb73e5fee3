package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walferry/walferry/internal/walsender"
)

// settleWithin is the promise of liveness: when the last fault is over, everything is
// delivered and confirmed within this much (fake) time.
const settleWithin = 60 * time.Second

// run runs a seed.
func (w *world) run() {
	go w.open()
	w.storm()
	w.calm()
	w.finish()
	w.pg.Close()
	w.kafka.Close()
}

// open starts the operators and waits until they have gone home.
func (w *world) open() {
	defer close(w.gone)
	var operators sync.WaitGroup
	for n := range w.current {
		operators.Go(func() { w.operate(n) })
	}
	operators.Wait()
}

// storm is the load with the faults in it.
func (w *world) storm() {
	r := w.random(streamFaults)
	kinds := swarm(r)
	steps := w.profile.transactions * 2 / 3 // at least, unless nearly all commit in groups
	strikes := map[int][]*fault{}
	for range w.profile.faults {
		if len(kinds) > 0 {
			at := r.IntN(steps)
			strikes[at] = append(strikes[at], pick(r, kinds...))
		}
	}
	for range w.profile.freezes {
		at := r.IntN(steps)
		strikes[at] = append(strikes[at], &freeze)
	}
	hugeAt := r.IntN(steps)
	if w.profile.huge > 0 && len(kinds) > 0 {
		strikes[hugeAt] = append(strikes[hugeAt], pick(r, kinds...))
	}
	for step := 0; w.history.committed() < w.profile.transactions; step++ {
		<-time.After(pause(w.load.r) * w.profile.pace)
		if step == hugeAt && w.profile.huge > 0 {
			w.struck(&huge)
			tx, t := w.load.transaction(w.profile.huge)
			w.history.commit([]walsender.Tx{tx}, []*txn{t})
		}
		w.history.commit(w.load.group())
		if step == hugeAt { // in the middle of it
			<-time.After(upTo(r, time.Second))
		}
		if w.load.r.IntN(8) == 0 {
			w.history.advance(w.load.r.IntN(4000))
		}
		for _, f := range strikes[step] {
			w.note("planned: " + f.name)
			f.plan(w, r, f)
		}
	}
}

// calm lets the last fault pass, and judges that everything arrives.
func (w *world) calm() {
	w.mu.Lock()
	w.freezeAt = nil
	w.mu.Unlock()
	w.healing.Wait()
	w.mu.Lock()
	clear(w.nextCut)
	w.lose, w.loseEnds = 0, 0
	for _, p := range w.processes {
		for wire := range p.live {
			wire.mu.Lock()
			wire.cutRead, wire.cutWrite = -1, -1
			wire.mu.Unlock()
		}
	}
	w.tracef("the last fault is over")
	w.mu.Unlock()
	w.settled("after the last fault")
	w.history.complete(w.pg.Confirmed())
}

// settled judges that everything is confirmed within the time that is promised.
func (w *world) settled(when string) {
	ctx, cancel := context.WithTimeout(context.Background(), settleWithin)
	defer cancel()
	if err := w.pg.WaitConfirmed(ctx, w.history.last()); err != nil {
		w.violate("liveness: %s %s, %v; %s", settleWithin, when, err, statuses(w.running()))
	}
}

// running returns the latest process of each operator.
func (w *world) running() []*process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.current), func(p *process) bool { return p == nil })
}

// statuses says what processes are at.
func statuses(processes []*process) string {
	var b strings.Builder
	for _, p := range processes {
		fmt.Fprintf(&b, "process %d: %+v; ", p.n, p.bridge.Status())
	}
	return b.String()
}

// finish stops the last processes, half of the time while they are at work.
func (w *world) finish() {
	w.history.advance(100)
	for range w.load.r.IntN(6) {
		w.history.commit(w.load.group())
		<-time.After(pause(w.load.r) / 20)
	}
	close(w.over)
	last := w.running()
	for _, p := range last {
		p.terminate()
	}
	select {
	case <-w.gone:
	case <-time.After(settleWithin):
		w.violate("not all have stopped %s after SIGTERM: %s", settleWithin, statuses(last))
	}
	w.mu.Lock()
	processes := slices.Clone(w.processes)
	w.mu.Unlock()
	for _, p := range processes {
		select {
		case <-p.ended:
		case <-time.After(settleWithin):
			w.violate("what is left of process %d has not ended: %+v", p.n, p.bridge.Status())
		}
	}
	w.history.complete(w.pg.Confirmed())
}

func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tracef("%s", what)
}
