package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"

	"github.com/twmb/franz-go/pkg/kgo"
)

// contents are our values in the topic up to a record. They are read with what is not committed, and the markers of
// transactions say what is: a reader of what is committed waits behind the first open transaction of anybody, and whoever
// has it may be gone. A marker outlives the records of its transaction (Kafka's LogCleaner, CleanedTransactionMetadata).
type contents struct {
	cfg      Config
	last, at int64                       // offsets: of that record, and how far it is read
	record   *kgo.Record                 // at last, nil before it is read
	marker   *kgo.Record                 // that ends its transaction, likewise
	values   map[string][]byte           // tombstones are nil
	open     map[int64]map[string][]byte // of transactions that are not over, by producer
}

// read returns our latest values up to the record at offset last, which must exist, once they are as they should be.
func (cfg Config) read(ctx context.Context, client *kgo.Client, last int64, done func(*contents) bool) (map[string][]byte, error) {
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{cfg.Topic: {0: kgo.NewOffset().AtStart()}})
	c := &contents{cfg: cfg, last: last, at: -1, values: map[string][]byte{}, open: map[int64]map[string][]byte{}}
	for !done(c) {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read checkpoints of topic %q up to offset %d, at %d: %w", cfg.Topic, last, c.at, err)
		}
		fetches.EachRecord(c.add)
		if c.at >= last && c.record == nil || c.marker != nil && !committing(c.marker) {
			return nil, fmt.Errorf("read checkpoints of topic %q: the record at offset %d is not there", cfg.Topic, last)
		}
	}
	maps.DeleteFunc(c.values, func(_ string, value []byte) bool { return value == nil })
	return c.values, nil
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
		}
		return
	}
	switch {
	case r.Attrs.IsControl():
		if committing(r) {
			maps.Copy(c.values, c.open[r.ProducerID])
		}
		delete(c.open, r.ProducerID)
	case !c.cfg.ours(string(r.Key)):
	case r.Attrs.IsTransactional():
		if c.open[r.ProducerID] == nil {
			c.open[r.ProducerID] = map[string][]byte{}
		}
		c.open[r.ProducerID][string(r.Key)] = bytes.Clone(r.Value) // not to keep the whole batch
	default:
		c.values[string(r.Key)] = bytes.Clone(r.Value)
	}
}

// committing reports whether a marker commits its transaction, or aborts it: its key is a version and a type, of 16 bits
// each (Kafka's ControlRecordType).
func committing(marker *kgo.Record) bool {
	return len(marker.Key) >= 4 && binary.BigEndian.Uint16(marker.Key[2:]) == 1
}
