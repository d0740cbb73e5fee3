package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge"
)

// What operators watch: the admin address and `walferry status` of the binary.
func TestAdminAddressAndStatus(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	addr := freeAddr(t)
	path := w.configFile(addr)
	statusBefore, _ := walferry(t, "status", "--json", "--config", path).exit(0)
	mustHaveReport(t, w, statusBefore, false)
	mustExit(t, 1, []string{"healthcheck", "--config", path})

	c := walferry(t, "run", "--config", path)
	url := "http://" + addr
	awaitAnswer(t, url+"/readyz", http.StatusOK)
	w.order("k", "1")
	w.exec(`SELECT pg_logical_emit_message(false, 'outbox', 'ignored')`)
	w.order("k", "2")
	w.awaitCaughtUp()
	if body := awaitAnswer(t, url+"/readyz", http.StatusOK); body != "shop ready role=leader\n" {
		t.Errorf("/readyz says %q", body)
	}
	if body := awaitAnswer(t, url+"/healthz", http.StatusOK); body != "ok\n" {
		t.Errorf("/healthz says %q", body)
	}
	mustExit(t, 0, []string{"healthcheck", "--config", path})
	mustExit(t, 0, []string{"healthcheck", "--url", url + "/readyz"})
	awaitLines(t, url+"/metrics", []string{
		fmt.Sprintf(`walferry_events_published_total{database="shop",topic="%s.order"} 2`, w.prefix),
		fmt.Sprintf(`walferry_published_bytes_total{database="shop",topic="%s.order"} `, w.prefix),
		`walferry_commit_to_ack_seconds_count{database="shop"} 2`,
		`walferry_publish_latency_seconds_count{database="shop"} 2`,
		`walferry_inflight_events{database="shop"} 0`,
		`walferry_messages_ignored_total{database="shop"} 1`,
		`walferry_slot_confirmed_lag_bytes{database="shop"} `,
		`walferry_slot_restart_lag_bytes{database="shop"} `,
		`walferry_slot_wal_status{database="shop",status="reserved"} 1`,
		`walferry_state{database="shop",state="streaming"} 1`,
		`walferry_state{database="shop",state="failed"} 0`,
		`walferry_build_info{commit="unknown",version="dev"} 1`,
		`go_goroutines `, `process_resident_memory_bytes `,
	})
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		request, err := http.NewRequestWithContext(t.Context(), method, url+"/status", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s /status answers %s", method, response.Status)
		}
	}
	if status, _ := get(t, url+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("/debug/pprof/ answers %d", status)
	}

	running, _ := walferry(t, "status", "--json", "--config", path).exit(0)
	mustHaveReport(t, w, running, true)
	text, _ := walferry(t, "status", "--config", path).exit(0)
	for _, part := range []string{"shop\n", w.prefix, "active true", "confirmed_flush_lsn", "restart_lsn", "streaming", "role leader", "in flight", "last event"} {
		if !strings.Contains(text, part) {
			t.Errorf("status does not say %q:\n%s", part, text)
		}
	}
	c.terminate()
	if lines := c.logLines("walferry stopped"); len(lines) != 1 {
		t.Errorf("the end is not logged: %s", &c.stderr)
	}
}

// Without Kafka the process is alive, and not ready.
func TestNotReadyWithoutKafka(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	w.cfg.Kafka.Brokers = []string{"127.0.0.1:1"} // nobody listens there
	addr := freeAddr(t)
	path := w.configFile(addr)
	c := walferry(t, "run", "--config", path)
	await(t, "the reason", func() error {
		if status, body := get(t, "http://"+addr+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "shop not ready: waiting: ") || !strings.Contains(body, "127.0.0.1:1: connect: connection refused") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	awaitAnswer(t, "http://"+addr+"/healthz", http.StatusOK)
	mustExit(t, 0, []string{"healthcheck", "--config", path})
	mustExit(t, 1, []string{"healthcheck", "--url", "http://" + addr + "/readyz"}, "503")
	c.terminate()
}

// awaitLines polls metrics until each line is among them; one that ends in a blank may go on.
func awaitLines(t *testing.T, url string, want []string) {
	t.Helper()
	await(t, "the metrics", func() error {
		status, body := get(t, url)
		lines := strings.Split(body, "\n")
		for _, line := range want {
			if !slices.ContainsFunc(lines, func(l string) bool { return l == line || strings.HasSuffix(line, " ") && strings.HasPrefix(l, line) }) {
				return fmt.Errorf("no line %q in the answer %d", line, status)
			}
		}
		return nil
	})
}

// mustHaveReport checks what `walferry status --json` prints of a healthy slot.
func mustHaveReport(t *testing.T, w *world, text string, running bool) {
	t.Helper()
	var reports []struct {
		Database string `json:"database"`
		Slot     struct {
			Name              string `json:"name"`
			Active            bool   `json:"active"`
			WALStatus         string `json:"wal_status"`
			RestartLSN        string `json:"restart_lsn"`
			ConfirmedFlushLSN string `json:"confirmed_flush_lsn"`
			RestartLagBytes   *int64 `json:"restart_lag_bytes"`
			ConfirmedLagBytes *int64 `json:"confirmed_lag_bytes"`
			SafeWALSizeBytes  int64  `json:"safe_wal_size_bytes"`
		} `json:"slot"`
		Bridge *bridge.Status `json:"bridge"`
		Errors []string       `json:"errors"`
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&reports); err != nil || len(reports) != 1 {
		t.Fatalf("status: %v: %s", err, text)
	}
	r := reports[0]
	slot := r.Slot
	if r.Database != "shop" || slot.Name != w.prefix || slot.Active != running || slot.WALStatus != "reserved" ||
		slot.RestartLSN == "" || slot.ConfirmedFlushLSN == "" || slot.RestartLagBytes == nil || slot.ConfirmedLagBytes == nil || slot.SafeWALSizeBytes != -1 {
		t.Errorf("slot in the status: %s", text)
	}
	if !running {
		if r.Bridge != nil || len(r.Errors) != 1 || !strings.Contains(r.Errors[0], "no running walferry answers") {
			t.Errorf("status without a running bridge: %s", text)
		}
		return
	}
	if b := r.Bridge; b == nil || len(r.Errors) != 0 || b.State != bridge.Streaming || !b.Ready || b.Role != "leader" || b.Sessions != 1 {
		t.Errorf("status of the running bridge: %s", text)
	}
}
