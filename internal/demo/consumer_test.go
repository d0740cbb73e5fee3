package demo

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

const topic = "outbox.event.order"

func brokers(t *testing.T) []string {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()
}

func producer(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func record(order string, version int) *kgo.Record {
	return &kgo.Record{
		Key:     []byte(order),
		Value:   fmt.Appendf(nil, `{"order": %q, "version": %d, "written_at": "2026-01-02T03:04:05Z"}`, order, version),
		Headers: []kgo.RecordHeader{{Key: "id", Value: fmt.Appendf(nil, "%s/%d", order, version)}},
	}
}

func TestConsumerReadsToTheEnd(t *testing.T) {
	seeds := brokers(t)
	client := producer(t, seeds)
	want := NewLedger()
	for version := 1; version <= 20; version++ {
		for order := range 5 {
			r := record(fmt.Sprint("order-", order), version)
			if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			want.Committed([]Event{{ID: Header(r, "id"), Order: string(r.Key), Version: int64(version)}})
		}
	}
	consumer, err := NewConsumer(seeds, topic)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	if err := consumer.ReadToEnd(t.Context(), func(a Arrival) { want.Delivered(a.Event) }); err != nil {
		t.Fatal(err)
	}
	if proof := want.Proof(); !proof.Holds() {
		t.Error(proof)
	}
}

// TestConsumerAndTransactions: partitions end with commit and abort markers, and what was
// aborted does not arrive.
func TestConsumerAndTransactions(t *testing.T) {
	seeds := brokers(t)
	client := producer(t, seeds, kgo.TransactionalID("test"))
	for version, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), record("order-1", version+1)).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	consumer, err := NewConsumer(seeds, topic)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	var got []Event
	if err := consumer.ReadToEnd(t.Context(), func(a Arrival) { got = append(got, a.Event) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Version != 1 {
		t.Errorf("got %v, want version 1 alone", got)
	}
}

func TestConsumerRefusesWhatTheShopDoesNotWrite(t *testing.T) {
	wrongKey := record("order-1", 1)
	wrongKey.Key = []byte("order-2")
	for _, c := range []struct {
		name, want string
		record     *kgo.Record
	}{
		{"tombstone", "not an event", &kgo.Record{Key: []byte("order-1")}},
		{"other JSON", "key", &kgo.Record{Key: []byte("order-1"), Value: []byte(`{}`)}},
		{"another key", "key", wrongKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			seeds := brokers(t)
			if err := producer(t, seeds).ProduceSync(t.Context(), c.record).FirstErr(); err != nil {
				t.Fatal(err)
			}
			consumer, err := NewConsumer(seeds, topic)
			if err != nil {
				t.Fatal(err)
			}
			defer consumer.Close()
			err = consumer.ReadToEnd(t.Context(), func(a Arrival) { t.Errorf("arrived: %v", a.Event) })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}
