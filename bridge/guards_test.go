package bridge

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/walsender"
)

// The slot moves between our first look at it and the moment it becomes ours: whoever held
// it confirmed something in between.
func TestASessionBeginsWhereTheSlotStandsOnceItIsOurs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		const outdated = 0x1400000
		var looks atomic.Int64
		r.pg.Handle("slot", func(string) walsender.Result {
			at := r.pg.Confirmed()
			if looks.Add(1) == 1 {
				at = outdated
			}
			return walsender.Answer("pgoutput", "logical", "shop", r.pg.ActivePID() != "", r.pg.ActivePID(), at, at, "reserved", -1, "", false, r.pg.WALEnd(), "", r.pg.WALEnd(), false)
		})
		release := r.holdProduce()
		r.commit(event(0)) // so that no keepalive moves what is confirmed
		r.start()
		sleep(11 * time.Second)
		updates := r.pg.Updates()
		if len(updates) == 0 {
			t.Fatal("no status update in 11 s: this test shows nothing")
		}
		if got, want := updates[0].Flush, r.pg.Confirmed(); got != want {
			t.Errorf("the session began at %s, the slot stood at %s when it became ours", got, want)
		}
		release()
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// A walsender that fails as soon as it decodes has left the slot before anybody looks. What it said counts, and a gap is one
// all the same: it is not that somebody else took the slot.
func TestAWalsenderThatFailsAtOnceIsHeard(t *testing.T) {
	for _, gap := range []bool{false, true} {
		t.Run(fmt.Sprintf("gap %t", gap), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newCheckpointedRig(t, time.Second)
				r.start()
				r.commit(event(0))
				r.finishAfter(5 * time.Second)
				r.again()
				var looks atomic.Int64
				r.pg.Handle("slot", func(string) walsender.Result {
					at := r.pg.Confirmed()
					if gap {
						at += 0x1000
					}
					pid := r.pg.ActivePID()
					if failing := r.pg.Holder(); failing != nil && (!gap || looks.Add(1) > 1) { // else after the session has begun
						failing.SendError("42704", "publication \"walferry\" does not exist")
						pid = ""
					}
					return walsender.Answer("pgoutput", "logical", "shop", pid != "", pid, at, at, "reserved", -1, "", false, r.pg.WALEnd(), "1:1:", r.pg.WALEnd(), false)
				})
				r.start()
				if gap {
					r.mustEnd(Gap, "ahead of the checkpoint")
				} else {
					r.mustEnd(Fatal, "does not exist")
				}
				if strings.Contains(r.log.String(), "a new one follows") {
					t.Errorf("it was tried again:\n%s", r.log)
				}
			})
		})
	}
}

// Postgres sends logical decoding messages only to those who ask for them, and says nothing
// about what it leaves out.
func TestLogicalMessagesAreAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		c := r.commit(event(0), walsender.Message("outbox",
			[]byte(`{"id": "id-1", "aggregatetype": "order", "aggregateid": "key", "type": "T", "payload": {"n": 1}}`)), event(2))
		if err := r.pg.WaitConfirmed(t.Context(), c.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := r.delivered(); !slices.Equal(got, ids(0, 2)) {
			t.Errorf("delivered %v, want the message between two rows: %v", got, ids(0, 2))
		}
	})
}

// SIGTERM while no broker can be reached.
func TestAStopDoesNotWaitForKafka(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.noKafka.Store(true)
		r.start()
		sleep(time.Second)
		if r.pg.Holder() == nil {
			t.Fatal("the slot is not held: this test shows nothing")
		}
		began := time.Now()
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stop took %s although there was nothing to drain", took)
		}
	})
}

// I11: a blocked Publish stops the reading for as long as Kafka likes; Postgres must hear from
// us all the same, or it gives the session up.
func TestPostgresKeepsASessionThatReadsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, 6*time.Second, func(_ *walsender.Config, c *config.Config) {
			c.Kafka.MaxRecord, c.Kafka.MaxBuffered = 4<<10, 16<<10
		})
		release := r.holdProduce()
		r.start()
		holder := r.pg.Holder()
		var last walsender.Committed
		for n := range 2000 { // more than Kafka's buffer and the socket's
			last = r.commit(event(n))
		}
		sleep(2 * time.Minute)
		if r.pg.Holder() != holder {
			t.Error("the server gave up a session that was silent for wal_sender_timeout")
		}
		release()
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// A standby tries again every half a minute, for as long as it is one.
func TestAnAttemptThatFailsClosesItsConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		other := newRig(t, time.Minute, nil)
		other.pg.Close()
		other.pg = r.pg
		var opened, open atomic.Int64
		connConfig := other.bridge.connConfig
		other.bridge.connConfig = func() (*pgx.ConnConfig, error) {
			cfg, err := connConfig()
			if err != nil {
				return nil, err
			}
			dial := cfg.DialFunc
			cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				opened.Add(1)
				open.Add(1)
				return &countedConn{Conn: conn, open: &open}, nil
			}
			return cfg, nil
		}
		other.start()
		sleep(5 * time.Minute)
		if n := opened.Load(); n < 20 || n > 40 {
			t.Fatalf("%d connections in 5 minutes, want two for an attempt and one to wait", n)
		}
		// One attempt may be under way: it has an SQL connection and one for replication.
		if n := open.Load(); n > 2 {
			t.Errorf("%d of %d connections are still open", n, opened.Load())
		}
		if err := other.finish(); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// countedConn is subtracted from open when it is closed.
type countedConn struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// An event's position is its identity: it is the same whatever of its transaction an earlier
// session has published and a later one skips.
func TestPositionsAreTheSameAfterARestartInATransaction(t *testing.T) {
	const events = 5000
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		sleep(time.Second)
		var all []walsender.Change
		for i := range events {
			all = append(all, event(i))
		}
		r.pg.Hold(events * 3 / 4)
		c := r.commit(all...)
		sleep(5 * time.Second)
		if index := r.checkpoint().OpenIndex; index == 0 {
			t.Fatal("the checkpoint is not inside of the transaction: this test shows nothing")
		}
		r.abandon()
		r.again()
		r.pg.Release()
		r.start()
		r.finishAfter(5 * time.Second)
		seen := map[int]bool{}
		for _, got := range r.positions() {
			n, err := strconv.Atoi(strings.TrimPrefix(got.id, "id-"))
			if want := fmt.Sprintf("7000/1/%s/%d", c.CommitLSN, n); err != nil || got.position != want {
				t.Fatalf("%s has position %s, want %s", got.id, got.position, want)
			}
			seen[n] = true
		}
		if len(seen) != events {
			t.Errorf("%d different events, want %d", len(seen), events)
		}
	})
}

// A session that ends over a failed event tells Postgres first what was acknowledged since
// the last status update: it need not come again.
func TestASessionThatFailsConfirmsWhatWasAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.failProduce(1, kerr.OutOfOrderSequenceNumber)
		r.start()
		sleep(time.Second + feedbackTick/4) // Feedback looks every 100 ms: both events come between two looks
		first := r.commit(event(0))
		sleep(feedbackTick / 4)
		if r.pg.Confirmed() >= first.EndLSN {
			t.Fatal("Feedback was quicker: this test shows nothing")
		}
		last := r.commit(event(1))
		sleep(feedbackTick / 4)
		if got := r.pg.Confirmed(); got != first.EndLSN {
			t.Errorf("the failed session left the slot at %s, want what was acknowledged: %s", got, first.EndLSN)
		}
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := r.delivered(); !slices.Equal(got, ids(0, 1)) {
			t.Errorf("delivered %v, want %v", got, ids(0, 1))
		}
	})
}

// A Postgres that accepts connections and says nothing, as behind a firewall that swallows
// packets, is given up, and tried again.
func TestASilentPostgresDoesNotHoldUpASessionForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.muted.Store(true)
		c := r.commit(event(0))
		r.start()
		sleep(openTimeout + time.Second)
		if s := r.bridge.Status(); !strings.Contains(s.LastError, "connect to Postgres") {
			t.Errorf("state %s, last error %q after %s", s.State, s.LastError, openTimeout+time.Second)
		}
		r.muted.Store(false)
		sleep(2 * openTimeout)
		if got := r.pg.Confirmed(); got < c.EndLSN {
			t.Errorf("confirmed %s a minute after Postgres answers again, want %s", got, c.EndLSN)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}
