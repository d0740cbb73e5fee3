package bridge

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/walsender"
)

// I10: a table that is taken out of the publication would be lost in silence.
func TestAChangedPublicationStopsTheBridge(t *testing.T) {
	for name, c := range map[string]struct {
		kind      string
		published walsender.JSON
	}{
		"table taken out": {"r", ""},
		"row filter":      {"r", `{"rowfilter": "(aggregateid <> 'x'::text)"}`},
		"column list":     {"r", `{"attnames": ["id", "payload"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, time.Minute, nil)
				r.start()
				first := r.commit(event(0))
				if err := r.pg.WaitConfirmed(t.Context(), first.EndLSN); err != nil {
					t.Fatal(err)
				}
				r.table(c.kind, c.published)
				sleep(2 * watchEvery)
				select {
				case err := <-r.ended:
					r.ended <- err
					if classOf(err) != Fatal {
						t.Errorf("ended with %v, want a fatal error", err)
					}
				default:
					t.Errorf("still %s", r.bridge.Status().State)
				}
				_ = r.finish()
			})
		})
	}
}

// shutdown_grace: 0s does not delay a shutdown; it must not hold it up for ever.
func TestAShutdownWithoutGrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, func(_ *walsender.Config, c *config.Config) { c.Databases[0].ShutdownGrace = 0 })
		release := r.holdProduce()
		r.start()
		r.commit(event(0))
		sleep(time.Second)
		r.pg.Shutdown()
		sleep(2 * time.Second)
		if r.pg.Holder() != nil {
			t.Error("the walsender is still held two seconds after the shutdown began")
		}
		release()
		_ = r.finish()
	})
}

// Within the grace what is in flight still counts.
func TestAcknowledgementsWithinTheGraceAreConfirmed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		release := r.holdProduce()
		r.start()
		c := r.commit(event(0))
		sleep(time.Second)
		r.pg.Shutdown()
		sleep(2 * time.Second)
		release()
		sleep(time.Second)
		if got := r.pg.Confirmed(); got < c.EndLSN {
			t.Errorf("confirmed %s, want %s, which Kafka acknowledged within shutdown_grace", got, c.EndLSN)
		}
		_ = r.finish()
	})
}

// A standby's attempts are no restarts: they would set off an alert in every healthy pair.
func TestAStandbyDoesNotCountRestarts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		other := newRig(t, time.Minute, nil)
		other.pg.Close()
		other.pg = r.pg
		registry := instrument(other.bridge)
		other.start()
		sleep(time.Minute)
		for name, value := range scrape(t, registry) {
			if len(name) > 30 && name[:30] == "walferry_session_restarts_tota" {
				t.Errorf("%s %s", name, value)
			}
		}
		_ = other.finish()
		_ = r.finish()
	})
}

// A DSN of several hosts may lead SQL to the old primary and the stream to the new one.
func TestTheStreamIsOfTheServerThatWasChecked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.server(2)
		r.start()
		r.commit(event(0))
		sleep(time.Minute)
		if s := r.bridge.Status(); s.State != Waiting || !strings.Contains(s.LastError, "different servers") {
			t.Errorf("%s: %q, want to wait", s.State, s.LastError)
		}
		r.server(1)
		sleep(time.Minute)
		if s := r.bridge.Status(); s.State != Streaming || r.bridge.acknowledged.Load() != 1 {
			t.Errorf("%s after %d events, want to stream and 1", s.State, r.bridge.acknowledged.Load())
		}
		_ = r.finish()
	})
}

// Another server behind the DSN than the one that streams says nothing of our slot.
func TestTheWatchEndsTheSessionWhenItMeetsAnotherServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		r.server(2)
		for _, session := range r.pg.Sessions() {
			if session != r.pg.Holder() {
				session.Terminate()
			}
		}
		sleep(r.bridge.db.ShutdownGrace + 2*time.Second)
		if s := r.bridge.Status(); s.State != Waiting {
			t.Errorf("%s, want to wait", s.State)
		}
		_ = r.finish()
	})
}

// resumeConn cancels the session between Resume's clearing of the deadline and the next read.
type resumeConn struct {
	net.Conn
	clearing func()
}

func (c resumeConn) SetReadDeadline(at time.Time) error {
	if at.IsZero() {
		c.clearing()
	}
	return c.Conn.SetReadDeadline(at)
}

// An Interrupt that comes just before Resume must not be lost.
func TestAnInterruptBeforeResumeIsNotLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		var armed atomic.Bool
		dial := r.bridge.connConfig
		r.bridge.connConfig = func() (*pgx.ConnConfig, error) {
			cfg, err := dial()
			inner := cfg.DialFunc
			cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := inner(ctx, network, addr)
				return resumeConn{conn, func() {
					if armed.Swap(false) {
						sleep(r.bridge.db.DrainTimeout + time.Second) // the drain's end interrupts meanwhile
					}
				}}, err
			}
			return cfg, err
		}
		r.start()
		r.pg.Hold(3) // inside of a transaction
		r.commit(event(0), event(1), event(2))
		sleep(time.Second)
		armed.Store(true)
		r.stop()
		sleep(r.bridge.db.DrainTimeout + 5*time.Second) // before a keepalive would wake it
		select {
		case err := <-r.ended:
			r.ended <- err
		default:
			t.Error("the bridge still waits 5 s after the drain has timed out")
			r.pg.Release()
		}
		_ = r.finish()
	})
}
