//go:build faults

package integration

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// The fault matrix: what may break, each with what must come of it. Checkers:
//
//	C1   every committed event arrives
//	C2   nothing else does
//	C3   duplicates are counted, and bounded where a bound is promised
//	C4   first copies of a key are in commit order, and copies only repeat a stretch of the stream
//	C7   topic, key and value are right byte by byte
//	C8   what is confirmed lies behind nothing that is not in Kafka
//	C9   it goes on within a bound
//	C10  ids, positions and bytes are those of an independent reader of the WAL
//	RSS  peak memory of the process is bounded
//
// C1 to C4 and C7 compare the topics with the writers' ledger (audit), C10 with truth.

// matrixRow is one row of the matrix.
type matrixRow struct {
	number   int
	title    string
	checkers string
	run      func(*faultRun)
}

// deliveries are those that the matrix is run with.
var deliveries = []string{atLeastOnce, exactlyOnce}

// rowsNotRun are the rows of the matrix that this suite does not run.
var rowsNotRun = []struct{ rows, reason string }{
	{"26 (dlq)", "nothing is moved to a dead letter but by a person"},
	{"40", "a full disk needs a file system with a quota, and so root"},
	{"41", "the clock of the machine belongs to root, and static binaries ignore faketime"},
	{"44", "is TestSoak"},
	{"45", "changes the code under test: it is not a run of this one"},
}

// faultRun is one run of a row.
type faultRun struct {
	*testing.T
	env        *faultEnv
	random     *rand.Rand // from load on
	events     int        // that were delivered
	duplicates int
	recoveries []time.Duration // from the fault until all that was written before it was confirmed
	notes      []string
}

// faultEnv are servers that rows use one after another.
type faultEnv struct {
	t       *testing.T
	cluster *servers.Cluster
}

// TestFaults runs the matrix with each delivery, or the rows of it that ROW names with the one that DELIVERY names.
func TestFaults(t *testing.T) {
	selected, began := selectedRows(t), time.Now()
	env := &faultEnv{t: t}
	passed, failed, all := 0, 0, &faultRun{}
	for _, row := range matrix() {
		if len(selected) > 0 && !slices.Contains(selected, row.number) {
			continue
		}
		for _, delivery := range deliveries {
			if cmp.Or(os.Getenv("DELIVERY"), delivery) != delivery {
				continue
			}
			f, start := &faultRun{env: env}, time.Now()
			verdict := "FAILED"
			if t.Run(fmt.Sprintf("row %d %s", row.number, delivery), func(t *testing.T) { f.T = t; f.run(row.run, delivery) }) {
				verdict = "passed"
				passed++
			} else {
				failed++
			}
			all.events, all.duplicates, all.recoveries = all.events+f.events, all.duplicates+f.duplicates, append(all.recoveries, f.recoveries...)
			fmt.Printf("row %2d  %-13s  %-70s %-22s %s %6.1fs  %s\n", row.number, delivery, row.title, row.checkers, verdict, time.Since(start).Seconds(), f)
		}
	}
	if passed+failed == 0 {
		t.Fatalf("no such row: %v", selected)
	}
	var b strings.Builder
	for _, n := range rowsNotRun {
		fmt.Fprintf(&b, "not run: row %s: %s\n", n.rows, n.reason)
	}
	fmt.Fprintf(&b, "all rows: %s\n", all)
	fmt.Fprintf(&b, "faults: %d passed, %d failed (%s)\n", passed, failed, time.Since(began).Round(time.Second))
	shared.summary = b.String()
}

// run runs a row with one delivery.
func (f *faultRun) run(row func(*faultRun), delivery string) {
	shared.delivery = delivery
	row(f)
	if f.exactlyOnce() && f.duplicates > 0 {
		f.Errorf("%d duplicates, want none", f.duplicates)
	}
}

// exactlyOnce reports whether nothing may come twice.
func (f *faultRun) exactlyOnce() bool { return shared.delivery == exactlyOnce }

func selectedRows(t *testing.T) []int {
	var rows []int
	for _, s := range strings.FieldsFunc(os.Getenv("ROW"), func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("ROW: %v", err)
		}
		rows = append(rows, n)
	}
	return rows
}

func (f *faultRun) String() string {
	var parts []string
	if f.events > 0 {
		parts = append(parts, fmt.Sprintf("events=%d duplicates=%d", f.events, f.duplicates))
	}
	if n := len(f.recoveries); n > 0 {
		slices.Sort(f.recoveries)
		parts = append(parts, fmt.Sprintf("recovery median/max %s/%s of %d", short(f.recoveries[n/2]), short(f.recoveries[n-1]), n))
	}
	return strings.Join(append(parts, f.notes...), "  ")
}

func short(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// note adds something measured to the row's line.
func (f *faultRun) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// within fails the row when something took longer than its bound.
func (f *faultRun) within(what string, took, limit time.Duration) {
	f.Helper()
	if took > limit {
		f.Errorf("%s took %s, want at most %s", what, took.Round(time.Millisecond), limit)
	}
}

// load starts the writers, behind a second slot for the independent reader.
func (f *faultRun) load(w *world) *load {
	f.Helper()
	f.watchWAL(w)
	if f.random == nil {
		f.random = newSeed(f.T)
	}
	return w.startLoad(f.random)
}

// verify stops the writers, waits until the bridge has caught up, and runs every checker. It returns the number of
// duplicates.
func (f *faultRun) verify(l *load) int {
	f.Helper()
	return f.verifyBut(l, "").duplicates()
}

// verifyBut is verify without the events of one type, which are not the ledger's.
func (f *faultRun) verifyBut(l *load, kind string) *audit {
	f.Helper()
	l.ignore = l.w.prefix + "." + kind
	seen := map[string]delivery{}
	a := l.inspect(func(r *kgo.Record) {
		id := header(r, "id")
		if event, err := parseRef(id); err == nil && l.ledger.of(event) == undone {
			return // no WAL holds it any more
		}
		if seen[id].position == "" {
			seen[id] = deliveryOf(r)
		}
	})
	l.w.compareWithWAL(seen)
	f.events += len(a.first)
	f.duplicates += a.duplicates()
	return a
}

// recovered waits until everything up to an LSN is confirmed, and notes how long after the fault.
func (f *faultRun) recovered(w *world, fault time.Time, target pglogrepl.LSN) time.Duration {
	f.Helper()
	await(f.T, "recovery", func() error {
		if confirmed := w.confirmed(); confirmed < target {
			return fmt.Errorf("%s of %s is confirmed", confirmed, target)
		}
		return nil
	})
	took := time.Since(fault)
	f.recoveries = append(f.recoveries, took)
	return took
}

// threeBrokers returns a cluster in which two of three replicas must have a record. Rows leave it whole.
func (f *faultRun) threeBrokers() *servers.Cluster {
	f.Helper()
	if f.env.cluster == nil {
		cluster, err := servers.KafkaCluster(context.Background(), 3, servers.KafkaOptions{
			Properties: map[string]string{"min.insync.replicas": "2"},
		})
		if err != nil {
			f.Fatal(err)
		}
		f.env.cluster = cluster
		f.env.t.Cleanup(func() { _ = cluster.Close() })
	}
	f.Cleanup(func() {
		if f.Failed() {
			for _, b := range f.env.cluster.Brokers {
				f.Logf("log of Kafka node %d:\n%s", b.ID(), b.Log())
			}
		}
	})
	return f.env.cluster
}

// senderTimeout makes the walsender give up on a silent bridge that early.
func senderTimeout(cfg *config.Config, timeout time.Duration) {
	cfg.Databases[0].DSN += config.Secret(fmt.Sprintf("&options=-c%%20wal_sender_timeout%%3D%d", timeout.Milliseconds()))
}
