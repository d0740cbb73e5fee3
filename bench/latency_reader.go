package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// latencyReader is the consumer of one block's topic.
type latencyReader struct {
	client *kgo.Client
	topic  string
	arrivals
}

// arrivals is when events have arrived. Its channels may be used by others; the rest belongs
// to the consumer until all is closed.
type arrivals struct {
	at   []time.Time   // by event; zero: not yet
	left int           // that have not arrived
	any  chan struct{} // closed with the first arrival
	all  chan struct{} // closed with the last one
}

func newArrivals(events int) arrivals {
	return arrivals{at: make([]time.Time, events), left: events, any: make(chan struct{}), all: make(chan struct{})}
}

// add takes an event down. It fails if there is no such event, or if it has arrived before.
func (a *arrivals) add(key []byte, at time.Time) error {
	n, err := strconv.Atoi(string(key))
	if err != nil || n < 0 || n >= len(a.at) {
		return fmt.Errorf("a record that is none of the events 0 to %d", len(a.at)-1)
	}
	if !a.at[n].IsZero() {
		return fmt.Errorf("event %d has arrived twice", n)
	}
	a.at[n] = at
	if a.left == len(a.at) {
		close(a.any)
	}
	if a.left--; a.left == 0 {
		close(a.all)
	}
	return nil
}

// took returns how long each event took from sent to its arrival, from event first on.
func (a *arrivals) took(sent []time.Time, first int) ([]time.Duration, error) {
	var took []time.Duration
	for n := first; n < len(a.at); n++ {
		d := a.at[n].Sub(sent[n])
		if sent[n].IsZero() || d < 0 { // less than 0 also if it has not arrived
			return nil, fmt.Errorf("event %d was sent at %s and arrived at %s", n, sent[n], a.at[n])
		}
		took = append(took, d)
	}
	return took, nil
}

// newLatencyReader returns a consumer of a topic that exists. The caller must close its client.
func newLatencyReader(client []kgo.Opt, topic string, events int) (*latencyReader, error) {
	opts := append([]kgo.Opt{
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(100 * time.Millisecond), // a new topic can look unknown for a moment
		kgo.FetchMinBytes(1),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // all the same without transactions
		// The broker answers as soon as there is a record. Now and then it lets a fetch wait
		// that it could answer: this bounds it.
		kgo.FetchMaxWait(10 * time.Millisecond),
	}, client...)
	c, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("configure the consumer: %w", err)
	}
	return &latencyReader{client: c, topic: topic, arrivals: newArrivals(events)}, nil
}

// follow reads until all events have arrived.
func (r *latencyReader) follow(ctx context.Context) error {
	for r.left > 0 {
		fetches := r.client.PollFetches(ctx)
		now := time.Now()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("consume topic %s: %w", r.topic, err)
		}
		for _, record := range fetches.Records() {
			if err := r.add(record.Key, now); err != nil {
				return fmt.Errorf("topic %s, partition %d, offset %d: %w", r.topic, record.Partition, record.Offset, err)
			}
		}
	}
	return nil
}

// checkNoMore fails unless the topic has no record besides those that were read. Nobody may
// publish to it any more.
func (r *latencyReader) checkNoMore(ctx context.Context) error {
	records, err := countCommitted(ctx, r.client, r.topic)
	if err == nil && records != int64(len(r.at)) {
		err = fmt.Errorf("topic %s has %d records, want the %d events once each", r.topic, records, len(r.at))
	}
	return err
}

// countRecords returns how many records were appended to the topic.
func countRecords(ctx context.Context, client *kgo.Client, topic string) (int64, error) {
	listed, err := endOffsets(ctx, client, topic)
	if err != nil {
		return 0, err
	}
	var records int64
	listed.Each(func(o kadm.ListedOffset) { records += o.Offset })
	return records, nil
}

func endOffsets(ctx context.Context, client *kgo.Client, topic string) (kadm.ListedOffsets, error) {
	listed, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the end offsets of topic %s: %w", topic, err)
	}
	return listed, nil
}

// countCommitted reads a topic, by a client of its own, and returns how many of its records are committed.
func countCommitted(ctx context.Context, like *kgo.Client, topic string) (records int64, err error) {
	client, err := kgo.NewClient(append(like.Opts(), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...) // a transaction ends with one
	if err != nil {
		return 0, fmt.Errorf("configure the consumer: %w", err)
	}
	defer client.Close()
	listed, err := endOffsets(ctx, client, topic)
	if err != nil {
		return 0, err
	}
	last := map[int32]int64{} // offsets of the partitions that are not read to their end
	listed.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			last[o.Partition] = o.Offset - 1
		}
	})
	for len(last) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return 0, fmt.Errorf("read topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				records++
			}
			if end, ok := last[r.Partition]; ok && r.Offset >= end {
				delete(last, r.Partition)
			}
		})
	}
	return records, nil
}
