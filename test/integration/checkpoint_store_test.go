package integration

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/checkpoint"
)

// afterProduce is a hook that runs once, when the brokers have acknowledged a record that
// is not committed yet and the client does not know of it.
type afterProduce struct{ f func() }

func (h *afterProduce) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key == int16(kmsg.Produce) && err == nil && h.f != nil {
		f := h.f
		h.f = nil
		f()
	}
}

// checkpointStore opens checkpoints of one topic again and again.
type checkpointStore struct {
	*testing.T
	topic string
}

func (s checkpointStore) config(opts ...kgo.Opt) checkpoint.Config {
	return checkpoint.Config{
		Client: append([]kgo.Opt{kgo.SeedBrokers(shared.kafka...)}, opts...),
		Topic:  s.topic, Key: "shop/walferry", TransactionalID: s.topic, Create: true,
	}
}

func (s checkpointStore) open(want string, opts ...kgo.Opt) *checkpoint.Store {
	s.Helper()
	c, err := checkpoint.Open(s.Context(), s.config(opts...))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(c.Close)
	s.want(c.Values(), want)
	return c
}

func (s checkpointStore) write(c *checkpoint.Store, value string) {
	s.Helper()
	if err := c.Write(s.Context(), map[string][]byte{"shop/walferry": []byte(value), "shop/walferry/a": []byte("A")}); err != nil {
		s.Fatal(err)
	}
}

// reads fails unless ReadCheckpoints finds this value, and quickly.
func (s checkpointStore) reads(want string) {
	s.Helper()
	began := time.Now()
	got, err := checkpoint.Read(s.Context(), s.config())
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("ReadCheckpoints took %s", time.Since(began))
	s.want(got, want)
}

func (s checkpointStore) want(got map[string][]byte, value string) {
	s.Helper()
	want := map[string]string{}
	if value != "" {
		want = map[string]string{"shop/walferry": value, "shop/walferry/a": "A"}
	}
	if !maps.EqualFunc(got, want, func(a []byte, b string) bool { return string(a) == b }) {
		s.Errorf("got %q, want %q", got, want)
	}
}

func (s checkpointStore) wantFenced(err error) {
	s.Helper()
	fenced, ok := errors.AsType[*checkpoint.FencedError](err)
	if !ok {
		s.Fatalf("got %v, want a FencedError", err)
	}
	broker, ok := errors.AsType[*kerr.Error](fenced)
	if !ok {
		s.Fatalf("%v does not wrap the brokers' error", err)
	}
	s.Logf("fenced with %s", broker.Message)
}

func TestCheckpointStore(t *testing.T) {
	s := checkpointStore{t, fmt.Sprintf("checkpoints-%d", time.Now().UnixNano())}
	s.reads("") // no topic
	first := s.open("")
	s.reads("")
	s.write(first, "1")
	s.write(first, "2")
	s.reads("2")

	// Fenced between two transactions.
	hook := &afterProduce{}
	second := s.open("2", kgo.WithHooks(hook))
	s.write(second, "3")
	s.wantFenced(first.Write(t.Context(), map[string][]byte{"shop/walferry": []byte("zombie")}))
	s.reads("3")

	// Fenced between its record and the commit.
	var third *checkpoint.Store
	hook.f = func() {
		s.reads("3") // while a transaction is open
		third = s.open("3")
	}
	s.wantFenced(second.Write(t.Context(), map[string][]byte{"shop/walferry": []byte("zombie")}))
	s.reads("3")
	s.write(third, "4")
	s.reads("4")
	s.strangerHangs()
	s.reads("4")
	third = s.open("4")
	s.topicConfig()

	if err := third.Write(t.Context(), map[string][]byte{"shop/walferry": nil, "shop/walferry/a": nil}); err != nil {
		t.Fatal(err)
	}
	s.reads("")
	s.open("")
}

// strangerHangs has somebody else begin a transaction in the topic, and never end it.
func (s checkpointStore) strangerHangs() {
	s.Helper()
	stranger, err := kgo.NewClient(kgo.SeedBrokers(shared.kafka...), kgo.TransactionalID(s.topic+"-stranger"))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(stranger.Close)
	if err := stranger.BeginTransaction(); err != nil {
		s.Fatal(err)
	}
	if err := stranger.ProduceSync(s.Context(), &kgo.Record{Topic: s.topic, Key: []byte("other/slot"), Value: []byte("1")}).FirstErr(); err != nil {
		s.Fatal(err)
	}
}

// topicConfig checks what the topic was created with, and that another policy is refused.
func (s checkpointStore) topicConfig() {
	s.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(shared.kafka...))
	if err != nil {
		s.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	configs, err := admin.DescribeTopicConfigs(s.Context(), s.topic)
	if err != nil {
		s.Fatal(err)
	}
	want := map[string]string{"cleanup.policy": "compact", "segment.bytes": "16777216", "segment.ms": "86400000"}
	for _, config := range configs[0].Configs {
		if value, ok := want[config.Key]; ok && config.MaybeValue() == value {
			delete(want, config.Key)
		}
	}
	if len(want) > 0 {
		s.Errorf("the topic lacks %v", want)
	}
	topics, err := admin.ListTopics(s.Context(), s.topic)
	if err != nil || len(topics[s.topic].Partitions) != 1 {
		s.Errorf("%d partitions, %v, want 1", len(topics[s.topic].Partitions), err)
	}
	for _, policy := range []string{"delete", "compact,delete"} {
		wrong := checkpointStore{s.T, s.topic + "-" + strings.ReplaceAll(policy, ",", "-")}
		if _, err := admin.CreateTopic(s.Context(), 1, 1, map[string]*string{"cleanup.policy": &policy}, wrong.topic); err != nil {
			s.Fatal(err)
		}
		var refused *checkpoint.TopicError
		await(s.T, "a topic that cannot keep checkpoints to be refused", func() error {
			_, err := checkpoint.Open(s.Context(), wrong.config())
			if !errors.As(err, &refused) {
				return fmt.Errorf("got %w, want a CheckpointTopicError", err)
			}
			return nil
		})
		if !strings.Contains(refused.Reason, policy) || !strings.Contains(refused.Hint, "--entity-name "+wrong.topic+" --add-config cleanup.policy=compact") {
			s.Errorf("%v, hint %s", refused, refused.Hint)
		}
	}
}
