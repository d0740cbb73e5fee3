package sink

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// All in-sync replicas must have a record before it counts, and a sequence must tell the
// broker a repeated batch: neither shows in what arrives as long as no broker fails.
func TestRecordsAreProducedWithAcksAllAndASequence(t *testing.T) {
	c := cluster(t)
	var mu sync.Mutex
	var requests int
	c.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		produce := request.(*kmsg.ProduceRequest)
		if produce.Acks != -1 {
			t.Errorf("acks %d, want -1: all in-sync replicas", produce.Acks)
		}
		for _, topic := range produce.Topics {
			for _, partition := range topic.Partitions {
				var batch kmsg.RecordBatch
				if err := batch.ReadFrom(partition.Records); err != nil {
					t.Error(err)
				}
				if batch.ProducerID < 0 || batch.FirstSequence < 0 {
					t.Errorf("producer id %d, first sequence %d: the batch is not idempotent", batch.ProducerID, batch.FirstSequence)
				}
				requests++
			}
		}
		return nil, nil, false
	})
	k := open(t, testConfig(c))
	if err := k.Publish(t.Context(), orderEvent(), time.Now(), func(error) {}); err != nil {
		t.Fatal(err)
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if requests == 0 {
		t.Error("no produce request was seen: this test shows nothing")
	}
}

// Whatever listens in a broker's place accepts the connection and says nothing. SIGTERM cancels
// the context, and must not wait for the client's timeouts.
func TestOpenEndsWithItsContextAlthoughTheBrokerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, server) }() // until the client closes
			return client, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(time.Second, cancel)
		k, err := Open(ctx, Config{
			Client:      []kgo.Opt{kgo.SeedBrokers("127.0.0.1:9092", "127.0.0.2:9092"), kgo.Dialer(silent)},
			Compression: LZ4(), MaxBuffered: 8 << 20, MaxRecord: 1 << 20, MaxBufferedRecords: 16 << 10, Topics: &Topics{},
		})
		if err == nil {
			k.Close()
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("opened with %v, want the context's error", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("returned after %s, was canceled after 1s", took)
		}
	})
}
