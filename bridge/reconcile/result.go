package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Result is what a comparison has found.
type Result struct {
	Database string    `json:"database"`
	Delivery string    `json:"delivery"`
	Time     time.Time `json:"time"` // of the snapshot of the table, by our clock
	LSN      string    `json:"lsn"`  // of the snapshot: what commits before is compared
	// Agree is false if there are defects that delivery promises not to be: at least once may duplicate.
	Agree   bool          `json:"agree"`
	Seconds float64       `json:"seconds"` // that it took
	Total   Counts        `json:"total"`
	Topics  []TopicResult `json:"topics"`
	Tables  []TableResult `json:"tables"`
	Hints   []string      `json:"hints,omitempty"` // what to know or to do next
}

// TopicResult is of one topic that rows go to.
type TopicResult struct {
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions"` // 0: it does not exist
	Compacted  bool   `json:"compacted"`
	Counts
}

// TableResult is of one outbox table.
type TableResult struct {
	Table string `json:"table"`
	Order string `json:"order"` // of its rows, and what that is worth
	Rows  int64  `json:"rows"`
}

// Counts are of rows, unless they say that they are of records.
type Counts struct {
	Rows    int64 `json:"rows"`    // of the table
	Records int64 `json:"records"` // that are held, without those that have no id

	Missing    int64 `json:"missing"`
	Duplicated int64 `json:"duplicated"` // records too many
	Different  int64 `json:"different"`  // records
	OutOfOrder int64 `json:"out_of_order"`

	// Unknown have no record, but it may have expired, or made way for a later one of its key. OrderUnknown are first copies
	// whose place cannot be judged.
	Unknown      int64 `json:"unknown"`
	OrderUnknown int64 `json:"order_unknown"`
	// Unpublishable can never have a record, or are dead letters.
	Unpublishable int64 `json:"unpublishable"`

	Pruned   int64 `json:"pruned"`   // records without a row: it was deleted or is newer than the snapshot, or they are of something else
	Replayed int64 `json:"replayed"` // records that a replay has published again
	Foreign  int64 `json:"foreign"`  // records without an id: they are not walferry's
	Repaired int64 `json:"repaired"` // of Missing
}

// of returns the count of a kind.
func (c *Counts) of(kind Kind) *int64 {
	return [...]*int64{Missing: &c.Missing, Duplicated: &c.Duplicated, Different: &c.Different, OutOfOrder: &c.OutOfOrder}[kind]
}

// add adds other to c.
func (c *Counts) add(other *Counts) {
	c.Rows += other.Rows
	c.Records += other.Records
	c.Missing += other.Missing
	c.Duplicated += other.Duplicated
	c.Different += other.Different
	c.OutOfOrder += other.OutOfOrder
	c.Unknown += other.Unknown
	c.OrderUnknown += other.OrderUnknown
	c.Unpublishable += other.Unpublishable
	c.Pruned += other.Pruned
	c.Replayed += other.Replayed
	c.Foreign += other.Foreign
	c.Repaired += other.Repaired
}

// defects returns how many there are that are no promise kept. At least once allows duplicates; what is repaired is
// a defect no more.
func (c *Counts) defects(exactlyOnce bool) int64 {
	n := c.Missing - c.Repaired + c.Different + c.OutOfOrder
	if exactlyOnce {
		n += c.Duplicated
	}
	return n
}

// result sums up.
func (w *work) result() *Result {
	r := &Result{
		Database: w.o.Database.Name, Delivery: "at_least_once", Time: w.taken.UTC().Truncate(time.Second), LSN: w.lsn.String(),
		Total: w.outside, Topics: []TopicResult{}, Tables: w.rows, Hints: w.hints,
	}
	if w.o.ExactlyOnce {
		r.Delivery = "exactly_once"
	}
	for _, t := range w.comparison.topics {
		r.Topics = append(r.Topics, TopicResult{t.name, len(t.partitions), t.compacted, t.counts})
		r.Total.add(&t.counts)
	}
	slices.SortFunc(r.Topics, func(a, b TopicResult) int { return cmp.Compare(a.Topic, b.Topic) })
	r.Agree = r.Total.defects(w.o.ExactlyOnce) == 0
	r.Hints = append(r.Hints, w.advice(&r.Total)...)
	r.Seconds = time.Since(w.began).Seconds()
	return r
}

// advice says what to do about what was found, and what it may mean.
func (w *work) advice(c *Counts) (hints []string) {
	say := func(n int64, format string, args ...any) {
		if n > 0 {
			hints = append(hints, fmt.Sprintf(format, args...))
		}
	}
	if c.Missing > 0 && len(w.history) > 0 && w.comparison.youngest < w.history[0].xmin {
		say(1, "all missing rows are older than what the checkpoint remembers: were they written before the slot was made? `walferry init` does not publish such rows unless it is asked to")
	}
	say(c.Missing-c.Repaired, "`walferry reconcile --repair` publishes what is missing, behind what is there and marked with a header walferry-source: table")
	say(c.Different, "a record that differs is of a row that was updated, of another event with the same id, or of a time when the configuration was another: --report names them")
	say(c.OutOfOrder, "events of one key lie behind events that were committed after them, as they do when brokers refuse a record that others overtake: consumers have read them so, and nothing here mends it")
	if !w.o.ExactlyOnce {
		say(c.Duplicated, "delivery at_least_once allows duplicates: consumers have to know the id")
	}
	say(c.Unknown, "%d rows have no record, but may have expired from their topics: they are neither missing nor repaired", c.Unknown)
	say(c.OrderUnknown, "the order of %d records cannot be judged: they have no position, or earlier copies may have expired", c.OrderUnknown)
	return hints
}
