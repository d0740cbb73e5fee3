package integration

import (
	"context"
	bits "encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/internal/servers"
)

// hangingRig is a broker that lets records into a transaction which its coordinator knows nothing of: so they look as if the
// markers of one had been forgotten (KAFKA-20734).
type hangingRig struct {
	*testing.T
	client *kgo.Client
	cfg    checkpoint.Config
}

const (
	hangingEvents      = "hanging.events"
	hangingCheckpoints = "hanging.checkpoints"
	hangingKey         = "shop/walferry"
)

func newHangingRig(t *testing.T) *hangingRig {
	t.Helper()
	broker, err := servers.Kafka(t.Context(), servers.KafkaOptions{Properties: map[string]string{"transaction.partition.verification.enable": "false"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	r := &hangingRig{T: t}
	if r.client, err = kgo.NewClient(kgo.SeedBrokers(broker.Addr())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.Close)
	if _, err := kadm.NewClient(r.client).CreateTopic(t.Context(), 3, 1, nil, hangingEvents); err != nil {
		t.Fatal(err)
	}
	r.cfg = checkpoint.Config{
		Client: []kgo.Opt{kgo.SeedBrokers(broker.Addr())},
		Topic:  hangingCheckpoints, Key: hangingKey, Create: true,
		Producer: []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}, Settle: func(context.Context) error { return nil },
		IsEvents: func(topic string) bool { return topic == hangingEvents },
	}
	return r
}

// hangs appends a record for the last producer of the transactional ID, as part of its next transaction.
func (r *hangingRig) hangs(topic string, partition int32, key, value string) {
	r.Helper()
	described, err := kadm.NewClient(r.client).DescribeTransactions(r.Context(), r.cfg.TransactionalID)
	if err != nil {
		r.Fatal(err)
	}
	last := described[r.cfg.TransactionalID]
	request := kmsg.NewPtrProduceRequest()
	request.TransactionID, request.Acks, request.TimeoutMillis = &r.cfg.TransactionalID, -1, 10_000
	t, p := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, transactionalBatch(last.ProducerID, last.ProducerEpoch, key, value)
	t.Topic, t.Partitions = topic, []kmsg.ProduceRequestTopicPartition{p}
	request.Topics = []kmsg.ProduceRequestTopic{t}
	request.SetVersion(11) // from 12 on the broker tells its coordinator
	var broker *kgo.Broker
	for _, b := range r.client.DiscoveredBrokers() {
		broker = b
	}
	response, err := broker.Request(r.Context(), versioned{request})
	if err != nil {
		r.Fatal(err)
	}
	if err := kerr.ErrorForCode(response.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode); err != nil {
		r.Fatalf("append to %s/%d: %v", topic, partition, err)
	}
}

// versioned is a request of no later version than the one it has.
type versioned struct{ *kmsg.ProduceRequest }

func (v versioned) MaxVersion() int16 { return v.GetVersion() }

// transactionalBatch is a batch of one record, as Kafka's format has it.
func transactionalBatch(producer int64, epoch int16, key, value string) []byte {
	record := kmsg.Record{Key: []byte(key), Value: []byte(value)}
	record.Length = int32(len(record.AppendTo(nil)) - 1) // the length itself takes a byte
	now := time.Now().UnixMilli()
	const transactional = 1 << 4
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: transactional, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: producer, ProducerEpoch: epoch, NumRecords: 1, Records: record.AppendTo(nil),
	}
	raw := batch.AppendTo(nil)
	bits.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	bits.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// published returns the values of the events that are committed, once no transaction is open.
func (r *hangingRig) published() (values []string) {
	r.Helper()
	await(r.T, "the end of every transaction", func() error {
		admin := kadm.NewClient(r.client)
		stable, err := admin.ListCommittedOffsets(r.Context(), hangingEvents)
		ends, endErr := admin.ListEndOffsets(r.Context(), hangingEvents)
		if err := errors.Join(err, endErr); err != nil {
			return err
		}
		want := map[string]map[int32]kgo.Offset{hangingEvents: {}}
		left := map[int32]int64{}
		for p := range int32(3) {
			s, _ := stable.Lookup(hangingEvents, p)
			e, _ := ends.Lookup(hangingEvents, p)
			if s.Offset < e.Offset {
				return errors.New("one is open")
			}
			if e.Offset > 0 {
				want[hangingEvents][p], left[p] = kgo.NewOffset().AtStart(), e.Offset-1
			}
		}
		consumer, err := kgo.NewClient(append(slices.Clone(r.cfg.Client), kgo.ConsumePartitions(want), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
		if err != nil {
			return err
		}
		defer consumer.Close()
		for len(left) > 0 {
			consumer.PollFetches(r.Context()).EachRecord(func(rec *kgo.Record) {
				if !rec.Attrs.IsControl() {
					values = append(values, string(rec.Value))
				}
				if rec.Offset >= left[rec.Partition] {
					delete(left, rec.Partition)
				}
			})
		}
		return nil
	})
	slices.Sort(values)
	return values
}

func (r *hangingRig) open() *checkpoint.Store {
	r.Helper()
	s, err := checkpoint.Open(r.Context(), r.cfg)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(s.Close)
	return s
}

// publish publishes an event in the open transaction.
func (r *hangingRig) publish(s *checkpoint.Store, partition int32, value string) {
	r.Helper()
	if err := s.Client().ProduceSync(r.Context(), &kgo.Record{Topic: hangingEvents, Partition: partition, Value: []byte(value)}).FirstErr(); err != nil {
		r.Fatal(err)
	}
}

// What hangs is ended as its transaction was meant to be, before anybody reads the checkpoint or publishes behind it; the checkpoint and
// the events share their fate.
func TestHangingTransactions(t *testing.T) {
	r := newHangingRig(t)
	t.Run("committed", func(t *testing.T) {
		r.T, r.cfg.TransactionalID = t, "committed"
		s := r.open()
		r.publish(s, 0, "before")
		if err := s.Write(t.Context(), map[string][]byte{hangingKey: []byte("before")}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		r.hangs(hangingEvents, 0, "k", "hung 0")
		r.hangs(hangingEvents, 2, "k", "hung 2")
		r.hangs(hangingCheckpoints, 0, hangingKey, "hung")
		s = r.open()
		if got := string(s.Values()[hangingKey]); got != "hung" {
			t.Errorf("the checkpoint is %q, want that of the transaction that hung", got)
		}
		if got := s.Hung(); got != "hanging.checkpoints/0 hanging.events/0 hanging.events/2" {
			t.Errorf("it hung in %q", got)
		}
		r.publish(s, 0, "never")
		s.Close() // and is aborted by the next one, without what hung
		s = r.open()
		if got := s.Hung(); got != "" {
			t.Errorf("nothing hangs, and %q was ended", got)
		}
		s.Close()
		if got, want := r.published(), []string{"before", "hung 0", "hung 2"}; !slices.Equal(got, want) {
			t.Errorf("published are %q, want %q", got, want)
		}
	})
	t.Run("committed, and whoever takes over publishes no events in transactions", func(t *testing.T) {
		r.T, r.cfg.TransactionalID = t, "recovers"
		s := r.open()
		r.publish(s, 0, "recovered")
		if err := s.Write(t.Context(), map[string][]byte{hangingKey: []byte("recovered")}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		r.hangs(hangingEvents, 2, "k", "hung and recovered")
		for _, producer := range [][]kgo.Opt{nil, r.cfg.Producer} {
			cfg := r.cfg
			cfg.Producer = producer
			s, err := checkpoint.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		if got := r.published(); !slices.Contains(got, "recovered") || !slices.Contains(got, "hung and recovered") {
			t.Errorf("published are %q, want what was committed among them", got)
		}
	})
	t.Run("aborted", func(t *testing.T) {
		r.T, r.cfg.TransactionalID = t, "aborted"
		before := r.published()
		s := r.open()
		if err := s.Write(t.Context(), map[string][]byte{hangingKey: []byte("true")}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		client, err := kgo.NewClient(append(slices.Clone(r.cfg.Client), kgo.TransactionalID(r.cfg.TransactionalID))...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: hangingEvents, Value: []byte("aborted")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		r.hangs(hangingEvents, 1, "k", "hung")
		r.hangs(hangingCheckpoints, 0, hangingKey, "false")
		if _, err := checkpoint.Open(t.Context(), r.cfg); !errors.Is(err, kerr.TransactionAbortable) {
			t.Errorf("got %v, want an error that another attempt cures", err)
		}
		s = r.open()
		if got := string(s.Values()[hangingKey]); got != "true" {
			t.Errorf("the checkpoint is %q, want the one before what was aborted", got)
		}
		s.Close()
		if got := r.published(); !slices.Equal(got, before) {
			t.Errorf("published are %q, want %q", got, before)
		}
	})
	t.Run("nobody knows", func(t *testing.T) {
		r.T, r.cfg.TransactionalID = t, "unknown"
		r.open().Close()
		client, err := kgo.NewClient(append(slices.Clone(r.cfg.Client), kgo.TransactionalID(r.cfg.TransactionalID))...)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, _, err := client.ProducerID(t.Context()); err != nil { // whoever took over before has forgotten it
			t.Fatal(err)
		}
		r.hangs(hangingEvents, 1, "k", "hung")
		_, err = checkpoint.Open(t.Context(), r.cfg)
		hanging, ok := errors.AsType[*checkpoint.HangingError](err)
		if !ok || hanging.Partitions != "hanging.events/1" || !strings.Contains(err.Error(), r.cfg.TransactionalID) {
			t.Errorf("got %v, want a HangingError of hanging.events/1", err)
		}
	})
}
