package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

func TestBlackHoleBeforePostgres(t *testing.T) {
	const senderTimeout = 3 * time.Second
	w := newWorld(t, newest(t), func(cfg *config.Config) {
		cfg.Databases[0].DSN += config.Secret(fmt.Sprintf("&options=-c%%20wal_sender_timeout%%3D%d", senderTimeout.Milliseconds()))
	})
	postgres, _ := w.throughProxies()
	l := w.startLoad(newSeed(t))
	r := w.run("")
	r.awaitState(bridge.Streaming)
	l.more(20)
	postgres.blackHole()
	began := time.Now()
	await(t, "the session to end", func() error {
		if s := r.bridge.Status(); !s.LastErrorAt.After(began) {
			return fmt.Errorf("state %s after %s", s.State, time.Since(began))
		}
		return nil
	})
	took := time.Since(began)
	postgres.heal()
	t.Logf("noticed after %s: %s", took.Round(time.Millisecond), r.bridge.Status().LastError)
	if took > 2*senderTimeout || !strings.Contains(r.bridge.Status().LastError, "silent") {
		t.Errorf("noticed after %s, want wal_sender_timeout (%s) or so", took, senderTimeout)
	}
	r.awaitState(bridge.Streaming)
	t.Logf("streaming again after %s", time.Since(began).Round(time.Millisecond))
	l.audit()
}

func TestResetsBeforePostgres(t *testing.T) {
	random := newSeed(t)
	w := newWorld(t, newest(t), nil)
	postgres, _ := w.throughProxies()
	l := w.startLoad(random)
	r := w.run("")
	for round := range 10 {
		r.awaitState(bridge.Streaming)
		if round%2 == 0 { // else it may be too early for any progress
			w.awaitCaughtUp()
		}
		before := r.bridge.Status().Sessions
		postgres.resetAfter(random.IntN(64 << 10)) // in the middle of a message
		await(t, "another session", func() error {
			if s := r.bridge.Status(); s.Sessions == before {
				return fmt.Errorf("still in session %d, state %s", before, s.State)
			}
			return nil
		})
	}
	l.audit()
}

func TestResetsBeforeKafka(t *testing.T) {
	random := newSeed(t)
	w := newWorld(t, newest(t), nil)
	_, kafka := w.throughProxies()
	l := w.startLoad(random)
	r := w.run("")
	r.awaitState(bridge.Streaming)
	for round := range 20 {
		l.more(random.IntN(30))
		if round%2 == 0 {
			kafka.reset()
		} else {
			kafka.resetAfter(random.IntN(256)) // in the middle of an acknowledgement
		}
	}
	duplicates := l.audit()
	// The producer is idempotent: only a new session, which is a new producer, sends again.
	s := r.bridge.Status()
	if s.Sessions == 1 && duplicates != 0 {
		t.Errorf("%d duplicates within one session", duplicates)
	}
	t.Logf("%d sessions, last error %q", s.Sessions, s.LastError)
}

func TestLatencyBeforeBothServers(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	postgres, kafka := w.throughProxies()
	postgres.delay(20 * time.Millisecond)
	kafka.delay(20 * time.Millisecond)
	l := w.startLoad(newSeed(t))
	r := w.run("")
	r.awaitState(bridge.Streaming)
	l.more(100)
	if n := l.audit(); n != 0 || r.bridge.Status().Sessions != 1 {
		t.Errorf("%d duplicates in %d sessions, want none in one", n, r.bridge.Status().Sessions)
	}
}
