package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Arrival is an event as a consumer sees it.
type Arrival struct {
	Event     Event
	WrittenAt time.Time // by the order service, shortly before it committed
	Record    *kgo.Record
}

// Consumer reads one topic from its start to its end.
type Consumer struct {
	client *kgo.Client
	topic  string
	next   map[int32]int64 // by partition: the offset behind the last one read
}

// NewConsumer returns a consumer of a topic that exists. The caller must Close it.
func NewConsumer(brokers []string, topic string) (*Consumer, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ClientID("walferry-demo-consumer"),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.MetadataMinAge(100*time.Millisecond), // a new topic can look unknown for a moment
		kgo.FetchMaxWait(500*time.Millisecond),   // a busy broker can let a fetch wait that it could answer
		kgo.KeepControlRecords(),                 // else a partition that ends with one would never seem read to its end
	)
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	return &Consumer{client: client, topic: topic, next: map[int32]int64{}}, nil
}

// Close ends the consumer.
func (c *Consumer) Close() { c.client.Close() }

// Follow reads until ctx is done, and then returns nil.
func (c *Consumer) Follow(ctx context.Context, each func(Arrival)) error {
	for {
		err := c.poll(ctx, each)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ReadToEnd reads on until everything is read that is in the topic now.
func (c *Consumer) ReadToEnd(ctx context.Context, each func(Arrival)) error {
	listed, err := kadm.NewClient(c.client).ListEndOffsets(ctx, c.topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return fmt.Errorf("consumer: list the end offsets of topic %s: %w", c.topic, err)
	}
	for _, end := range listed[c.topic] {
		for c.next[end.Partition] < end.Offset {
			if err := c.poll(ctx, each); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Consumer) poll(ctx context.Context, each func(Arrival)) error {
	fetches := c.client.PollFetches(ctx)
	var errs []error
	fetches.EachError(func(topic string, partition int32, err error) {
		errs = append(errs, fmt.Errorf("consumer: topic %s, partition %d: %w", topic, partition, err))
	})
	fetches.EachRecord(func(r *kgo.Record) {
		c.next[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		arrival, err := read(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("consumer: topic %s, partition %d, offset %d: %w", r.Topic, r.Partition, r.Offset, err))
			return
		}
		each(arrival)
	})
	return errors.Join(errs...)
}

func read(r *kgo.Record) (Arrival, error) {
	var value payload
	if err := json.Unmarshal(r.Value, &value); err != nil {
		return Arrival{}, fmt.Errorf("not an event of the order service: %w", err)
	}
	if value.Order != string(r.Key) {
		return Arrival{}, errors.New("the record's key is not the order in its value")
	}
	event := Event{ID: Header(r, "id"), Order: value.Order, Version: value.Version}
	return Arrival{Event: event, WrittenAt: value.WrittenAt, Record: r}, nil
}

// Header returns the value of a record's header, "" if it is not there.
func Header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}
