package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// deadLetterPart is the most bytes of a dead letter's value in one record: any topic takes them.
const deadLetterPart = 512 << 10

// PublishDeadLetter publishes r and returns when all in-sync replicas have it; its Partition and
// Offset are set then. A value of more than deadLetterPart bytes, for events that are too large
// anywhere else have to find room, becomes several records in a row, with a header walferry-part,
// 1/3 and so on. A missing topic is created, to keep its records for ever, or is a
// *MissingTopicError.
func PublishDeadLetter(ctx context.Context, cfg Config, r *kgo.Record) error {
	err := publishDeadLetter(ctx, cfg, r)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w (%w)", err, cause) // the client says only that it is closed
	}
	return err
}

func publishDeadLetter(ctx context.Context, cfg Config, r *kgo.Record) error {
	client, err := kgo.NewClient(append(slices.Clone(cfg.Client),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		cfg.Compression,
		kgo.WithContext(ctx),
	)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer client.Close()
	exists, err := TopicExists(ctx, client, r.Topic)
	if err != nil {
		return fmt.Errorf("look up topic %q: %w", r.Topic, err)
	}
	if !exists {
		if !cfg.CreateTopics {
			return &MissingTopicError{Topic: r.Topic, Options: "--partitions 1 --config retention.ms=-1"}
		}
		if err := CreateTopic(ctx, client, r.Topic, 1, map[string]*string{"retention.ms": new("-1")}); err != nil {
			return err
		}
	}
	parts := deadLetterParts(r)
	if err := client.ProduceSync(ctx, parts...).FirstErr(); err != nil {
		return fmt.Errorf("publish a dead letter to topic %q: %w", r.Topic, err)
	}
	r.Partition, r.Offset = parts[0].Partition, parts[0].Offset
	return nil
}

// deadLetterParts splits a record.
func deadLetterParts(r *kgo.Record) (parts []*kgo.Record) {
	for value := range slices.Chunk(r.Value, deadLetterPart) {
		parts = append(parts, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: value, Headers: r.Headers})
	}
	for i, part := range parts {
		if len(parts) > 1 {
			part.Headers = append(slices.Clone(r.Headers), kgo.RecordHeader{
				Key: "walferry-part", Value: fmt.Appendf(nil, "%d/%d", i+1, len(parts)),
			})
		}
	}
	return parts
}
