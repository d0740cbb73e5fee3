package reconcile

import (
	"errors"
	"io"

	"github.com/walferry/walferry/internal/spill"
)

// Kind says what is wrong with an event.
type Kind uint8

// The kinds.
const (
	Missing    Kind = iota + 1 // a row without a record, where the record would be held
	Duplicated                 // a record too many of one row
	Different                  // a record that is not what its row would become
	OutOfOrder                 // a first copy behind a record of its key that it should precede
)

// String returns the kind's name in reports.
func (k Kind) String() string {
	return [...]string{Missing: "missing", Duplicated: "duplicated", Different: "different", OutOfOrder: "out_of_order"}[k]
}

// comparison compares rows with records: all of either may be added in any order, then finish judges. It holds
// memory bytes and writes what is more to files in dir. Nothing of it knows Postgres or Kafka.
//
// Rows and records are of one event if topic and id are the same: consumers have nothing else to tell them by. What
// has no row is not judged.
type comparison struct {
	sources []source
	topics  []*topic
	all     *spill.Sorter // rows and records, those of an event together
	late    *spill.Sorter // suspects
	found   *spill.Sorter // defects, in the order of the rows
	buffer  []byte

	youngest uint64 // transaction ID of the youngest row that is missing
}

// source is what is known of a table.
type source struct {
	slack   uint64 // ranks that differ by no more say nothing; 0: they are not times of commits
	doubted bool   // transaction IDs of its rows do not say when they were written
}

func newComparison(dir string, memory int) *comparison {
	return &comparison{
		all:   spill.New(dir, entryWidth, memory/2),
		late:  spill.New(dir, suspectWidth, memory/8*3),
		found: spill.New(dir, defectWidth, memory/8),
	}
}

// Close removes the files.
func (c *comparison) Close() error {
	return errors.Join(c.all.Close(), c.late.Close(), c.found.Close())
}

// row adds a row of the table, whose topic must be in topics.
func (c *comparison) row(r *row) error {
	c.topics[r.topic].counts.Rows++
	c.buffer = r.append(c.buffer[:0])
	return c.all.Add(c.buffer)
}

// record adds a record of a topic.
func (c *comparison) record(r *record) error {
	c.topics[r.topic].counts.Records++
	c.buffer = r.append(c.buffer[:0])
	return c.all.Add(c.buffer)
}

// finish judges everything, with snapshots of the past from the oldest on.
func (c *comparison) finish(history []snapshot, step func() error) error {
	for _, t := range c.topics {
		t.whole = never
		for i := range t.partitions {
			t.partitions[i].first, t.partitions[i].firstXID = -1, never
		}
	}
	if err := c.pair(step); err != nil {
		return err
	}
	for _, t := range c.topics {
		t.judge(history)
	}
	return c.judge(step)
}

// each visits the entries of a Sorter in their order.
func each(s *spill.Sorter, step func() error, visit func([]byte) error) error {
	it, err := s.Sorted()
	if err != nil {
		return err
	}
	for {
		b, err := it.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = step()
		}
		if err == nil {
			err = visit(b)
		}
		if err != nil {
			return err
		}
	}
}

// pair brings rows and records of one event together.
func (c *comparison) pair(step func() error) error {
	e := &event{comparison: c}
	err := each(c.all, step, func(b []byte) error {
		r, k, isRow := readEntry(b)
		id := k.id
		if isRow {
			id = r.id
		}
		if id != e.id {
			if err := e.end(); err != nil {
				return err
			}
			*e = event{comparison: c, id: id, rows: e.rows[:0]}
		}
		if isRow {
			return e.row(r)
		}
		return e.record(&k)
	})
	if err != nil {
		return err
	}
	return e.end()
}

// event is the rows and records of one topic and id.
type event struct {
	*comparison
	id        ident
	rows      []twin // mostly one
	differing int    // records that are no copy of a row
	met       bool   // first is known
	first     record // that is no replay's
	places    int    // partitions that have a copy
	copy      suspect
}

// twin is one of the rows that share an id.
type twin struct {
	row
	taken    bool // a record is its first copy
	replayed bool // it is in the topic because of a replay
}

// maxTwins is how many rows of one id and topic are compared. Ids are to be unique; what is beyond is unknown.
const maxTwins = 1000

func (e *event) row(r row) error {
	if len(e.rows) == maxTwins {
		e.topics[r.topic].counts.Unknown++
		return nil
	}
	e.rows = append(e.rows, twin{row: r})
	return nil
}

func (e *event) record(k *record) error {
	counts := &e.topics[k.topic].counts
	if k.replayed {
		counts.Replayed++
	}
	if len(e.rows) == 0 {
		counts.Pruned++
		return nil
	}
	t, same := e.match(k)
	switch {
	case !same:
		e.differing++
		if err := e.report(Different, t, k); err != nil {
			return err
		}
	case k.replayed:
		t.replayed = true
	case t.taken:
		if err := e.report(Duplicated, t, k); err != nil {
			return err
		}
	default:
		t.taken = true
		e.holds(t, k)
	}
	if !e.met && !k.replayed {
		e.met, e.first = true, *k
	}
	e.place(t, k)
	return nil
}

// match returns the row that a record is a copy of, one that has none yet if there is one, or any with false.
func (e *event) match(k *record) (t *twin, same bool) {
	for i := range e.rows {
		r := &e.rows[i]
		if r.content != k.content {
			continue
		}
		if t == nil || t.taken && !r.taken {
			t = r
		}
	}
	if t != nil {
		return t, true
	}
	for i := range e.rows {
		if t = &e.rows[i]; !t.taken {
			break
		}
	}
	return t, false
}

// holds notes that a partition has the record of a row: see behind. It is not there any more if it was deleted while it
// was read, and others behind it unread.
func (e *event) holds(t *twin, k *record) {
	tp := e.topics[k.topic]
	p := &tp.partitions[k.partition]
	if len(e.rows) > 1 || k.repaired || k.offset < p.start || e.sources[t.source].doubted {
		return
	}
	if p.first < 0 || k.offset < p.first {
		p.first, p.firstXID = k.offset, t.xid
	}
	if k.whole {
		tp.whole = min(tp.whole, t.xid)
	}
}

// place notes where the first copy is.
func (e *event) place(t *twin, k *record) {
	if k.replayed || k.repaired || e.places > 0 && e.copy.row.partition == k.partition {
		return
	}
	e.places++
	e.copy = suspect{row: t.row, offset: k.offset, at: k.at, placed: k.positioned}
	e.copy.row.partition, e.copy.row.key = k.partition, k.key
}

func (e *event) report(kind Kind, t *twin, k *record) error {
	f := defect{kind: kind, topic: k.topic, partition: k.partition, offset: k.offset, otherOffset: -1}
	if e.met {
		f.otherPartition, f.otherOffset = e.first.partition, e.first.offset
	}
	return e.defect(&f, &t.row)
}

// end judges the rows of which there is no copy, of which one for each record that differs is not missing, but changed; and has
// the place of the first copy judged. Which that is nobody can say of rows that share an id, and of an event that a bridge
// repeated when its topic had been given more partitions.
func (e *event) end() error {
	switch {
	case e.places == 1 && len(e.rows) == 1:
		if err := e.suspect(&e.copy); err != nil {
			return err
		}
	case e.places > 0:
		e.topics[e.copy.row.topic].counts.OrderUnknown += int64(len(e.rows))
	}
	for i := range e.rows {
		t := &e.rows[i]
		switch {
		case t.taken, t.replayed:
		case e.differing > 0:
			e.differing--
		case t.dead:
			e.topics[t.topic].counts.Unpublishable++
		default:
			if err := e.suspect(&suspect{row: t.row, missing: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) suspect(s *suspect) error {
	c.buffer = s.append(c.buffer[:0])
	return c.late.Add(c.buffer)
}

func (c *comparison) defect(f *defect, r *row) error {
	*c.topics[f.topic].counts.of(f.kind)++
	f.ordinal, f.id, f.content = r.ordinal, r.id, r.content
	c.buffer = f.append(c.buffer[:0])
	return c.found.Add(c.buffer)
}

// judge judges suspects.
func (c *comparison) judge(step func() error) error {
	var l lane
	return each(c.late, step, func(b []byte) error {
		s := readSuspect(b)
		t, source, xid := c.topics[s.row.topic], c.sources[s.row.source], s.row.xid
		if source.doubted {
			xid = 0 // before everything
			if source.slack > 0 {
				s.row.rank = 0 // the time is that of its transaction ID
			}
		}
		certain := t.holds(s.row.partition, xid)
		switch {
		case s.missing && certain:
			c.youngest = max(c.youngest, s.row.xid)
			return c.defect(&defect{kind: Missing, topic: s.row.topic, partition: s.row.partition, offset: -1, otherOffset: -1}, &s.row)
		case s.missing:
			t.counts.Unknown++
			return nil
		}
		l.enter(&s)
		before, known := l.take(&s, source.slack)
		switch {
		case !known, before >= 0 && !certain: // then its first copy may have been thrown away, and this is a repetition
			t.counts.OrderUnknown++
		case before >= 0:
			return c.defect(&defect{
				kind: OutOfOrder, topic: s.row.topic, partition: s.row.partition, offset: s.offset,
				otherPartition: s.row.partition, otherOffset: before,
			}, &s.row)
		}
		return nil
	})
}
