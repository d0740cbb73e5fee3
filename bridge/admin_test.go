package bridge

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/walsender"
)

// instrument has a bridge that does not run yet report to a registry.
func instrument(b *Bridge) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	b.metrics = NewMetrics(registry, "1.2.3", "abcdef")
	b.nonTransactional = b.metrics.nonTransactional.WithLabelValues(b.db.Name)
	b.skipped = b.metrics.skipped.WithLabelValues(b.db.Name)
	b.commitToAck = b.metrics.commitToAck.WithLabelValues(b.db.Name)
	b.enter(Starting)
	return registry
}

// scrape returns the samples of /metrics.
func scrape(t *testing.T, metrics prometheus.Gatherer) map[string]string {
	t.Helper()
	answer := ask(nil, metrics, http.MethodGet, "/metrics")
	if answer.Code != 200 {
		t.Fatalf("/metrics answers %d: %s", answer.Code, answer.Body)
	}
	samples := map[string]string{}
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "} "); ok && !strings.HasPrefix(name, "#") {
			samples[name+"}"] = value
		}
	}
	return samples
}

func TestMetrics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// The first event of a topic is too late for Send, and would linger.
		r := newRig(t, time.Minute, func(_ *walsender.Config, c *config.Config) { c.Kafka.Linger = 0 })
		registry := instrument(r.bridge)
		r.start()
		r.pg.Crash()
		r.pg.Start(0)
		sleep(time.Second)
		r.commit(event(0), event(1))
		sleep(2 * watchEvery)
		samples := scrape(t, registry)
		const topic = `{database="shop",topic="outbox.event.order"}`
		for name, want := range map[string]string{
			`walferry_build_info{commit="abcdef",version="1.2.3"}`:                 "1",
			`walferry_events_published_total` + topic:                              "2",
			`walferry_publish_latency_seconds_count{database="shop"}`:              "2",
			`walferry_commit_to_ack_seconds_count{database="shop"}`:                "1",
			`walferry_inflight_events{database="shop"}`:                            "0",
			`walferry_slot_restart_lag_bytes{database="shop"}`:                     "0",
			`walferry_slot_confirmed_lag_bytes{database="shop"}`:                   "0",
			`walferry_slot_wal_status{database="shop",status="reserved"}`:          "1",
			`walferry_slot_wal_status{database="shop",status="extended"}`:          "0",
			`walferry_slot_wal_status{database="shop",status="unreserved"}`:        "0",
			`walferry_slot_wal_status{database="shop",status="lost"}`:              "0",
			`walferry_session_restarts_total{class="retry",database="shop"}`:       "1",
			`walferry_messages_ignored_total{database="shop"}`:                     "0",
			`walferry_publish_latency_seconds_bucket{database="shop",le="+Inf"}`:   "2",
			`walferry_commit_to_ack_seconds_bucket{database="shop",le="0.0005"}`:   "1",
			`walferry_publish_latency_seconds_bucket{database="shop",le="65.536"}`: "2",
		} {
			if got, ok := samples[name]; !ok || got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if bytes := samples["walferry_published_bytes_total"+topic]; bytes == "" || bytes == "0" {
			t.Errorf("published bytes: %q", bytes)
		}
		for _, s := range states {
			want := "0"
			if s == Streaming {
				want = "1"
			}
			if name := fmt.Sprintf(`walferry_state{database="shop",state=%q}`, s); samples[name] != want {
				t.Errorf("%s is %q, want %q", name, samples[name], want)
			}
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// A gauge that keeps its last value hides what it no longer knows.
func TestWithoutASessionGaugesHaveNoValue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		registry := instrument(r.bridge)
		r.start()
		release := r.holdProduce()
		r.commit(event(0))
		sleep(2 * watchEvery)
		if got := scrape(t, registry)[`walferry_inflight_events{database="shop"}`]; got != "1" {
			t.Errorf("%s events in flight, want 1", got)
		}
		r.pg.Crash()
		sleep(2 * watchEvery)
		for name, value := range scrape(t, registry) {
			if strings.HasPrefix(name, "walferry_slot_") || strings.HasPrefix(name, "walferry_inflight") || strings.HasPrefix(name, "walferry_waits") {
				t.Errorf("while %s: %s %s", r.bridge.Status().State, name, value)
			}
		}
		if s := r.bridge.Status(); s.State != Waiting || s.Inflight != 0 || s.WALStatus != "" {
			t.Errorf("status %+v", s)
		}
		release()
		r.pg.Start(0)
		_ = r.finish()
	})
}

func TestOneOfSeveralBridges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fine, broken := newRig(t, time.Minute, nil), newRig(t, time.Minute, nil)
		broken.bridge.status.Database = "broken"
		broken.failProduce(0, kerr.TopicAuthorizationFailed)
		fine.start()
		broken.start()
		checkReady(t, 200, []string{"shop ready role=leader", "broken ready role=leader"}, fine.bridge, broken.bridge)
		broken.commit(event(0))
		sleep(time.Second)
		checkReady(t, 503, []string{"shop ready role=leader", "broken not ready: failed: publish event"}, fine.bridge, broken.bridge)

		both := []*Bridge{fine.bridge, broken.bridge}
		if answer := ask(both, prometheus.NewRegistry(), http.MethodGet, "/healthz"); answer.Code != 200 || answer.Body.String() != "ok\n" {
			t.Errorf("/healthz answers %d: %s, want 200: the process is alive", answer.Code, answer.Body)
		}
		answer := ask(both, prometheus.NewRegistry(), http.MethodGet, "/status")
		first, second := strings.Index(answer.Body.String(), `"shop"`), strings.Index(answer.Body.String(), `"broken"`)
		if answer.Code != 200 || answer.Header().Get("Content-Type") != "application/json" || first < 0 || second < first {
			t.Errorf("/status answers %d: %s", answer.Code, answer.Body)
		}
		_ = broken.finish()
		if err := fine.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTheAdminAPIOnlyAnswersGET(t *testing.T) {
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/status"} {
		if code := ask(nil, prometheus.NewRegistry(), http.MethodGet, path).Code; code != 200 {
			t.Errorf("GET %s answers %d", path, code)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
			if code := ask(nil, prometheus.NewRegistry(), method, path).Code; code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s answers %d, want %d", method, path, code, http.StatusMethodNotAllowed)
			}
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/status/shop"} {
		if code := ask(nil, prometheus.NewRegistry(), http.MethodGet, path).Code; code != http.StatusNotFound {
			t.Errorf("GET %s answers %d, want %d", path, code, http.StatusNotFound)
		}
	}
}
