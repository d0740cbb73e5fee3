package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// contents are our values in the topic up to a record. They are read with what is not committed, and the markers of
// transactions say what is: a reader of what is committed waits behind the first open transaction of anybody, and whoever
// has it may be gone. A marker outlives the records of its transaction (Kafka's LogCleaner, CleanedTransactionMetadata).
type contents struct {
	cfg      Config
	last, at int64                            // offsets: of that record, and how far it is read
	record   *kgo.Record                      // at last, nil before it is read
	marker   *kgo.Record                      // that ends its transaction, likewise
	latest   map[string]*kgo.Record           // that are committed, tombstones too
	open     map[int64]map[string]*kgo.Record // of transactions that are not over, by producer
}

// read returns our latest values up to the record at offset last, which must exist, once they are as they should be.
func (cfg Config) read(ctx context.Context, client *kgo.Client, last int64, done func(*contents) bool) (map[string][]byte, error) {
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{cfg.Topic: {0: kgo.NewOffset().AtStart()}})
	c := &contents{cfg: cfg, last: last, at: -1, latest: map[string]*kgo.Record{}, open: map[int64]map[string]*kgo.Record{}}
	for !done(c) {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read checkpoints of topic %q up to offset %d, at %d: %w", cfg.Topic, last, c.at, err)
		}
		fetches.EachRecord(c.add)
		switch {
		case c.at >= last && c.record == nil:
			return nil, fmt.Errorf("read checkpoints of topic %q: the record at offset %d is not there", cfg.Topic, last)
		case c.marker != nil && !committing(c.marker):
			return nil, fmt.Errorf("read checkpoints of topic %q: the record at offset %d was aborted", cfg.Topic, last)
		}
	}
	values := map[string][]byte{}
	for key, r := range c.latest {
		if r.Value != nil {
			values[key] = r.Value
		}
	}
	return values, nil
}

// complete reports whether all is read.
func (c *contents) complete() bool { return c.at >= c.last }

// settled reports whether all is read, and the transaction of the last record over.
func (c *contents) settled() bool { return c.marker != nil }

// add takes the next record.
func (c *contents) add(r *kgo.Record) {
	c.at = r.Offset
	switch {
	case c.at == c.last:
		c.record = r
	case c.at > c.last: // only the marker counts, what else there is may be the first half of a transaction
		if c.marker == nil && r.Attrs.IsControl() && c.record != nil && r.ProducerID == c.record.ProducerID {
			c.marker = r
			c.end(r) // also of a transaction before it that hung: see endHanging
		}
		return
	}
	switch {
	case r.Attrs.IsControl():
		c.end(r)
	case !c.cfg.ours(string(r.Key)):
	case r.Attrs.IsTransactional():
		if c.open[r.ProducerID] == nil {
			c.open[r.ProducerID] = map[string]*kgo.Record{}
		}
		c.open[r.ProducerID][string(r.Key)] = slim(r)
	default:
		c.commit(slim(r))
	}
}

// end takes a marker: it ends all that its producer has open.
func (c *contents) end(marker *kgo.Record) {
	if committing(marker) {
		for _, committed := range c.open[marker.ProducerID] {
			c.commit(committed)
		}
	}
	delete(c.open, marker.ProducerID)
}

// slim returns a record that does not keep its whole batch.
func slim(r *kgo.Record) *kgo.Record {
	return &kgo.Record{Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Offset: r.Offset}
}

// commit takes a record that is committed. The later of two is that with the higher offset, whichever was committed first: so
// it is when the topic is compacted.
func (c *contents) commit(r *kgo.Record) {
	if before := c.latest[string(r.Key)]; before == nil || before.Offset < r.Offset {
		c.latest[string(r.Key)] = r
	}
}

// committing reports whether a marker commits its transaction, or aborts it: its key is a version and a type, of 16 bits
// each (Kafka's ControlRecordType).
func committing(marker *kgo.Record) bool {
	return len(marker.Key) >= 4 && binary.BigEndian.Uint16(marker.Key[2:]) == 1
}
