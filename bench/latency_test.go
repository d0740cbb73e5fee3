package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge/config"
)

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1)*time.Millisecond)
	}
	for _, test := range []struct {
		sorted []time.Duration
		q      float64
		want   float64
	}{
		{hundred, 0.5, 50},
		{hundred, 0.9, 90},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred[:1], 0.5, 1},
		{hundred[:3], 0.5, 2},
		{[]time.Duration{1500 * time.Nanosecond}, 0.99, 0.001},
	} {
		if got := quantile(test.sorted, test.q); got != test.want {
			t.Errorf("quantile %v of %d: got %v ms, want %v", test.q, len(test.sorted), got, test.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	var took []time.Duration
	for _, i := range rand.Perm(1000) {
		took = append(took, time.Duration(i+1)*time.Millisecond)
	}
	b := latencyBlock{latencyCase: latencyCase{rate: 100, tls: true, draining: true}, contestant: direct, round: 2}
	want := Latency{
		Contestant: direct, Rate: 100, TLS: true, Draining: true, Round: 2, Events: 1000,
		P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000,
	}
	if got := summarize(b, took); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The contestants take turns, every block has a topic of its own, and the load is that of the rate.
func TestBlocks(t *testing.T) {
	plan := latencyPlan{cases: []latencyCase{{rate: 1000}}, rounds: 3, warmup: 2 * time.Second, measured: 10 * time.Second}
	var order []string
	for _, b := range plan.blocks(plan.cases[0]) {
		order = append(order, fmt.Sprint(b.contestant, " ", b.round))
		if b.warmup != 2001 || b.events != 10000 || b.total() != 12001 {
			t.Errorf("%s: %d and %d events, %d in all; want the probe, 2 s and 10 s of them", b.name(), b.warmup, b.events, b.total())
		}
	}
	if want := []string{
		"walferry 1", "direct 1", "exactly_once 1", "exactly_once 2", "direct 2", "walferry 2", "walferry 3", "direct 3", "exactly_once 3",
	}; !slices.Equal(order, want) {
		t.Errorf("got %q, want %q", order, want)
	}
	for _, quick := range []bool{true, false} {
		plan, names := newLatencyPlan(quick), map[string]bool{}
		for _, c := range plan.cases {
			for _, b := range plan.blocks(c) {
				if names[b.name()] {
					t.Errorf("two blocks are called %s", b.name())
				}
				names[b.name()] = true
			}
		}
	}
}

func TestDueAfter(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 0, 1: time.Second / 3000, 3000: time.Second, 36000: 12 * time.Second} {
		if got := dueAfter(n, 3000); got != want {
			t.Errorf("event %d at 3000/s: got %s, want %s", n, got, want)
		}
	}
}

func TestArrivals(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	closed := func(c chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	a := newArrivals(3)
	if closed(a.any) {
		t.Error("something has arrived, want nothing")
	}
	sent := []time.Time{at(0), at(1), at(2)}
	for i, key := range []string{"2", "0", "1"} {
		if closed(a.all) {
			t.Errorf("all have arrived before event %s", key)
		}
		if err := a.add([]byte(key), at(10+i)); err != nil {
			t.Fatal(err)
		}
		if !closed(a.any) {
			t.Error("nothing has arrived, want something")
		}
	}
	if !closed(a.all) {
		t.Error("not all have arrived")
	}
	took, err := a.took(sent, 1)
	if want := []time.Duration{11 * time.Millisecond, 8 * time.Millisecond}; err != nil || !slices.Equal(took, want) {
		t.Errorf("got %v, %v, want %v", took, err, want)
	}
	for key, want := range map[string]string{"1": "twice", "3": "none of the events", "-1": "none of the events", "x": "none of the events", "": "none of the events"} {
		if err := a.add([]byte(key), at(99)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("event %q: got %v, want an error with %q", key, err, want)
		}
	}
}

// What was never sent, has not arrived, or arrived before it was sent, is not a duration.
func TestTookFails(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct{ sent, at time.Time }{
		"never sent":  {time.Time{}, now},
		"not arrived": {now, time.Time{}},
		"too early":   {now, now.Add(-time.Millisecond)},
	} {
		a := arrivals{at: []time.Time{test.at}}
		if took, err := a.took([]time.Time{test.sent}, 0); err == nil {
			t.Errorf("%s: got %v, want an error", name, took)
		}
	}
}

func TestLatencyEvent(t *testing.T) {
	a, b := newLatencyEvent(7), newLatencyEvent(7)
	if a.id == b.id || len(a.id) != 36 || a.key != "7" || a.payload != b.payload {
		t.Errorf("got %+v and %+v, want one event with two ids", a, b)
	}
}

// walferry takes the configurations.
func TestBridgeConfig(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	certificate, _, err := selfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a certificate")
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ca := range []string{"", file} {
		dsn := verifyFull("postgres://postgres@127.0.0.1:5432/latency?sslmode=disable", file)
		cfg, err := config.Parse("test.yaml", []byte(walferryConfig("127.0.0.1:9092", ca, bridged{"bench", dsn, "slot_1", "topic.{aggregatetype}"})), none)
		if err != nil {
			t.Fatal(err)
		}
		db, k := cfg.Databases[0], cfg.Kafka
		if db.Slot != "slot_1" || string(db.DSN) != dsn || db.Outbox[0].Topic != "topic.{aggregatetype}" || k.Brokers[0] != "127.0.0.1:9092" {
			t.Errorf("got %+v and %+v", db, k)
		}
		if k.TLS.Enabled != (ca != "") || k.TLS.CAFile != ca || cfg.Admin.Listen != "" {
			t.Errorf("with CA %q: got TLS %+v, admin %q", ca, k.TLS, cfg.Admin.Listen)
		}
		if !strings.Contains(dsn, "sslmode=verify-full") || strings.Contains(dsn, "disable") {
			t.Errorf("DSN %s, want it to demand TLS", dsn)
		}
	}
}

// A client that trusts the certificate takes a server of its host, and none elsewhere.
func TestSelfSigned(t *testing.T) {
	certificate, key, err := selfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(certificate)
	server, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for host, works := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: trust, DNSName: host}); (err == nil) != works {
			t.Errorf("a server at %s: got %v, want success: %t", host, err, works)
		}
	}
}
