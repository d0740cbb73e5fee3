package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/internal/spill"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/table"
)

// line is a defect in the report. It has neither payload nor key.
type line struct {
	Database  string `json:"database"`
	Kind      string `json:"kind"`
	ID        string `json:"id"`
	Table     string `json:"table"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"` // of a missing record the one that it would be in
	Offset    *int64 `json:"offset,omitempty"`
	// Of a duplicate where the first copy is, of a record out of order which one it should precede.
	OtherPartition *int32 `json:"other_partition,omitempty"`
	OtherOffset    *int64 `json:"other_offset,omitempty"`
	Repaired       bool   `json:"repaired,omitempty"`
}

// settle reads the rows once more, in the same snapshot, reports the defects of each and publishes what is missing.
func (w *work) settle(ctx context.Context) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	if !w.twice() || !w.found(Missing, Duplicated, Different, OutOfOrder) {
		return nil
	}
	var to *repair
	if w.o.Repair && w.found(Missing) && w.tooMany() == nil {
		if to, err = w.newRepair(ctx, fail); err != nil {
			return err
		}
		defer to.close()
	}
	found, err := newFound(w.comparison.found)
	if err != nil {
		return err
	}
	report, total := w.progress(StageSettle), int64(0)
	for _, t := range w.rows {
		total += t.Rows
	}
	err = w.eachRow(ctx, func(ordinal uint64, t *table.Row, k *kgo.Record) error {
		report(int64(ordinal), total)
		number, err := w.number(ctx, k.Topic)
		if err != nil {
			return err
		}
		defects, err := found.of(ordinal, twinKey{w.hash.ident(number, t.Event.ID), w.content(k)})
		for i := 0; err == nil && i < len(defects); i++ {
			err = w.mend(ctx, to, t, &defects[i])
		}
		return err
	})
	if err == nil {
		err = found.end()
	}
	if err == nil && to != nil {
		err = to.Flush(ctx)
	}
	report(total, total)
	return cmp.Or(context.Cause(ctx), err)
}

// tooMany refuses to publish more rows than are allowed.
func (w *work) tooMany() error {
	missing := int64(0)
	for _, t := range w.comparison.topics {
		missing += t.counts.Missing
	}
	if !w.o.Repair || missing <= w.o.MaxRepair {
		return nil
	}
	return replication.Refuse("look at --report first: where topics were copied without their first records or created anew, or outbox.topic was changed, "+
		"rows that consumers have had seem to be missing; to publish them all: raise --max-repair",
		"%d rows are missing, which is more than --max-repair %d: nothing was published", missing, w.o.MaxRepair)
}

// found reports whether there is a defect of one of these kinds.
func (w *work) found(kinds ...Kind) bool {
	for _, t := range w.comparison.topics {
		for _, kind := range kinds {
			if *t.counts.of(kind) > 0 {
				return true
			}
		}
	}
	return false
}

// mend reports a defect of a row, and publishes the row if it is missing.
func (w *work) mend(ctx context.Context, to *repair, t *table.Row, f *defect) error {
	counts := &w.comparison.topics[f.topic].counts
	l := line{
		Database: w.o.Database.Name, Kind: f.kind.String(), ID: string(t.Event.ID), Table: where(w.tables[t.Event.Source]),
		Topic: w.comparison.topics[f.topic].name, Partition: f.partition,
	}
	if f.offset >= 0 {
		l.Offset = &f.offset
	}
	if f.otherOffset >= 0 {
		l.OtherPartition, l.OtherOffset = &f.otherPartition, &f.otherOffset
	}
	if f.kind == Missing && to != nil {
		if err := to.publish(ctx, w.tables[t.Event.Source], t); err != nil {
			return err
		}
		l.Repaired = true
		counts.Repaired++ // if Flush succeeds
	}
	if w.o.Report == nil {
		return nil
	}
	text, err := json.Marshal(&l)
	if err == nil {
		_, err = w.o.Report.Write(append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// twinKey is what a row is known by when it is read again. Rows that share it would become the same record.
type twinKey struct {
	id      ident
	content uint64
}

// lookahead is how far rows may come from their ordinals when they are read again. Somebody who deletes rows meanwhile changes
// what those of one transaction are ordered by.
const lookahead = 10_000

// found is the defects, in the order of their rows.
type found struct {
	it      *spill.Iterator
	next    *defect // nil at the end
	pending map[twinKey][]defect
}

func newFound(s *spill.Sorter) (*found, error) {
	it, err := s.Sorted()
	if err != nil {
		return nil, err
	}
	f := &found{it: it, pending: map[twinKey][]defect{}}
	return f, f.advance()
}

func (f *found) advance() error {
	b, err := f.it.Next()
	f.next = nil
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		d := readDefect(b)
		f.next = &d
	}
	return err
}

// of returns the defects of the row that comes as the n-th.
func (f *found) of(n uint64, key twinKey) ([]defect, error) {
	for f.next != nil && f.next.ordinal <= n+lookahead {
		at := twinKey{f.next.id, f.next.content}
		f.pending[at] = append(f.pending[at], *f.next)
		if err := f.advance(); err != nil {
			return nil, err
		}
	}
	all := f.pending[key]
	if len(all) == 0 {
		return nil, nil
	}
	of := 1 // all of one row
	for of < len(all) && all[of].ordinal == all[0].ordinal {
		of++
	}
	if f.pending[key] = all[of:]; of == len(all) {
		delete(f.pending, key)
	}
	return all[:of], nil
}

// end makes sure that every defect has found its row.
func (f *found) end() error {
	if f.next != nil || len(f.pending) > 0 {
		return &replication.PreconditionError{
			Reason: "the rows came in another order when they were read again, so that not every defect could be looked up",
			Hint:   "run it again while fewer rows are deleted; what was repaired is not missing any more",
		}
	}
	return nil
}
