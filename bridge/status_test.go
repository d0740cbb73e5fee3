package bridge

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
)

// ask sends a request to the admin API of some bridges.
func ask(bridges []*Bridge, metrics prometheus.Gatherer, method, path string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	AdminHandler(bridges, metrics).ServeHTTP(answer, httptest.NewRequest(method, path, http.NoBody))
	return answer
}

// checkReady compares the answer of /readyz; the body may go on behind each of the lines.
func checkReady(t *testing.T, code int, lines []string, bridges ...*Bridge) {
	t.Helper()
	answer := ask(bridges, prometheus.NewRegistry(), http.MethodGet, "/readyz")
	got := strings.Split(strings.TrimSuffix(answer.Body.String(), "\n"), "\n")
	if answer.Code != code || !slices.EqualFunc(got, lines, strings.HasPrefix) {
		t.Errorf("/readyz answers %d: %q, want %d: %q", answer.Code, got, code, lines)
	}
}

func TestReadiness(t *testing.T) {
	start := func(r *rig) { r.start() }
	inFlight := func(d time.Duration) func(r *rig) {
		return func(r *rig) {
			r.start()
			r.commit(event(0))
			sleep(d)
		}
	}
	for _, test := range []struct {
		name    string
		held    bool // Kafka acknowledges nothing
		arrange func(r *rig)
		code    int
		line    string
	}{
		{"streaming", false, start, 200, "shop ready role=leader"},
		{"in flight for less than 30 s", true, inFlight(29 * time.Second), 200, "shop ready role=leader"},
		{"stalled", true, inFlight(31 * time.Second), 503, "shop not ready: no progress for 31s while events are in flight: Kafka does not acknowledge"},
		{"idle for two minutes", false, func(r *rig) {
			r.start()
			sleep(2 * time.Minute)
		}, 200, "shop ready role=leader"},
		{"draining", true, func(r *rig) {
			inFlight(time.Second)(r)
			r.stop()
			sleep(time.Second)
			if s := r.bridge.Status(); s.State != Draining || s.Inflight != 1 {
				r.t.Errorf("state %s with %d events in flight, want draining with 1", s.State, s.Inflight)
			}
		}, 200, "shop ready role=leader"},
		{"stopped", false, func(r *rig) {
			r.start()
			r.stop()
			sleep(time.Second)
		}, 503, "shop not ready: stopped"},
		{"waiting", false, func(r *rig) {
			r.start()
			r.pg.Crash()
			sleep(10 * time.Second)
		}, 503, "shop not ready: waiting: connect to Postgres: "},
		{"streaming again", false, func(r *rig) {
			r.start()
			r.pg.Crash()
			sleep(10 * time.Second)
			r.pg.Start(0)
			sleep(time.Minute)
		}, 200, "shop ready role=leader"},
		{"failed", false, func(r *rig) {
			r.failProduce(0, kerr.TopicAuthorizationFailed)
			inFlight(time.Second)(r)
		}, 503, "shop not ready: failed: publish event 7000/1/"},
		{"slot lost", false, func(r *rig) {
			r.slot("lost", "wal_removed")
			r.start()
		}, 503, `shop not ready: slot_lost: slot "walferry" is lost (wal_removed)`},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, time.Minute, nil)
				checkReady(t, 503, []string{"shop not ready: starting"}, r.bridge)
				release := func() {}
				if test.held {
					release = r.holdProduce()
				}
				test.arrange(r)
				checkReady(t, test.code, []string{test.line}, r.bridge)
				release()
				_ = r.finish()
			})
		})
	}
}

func TestAStandbyIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, standby := newRig(t, time.Minute, nil), newRig(t, time.Minute, nil)
		standby.pg.Close()
		standby.pg = r.pg
		r.start()
		standby.start()
		sleep(time.Second)
		checkReady(t, 200, []string{"shop ready role=leader", "shop ready role=standby"}, r.bridge, standby.bridge)
		if s := standby.bridge.Status(); s.Holder != "pid 1 application somebody" || s.Sessions != 0 {
			t.Errorf("the standby: %+v", s)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		sleep(3 * time.Second)
		checkReady(t, 503, []string{"shop not ready: stopped", "shop ready role=leader"}, r.bridge, standby.bridge)
		if s := standby.bridge.Status(); s.Holder != "" || s.Sessions != 1 {
			t.Errorf("the standby that took over: %+v", s)
		}
		if err := standby.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// A standby that Postgres waits for in vain is named, once in the log.
func TestAStandbyThatIsAwayIsNamed(t *testing.T) {
	const metric = `walferry_waits_for_standby{database="shop"}`
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		registry := instrument(r.bridge)
		r.start()
		r.waitsForStandby.Store(true)
		for i := range 4 { // for moments: what is sent is confirmed
			r.commit(event(i))
			sleep(watchEvery)
			checkReady(t, 200, []string{"shop ready role=leader"}, r.bridge)
		}
		sleep(3 * watchEvery)
		checkReady(t, 503, []string{"shop not ready: Postgres sends nothing until the standbys"}, r.bridge)
		if s := r.bridge.Status(); s.WaitsFor != "standby" || scrape(t, registry)[metric] != "1" {
			t.Errorf("waits for %q, metric %q", s.WaitsFor, scrape(t, registry)[metric])
		}
		r.waitsForStandby.Store(false)
		sleep(watchEvery)
		checkReady(t, 200, []string{"shop ready role=leader"}, r.bridge)
		if s := r.bridge.Status(); s.WaitsFor != "" || scrape(t, registry)[metric] != "0" {
			t.Errorf("waits for %q, metric %q", s.WaitsFor, scrape(t, registry)[metric])
		}
		for _, line := range []string{"Postgres sends nothing until", "Postgres sends again"} {
			if n := strings.Count(r.log.String(), line); n != 1 {
				t.Errorf("%q is logged %d times, want once", line, n)
			}
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// An error that repeats is logged once a minute, and stays in the status.
func TestARepeatedErrorIsNotLoggedEachTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		sleep(time.Second)
		r.pg.Crash()
		sleep(5 * time.Minute) // a dozen sessions and more
		lines := strings.Count(r.log.String(), "session ended, a new one follows")
		if lines < 5 || lines > 7 {
			t.Errorf("%d log lines within five minutes, want two at first and then one a minute:\n%s", lines, r.log)
		}
		s := r.bridge.Status()
		if s.State != Waiting || s.LastError == "" || time.Since(s.LastErrorAt) > backoffLast+backoffLast/2 {
			t.Errorf("status %+v", s)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// Without brokers the client warns for each of its attempts, and every session has new clients. A database whose sessions
// fail again and again says so a few times a minute, and which one it is.
func TestKafkasWarningsOfManySessionsAreFew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.noKafka.Store(true)
		r.start()
		sleep(5 * time.Minute) // ten sessions
		lines := 0
		for line := range strings.Lines(r.log.String()) {
			if !strings.Contains(line, `"component":"kafka"`) || !strings.Contains(line, `"level":"warn"`) {
				continue
			}
			lines++
			if !strings.Contains(line, `"database":"shop"`) {
				t.Errorf("whose Kafka client says %s", line)
			}
		}
		if lines < 5 || lines > 30 {
			t.Errorf("%d warnings of Kafka's clients within five minutes, want 5 a minute at most:\n%s", lines, r.log)
		}
		_ = r.finish()
	})
}

func TestStatusAsJSON(t *testing.T) {
	always := []string{
		"database", "slot", "state", "role", "since", "ready", "sessions", "in_flight_events", "confirmed_lsn",
		"last_event", "restart_lag_bytes", "confirmed_lag_bytes",
	}
	bubble(t, func(t *testing.T) {
		began := time.Now()
		r := newRig(t, time.Minute, nil)
		checkFields(t, r.bridge, append([]string{"reason"}, always...), Status{Database: "shop", Slot: "walferry", State: Starting, Role: "none"})
		r.start()
		c := r.commit(event(0))
		sleep(10 * time.Second)
		s := checkFields(t, r.bridge, append([]string{"wal_status", "last_progress"}, always...), Status{
			Database: "shop", Slot: "walferry", State: Streaming, Role: "leader", Ready: true,
			Sessions: 1, ConfirmedLSN: c.EndLSN.String(), WALStatus: "reserved",
		})
		if s.LastEvent.Before(began.Add(-time.Second)) || s.Since.Before(began) || s.LastProgress.Before(s.Since) {
			t.Errorf("times of %+v, the test began at %s", s, began)
		}
		r.failProduce(0, kerr.TopicAuthorizationFailed)
		r.commit(event(1))
		sleep(time.Second)
		s = checkFields(t, r.bridge, append([]string{"last_progress", "reason", "last_error", "last_error_at"}, always...), Status{
			Database: "shop", Slot: "walferry", State: Failed, Role: "none", Sessions: 1, ConfirmedLSN: c.EndLSN.String(),
		})
		if s.LastErrorAt.Before(s.LastProgress) || !strings.Contains(s.Reason, s.LastError) {
			t.Errorf("error of %+v", s)
		}
		_ = r.finish()
	})
}

// checkFields compares the fields of /status with those that are wanted, and the values of
// those that stand still. It returns what /status says.
func checkFields(t *testing.T, b *Bridge, fields []string, want Status) Status {
	t.Helper()
	answer := ask([]*Bridge{b}, prometheus.NewRegistry(), http.MethodGet, "/status")
	var raw []map[string]any
	var got []Status
	if err := json.Unmarshal(answer.Body.Bytes(), &raw); err != nil || len(raw) != 1 {
		t.Fatalf("/status answers %s: %v", answer.Body, err)
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	slices.Sort(fields)
	if have := slices.Sorted(maps.Keys(raw[0])); !slices.Equal(have, fields) {
		t.Errorf("fields\n%q, want\n%q", have, fields)
	}
	s := got[0]
	still := s
	still.Since, still.LastProgress, still.LastEvent, still.LastErrorAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	still.LastError, still.Reason = "", ""
	if still != want {
		t.Errorf("got  %+v\nwant %+v", still, want)
	}
	return s
}
