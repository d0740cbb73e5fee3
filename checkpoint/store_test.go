package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/internal/refusal"
	"github.com/walferry/walferry/sink"
)

const (
	checkpointTopic = "walferry.checkpoints"
	checkpointKey   = "shop/walferry"
)

// checkpointRig is a fake Kafka in a synctest bubble: time is fake, and a goroutine that
// is left over fails the test.
type checkpointRig struct {
	*testing.T
	kafka   *kfake.Cluster
	network kfake.VirtualNetwork
}

func onCheckpoints(t *testing.T, test func(t *testing.T, r *checkpointRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &checkpointRig{T: t}
		var err error
		if r.kafka, err = kfake.NewCluster(kfake.NumBrokers(2), kfake.AllowAutoTopicCreation(), kfake.Ports(9092, 9093), kfake.ListenFn(r.network.Listen)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.kafka.Close)
		test(t, r)
	})
}

// config is that of an instance of its own, whose answers from Kafka are lost while muted.
func (r *checkpointRig) config(opts ...kgo.Opt) (cfg Config, muted *atomic.Bool) {
	muted = &atomic.Bool{}
	return Config{
		Client: append([]kgo.Opt{
			kgo.SeedBrokers(r.kafka.ListenAddrs()...),
			kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := r.network.DialContext(ctx, network, addr)
				return muteConn{conn, muted}, err
			}),
		}, opts...),
		Topic: checkpointTopic, Key: checkpointKey, TransactionalID: "walferry/" + checkpointKey, Create: true,
	}, muted
}

// muteConn is a connection to a broker that accepts all and says nothing while muted.
type muteConn struct {
	net.Conn
	muted *atomic.Bool
}

func (c muteConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.muted.Load() {
			return n, err
		}
	}
}

func (r *checkpointRig) open(opts ...kgo.Opt) *Store {
	r.Helper()
	cfg, _ := r.config(opts...)
	return r.openWith(cfg)
}

func (r *checkpointRig) openWith(cfg Config) *Store {
	r.Helper()
	c, err := Open(r.Context(), cfg)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(c.Close)
	return c
}

func (r *checkpointRig) write(c *Store, values map[string][]byte) {
	r.Helper()
	if err := c.Write(r.Context(), values); err != nil {
		r.Fatal(err)
	}
}

// holds fails unless Read and Open find exactly these.
func (r *checkpointRig) holds(want map[string][]byte) {
	r.Helper()
	cfg, _ := r.config()
	began := time.Now()
	read, err := Read(r.Context(), cfg)
	if err != nil {
		r.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		r.Errorf("Read took %s", took)
	}
	if !maps.EqualFunc(read, want, bytes.Equal) {
		r.Errorf("Read: got %q, want %q", read, want)
	}
	c := r.open()
	defer c.Close()
	if got := c.Values(); !maps.EqualFunc(got, want, bytes.Equal) {
		r.Errorf("Open: got %q, want %q", got, want)
	}
}

func one(value string) map[string][]byte { return map[string][]byte{checkpointKey: []byte(value)} }

func TestCheckpointsAreReadBack(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		if got, err := Read(t.Context(), cfg); err != nil || len(got) != 0 {
			t.Errorf("without a topic: %q, %v, want nothing", got, err)
		}
		if r.kafka.TopicInfo(checkpointTopic) != nil {
			t.Error("reading has created the topic")
		}
		c := r.open()
		if len(c.Values()) != 0 {
			t.Errorf("a new topic holds %q", c.Values())
		}
		r.holds(map[string][]byte{})
		c = r.open()
		r.write(c, one("1"))
		r.write(c, map[string][]byte{checkpointKey: []byte("2"), checkpointKey + "/a": []byte("A"), checkpointKey + "/b": []byte("B"), checkpointKey + "/c": {}})
		r.write(c, map[string][]byte{checkpointKey: []byte("3"), checkpointKey + "/a": nil})
		r.holds(map[string][]byte{checkpointKey: []byte("3"), checkpointKey + "/b": []byte("B"), checkpointKey + "/c": {}})
	})
}

func TestCheckpointTopicIsCreatedCompacted(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		c := r.open()
		if n := len(r.kafka.PartitionInfos(checkpointTopic)); n != 1 {
			t.Errorf("%d partitions, want 1", n)
		}
		configs, err := kadm.NewClient(c.client).DescribeTopicConfigs(t.Context(), checkpointTopic)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"cleanup.policy": "compact", "segment.bytes": "16777216", "segment.ms": "86400000"}
		for _, config := range configs[0].Configs {
			if value, ok := want[config.Key]; ok && config.MaybeValue() == value {
				delete(want, config.Key)
			}
		}
		if len(want) > 0 {
			t.Errorf("the topic lacks %v", want)
		}
	})
}

func TestCheckpointsOfOthersAreNotOurs(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		for _, slot := range []string{"shop/walferry2", "shop/walf", "shop"} {
			cfg, _ := r.config()
			cfg.Key, cfg.TransactionalID = slot, slot
			c := r.openWith(cfg)
			r.write(c, map[string][]byte{slot: []byte("theirs"), slot + "/x": []byte("theirs")})
			for _, theirs := range []string{slot + "2", checkpointKey[:3], ""} {
				if err := c.Write(t.Context(), map[string][]byte{theirs: []byte("x")}); err == nil {
					t.Errorf("%s could write %q", slot, theirs)
				}
			}
			r.write(c, map[string][]byte{slot: []byte("theirs again")}) // a refused key breaks nothing
		}
		r.holds(map[string][]byte{})
		r.write(r.open(), one("1"))
		r.holds(one("1"))
	})
}

func TestManyCheckpointsSurviveCompaction(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		c := r.open()
		want := map[string][]byte{}
		for round := range 3 {
			for i := range 1500 {
				want[fmt.Sprintf("%s/%d", checkpointKey, i)] = fmt.Appendf(nil, "%d %d %s", round, i, strings.Repeat("x", 1000)) // more than one batch
			}
			r.write(c, want)
		}
		r.holds(want)
		r.kafka.Compact()
		r.holds(want)
	})
}

func TestFencedWriterChangesNothing(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		old := r.open()
		r.write(old, one("old"))
		now := r.open()
		if got := string(now.Values()[checkpointKey]); got != "old" {
			t.Errorf("the newer one reads %q", got)
		}
		r.write(now, one("new"))
		for range 3 { // it stays fenced
			r.wantFenced(old.Write(t.Context(), one("zombie")))
		}
		r.write(now, map[string][]byte{checkpointKey + "/a": []byte("A")})
		r.holds(map[string][]byte{checkpointKey: []byte("new"), checkpointKey + "/a": []byte("A")})
	})
}

func (r *checkpointRig) wantFenced(err error) {
	r.Helper()
	fenced, ok := errors.AsType[*FencedError](err)
	if !ok || fenced.Topic != checkpointTopic || fenced.TransactionalID != "walferry/"+checkpointKey {
		r.Errorf("got %v, want a FencedError", err)
	}
	if _, ok := errors.AsType[*kerr.Error](err); !ok {
		r.Errorf("%v does not wrap the brokers' error", err)
	}
}

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

// A writer that is frozen between its record and the commit must not commit it later.
func TestWriterIsFencedInTheMiddleOfATransaction(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		hook := &afterProduce{}
		old := r.open(kgo.WithHooks(hook))
		r.write(old, one("old"))
		hook.f = func() {
			cfg, _ := r.config()
			if got, err := Read(t.Context(), cfg); err != nil || string(got[checkpointKey]) != "old" {
				t.Errorf("with an open transaction Read got %q, %v", got, err)
			}
			now := r.open()
			if got := string(now.Values()[checkpointKey]); got != "old" {
				t.Errorf("the newer one reads %q", got)
			}
		}
		r.wantFenced(old.Write(t.Context(), one("zombie")))
		r.holds(one("old"))
	})
}

// An aborted transaction at the end hides nothing and counts for nothing.
func TestAbortedCheckpointIsNotRead(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		c := r.open()
		r.write(c, one("1"))
		if err := c.produce(t.Context(), one("aborted")); err != nil {
			t.Fatal(err)
		}
		if err := c.client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		r.holds(one("1"))
	})
}

// Of two writers of one key, which must not be, counts what counts when the topic is compacted.
func TestTheLaterRecordCounts(t *testing.T) {
	marker := func(offset, producer int64) *kgo.Record {
		return &kgo.Record{Offset: offset, ProducerID: producer, Key: []byte{0, 0, 0, 1}, Attrs: kgo.NewRecordAttrs(kgo.RecordAttrsOpts{Control: true, Transactional: true})}
	}
	value := func(offset, producer int64, value string) *kgo.Record {
		return &kgo.Record{Offset: offset, ProducerID: producer, Key: []byte(checkpointKey), Value: []byte(value), Attrs: kgo.NewRecordAttrs(kgo.RecordAttrsOpts{Transactional: true})}
	}
	c := &contents{cfg: Config{Key: checkpointKey}, last: 9, latest: map[string]*kgo.Record{}, open: map[int64]map[string]*kgo.Record{}}
	for _, r := range []*kgo.Record{value(1, 1, "earlier"), value(2, 2, "later"), marker(3, 2), marker(4, 1)} {
		c.add(r)
	}
	if got := string(c.latest[checkpointKey].Value); got != "later" {
		t.Errorf("got %q", got)
	}
}

// Checkpoints whose first record is not committed, whatever the client believes, must not
// be taken for open.
func TestOpenFindsItsOwnRecord(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		r.write(r.open(), one("1"))
		r.kafka.ControlKey(int16(kmsg.EndTxn), func(request kmsg.Request) (kmsg.Response, error, bool) {
			request.(*kmsg.EndTxnRequest).Commit = false
			return nil, nil, false
		})
		cfg, _ := r.config()
		c, err := Open(t.Context(), cfg)
		if c != nil || err == nil || !strings.Contains(err.Error(), "was aborted") {
			t.Errorf("opened without a record of its own: %v", err)
		}
	})
}

func TestCheckpointTopicMustBeCompacted(t *testing.T) {
	for _, policy := range []string{"delete", "compact,delete"} {
		t.Run(policy, func(t *testing.T) {
			onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
				if err := r.kafka.CreateTopic(checkpointTopic, 1, map[string]string{"cleanup.policy": policy}); err != nil {
					t.Fatal(err)
				}
				cfg, _ := r.config()
				c, err := Open(t.Context(), cfg)
				if c != nil {
					t.Fatal("opened")
				}
				refused, ok := errors.AsType[*TopicError](err)
				if !ok || refused.Topic != checkpointTopic || !strings.Contains(err.Error(), policy) {
					t.Fatalf("got %v, want a TopicError that tells the policy", err)
				}
				const want = "kafka-configs.sh --bootstrap-server <broker> --alter --entity-type topics --entity-name walferry.checkpoints --add-config cleanup.policy=compact,segment.bytes=16777216,segment.ms=86400000"
				if refused.Hint != want {
					t.Errorf("hint %q, want %q", refused.Hint, want)
				}
			})
		})
	}
}

func TestMissingCheckpointTopic(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		cfg.Create = false
		_, err := Open(t.Context(), cfg)
		if missing, ok := errors.AsType[*sink.MissingTopicError](err); !ok || missing.Topic != checkpointTopic || missing.Vanished {
			t.Errorf("got %v, want a MissingTopicError", err)
		}
		if r.kafka.TopicInfo(checkpointTopic) != nil {
			t.Error("the topic was created")
		}
	})
}

// When the answer to a commit is lost nobody knows what became of it until somebody reads.
func TestCommitWithoutAnAnswerIsAnError(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, muted := r.config()
		c := r.openWith(cfg)
		r.write(c, one("1"))
		r.kafka.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
			muted.Store(true)
			return nil, nil, false // it is done, but the answer does not arrive
		})
		began := time.Now()
		err := c.Write(t.Context(), one("2"))
		if err == nil || !strings.Contains(err.Error(), checkpointTopic) {
			t.Fatalf("got %v, want an error that names the topic", err)
		}
		if took := time.Since(began); took > transactionTimeout-writeMargin {
			t.Errorf("it took %s, want %s at most", took, transactionTimeout-writeMargin)
		}
		muted.Store(false)
		if again := c.Write(t.Context(), one("3")); again == nil || again.Error() != err.Error() {
			t.Errorf("the next Write: got %v, want %v", again, err)
		}
		c.Close()
		r.holds(one("2"))
	})
}

// Events that the brokers do not take leave nothing in a transaction: neither the others nor the checkpoint.
func TestWhatCannotBeSettledCommitsNothing(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		cfg.Producer = []kgo.Opt{kgo.ProducerLinger(0)}
		var refused error
		cfg.Settle = func(context.Context) error { return refused }
		c := r.openWith(cfg)
		defer c.Close()
		r.write(c, one("1"))
		refused = errors.New("refused")
		if err := c.Write(t.Context(), one("2")); !errors.Is(err, refused) {
			t.Errorf("got %v, want %v", err, refused)
		}
		r.holds(one("1"))
		c = r.open()
		r.write(c, one("3"))
		r.holds(one("3"))
	})
}

// A client that becomes another producer in the middle of a transaction has lost what it published before. kgo does so, and goes on, when a
// broker does not know it any more because all that it published to a partition was deleted.
func TestEventsOfAFormerProducerAreNotCovered(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		cfg.Producer = []kgo.Opt{kgo.ProducerLinger(0), kgo.AllowAutoTopicCreation()}
		var c *Store
		cfg.Settle = func(ctx context.Context) error { return c.Client().Flush(ctx) }
		c = r.openWith(cfg)
		defer c.Close()
		r.write(c, one("1"))
		publish := func() error {
			return c.Client().ProduceSync(t.Context(), &kgo.Record{Topic: "events", Key: []byte("k"), Value: []byte("event")}).FirstErr()
		}
		if err := publish(); err != nil {
			t.Fatal(err)
		}
		r.kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
			return refusal.Of(request.(*kmsg.ProduceRequest), kerr.UnknownProducerID.Code, 1000), nil, true // all before 1000 is deleted
		})
		if err := publish(); err != nil {
			t.Fatalf("kgo did not go on as another producer: %v", err)
		}
		if err := c.Write(t.Context(), one("2")); !errors.Is(err, kerr.TransactionAbortable) {
			t.Errorf("got %v, want %v", err, kerr.TransactionAbortable)
		}
		c.Close()
		r.holds(one("1"))
	})
}

// A database whose events the brokers do not acknowledge holds nobody up: others open their checkpoints at once.
func TestWhatIsNotSettledHoldsNobodyUp(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, _ := r.config()
		cfg.Producer = []kgo.Opt{kgo.ProducerLinger(0)}
		settled := make(chan struct{})
		cfg.Settle = func(context.Context) error { <-settled; return nil }
		stuck, written := r.openWith(cfg), make(chan error, 1)
		go func() { written <- stuck.Write(t.Context(), one("1")) }()
		synctest.Wait()
		other, _ := r.config()
		other.Key, other.TransactionalID = "other", "walferry/other"
		began := time.Now()
		r.openWith(other).Close()
		if took := time.Since(began); took > time.Second {
			t.Errorf("to open other checkpoints took %s", took)
		}
		close(settled)
		if err := <-written; err != nil {
			t.Error(err)
		}
		stuck.Close()
		r.holds(one("1"))
	})
}

func TestDeletedCheckpointTopicIsAnError(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("created again %t", again), func(t *testing.T) {
			onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
				c := r.open()
				r.write(c, one("1"))
				if err := r.kafka.DeleteTopic(checkpointTopic); err != nil {
					t.Fatal(err)
				}
				if again {
					if err := r.kafka.CreateTopic(checkpointTopic, 1, nil); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				if err := c.Write(t.Context(), one("2")); err == nil || !strings.Contains(err.Error(), checkpointTopic) {
					t.Errorf("got %v, want an error that names the topic", err)
				}
				if took := time.Since(began); took > transactionTimeout-writeMargin {
					t.Errorf("it took %s, want %s at most", took, transactionTimeout-writeMargin)
				}
				if !again && r.kafka.TopicInfo(checkpointTopic) != nil {
					t.Error("the topic was created again")
				}
				if again {
					cfg, _ := r.config()
					if got, err := Read(t.Context(), cfg); err != nil || len(got) != 0 {
						t.Errorf("%q, %v were committed to another topic", got, err)
					}
				}
			})
		})
	}
}

// Every operation ends with its context, whatever the brokers do, and Close at once.
func TestSilentBrokersHoldNobody(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, muted := r.config()
		c := r.openWith(cfg)
		muted.Store(true)
		within := func(what string, limit time.Duration, f func(ctx context.Context) error) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			began := time.Now()
			if err := f(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: got %v, want a deadline", what, err)
			}
			if took := time.Since(began); took > limit {
				t.Errorf("%s took %s, want %s at most", what, took, limit)
			}
		}
		within("Open", 3*time.Second, func(ctx context.Context) error {
			_, err := Open(ctx, cfg)
			return err
		})
		within("Read", 3*time.Second, func(ctx context.Context) error {
			_, err := Read(ctx, cfg)
			return err
		})
		within("Write", 3*time.Second, func(ctx context.Context) error { return c.Write(ctx, one("1")) })
		within("Close", 0, func(context.Context) error { c.Close(); return nil })

		// The commit needs a new connection, and its handshake is not answered.
		muted.Store(false)
		hook := &afterProduce{}
		cfg.Client = append(cfg.Client, kgo.WithHooks(hook))
		c = r.openWith(cfg)
		<-time.After(time.Minute) // the client closes what is idle
		hook.f = func() { muted.Store(true) }
		within("Write with a handshake", 3*time.Second, func(ctx context.Context) error { return c.Write(ctx, one("1")) })
		within("Close", 0, func(context.Context) error { c.Close(); return nil })
	})
}

func TestCloseEndsAWrite(t *testing.T) {
	onCheckpoints(t, func(t *testing.T, r *checkpointRig) {
		cfg, muted := r.config()
		c := r.openWith(cfg)
		muted.Store(true)
		began := time.Now()
		var writes sync.WaitGroup
		writes.Go(func() {
			if err := c.Write(t.Context(), one("1")); err == nil {
				t.Error("a write succeeded without an answer")
			}
		})
		synctest.Wait()
		c.Close()
		c.Close()
		writes.Wait()
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %s", took)
		}
	})
}
