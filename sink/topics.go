package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/decode"
)

// Topics remembers, over all sinks of one bridge, the topics that events went to. The zero
// Topics is empty; it is safe for concurrent use.
type Topics struct{ used sync.Map }

// MissingTopicError is a topic that does not exist and that we must not create.
type MissingTopicError struct {
	Topic    string
	Vanished bool   // events went to it before: whoever deleted it deleted them
	Options  string // for kafka-topics.sh --create, if it has to be a certain topic
}

func (e *MissingTopicError) Error() string {
	if e.Vanished {
		return fmt.Sprintf("topic %q has vanished after events went to it", e.Topic)
	}
	return fmt.Sprintf("topic %q does not exist and kafka.topics.create is false", e.Topic)
}

// TopicError is an event whose topic is not there and cannot be made.
type TopicError struct {
	Refused
	Err error
}

func (e *TopicError) Error() string { return fmt.Sprintf("event %s: %v", e.Position, e.Err) }

func (e *TopicError) Unwrap() error { return e.Err }

// Why returns the reason.
func (e *TopicError) Why() string { return e.Err.Error() }

// noTopic is the error of an event without a topic. A name that the brokers refuse, for one because
// another differs from it in . and _ only, can never be made.
func noTopic(ev *decode.Event, topic string, err error) error {
	if errors.Is(err, kerr.InvalidTopicException) {
		return poison(ev, topic, err.Error())
	}
	return &TopicError{refuse(ev, topic), err}
}

const topicTimeout = 15 * time.Second

// ensureTopic makes sure that a topic exists before the first record goes to it. The
// client's own creation would bring a deleted topic back in silence.
func (k *Kafka) ensureTopic(ctx context.Context, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, topicTimeout)
	defer cancel()
	exists, err := TopicExists(ctx, k.client, topic)
	if err != nil {
		return fmt.Errorf("look up topic %q: %w", topic, err)
	}
	if !exists {
		if err := k.createTopic(ctx, topic); err != nil {
			return err
		}
	}
	k.cfg.Topics.used.Store(topic, true)
	k.ready[topic] = true
	return nil
}

func (k *Kafka) createTopic(ctx context.Context, topic string) error {
	if _, vanished := k.cfg.Topics.used.Load(topic); vanished || !k.cfg.CreateTopics {
		return &MissingTopicError{Topic: topic, Vanished: vanished}
	}
	partitions, err := k.partitions(ctx, topic)
	if err == nil {
		err = CreateTopic(ctx, k.client, topic, partitions, nil)
	}
	if err != nil {
		return err
	}
	if k.cfg.Created != nil {
		k.cfg.Created(topic)
	}
	return nil
}

// partitions returns how many a topic that is created gets.
func (k *Kafka) partitions(ctx context.Context, topic string) (int32, error) {
	if k.cfg.Like == nil {
		return brokerDefault, nil
	}
	like := k.cfg.Like(topic)
	topics, err := kadm.NewClient(k.client).ListTopics(ctx, like)
	if err != nil {
		return 0, fmt.Errorf("look up topic %q: %w", like, err)
	}
	if n := len(topics[like].Partitions); n > 0 {
		return int32(n), nil
	}
	return brokerDefault, nil
}

// brokerDefault stands for the brokers' own number of partitions or replicas.
const brokerDefault = -1

// CreateTopic creates a topic and waits until it can be seen. That somebody else was faster is
// no error.
func CreateTopic(ctx context.Context, client *kgo.Client, topic string, partitions int32, configs map[string]*string) error {
	_, err := kadm.NewClient(client).CreateTopic(ctx, partitions, brokerDefault, configs, topic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %q: %w", topic, err)
	}
	// The brokers hear of it one after another; until then it is unknown to some.
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		exists, err := TopicExists(ctx, client, topic)
		if err != nil || exists {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for topic %q to appear: %w", topic, context.Cause(ctx))
		case <-retry.C:
		}
	}
}

// TopicExists asks a broker, not the client's cache, which would not see a new topic for seconds.
func TopicExists(ctx context.Context, client *kgo.Client, topic string) (bool, error) {
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = false
	requested := kmsg.NewMetadataRequestTopic()
	requested.Topic = &topic
	request.Topics = append(request.Topics, requested)
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return false, err
	}
	if len(response.Topics) != 1 {
		return false, fmt.Errorf("metadata of %d topics, want 1", len(response.Topics))
	}
	err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return false, nil
	case errors.Is(err, kerr.LeaderNotAvailable): // the client waits for one
		return true, nil
	}
	return err == nil && len(response.Topics[0].Partitions) > 0, err
}
