package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// breakableKafka returns a broker that tests may break, one test at a time, as long as
// they leave it running.
func breakableKafka(t *testing.T) *servers.Broker {
	t.Helper()
	if shared.breakable == nil {
		broker, err := servers.Kafka(context.Background(), servers.KafkaOptions{})
		if err != nil {
			t.Fatal(err)
		}
		shared.breakable = broker
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of Kafka:\n%s", shared.breakable.Log())
		}
	})
	return shared.breakable
}

// outage kills brokers. They are started again by the returned function, or at the end of the test: together, for alone none of
// them may have a majority.
func outage(t *testing.T, brokers ...*servers.Broker) (end func()) {
	t.Helper()
	end = sync.OnceFunc(func() {
		var starts sync.WaitGroup
		for _, broker := range brokers {
			starts.Go(func() {
				if err := broker.Start(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		starts.Wait()
	})
	t.Cleanup(end)
	for _, broker := range brokers {
		if err := broker.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	return end
}

func TestBrokerIsKilledUnderLoad(t *testing.T) {
	broker := breakableKafka(t)
	w := newWorld(t, newest(t), on(broker.Addr()))
	l := w.startLoad(newSeed(t))
	r := w.run("")
	r.awaitState(bridge.Streaming)
	w.awaitCaughtUp()
	end := outage(t, broker)
	r.awaitStall()
	before := r.bridge.Status()
	l.more(50)
	if s := r.bridge.Status(); s.Inflight == 0 || s.ConfirmedLSN != before.ConfirmedLSN || !s.LastProgress.Equal(before.LastProgress) {
		t.Errorf("without Kafka: %d in flight, confirmed %s at %s; before: %d, %s at %s",
			s.Inflight, s.ConfirmedLSN, s.LastProgress, before.Inflight, before.ConfirmedLSN, before.LastProgress)
	}
	end()
	back := time.Now()
	w.awaitCaughtUp()
	t.Logf("caught up %s after the broker was back", time.Since(back).Round(time.Millisecond))
	duplicates := l.audit()
	// The producer is idempotent: only a new session, which is a new producer, sends again.
	if s := r.bridge.Status(); duplicates != 0 && s.Sessions == 1 {
		t.Errorf("%d duplicates within one session", duplicates)
	}
}

// TestKafkaIsDownForLong keeps Kafka away for longer than wal_sender_timeout, with far
// more events waiting than fit into the window.
func TestKafkaIsDownForLong(t *testing.T) {
	const senderTimeout = 3 * time.Second
	const maxPeak = 48 << 20 // bytes
	broker := breakableKafka(t)
	w := newWorld(t, newest(t), func(cfg *config.Config) {
		cfg.Databases[0].DSN += config.Secret(fmt.Sprintf("&options=-c%%20wal_sender_timeout%%3D%d", senderTimeout.Milliseconds()))
		cfg.Kafka.Brokers = []string{broker.Addr()}
		cfg.Kafka.MaxRecord, cfg.Kafka.MaxBuffered = 64<<10, 1<<20
	})
	c := w.daemon("")
	w.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('bulk', 'k', 'T', '{"n": 0, "pad": ""}')`)
	w.awaitCaughtUp() // the topic is known now: to look it up, a session waits for Kafka for 15 s only
	end, pid := outage(t, broker), w.walsender()
	w.bulk()
	await(t, "the walsender to hear from us long after its timeout", func() error {
		heard := w.query(`SELECT (reply_time - backend_start > $2::text::interval)::text || ' ' || pid
			FROM pg_stat_replication WHERE pid = $1::int UNION ALL SELECT 'gone' LIMIT 1`, pid, fmt.Sprint(2*senderTimeout))
		if heard != "true "+pid {
			return fmt.Errorf("walsender %s: %s", pid, heard)
		}
		return nil
	})
	end()
	w.awaitCaughtUp()
	peak := highWater(c.cmd.Process.Pid)
	t.Logf("peak memory %d MiB", peak>>20)
	if peak > maxPeak {
		t.Errorf("peak memory %d bytes, want at most %d", peak, maxPeak)
	}
	if w.walsender() != pid || len(c.logLines("streaming")) != 1 {
		t.Errorf("walsender %s instead of %s, %d sessions: the stream did not survive", w.walsender(), pid, len(c.logLines("streaming")))
	}
	if n := w.checkBulk(); n != 0 {
		t.Errorf("%d duplicates", n)
	}
}
