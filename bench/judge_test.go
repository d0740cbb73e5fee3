package main

import (
	"slices"
	"strings"
	"testing"
)

// drainsOf returns drains of a million events at these rates, each with so many µs of CPU per event.
func drainsOf(backlog, contestant string, cpu float64, rates ...float64) []Drain {
	var drains []Drain
	for i, rate := range rates {
		drains = append(drains, Drain{
			Backlog: backlog, Contestant: contestant, Round: i + 1, Events: 1_000_000, Seconds: 1_000_000 / rate,
			User: cpu * 0.75, Sys: cpu * 0.25, PeakRSS: int64(40e6 + rate),
		})
	}
	return drains
}

// good are results that meet every target.
func good() *Results {
	r := &Results{Backlogs: []Backlog{{Name: unrelatedBacklog, WALBytes: 4_000e6}}}
	for _, drains := range [][]Drain{
		drainsOf(rowsBacklog, recvlogical, 1, 99e3, 100e3, 101e3),
		drainsOf(rowsBacklog, plainReader, 1, 80e3, 90e3, 95e3),
		drainsOf(rowsBacklog, coalescer, 1, 100e3, 190e3, 200e3),
		drainsOf(rowsBacklog, walferry, 2.9, 160e3, 180e3, 170e3, 180e3, 190e3, 180e3, 180e3, 180e3),
		drainsOf(rowsBacklog, exactlyOnce, 3, 150e3),
		drainsOf(rowsBacklog, debezium, 9, 36e3),
		drainsOf(messagesBacklog, walferry, 1, 181e3),
		drainsOf(bigBacklog, walferry, 1, 150e3),
		drainsOf("100k", walferry, 2.00, 180e3), drainsOf("1m", walferry, 2.09, 180e3), drainsOf("10m", walferry, 2.1, 180e3),
		{{Backlog: emptyBacklog, Contestant: walferry, Seconds: 0.2, User: 0.1}},
		{{Backlog: unrelatedBacklog, Contestant: walferry, Seconds: 20, User: 0.5, Sys: 0.3}},
	} {
		r.Drains = append(r.Drains, drains...)
	}
	for _, rate := range []int{100, 1000, 3000} {
		r.Latencies = append(r.Latencies,
			Latency{Contestant: walferry, Rate: rate, P50: 2.2, P99: 15, Cores: 1.5},
			Latency{Contestant: direct, Rate: rate, P50: 2, P99: 10},
			Latency{Contestant: walferry, Rate: rate, TLS: true, P50: 9, P99: 99})
	}
	r.Latencies = append(r.Latencies, Latency{Contestant: exactlyOnce, Rate: 1000, P50: 140, P99: 200})
	return r
}

// outcomes returns the outcome of the verdict on the target that contains the text.
func outcome(t *testing.T, r *Results, target string) Verdict {
	t.Helper()
	var found []Verdict
	for _, v := range judge(r) {
		if strings.Contains(v.Target, target) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d verdicts on a target with %q, want 1", len(found), target)
	}
	return found[0]
}

func TestJudgeGood(t *testing.T) {
	for _, v := range judge(good()) {
		if v.Outcome != passed {
			t.Errorf("%s: got %s, %s", v.Target, v.Outcome, v.Figure)
		}
	}
}

func TestJudgeNothing(t *testing.T) {
	for _, v := range judge(&Results{}) {
		if v.Outcome != unjudged {
			t.Errorf("%s: got %s, %s", v.Target, v.Outcome, v.Figure)
		}
	}
}

// Each target is missed, or cannot be judged, for its own reason alone.
func TestJudgeMisses(t *testing.T) {
	type change func(r *Results, d *Drain)
	of := func(backlog, contestant string, change func(d *Drain)) change {
		return func(_ *Results, d *Drain) {
			if d.Backlog == backlog && d.Contestant == contestant {
				change(d)
			}
		}
	}
	slower := func(factor float64) func(*Drain) { return func(d *Drain) { d.Seconds *= factor } }
	tests := []struct {
		target, outcome, figure string
		change                  change
	}{
		{"limit is one", missed, "1.83 (", of(rowsBacklog, coalescer, slower(2.0/1.83))},
		{"× walsender-bound", unjudged, "not valid", of(rowsBacklog, coalescer, slower(2.0/1.83))},
		{"× walsender-bound", missed, "0.84", of(rowsBacklog, walferry, slower(0.9/0.84))},
		{"× plain", missed, "1.67", of(rowsBacklog, walferry, slower(1.2))},
		{"drain, × pg_recvlogical", missed, "1.44", of(rowsBacklog, walferry, slower(1.25))},
		{"within ±12", missed, "±15.4 %", of(rowsBacklog, walferry, func(d *Drain) {
			if d.Round == 3 {
				d.Seconds *= 170 / 152.3
			}
		})},
		{"exactly-once, × at-least-once", missed, "0.79", of(rowsBacklog, exactlyOnce, slower(1.06))},
		{"× Debezium", missed, "4.95", of(rowsBacklog, debezium, slower(1/1.01))},
		{"logical messages", missed, "0.91", of(messagesBacklog, walferry, slower(1.1))},
		{"CPU per event, µs", missed, "3.05", of(rowsBacklog, walferry, func(d *Drain) { d.Sys += 0.15 })},
		{"peak RSS", missed, "64.1 MB, in backlog big", of(bigBacklog, walferry, func(d *Drain) { d.PeakRSS = 64_100_000 })},
		{"100,000 to 10,000,000", missed, "above the least", of("10m", walferry, func(d *Drain) { d.User += 0.1 })},
		{"unrelated", missed, "1.06", of(unrelatedBacklog, walferry, func(d *Drain) { d.Sys += 0.05 })},
		// Fewer than eight runs say nothing.
		{"within ±12", unjudged, "in 7 runs", of(rowsBacklog, walferry, func(d *Drain) {
			if d.Round == 1 {
				d.Contestant = "another"
			}
		})},
		{"peak RSS", unjudged, "was not measured", of(bigBacklog, walferry, func(d *Drain) { d.Backlog = "another" })},
		// The start of Debezium's JVM is not its rate.
		{"× Debezium", missed, "4.50", of(rowsBacklog, debezium, func(d *Drain) { d.FirstRecord = 0.1 * d.Seconds })},
	}
	for _, test := range tests {
		r := good()
		for i := range r.Drains {
			test.change(r, &r.Drains[i])
		}
		if v := outcome(t, r, test.target); v.Outcome != test.outcome || !strings.Contains(v.Figure, test.figure) {
			t.Errorf("%s: got %s, %s; want %s, %s", v.Target, v.Outcome, v.Figure, test.outcome, test.figure)
		}
	}
}

func TestJudgeLatency(t *testing.T) {
	const target = "p99 from commit to consumer at 3,000 events/s"
	r := good()
	r.Latencies = append(r.Latencies, Latency{Contestant: walferry, Rate: 3000, P50: 2.2, P99: 15.2})
	if v := outcome(t, r, target); v.Outcome != missed || v.Figure != "1.51 (15.10 of 10.00 ms)" { // the median of two rounds
		t.Errorf("got %s, %s", v.Outcome, v.Figure)
	}
	r = good()
	r.Latencies = slices.DeleteFunc(r.Latencies, func(l Latency) bool { return l.Contestant == direct && l.Rate == 3000 })
	if v := outcome(t, r, target); v.Outcome != unjudged {
		t.Errorf("without a direct application: got %s, %s", v.Outcome, v.Figure)
	}
}

// A quick run has figures, and no target is judged by them.
func TestJudgeQuick(t *testing.T) {
	r := good()
	r.Quick = true
	for _, v := range judge(r) {
		if v.Outcome != unjudged || v.Figure == "not measured" {
			t.Errorf("%s: got %s, %s", v.Target, v.Outcome, v.Figure)
		}
	}
}

func TestSummarizeDrains(t *testing.T) {
	drains := drainsOf("a", "x", 2, 100, 400, 200)
	drains = append(drains, drainsOf("a", "y", 4, 10, 20)...)
	drains[1].WalsenderUser, drains[1].BrokerCPU = 3, 5
	all := summarizeDrains(drains)
	if len(all) != 2 {
		t.Fatalf("got %d summaries, want 2", len(all))
	}
	x := all[0]
	if x.rate.median != 200 || x.rate.least != 100 || x.rate.most != 400 || x.runs != 3 || x.rate.off() != 1 {
		t.Errorf("got %+v", x)
	}
	if x.peakRSS != 40e6+400 || x.cpu.median != 2 || x.totalCPU.median != 2 {
		t.Errorf("got %+v", x)
	}
	if x.sender.user != 0 || x.broker != 0 { // medians
		t.Errorf("walsender %.1f s, broker %.1f s, want the medians, 0", x.sender.user, x.broker)
	}
	if y := all[1]; y.contestant != "y" || y.rate.median < 14.999 || y.rate.median > 15.001 {
		t.Errorf("got %+v, want the median of two rounds between them", y)
	}
}

func TestTables(t *testing.T) {
	r := good()
	r.Backlogs = append(r.Backlogs, Backlog{Name: rowsBacklog, Events: 1_000_000})
	tables := tablesOf(r)
	if len(tables) != 3 {
		t.Fatalf("got %d tables, want drains, costs and latencies", len(tables))
	}
	var text strings.Builder
	if err := printTables(&text, tables); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"rows pg_recvlogical 3 100,000 99,000–101,000 0.50 1.11 1.00 1.00 40.1 0.00",
		"rows walferry 8 180,000 160,000–190,000 0.90 2.00 1.80 2.90 40.2 0.00",
		"unrelated 4000 1 20.0 0.80 0.0",
		"3000 walferry 1 2.20 0.00 15.00 0.00 0.00 1.50",
	} {
		if !strings.Contains(strings.Join(strings.Fields(text.String()), " "), line) {
			t.Errorf("want a line %q in:\n%s", line, &text)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 999.6: "1,000", 12345.4: "12,345", 1e6: "1,000,000", 123456: "123,456"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%v): got %s, want %s", n, got, want)
		}
	}
}
