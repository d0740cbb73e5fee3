package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge/config"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("4711 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 1234 56 7 8 9"))
	if err != nil || got != (cpuTime{12.34, 0.56}) {
		t.Errorf("got %v, %v; want 12.34 s and 0.56 s", got, err)
	}
	for _, bad := range []string{"", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 7 8 9 10 x 56 7"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

func TestParseMachineStat(t *testing.T) {
	got, err := parseMachineStat([]byte("cpu  300 50 25 9 8 7 6 5 0 0\ncpu0 1 2 3 4\n"))
	if err != nil || got != (cpuTime{3.5, 0.25}) {
		t.Errorf("got %v, %v; want 3.5 s and 0.25 s", got, err)
	}
	if _, err := parseMachineStat([]byte("intr 1 2 3")); err == nil {
		t.Error("another line: want an error")
	}
}

func TestOthersCores(t *testing.T) {
	if got := othersCores([]Drain{{Seconds: 10, OtherCPU: 1}, {Seconds: 2, OtherCPU: 1}, {Seconds: 1, OtherCPU: 1.5}}); got != 0.5 {
		t.Errorf("got %v, want the median, 0.5", got)
	}
	if got := othersCores(nil); got != 0 {
		t.Errorf("got %v for no drains, want 0", got)
	}
}

func TestStatusBytes(t *testing.T) {
	status := []byte("Name:\tpostgres\nVmPeak:\t  999 kB\nVmHWM:\t   5120 kB\nThreads:\t9\n")
	if got, ok := statusBytes(status, "VmHWM"); !ok || got != 5120<<10 {
		t.Errorf("got %d, %t; want %d", got, ok, 5120<<10)
	}
	for _, name := range []string{"VmRSS", "Threads", "Name"} {
		if got, ok := statusBytes(status, name); ok {
			t.Errorf("%s: got %d, want none", name, got)
		}
	}
}

func TestMeasure(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	used, err := measure(t.Context(), cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	if used.cpu.total() <= 0 || used.elapsed.Seconds() < used.cpu.total()/2 {
		t.Errorf("got %+v, want CPU time and no less elapsed", used)
	}
	// A shell, and not the test that has started it.
	if own := ownPeak(t); used.peakRSS < 100<<10 || used.peakRSS >= own {
		t.Errorf("peak RSS is %d, want that of a shell; this process has %d", used.peakRSS, own)
	}
	if _, err := measure(t.Context(), exec.CommandContext(t.Context(), "sh", "-c", "exit 3"), nil); err == nil {
		t.Error("exit code 3: want an error")
	}
}

func ownPeak(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	size, ok := statusBytes(status, "VmHWM")
	if !ok {
		t.Fatal("no VmHWM")
	}
	return size
}

// A process that does not end by itself is ended, and timed only to when it was done.
func TestMeasureUntilDone(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "trap 'sleep 0.5; exit 1' TERM; : >"+ready+"; while :; do sleep 0.01; done")
	start := time.Now()
	used, err := measure(t.Context(), cmd, func(ctx context.Context) error {
		for _, err := os.Stat(ready); err != nil; _, err = os.Stat(ready) {
			if err := wait(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		return wait(ctx, 100*time.Millisecond)
	})
	if err != nil || used.elapsed < 100*time.Millisecond || time.Since(start)-used.elapsed < 500*time.Millisecond {
		t.Errorf("got %v of %v, %v; want it without the half second of the process's end", used.elapsed, time.Since(start), err)
	}
	cmd = exec.CommandContext(t.Context(), "true")
	if _, err := measure(t.Context(), cmd, func(ctx context.Context) error { <-ctx.Done(); return nil }); err == nil {
		t.Error("a process that ends before it was done: want an error")
	}
}

func TestLoggedExplains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "echo because; exit 1")
	explain, err := logged(cmd, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := explain(cmd.Run()); err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("got %v, want what the command wrote", err)
	}
}

func TestSample(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sample")
	want := []string{"{}", strings.Repeat("x", 1000), `"y"`}
	if err := writeSample(path, want); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	payloads, err := parseSample(content)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range payloads {
		got = append(got, string(p))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range [][]byte{nil, content[:len(content)-1], {0xff}} {
		if _, err := parseSample(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

// The configuration is one that walferry accepts, without warnings.
func TestWalferryConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "walferry.yaml")
	text := walferryConfig("127.0.0.1:9092", "", bridged{"a", "postgres://postgres@127.0.0.1:5432/a?sslmode=disable", "a1", "topic-a"}, bridged{"b", "postgres://127.0.0.1/b", "b1", "topic-b"})
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings()) > 0 {
		t.Errorf("got warnings %q", cfg.Warnings())
	}
	b := cfg.Databases[1]
	if len(cfg.Databases) != 2 || b.Slot != "b1" || b.Outbox[0].Topic != "topic-b" || b.Messages.Topic != "topic-b" || b.Messages.Prefix != messagePrefix {
		t.Errorf("got %+v", cfg.Databases)
	}
}

func TestPlan(t *testing.T) {
	o, err := parseFlags([]string{"--rounds", "2", "--contestants", "walferry,debezium,produce", "--only", "rows,big"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	specs, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != 2 || specs[0].name != rowsBacklog || specs[1].name != bigBacklog {
		t.Fatalf("got %+v, want rows and big", specs)
	}
	if specs[0].rounds != 2 || !slices.Equal(specs[0].contestants, []string{producer, walferry}) { // no peers were asked for
		t.Errorf("got %+v", specs[0])
	}
	if !slices.Equal(specs[1].contestants, []string{walferry}) {
		t.Errorf("got %+v", specs[1])
	}
	for _, args := range [][]string{{"--only", "rowz"}, {"--contestants", "wal"}} {
		o, err := parseFlags(args, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plan(o); err == nil {
			t.Errorf("%q: want an error", args)
		}
	}
}

// By default everything is measured, with --quick what takes minutes.
func TestPlanSizes(t *testing.T) {
	for _, test := range []struct {
		args        []string
		backlogs    int
		rows, total int64
	}{
		{nil, 11, 1_000_000, 14_440_000},
		{[]string{"--quick"}, 1, 250_000, 250_000},
		{[]string{"--growth=false"}, 6, 1_000_000, 3_340_000},
	} {
		o, err := parseFlags(test.args, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		specs, err := plan(o)
		if err != nil {
			t.Fatal(err)
		}
		var total, rows int64
		for _, s := range specs {
			for _, f := range s.fills {
				total += f.events()
				if s.name == rowsBacklog {
					rows += f.events()
				}
			}
		}
		if len(specs) != test.backlogs || rows != test.rows || total != test.total {
			t.Errorf("%q: got %d backlogs, %d rows, %d events; want %+v", test.args, len(specs), rows, total, test)
		}
	}
}

func TestRotated(t *testing.T) {
	names := []string{"a", "b", "c"}
	var got []string
	for round := range 4 {
		got = append(got, strings.Join(rotated(names, round), ""))
	}
	if !slices.Equal(got, []string{"abc", "bca", "cab", "abc"}) {
		t.Errorf("got %q", got)
	}
}

func TestJavaMajor(t *testing.T) {
	for output, want := range map[string]int{
		"openjdk version \"21.0.2\" 2024-01-16\n": 21, `openjdk version "25" 2025-09-16`: 25, `java version "1.8.0_401"`: 1, "bash: no": 0,
	} {
		if got := javaMajor(output); got != want {
			t.Errorf("%q: got %d, want %d", output, got, want)
		}
	}
}

func TestMajorOf(t *testing.T) {
	if majorOf("/usr/lib/postgresql/9.6/bin/pg_recvlogical") != 0 || majorOf("/usr/lib/postgresql/18/bin/pg_recvlogical") != 18 {
		t.Error("want 0 and 18")
	}
}

func TestBusyCores(t *testing.T) {
	want, cores := errors.New("of f"), 0.0
	err := busyCores(&cores, func() error {
		for began := time.Now(); time.Since(began) < 300*time.Millisecond; {
		}
		return want
	})
	const rounding = 0.5 // the kernel counts in ticks of 10 ms
	if !errors.Is(err, want) || cores < 0.2 || cores > float64(runtime.NumCPU())+rounding {
		t.Errorf("got %.2f cores and error %v, want those that were busy, and the error", cores, err)
	}
}
