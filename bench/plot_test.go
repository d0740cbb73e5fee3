package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// made returns results with numbers that nobody has measured.
func made() *Results {
	r := &Results{
		Commit: "0123456", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Machine: Machine{
			CPU: "Made-up CPU @ 2.00GHz", Cores: 2, Memory: 8 << 30, Kernel: "6.1.0", Postgres: "18.1", Kafka: "4.1.0",
			Go: "go1.26", Partitions: 6,
		},
		Backlogs: []Backlog{{Name: "rows", Events: 1_000_000}},
	}
	for i, name := range []string{coalescer, walferry, recvlogical, plainReader, debezium, producer} {
		for round, factor := range []float64{1.1, 1, 0.97} {
			r.Drains = append(r.Drains,
				Drain{Backlog: "rows", Contestant: name, Round: round + 1, Events: 1_000_000, Seconds: (5 + 3*float64(i)) * factor},
				Drain{Backlog: "messages", Contestant: name, Round: round + 1, Events: 1_000_000, Seconds: 1})
		}
	}
	for i, c := range []latencyCase{{rate: 100}, {rate: 1000}, {rate: 3000}, {rate: 1000, tls: true}, {rate: 1000, draining: true}} {
		for round, factor := range []float64{1.2, 1, 0.9} {
			for contestant, slower := range map[string]float64{walferry: 1, direct: 1.1} {
				f := factor * slower * float64(i+2) / 2
				r.Latencies = append(r.Latencies, Latency{
					Contestant: contestant, Rate: c.rate, TLS: c.tls, Draining: c.draining, Round: round + 1,
					P50: 1.2 * f, P90: 2.2 * f, P99: 6 * f, P999: 14 * f,
				})
			}
		}
	}
	slices.SortStableFunc(r.Latencies, func(a, b Latency) int { return strings.Compare(b.Contestant, a.Contestant) })
	return r
}

func TestDrawPlot(t *testing.T) {
	dir := t.TempDir()
	all := made()
	onlyDrains, onlyLatencies := *all, *all
	onlyDrains.Latencies, onlyLatencies.Drains = nil, nil
	tests := []struct {
		name     string
		results  *Results
		has, not []string
	}{
		{"all", all, []string{"Throughput: a backlog of 1,000,000 rows", "Debezium Server", "coalescing reader*", "125,000", "Latency", "1,000/s", "99.9", "Made-up CPU", "9 GB", "Arial"}, []string{"quick", "produce"}},
		{"drains", &onlyDrains, []string{"Throughput", "walferry"}, []string{"Latency"}},
		{"latencies", &onlyLatencies, []string{"Latency", "during a drain"}, []string{"Throughput", "nowhere"}},
	}
	for _, test := range tests {
		path := filepath.Join(dir, test.name+".svg")
		if err := drawPlot(test.results, path); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		said := texts(t, content)
		for _, want := range test.has {
			if !strings.Contains(said, want) && !bytes.Contains(content, []byte(want)) {
				t.Errorf("%s: %q is not in the figure", test.name, want)
			}
		}
		for _, unwanted := range test.not {
			if strings.Contains(said, unwanted) {
				t.Errorf("%s: %q is in the figure", test.name, unwanted)
			}
		}
	}
}

// texts returns all text of an SVG file, which must be well-formed.
func texts(t *testing.T, svg []byte) string {
	t.Helper()
	var said strings.Builder
	for decoder := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return said.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			said.Write(text)
		}
	}
}

// Every contestant is there in its color, at twice the pixels of a README's 900.
func TestDrawPlotAsPNG(t *testing.T) {
	blue, orange := color.RGBA{0x1f, 0x5f, 0xae, 0xff}, color.RGBA{0xc8, 0x7a, 0x2c, 0xff}
	onlyDrains, onlyLatencies := made(), made()
	onlyDrains.Latencies, onlyLatencies.Drains = nil, nil
	for _, test := range []struct {
		results *Results
		want    []color.RGBA
	}{{onlyDrains, []color.RGBA{blue}}, {onlyLatencies, []color.RGBA{blue, orange}}} {
		path := filepath.Join(t.TempDir(), "figure.png")
		if err := drawPlot(test.results, path); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		figure, err := png.Decode(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := figure.Bounds().Dx(), 1800; got != want {
			t.Errorf("%d pixels wide, want %d", got, want)
		}
		colors := map[color.Color]bool{}
		for x := range figure.Bounds().Dx() {
			for y := range figure.Bounds().Dy() {
				colors[color.RGBAModel.Convert(figure.At(x, y))] = true
			}
		}
		for _, c := range test.want {
			if !colors[c] {
				t.Errorf("nothing has the color %v", c)
			}
		}
		if corner := color.GrayModel.Convert(figure.At(0, 0)); corner != (color.Gray{0xff}) {
			t.Errorf("the corner is %v, want white", corner)
		}
	}
}

func TestDrawPlotFails(t *testing.T) {
	dir := t.TempDir()
	if err := drawPlot(&Results{}, filepath.Join(dir, "x.svg")); err == nil {
		t.Error("without any numbers: want an error")
	}
	if err := drawPlot(made(), filepath.Join(dir, "x.gif")); err == nil {
		t.Error("x.gif: want an error")
	}
}

// The fastest comes first; who only publishes is left out.
func TestDrainedBy(t *testing.T) {
	var got []string
	for _, s := range drainedBy([]Drain{
		{Backlog: "rows", Contestant: recvlogical, Events: 100, Seconds: 10},
		{Backlog: "rows", Contestant: walferry, Events: 100, Seconds: 1},
		{Backlog: "rows", Contestant: walferry, Events: 100, Seconds: 4},
		{Backlog: "rows", Contestant: walferry, Events: 100, Seconds: 2},
		{Backlog: "rows", Contestant: producer, Events: 100, Seconds: 0.1},
		{Backlog: "messages", Contestant: walferry, Events: 100, Seconds: 0.1},
	}, "rows") {
		got = append(got, fmt.Sprint(s.contestant, s.rate))
	}
	if want := []string{"walferry{50 25 100}", "pg_recvlogical{10 10 10}"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLatencyLines(t *testing.T) {
	at := func(contestant string, round int, ms float64) Latency {
		return Latency{Contestant: contestant, Rate: 100, Round: round, P50: ms, P90: 2 * ms, P99: 3 * ms, P999: 4 * ms}
	}
	tls := at(direct, 1, 0)
	tls.TLS = true
	got := latencyLines([]Latency{at(direct, 1, 5), at(walferry, 1, 10), at(direct, 2, 1), tls, at(direct, 3, 2)})
	want := []latencyLine{
		{latencyCase{rate: 100}, direct, []float64{2, 4, 6, 8}},
		{latencyCase{rate: 100}, walferry, []float64{10, 20, 30, 40}},
		{latencyCase{rate: 100, tls: true}, direct, []float64{0.001, 0.001, 0.001, 0.001}},
	}
	if !slices.EqualFunc(got, want, func(a, b latencyLine) bool {
		return a.latencyCase == b.latencyCase && a.contestant == b.contestant && slices.Equal(a.quantiles, b.quantiles)
	}) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTicks(t *testing.T) {
	labels := func(low, high float64) (s []string) {
		for _, tick := range logTicks(low, high) {
			s = append(s, tick.Label)
		}
		return s
	}
	for _, test := range []struct {
		low, high float64
		want      []string
	}{
		{1, 3, []string{"1", "2", "5", "10"}},
		{0.7, 1.6, []string{"0.5", "1", "2", "5"}},
		{1.9, 1.9, []string{"1", "2", "5", "10"}},
	} {
		if got := labels(test.low, test.high); !slices.Equal(got, test.want) {
			t.Errorf("logTicks(%v, %v): got %v, want %v", test.low, test.high, got, test.want)
		}
	}
	var linear []string
	for _, tick := range linearTicks(230_000) {
		linear = append(linear, tick.Label)
	}
	if want := []string{"0", "50,000", "100,000", "150,000", "200,000"}; !slices.Equal(linear, want) {
		t.Errorf("linearTicks(230000): got %v, want %v", linear, want)
	}
}
