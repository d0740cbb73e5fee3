package servers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

func startKafka(t *testing.T, nodes int, opts KafkaOptions) *Cluster {
	t.Helper()
	start := time.Now()
	cluster, err := KafkaCluster(t.Context(), nodes, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d kafka nodes: %v from nothing to ready", nodes, time.Since(start).Round(time.Millisecond))
	return cluster
}

func newClient(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	// By default a client learns of a partition's new leader only seconds after it asked the last time.
	client, err := kgo.NewClient(append(opts, kgo.MetadataMinAge(100*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// roundTrip produces a record with this value and checks that the topic then holds the values.
func roundTrip(t *testing.T, seeds []string, topic, value string, values ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	producer := newClient(t, kgo.SeedBrokers(seeds...))
	record := &kgo.Record{Topic: topic, Value: []byte(value)}
	if err := producer.ProduceSync(ctx, record).FirstErr(); err != nil {
		t.Fatalf("produce %s: %v", value, err)
	}
	consumer := newClient(t, kgo.SeedBrokers(seeds...), kgo.ConsumeTopics(topic))
	for n := 0; n < len(values); {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("consume: %v", err)
		}
		for _, record := range fetches.Records() {
			if n == len(values) || string(record.Value) != values[n] {
				t.Fatalf("record %d: got %s, want the records %q", n, record.Value, values)
			}
			n++
		}
	}
}

func createTopic(t *testing.T, seeds []string, topic string, config map[string]*string) {
	t.Helper()
	admin := kadm.NewClient(newClient(t, kgo.SeedBrokers(seeds...)))
	if _, err := admin.CreateTopic(t.Context(), 1, -1, config, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
}

func TestKafka(t *testing.T) {
	t.Parallel()
	broker, err := Kafka(t.Context(), KafkaOptions{
		Listeners: map[string]string{"CLIENT": "SASL_PLAINTEXT"},
		Properties: map[string]string{
			"authorizer.class.name":                        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"listener.name.client.sasl.enabled.mechanisms": "PLAIN",
			"listener.name.client.plain.sasl.jaas.config":  `org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="secret";`,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	seeds := []string{broker.Addr()}
	createTopic(t, seeds, "t", nil)
	roundTrip(t, seeds, "t", "a", "a")
	checkDefaults(t, seeds)
	checkAuthorizer(t, broker)

	if err := broker.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v to start after Kill", time.Since(start).Round(time.Millisecond))
	roundTrip(t, seeds, "t", "b", "a", "b")

	start = time.Now()
	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v to stop", time.Since(start).Round(time.Millisecond))
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, seeds, "t", "c", "a", "b", "c")
	if err := broker.Start(t.Context()); err == nil {
		t.Error("start a running broker: got no error")
	}
}

// checkDefaults checks that transactions work with one broker, and that topics are not created by accident.
func checkDefaults(t *testing.T, seeds []string) {
	t.Helper()
	createTopic(t, seeds, "transactions", nil)
	client := newClient(t, kgo.SeedBrokers(seeds...), kgo.TransactionalID("x"))
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "transactions"}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	client = newClient(t, kgo.SeedBrokers(seeds...), kgo.UnknownTopicRetries(0))
	err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "absent"}).FirstErr()
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("produce to an absent topic: got error %v, want %v", err, kerr.UnknownTopicOrPartition)
	}
}

// checkAuthorizer checks a listener with authentication and an authorizer: who has no ACL is refused, while PLAINTEXT
// stays open.
func checkAuthorizer(t *testing.T, broker *Broker) {
	t.Helper()
	createTopic(t, []string{broker.Addr()}, "guarded", nil)
	alice := newClient(t, kgo.SeedBrokers(broker.ListenerAddr("CLIENT")), kgo.SASL(plain.Auth{User: "alice", Pass: "secret"}.AsMechanism()))
	record := func() *kgo.Record { return &kgo.Record{Topic: "guarded", Value: []byte("a")} }
	if err := alice.ProduceSync(t.Context(), record()).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Fatalf("produce without an ACL: got error %v, want %v", err, kerr.TopicAuthorizationFailed)
	}
	admin := kadm.NewClient(newClient(t, kgo.SeedBrokers(broker.Addr())))
	acl := kadm.NewACLs().Topics("guarded").ResourcePatternType(kadm.ACLPatternLiteral).
		Operations(kadm.OpWrite, kadm.OpDescribe).Allow("User:alice").AllowHosts()
	if _, err := admin.CreateACLs(t.Context(), acl); err != nil {
		t.Fatal(err)
	}
	// The controller has answered; the broker, which decides, learns of it a moment later.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := until(ctx, func() error { return alice.ProduceSync(ctx, record()).FirstErr() }); err != nil {
		t.Errorf("produce with an ACL: %v", err)
	}
}

func TestKafkaCluster(t *testing.T) {
	t.Parallel()
	cluster := startKafka(t, 3, KafkaOptions{})
	if got, want := len(cluster.Addrs()), 3; got != want {
		t.Fatalf("got %d addresses, want %d", got, want)
	}
	createTopic(t, cluster.Addrs(), "t", map[string]*string{"min.insync.replicas": kadm.StringPtr("2")})
	roundTrip(t, cluster.Addrs(), "t", "a", "a")

	topics, err := kadm.NewClient(newClient(t, kgo.SeedBrokers(cluster.Addrs()...))).ListTopics(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	leader := cluster.Brokers[topics["t"].Partitions[0].Leader-1]
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	roundTrip(t, cluster.Addrs(), "t", "b", "a", "b")
	t.Logf("%v to produce and consume after the Kill of the leader", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	if err := leader.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v to start it again", time.Since(start).Round(time.Millisecond))
	roundTrip(t, []string{leader.Addr()}, "t", "c", "a", "b", "c")
}
