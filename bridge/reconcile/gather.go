package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// readDead reads which rows are dead letters of this slot.
func (w *work) readDead(ctx context.Context) error {
	name := w.o.Kafka.DeadLetterTopic
	n, err := w.reader.Partitions(ctx, name)
	if err != nil || n == 0 {
		return err
	}
	return w.reader.Read(ctx, []string{name}, time.Time{}, func(k *kgo.Record) error {
		h := headers(k)
		if string(h["walferry-database"]) == w.o.Database.Name && string(h["walferry-slot"]) == w.o.Database.Slot {
			w.dead[w.deadID(string(h["walferry-where"]), h["walferry-id"])] = true
		}
		return nil
	}, func(int64, int64) {})
}

func headers(k *kgo.Record) map[string][]byte {
	h := make(map[string][]byte, len(k.Headers))
	for _, header := range k.Headers {
		h[header.Key] = header.Value
	}
	return h
}

// deadID identifies a row by table and id.
func (w *work) deadID(where string, id []byte) ident {
	return w.hash.ident(uint32(len(where)), append([]byte(where), id...))
}

// readTables adds the rows.
func (w *work) readTables(ctx context.Context) error {
	total := int64(0)
	for i := range w.tables {
		n, err := w.snapshot.Count(ctx, w.query(i))
		if err != nil {
			return err
		}
		total += n
	}
	report, done := w.progress(StageTables), int64(0)
	eldest := slices.Repeat([]uint64{never}, len(w.tables))
	err := w.eachRow(ctx, func(ordinal uint64, t *table.Row, k *kgo.Record) error {
		done++
		report(done, total)
		eldest[t.Event.Source] = min(eldest[t.Event.Source], t.XID)
		r, err := w.row(ctx, ordinal, t, k)
		if err != nil {
			return err
		}
		return w.comparison.row(r)
	})
	report(total, total)
	for i := 0; err == nil && i < len(w.tables); i++ {
		err = w.doubt(ctx, i, eldest[i])
	}
	if !w.twice() {
		w.closeSnapshot(ctx)
	}
	return err
}

// doubt finds out whether the transaction IDs of a table's rows say when they were written. Of the rows eldest is the oldest.
func (w *work) doubt(ctx context.Context, source int, eldest uint64) error {
	updates, reset, err := w.snapshot.Updates(ctx, w.query(source)) // behind the rows: statistics may be late by seconds
	if err != nil {
		return err
	}
	s, name := &w.comparison.sources[source], where(w.tables[source])
	now, _ := parseSnapshot(w.snapshot.XIDs)
	const so = "and transaction IDs do not say how old they are. So none of them is called missing where anything has expired from a topic"
	switch {
	case updates > 0:
		s.doubted = true
		w.hints = append(w.hints, fmt.Sprintf("rows of table %s were updated (%d times, says pg_stat_all_tables.n_tup_upd), %s: rows of an outbox must not be updated. "+
			"Once that has stopped, and those rows are deleted: %s", name, updates, so, reset))
	case wrapped(eldest, now.xmax):
		s.doubted = true
		w.hints = append(w.hints, fmt.Sprintf("rows of table %s may be more than 4,294,967,296 transactions old, %s: delete old rows", name, so))
	}
	return nil
}

func (w *work) query(source int) table.Query {
	return table.Query{Table: w.tables[source], Source: source, OrderColumn: w.o.Database.Outbox[source].OrderColumn}
}

// eachRow visits every row that can be published, table by table, each in its order, with the record that it would become. The
// others are counted.
func (w *work) eachRow(ctx context.Context, visit func(ordinal uint64, t *table.Row, k *kgo.Record) error) error {
	w.outside, w.rows = Counts{}, nil
	ordinal := uint64(0)
	for i := range w.tables {
		q, read := w.query(i), int64(0)
		refused := func() {
			read++
			w.outside.Rows++
			w.outside.Unpublishable++
		}
		q.Broken = func(*table.RowError) error {
			refused()
			return nil
		}
		err := w.snapshot.Read(ctx, q, func(t *table.Row) error {
			k, err := w.preview.Record(&t.Event)
			if _, ok := errors.AsType[*sink.PoisonError](err); ok {
				refused()
				return nil
			}
			if err != nil {
				return err
			}
			read++
			ordinal++
			return visit(ordinal, t, k)
		})
		if err != nil {
			return err
		}
		w.rows = append(w.rows, TableResult{Table: where(w.tables[i]), Order: w.snapshot.Order(q).String(), Rows: read})
	}
	return nil
}

func where(t decode.Table) string { return t.Schema + "." + t.Name }

// row makes what is kept of a row.
func (w *work) row(ctx context.Context, ordinal uint64, t *table.Row, k *kgo.Record) (*row, error) {
	number, err := w.number(ctx, k.Topic)
	if err != nil {
		return nil, err
	}
	r := &row{
		id: w.hash.ident(number, t.Event.ID), topic: number, ordinal: ordinal,
		content: w.content(k), key: w.hash.bytes(k.Key), xid: t.XID, source: uint16(t.Event.Source),
	}
	if n := len(w.comparison.topics[number].partitions); n > 0 {
		r.partition = int32(w.partition(k, n))
	}
	switch w.snapshot.Order(w.query(t.Event.Source)) {
	case table.ByColumn:
		r.rank = ordinal
	case table.ByCommit:
		if !t.Committed.IsZero() {
			r.rank = uint64(t.Committed.UnixMicro())
		}
	}
	r.dead = len(w.dead) > 0 && w.dead[w.deadID(where(w.tables[t.Event.Source]), t.Event.ID)]
	return r, nil
}

// commitSlack is by how many microseconds two commits must differ for their times to say which came first: a transaction
// takes the time before it takes its place in the WAL.
const commitSlack = 1_000_000

// number returns the number of a topic, and looks it up if it is a new one.
func (w *work) number(ctx context.Context, name string) (uint32, error) {
	if n, ok := w.numbers[name]; ok {
		return n, nil
	}
	partitions, err := w.reader.Partitions(ctx, name)
	if err != nil {
		return 0, err
	}
	t := &topic{name: name, partitions: make([]partition, partitions)}
	if partitions > 0 {
		var known bool
		if t.compacted, known, err = w.reader.Compacted(ctx, name); err != nil {
			return 0, err
		}
		if !known {
			w.hints = append(w.hints, fmt.Sprintf("cleanup.policy of topic %s cannot be read, so no row is called missing there: grant the client DESCRIBE_CONFIGS on it", name))
		}
	}
	n := uint32(len(w.comparison.topics))
	w.comparison.topics, w.numbers[name] = append(w.comparison.topics, t), n
	return n, nil
}

// content hashes what a record carries of its event beside the id.
func (w *work) content(k *kgo.Record) uint64 {
	w.hash.begin()
	w.hash.add(k.Key)
	w.hash.add(k.Value)
	for _, h := range k.Headers {
		if h.Key != "" && slices.Contains(w.types, h.Key) {
			w.hash.add([]byte(h.Key))
			w.hash.add(h.Value)
		}
	}
	return w.hash.sum()
}

// readTopics adds the records of the topics that rows go to.
func (w *work) readTopics(ctx context.Context) error {
	var names []string
	for _, t := range w.comparison.topics {
		if len(t.partitions) > 0 {
			names = append(names, t.name)
		}
	}
	if err := w.reader.Read(ctx, names, time.Time{}, w.record, w.progress(StageTopics)); err != nil {
		return err
	}
	start, err := w.reader.Starts(ctx, names) // now: what was deleted meanwhile may not have been visited
	if err != nil {
		return err
	}
	for name, starts := range start {
		t := w.comparison.topics[w.numbers[name]]
		if len(starts) != len(t.partitions) {
			return morePartitions(name)
		}
		for p, at := range starts {
			t.partitions[p].start = at
		}
	}
	return w.absent(ctx)
}

// absent makes sure that topics which did not exist still do not: one broker that has not heard of a topic says so too.
func (w *work) absent(ctx context.Context) error {
	for _, t := range w.comparison.topics {
		if len(t.partitions) > 0 {
			continue
		}
		n, err := w.reader.Partitions(ctx, t.name)
		if err != nil {
			return err
		}
		if n > 0 {
			return replication.Refuse("run it again", "topic %q exists, and did not when the tables were read", t.name)
		}
	}
	return nil
}

// record adds a record, or counts one that is none of ours.
func (w *work) record(k *kgo.Record) error {
	number := w.numbers[k.Topic]
	t := w.comparison.topics[number]
	if int(k.Partition) >= len(t.partitions) {
		return morePartitions(k.Topic)
	}
	r := record{topic: number, partition: k.Partition, offset: k.Offset}
	ours := false
	for _, h := range k.Headers {
		switch h.Key {
		case idHeader:
			if !ours {
				r.id, ours = w.hash.ident(number, h.Value), true
			}
		case replayHeader:
			r.replayed = true
		case sourceHeader:
			r.repaired = string(h.Value) == bridge.SourceTable
		case w.o.Kafka.PositionHeader:
			if p, err := decode.ParsePosition(string(h.Value)); err == nil {
				r.at, r.positioned = position{w.hash.bytes([]byte(p.SystemID)), p.Timeline, uint64(p.CommitLSN), p.Index}, true
			}
		}
	}
	if !ours {
		t.counts.Foreign++
		return nil
	}
	r.content, r.key, r.whole = w.content(k), w.hash.bytes(k.Key), w.whole(k, len(t.partitions))
	return w.comparison.record(&r)
}

// whole reports whether a record's key belongs to its partition if there are n, and to others if there are fewer.
func (w *work) whole(k *kgo.Record, n int) bool {
	for fewer := int(k.Partition) + 1; fewer < n; fewer++ {
		if w.partition(k, fewer) == int(k.Partition) {
			return false
		}
	}
	return w.partition(k, n) == int(k.Partition)
}
