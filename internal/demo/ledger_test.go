package demo

import (
	"slices"
	"testing"
)

func TestProof(t *testing.T) {
	a1, a2, a3 := Event{"id-1", "a", 1}, Event{"id-2", "a", 2}, Event{"id-3", "a", 3}
	b1, b2 := Event{"id-4", "b", 1}, Event{"id-5", "b", 2}
	rolledBack := Event{"id-6", "a", 2}
	altered := Event{"id-2", "a", 7}
	committed := []Event{a1, a2, a3, b1, b2}
	for i, c := range []struct {
		name      string
		delivered []Event
		want      Proof
		line      string
	}{
		{
			"perfect, keys interleaved",
			[]Event{b1, a1, a2, b2, a3},
			Proof{},
			"5 committed, 5 delivered, 0 lost, 0 duplicated, 0 out of order",
		},
		{
			"lost in the middle of a key",
			[]Event{a1, a3, b1, b2},
			Proof{Lost: []Event{a2}},
			"5 committed, 4 delivered, 1 lost, 0 duplicated, 0 out of order",
		},
		{
			"nothing came", nil,
			Proof{Lost: committed},
			"5 committed, 0 delivered, 5 lost, 0 duplicated, 0 out of order",
		},
		{
			"duplicated at once and later",
			[]Event{a1, a1, a2, a3, b1, b2, a1},
			Proof{Duplicated: []Event{a1, a1}},
			"5 committed, 5 delivered, 0 lost, 2 duplicated, 0 out of order",
		},
		{
			"out of order",
			[]Event{a1, a3, a2, b1, b2},
			Proof{OutOfOrder: []Event{a2}},
			"5 committed, 5 delivered, 0 lost, 0 duplicated, 1 out of order",
		},
		{
			"a phantom does not disturb the order",
			[]Event{a1, rolledBack, a2, a3, b1, b2},
			Proof{Phantoms: []Event{rolledBack}},
			"5 committed, 5 delivered, 0 lost, 0 duplicated, 0 out of order, 1 never committed",
		},
		{
			"altered: that one never was, and the right one is lost",
			[]Event{a1, altered, a3, b1, b2},
			Proof{Lost: []Event{a2}, Phantoms: []Event{altered}},
			"5 committed, 4 delivered, 1 lost, 0 duplicated, 0 out of order, 1 never committed",
		},
		{
			"lost one, duplicated another",
			[]Event{a1, a2, a3, b1, b1},
			Proof{Lost: []Event{b2}, Duplicated: []Event{b1}},
			"5 committed, 4 delivered, 1 lost, 1 duplicated, 0 out of order",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLedger()
			for _, e := range c.delivered { // the consumer can be faster than the writer's answer
				l.Delivered(e)
			}
			l.Committed(committed[:2])
			l.Committed(committed[2:])
			got := l.Proof()
			for _, kind := range []struct {
				name      string
				got, want []Event
			}{
				{"lost", got.Lost, c.want.Lost},
				{"duplicated", got.Duplicated, c.want.Duplicated},
				{"out of order", got.OutOfOrder, c.want.OutOfOrder},
				{"phantoms", got.Phantoms, c.want.Phantoms},
			} {
				if !slices.Equal(kind.got, kind.want) {
					t.Errorf("%s: got %v, want %v", kind.name, kind.got, kind.want)
				}
			}
			if got.String() != c.line {
				t.Errorf("got %q, want %q", got, c.line)
			}
			if perfect := i == 0; got.Holds() != perfect {
				t.Errorf("holds: got %v, want %v", got.Holds(), perfect)
			}
		})
	}
}

func TestLedgerCounts(t *testing.T) {
	l := NewLedger()
	e := Event{"id-1", "a", 1}
	l.Committed([]Event{e, {"id-2", "a", 2}})
	l.Delivered(e)
	l.Delivered(e)
	if committed, delivered := l.Counts(); committed != 2 || delivered != 1 {
		t.Errorf("got %d committed, %d delivered, want 2 and 1", committed, delivered)
	}
}
