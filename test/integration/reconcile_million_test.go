//go:build faults

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/internal/servers"
)

const (
	reconcileMemory = "64MiB"
	// reconcileRSS is what `walferry reconcile` may take with that.
	reconcileRSS = 160 << 20
)

// reconcileWithBinary runs the binary and returns what it has found, its time and its peak of memory checked.
func (w *world) reconcileWithBinary(code int) (reconcile.Counts, []reported) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "report")
	began := time.Now()
	c := walferry(w.t, "reconcile", "--config", w.configFile(""), "--json", "--report", path, "--memory", reconcileMemory, "--dir", w.t.TempDir())
	peak := c.peakRSS()
	stdout, _ := c.exit(code)
	w.t.Logf("reconciled in %s, peak RSS %d MiB", time.Since(began).Round(time.Millisecond), peak>>20)
	if peak == 0 || peak > reconcileRSS {
		w.t.Errorf("peak RSS is %d bytes, want at most %d", peak, reconcileRSS)
	}
	var results []reconcile.Result
	if err := json.Unmarshal([]byte(stdout), &results); err != nil || len(results) != 1 {
		w.t.Fatalf("%v: %s", err, stdout)
	}
	file, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	return results[0].Total, parseReport(w.t, file)
}

func TestReconcileFindsAThousandDefectsAmongAMillion(t *testing.T) {
	const rows, keys, each = 1_000_000, 1000, 250
	w := newWorld(t, newest(t), nil)
	topic := w.createTopic("order", 3, nil)
	w.fillOutbox(rows, keys)
	want := w.plantDefects(topic, rows, keys, each, newSeed(t))
	w.confirmAll()
	c, report := w.reconcileWithBinary(68)
	missed(t, found(report), want)
	if c.Rows != rows || c.Records != rows || c.Missing != each || c.Duplicated != each || c.Different != each || c.OutOfOrder != each ||
		c.Unknown+c.OrderUnknown+c.Pruned+c.Foreign+c.Replayed+c.Repaired+c.Unpublishable != 0 {
		t.Errorf("%+v", c)
	}
}

func TestReconcileFindsNothingInAHealthyMillion(t *testing.T) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			const rows = 1_000_000
			w := newWorld(t, newest(t), nil)
			w.cfg.Delivery = delivery
			w.createTopic("order", 3, nil)
			w.fillOutbox(rows, 1000)
			w.drainWithBinary(rows)
			walferry(t, "run", "--config", w.configFile("")) // what is confirmed has to follow the WAL
			c, report := w.reconcileWithBinary(0)
			if len(report) != 0 || c != (reconcile.Counts{Rows: rows, Records: rows}) {
				t.Errorf("%+v, %d lines", c, len(report))
			}
		})
	}
}

// Segments expire while a bridge publishes, and while they are read.
func TestReconcileWhileRecordsExpire(t *testing.T) {
	broker, err := servers.Kafka(t.Context(), servers.KafkaOptions{Properties: map[string]string{"log.retention.check.interval.ms": "200", "log.segment.delete.delay.ms": "100"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	w := newWorld(t, newest(t), on(broker.Addr()))
	topic := w.createTopic("order", 3, map[string]*string{"retention.ms": new("3000"), "segment.ms": new("500"), "file.delete.delay.ms": new("100")})
	w.exec("ALTER TABLE outbox ALTER id TYPE text, ADD COLUMN n serial")
	r := w.run("")
	unknown := int64(0)
	for began := time.Now(); time.Since(began) < 30*time.Second; {
		w.exec(`INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) SELECT gen_random_uuid(), 'order', 'k' || n % 10, 'T', to_jsonb(repeat(md5(n::text), 20)) FROM generate_series(1, 200) n`)
		found := w.reconciled()
		if !found.Agree || found.Total.Missing+found.Total.Different+found.Total.OutOfOrder+found.Total.Duplicated != 0 {
			t.Fatalf("%+v", found)
		}
		unknown = max(unknown, found.Total.Unknown)
	}
	starts, err := w.kafkaAdmin().ListStartOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	starts.Each(func(o kadm.ListedOffset) {
		if o.Offset == 0 {
			t.Errorf("nothing of partition %d has expired", o.Partition)
		}
	})
	if unknown == 0 {
		t.Error("nothing was unknown")
	}
	r.drain()
}
