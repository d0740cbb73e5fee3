package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// TopicError is a topic that would not keep checkpoints.
type TopicError struct {
	Topic  string
	Reason string
	Hint   string // the command that corrects it
}

func (e *TopicError) Error() string {
	return fmt.Sprintf("topic %q cannot keep checkpoints: %s", e.Topic, e.Reason)
}

// ensureTopic makes sure that the topic exists and keeps the last value of every key.
func (cfg Config) ensureTopic(ctx context.Context, client *kgo.Client) error {
	exists, err := sink.TopicExists(ctx, client, cfg.Topic)
	if err != nil {
		return fmt.Errorf("look up topic %q: %w", cfg.Topic, err)
	}
	if !exists {
		if !cfg.Create {
			return &sink.MissingTopicError{Topic: cfg.Topic, Options: fmt.Sprintf(
				"--partitions 1 --config cleanup.policy=compact --config segment.bytes=%s --config segment.ms=%s", segmentBytes, segmentMS)}
		}
		if err := sink.CreateTopic(ctx, client, cfg.Topic, 1, map[string]*string{
			"cleanup.policy": new("compact"), "segment.bytes": new(segmentBytes), "segment.ms": new(segmentMS),
		}); err != nil {
			return err
		}
	}
	policy, err := cfg.policy(ctx, client)
	if err != nil {
		return fmt.Errorf("look up cleanup.policy of topic %q: %w", cfg.Topic, err)
	}
	if policy == "compact" {
		return nil
	}
	return &TopicError{
		cfg.Topic, fmt.Sprintf("its cleanup.policy is %q, want \"compact\"", policy),
		fmt.Sprintf("kafka-configs.sh --bootstrap-server <broker> --alter --entity-type topics --entity-name %s --add-config cleanup.policy=compact,segment.bytes=%s,segment.ms=%s", cfg.Topic, segmentBytes, segmentMS),
	}
}

// policy returns the topic's cleanup.policy.
func (cfg Config) policy(ctx context.Context, client *kgo.Client) (string, error) {
	configs, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, cfg.Topic)
	if err != nil {
		return "", err
	}
	config, err := configs.On(cfg.Topic, nil)
	if err := cmp.Or(err, config.Err); err != nil {
		return "", err
	}
	for _, c := range config.Configs {
		if c.Key == "cleanup.policy" {
			return c.MaybeValue(), nil
		}
	}
	return "", errors.New("the broker does not tell")
}
