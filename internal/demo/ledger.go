package demo

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Ledger has what was committed, as the writers know it, and what was delivered, as the
// consumer saw it. It may be used by many goroutines.
type Ledger struct {
	mu        sync.Mutex // guards the following
	committed map[Event]struct{}
	arrived   map[Event]struct{}
	delivered []Event // in the order of their arrival, also what is delivered again
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{committed: map[Event]struct{}{}, arrived: map[Event]struct{}{}}
}

// Committed notes what a transaction has committed.
func (l *Ledger) Committed(events []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		l.committed[e] = struct{}{}
	}
}

// Delivered notes what the consumer got. Two events of one order must be noted in the order
// in which they arrived.
func (l *Ledger) Delivered(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered = append(l.delivered, e)
	l.arrived[e] = struct{}{}
}

// Counts returns how many different events were committed and delivered so far.
func (l *Ledger) Counts() (committed, delivered int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.committed), len(l.arrived)
}

// Proof is what a Ledger says in the end.
type Proof struct {
	Committed  int     // events
	Delivered  int     // of these, each counted once
	Lost       []Event // committed, never delivered
	Duplicated []Event // delivered again; once for each time
	OutOfOrder []Event // delivered behind a later version of their order
	Phantoms   []Event // delivered, but never committed: rolled back, or altered on the way
}

// Proof compares what was delivered with what was committed.
func (l *Ledger) Proof() Proof {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := Proof{Committed: len(l.committed)}
	seen := make(map[Event]struct{}, len(l.committed))
	latest := make(map[string]int64)
	for _, e := range l.delivered {
		if _, ok := l.committed[e]; !ok {
			p.Phantoms = append(p.Phantoms, e)
			continue
		}
		if _, again := seen[e]; again {
			p.Duplicated = append(p.Duplicated, e)
			continue
		}
		seen[e] = struct{}{}
		if e.Version < latest[e.Order] {
			p.OutOfOrder = append(p.OutOfOrder, e)
			continue
		}
		latest[e.Order] = e.Version
	}
	p.Delivered = len(seen)
	for e := range maps.Keys(l.committed) {
		if _, ok := seen[e]; !ok {
			p.Lost = append(p.Lost, e)
		}
	}
	slices.SortFunc(p.Lost, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Version, b.Version))
	})
	return p
}

// Holds tells whether the delivery was perfect.
func (p Proof) Holds() bool {
	return p.Delivered == p.Committed && len(p.Lost)+len(p.Duplicated)+len(p.OutOfOrder)+len(p.Phantoms) == 0
}

func (p Proof) String() string {
	s := fmt.Sprintf("%d committed, %d delivered, %d lost, %d duplicated, %d out of order",
		p.Committed, p.Delivered, len(p.Lost), len(p.Duplicated), len(p.OutOfOrder))
	if len(p.Phantoms) > 0 {
		s += fmt.Sprintf(", %d never committed", len(p.Phantoms))
	}
	return s
}
