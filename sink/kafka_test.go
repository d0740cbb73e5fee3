package sink

import (
	"context"
	"errors"
	"fmt"
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
)

func cluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(3)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func testConfig(c *kfake.Cluster) Config {
	return Config{
		Client: []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...)}, Compression: LZ4(),
		MaxBuffered: 8 << 20, MaxRecord: 1 << 20, MaxBufferedRecords: 16 << 10, CreateTopics: true, PositionHeader: "walferry-position",
		Routes: []Route{{Topic: "outbox.event.{aggregatetype}"}}, Topics: &Topics{},
	}
}

func open(t *testing.T, cfg Config) *Kafka {
	t.Helper()
	k, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func consume(t *testing.T, c *kfake.Cluster, topic string, n int) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(records), n, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

func TestWhereARecordIsKeptIsTold(t *testing.T) {
	c := cluster(t)
	cfg := testConfig(c)
	cfg.Headers = []kgo.RecordHeader{{Key: "walferry-source", Value: []byte("table")}}
	told := map[string]bool{}
	cfg.Acknowledged = func(r *kgo.Record) {
		told[fmt.Sprintf("%s %s/%d/%d %s", r.Headers[0].Value, r.Topic, r.Partition, r.Offset, r.Headers[2].Value)] = true
	}
	k := open(t, cfg)
	for i := range 50 {
		ev := orderEvent()
		ev.ID, ev.AggregateID = fmt.Appendf(nil, "id-%d", i), fmt.Appendf(nil, "key-%d", i)
		if err := k.Publish(t.Context(), ev, time.Now(), func(error) {}); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range consume(t, c, "outbox.event.order", 50) {
		where := fmt.Sprintf("%s %s/%d/%d table", r.Headers[0].Value, r.Topic, r.Partition, r.Offset)
		if !told[where] || len(told) != 50 {
			t.Errorf("%s was not told, but %d others", where, len(told))
		}
	}
}

func TestPublishKeepsTheOrderOfAKey(t *testing.T) {
	c := cluster(t)
	var mu sync.Mutex
	observed := 0
	cfg := testConfig(c)
	cfg.Observe = func(topic string, bytes int, latency time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if topic == "outbox.event.order" && bytes > 0 && latency > 0 {
			observed++
		}
	}
	k := open(t, cfg)
	const n = 5000
	acknowledged := 0
	for i := range n {
		ev := orderEvent()
		ev.AggregateID, ev.Payload = fmt.Appendf(nil, "key-%d", i%7), fmt.Appendf(nil, "%d", i)
		if err := k.Publish(t.Context(), ev, time.Now(), func(err error) {
			if err != nil {
				t.Errorf("event %d: %v", i, err)
			}
			acknowledged++ // done is called serially
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if acknowledged != n || observed != n {
		t.Fatalf("%d acknowledged, %d observed, want %d", acknowledged, observed, n)
	}
	last := map[string]int{}
	partition := map[string]int32{}
	for _, r := range consume(t, c, "outbox.event.order", n) {
		var i int
		if _, err := fmt.Sscan(string(r.Value), &i); err != nil {
			t.Fatal(err)
		}
		key := string(r.Key)
		if before, ok := last[key]; ok && i <= before {
			t.Fatalf("key %s: %d after %d", key, i, before)
		}
		if p, ok := partition[key]; ok && p != r.Partition {
			t.Fatalf("key %s is on partitions %d and %d", key, p, r.Partition)
		}
		last[key], partition[key] = i, r.Partition
	}
}

func TestPublishBlocksWhenTheBufferIsFull(t *testing.T) {
	c := cluster(t)
	cfg := testConfig(c)
	cfg.MaxBuffered, cfg.MaxRecord = 64<<10, 16<<10
	k := open(t, cfg)
	held := make(chan struct{})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		c.SleepControl(func() { <-held })
		return nil, nil, false
	})
	ev := orderEvent()
	ev.Payload = make([]byte, 10<<10)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	published := 0
	for ctx.Err() == nil {
		if err := k.Publish(ctx, ev, time.Now(), func(error) {}); err != nil {
			break
		}
		published++
	}
	close(held)
	if published < 2 || published > 8 {
		t.Errorf("%d records of 10 KiB went into a buffer of 64 KiB", published)
	}
}

// The smallest buffer that is allowed takes the largest record, header and all.
func TestTheSmallestBufferTakesTheLargestRecord(t *testing.T) {
	cfg := testConfig(cluster(t))
	cfg.MaxRecord, cfg.MaxBufferedRecords = 16<<10, 256
	cfg.MaxBuffered = cfg.MaxRecord + BatchOverhead
	k := open(t, cfg)
	ev := orderEvent()
	ev.Payload = nil
	ev.Payload = make([]byte, cfg.MaxRecord-k.router.recordSize(ev))
	done := make(chan error, 3)
	for range cap(done) {
		if err := k.Publish(t.Context(), ev, time.Now(), func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestPublishLatchesOnTheFirstFailure(t *testing.T) {
	c := cluster(t)
	k := open(t, testConfig(c))
	publish := func(done func(error)) error { return k.Publish(t.Context(), orderEvent(), time.Now(), done) }
	if err := publish(func(err error) {
		if err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		return refusal.Of(r.(*kmsg.ProduceRequest), kerr.TopicAuthorizationFailed.Code, -1), nil, true
	})
	failed := make(chan error, 1)
	if err := publish(func(err error) { failed <- err }); err != nil {
		t.Fatal(err)
	}
	err := <-failed
	if !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "7000/1/0/15A1DB3/2") || !strings.Contains(err.Error(), "outbox.event.order") {
		t.Errorf("done got %v, want the broker's error with position and topic", err)
	}
	if e, ok := errors.AsType[*PublishError](err); !ok || e.ID != "id-1" || e.Source != orderEvent().Source || strings.Contains(err.Error(), e.ID) {
		t.Errorf("%v (%+v) does not hold which event it is, or shows its id", err, e)
	}
	if err := publish(func(error) { t.Error("an event behind the failed one was published") }); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("the next Publish: %v", err)
	}
	if err := k.Flush(t.Context()); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("Flush: %v", err)
	}
}

// A request has room for the largest record, and is none that a broker refuses.
func TestRequestsAreBounded(t *testing.T) {
	const record = 1020 << 10
	overhead := func(records int) int { return BatchOverhead + requestOverhead + records*recordOverhead }
	for _, test := range []struct{ buffered, records, record, want int }{
		{8 << 20, 16 << 10, record, 2 << 20},
		{64 << 20, 16 << 10, record, 16 << 20},
		{4 << 10, 16 << 10, 1 << 10, 1<<10 + overhead(16<<10)},
		{256 << 20, 16 << 10, 64 << 20, 64<<20 + overhead(16<<10)},
		{1 << 20, 800, record, record + overhead(800)},
		{17 << 30, 16 << 10, record, 100 << 20},
	} {
		if got := maxRequest(Config{MaxBuffered: test.buffered, MaxBufferedRecords: test.records, MaxRecord: test.record}); got != test.want {
			t.Errorf("max_buffered %d, %d records, max_record %d: requests of %d bytes, want %d", test.buffered, test.records, test.record, got, test.want)
		}
	}
}

// What is sent while a produce request is on its way fills the next one, which goes as soon as the first is answered.
func TestSendWaitsForTheRequestOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network kfake.VirtualNetwork
		c := cluster(t, kfake.ListenFn(network.Listen))
		cfg := testConfig(c)
		cfg.Client = append(cfg.Client, kgo.Dialer(network.DialContext))
		cfg.Linger = time.Minute // as good as for ever
		k := open(t, cfg)
		var acknowledged, requests atomic.Int64
		send := func() {
			t.Helper()
			if err := k.Publish(t.Context(), orderEvent(), time.Now(), func(err error) {
				if err == nil {
					acknowledged.Add(1)
				}
			}); err != nil {
				t.Fatal(err)
			}
			k.Send()
			synctest.Wait() // no time passes
		}
		send()
		_ = k.client.Flush(t.Context()) // the first of a topic waits for its partitions, which Send does not
		before, answer := acknowledged.Load(), make(chan struct{})
		c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			if requests.Add(1) == 1 {
				c.SleepControl(func() { <-answer })
			}
			return nil, nil, false
		})
		for range 11 {
			send()
		}
		if requests.Load() != 1 || acknowledged.Load() != before {
			t.Fatalf("%d requests, want 1 that is not answered yet", requests.Load())
		}
		close(answer)
		synctest.Wait()
		if requests.Load() != 2 || acknowledged.Load() != before+11 {
			t.Fatalf("%d requests and %d of 11 acknowledgements, want a second request with all that came meanwhile",
				requests.Load(), acknowledged.Load()-before)
		}
	})
}

func TestCloseFailsWhatIsInFlight(t *testing.T) {
	c := cluster(t)
	k := open(t, testConfig(c))
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		return nil, errors.New("cut"), true
	})
	const n = 100
	failed, slow := 0, make(chan struct{}) // without a lock: nothing may run any more when Close returns
	for range n {
		if err := k.Publish(t.Context(), orderEvent(), time.Now(), func(err error) {
			<-slow
			if err == nil {
				t.Error("an event that never reached a broker was acknowledged")
			}
			failed++
		}); err != nil {
			t.Fatal(err)
		}
	}
	time.AfterFunc(50*time.Millisecond, func() { close(slow) })
	k.Close()
	if failed != n {
		t.Errorf("%d of %d had failed when Close returned", failed, n)
	}
	k.Close() // may be called again
}

func TestTopicsAreCreatedOnceAndNeverRecreated(t *testing.T) {
	c := cluster(t)
	cfg := testConfig(c)
	var created []string
	cfg.Created = func(topic string) { created = append(created, topic) }
	k := open(t, cfg)
	for range 3 {
		if err := k.Publish(t.Context(), orderEvent(), time.Now(), func(error) {}); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(created) != 1 || created[0] != "outbox.event.order" {
		t.Errorf("created %v", created)
	}
	if _, err := kadm.NewClient(k.client).DeleteTopic(t.Context(), "outbox.event.order"); err != nil {
		t.Fatal(err)
	}
	// The next session's sink shares the memory of topics.
	next := open(t, cfg)
	err := next.Publish(t.Context(), orderEvent(), time.Now(), func(error) {})
	missing, ok := errors.AsType[*MissingTopicError](err)
	if !ok || !missing.Vanished {
		t.Errorf("publish to a vanished topic: %v", err)
	}
	if len(created) != 1 {
		t.Errorf("the topic was created again: %v", created)
	}
}

func TestMissingTopicIsAnErrorWhenWeMustNotCreate(t *testing.T) {
	cfg := testConfig(cluster(t))
	cfg.CreateTopics = false
	err := open(t, cfg).Publish(t.Context(), orderEvent(), time.Now(), func(error) { t.Error("published") })
	missing, ok := errors.AsType[*MissingTopicError](err)
	if !ok || missing.Vanished || missing.Topic != "outbox.event.order" {
		t.Errorf("%v, want a MissingTopicError", err)
	}
}

func TestOpenFailsWithoutBrokers(t *testing.T) {
	c := cluster(t)
	cfg := testConfig(c)
	c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if k, err := Open(ctx, cfg); err == nil {
		k.Close()
		t.Error("opened without a broker")
	}
}
