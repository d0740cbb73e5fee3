package sink

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// deadLetterMax is the largest batch of a dead letter: events that are too large for other
// topics must find room. It is the brokers' default limit of a request, 100 MiB
// (socket.request.max.bytes), less the room for the request around it.
const deadLetterMax = 100<<20 - 64<<10

// PublishDeadLetter publishes one record, of any size that brokers may take, and returns when all
// in-sync replicas have it; its Partition and Offset are set then. A missing topic is created, for
// large records and to keep them for ever, or is a *MissingTopicError.
func PublishDeadLetter(ctx context.Context, cfg Config, r *kgo.Record) error {
	client, err := kgo.NewClient(append(slices.Clone(cfg.Client),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(cfg.Compression),
		kgo.ProducerBatchMaxBytes(deadLetterMax),
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
			return &MissingTopicError{Topic: r.Topic}
		}
		if err := CreateTopic(ctx, client, r.Topic, 1, map[string]*string{
			"max.message.bytes": new(fmt.Sprint(deadLetterMax)), "retention.ms": new("-1"),
		}); err != nil {
			return err
		}
	}
	if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("publish a dead letter to topic %q: %w", r.Topic, err)
	}
	return nil
}
