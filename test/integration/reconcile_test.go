package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/sink"
)

// reported is a line of a report.
type reported struct {
	Kind, ID, Table, Topic string
	Partition              int32
	Offset                 *int64
	OtherPartition         *int32 `json:"other_partition"`
	OtherOffset            *int64 `json:"other_offset"`
	Repaired               bool
}

func parseReport(t *testing.T, text io.Reader) (lines []reported) {
	t.Helper()
	dec := json.NewDecoder(text)
	for dec.More() {
		var l reported
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

// reconcile compares the world's table with its topics.
func (w *world) reconcile(repair bool) (*reconcile.Result, []reported) {
	w.t.Helper()
	var report bytes.Buffer
	r, err := reconcile.Run(w.t.Context(), reconcile.Options{
		Options: w.options("", zerolog.Disabled), Repair: repair, MaxRepair: 30, Report: &report,
		Memory: 1 << 20, Dir: w.t.TempDir(), Timeout: patience,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r, parseReport(w.t, &report)
}

// agrees fails unless table and topics agree in everything and nothing is unknown.
func (w *world) agrees(rows int64) *reconcile.Result {
	w.t.Helper()
	r, report := w.reconcile(false)
	c := r.Total
	if !r.Agree || len(report) != 0 || c.Rows < rows || c.Missing+c.Duplicated+c.Different+c.OutOfOrder+c.Unknown+c.OrderUnknown+c.Unpublishable != 0 {
		w.t.Errorf("%+v\n%+v", r, report)
	}
	return r
}

// createTopic creates one of the world's topics.
func (w *world) createTopic(name string, partitions int32, configs map[string]*string) string {
	w.t.Helper()
	topic := w.prefix + "." + name
	if _, err := w.kafkaAdmin().CreateTopic(w.t.Context(), partitions, -1, configs, topic); err != nil {
		w.t.Fatal(err)
	}
	return topic
}

// confirmAll has the slot confirm everything, as if a bridge published it, until the function that it returns is called or the
// test ends.
func (w *world) confirmAll() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	conn, err := pgx.Connect(ctx, w.dsn())
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(done)
		defer func() { _ = conn.Close(context.Background()) }()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := conn.Exec(ctx, "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", w.prefix); err != nil && ctx.Err() == nil {
				w.t.Error(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	w.t.Cleanup(stop)
	return stop
}

// publisher writes records as a bridge would have, for tests that want others than it would have written.
type publisher struct {
	w        *world
	client   *kgo.Client
	position int
}

func (w *world) publisher() *publisher {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...), kgo.RecordPartitioner(sink.Partitioner()), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return &publisher{w: w, client: client}
}

// record returns the record of an event with the next position.
func (p *publisher) record(topic, id, key, value string, headers ...kgo.RecordHeader) *kgo.Record {
	p.position++
	return &kgo.Record{
		Topic: topic, Key: []byte(key), Value: []byte(value),
		Headers: append([]kgo.RecordHeader{
			{Key: "id", Value: []byte(id)},
			{Key: "walferry-position", Value: fmt.Appendf(nil, "7312345678901234567/1/0/%X/0", 16*p.position)},
		}, headers...),
	}
}

func (p *publisher) append(r *kgo.Record) {
	p.client.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
		if err != nil {
			p.w.t.Error(err)
		}
	})
}

func (p *publisher) flush() {
	p.w.t.Helper()
	if err := p.client.Flush(p.w.t.Context()); err != nil {
		p.w.t.Fatal(err)
	}
}

// fillOutbox writes rows with the ids 0 to n-1 to keys in turn.
func (w *world) fillOutbox(n, keys int) {
	w.t.Helper()
	w.exec("ALTER TABLE outbox ALTER id TYPE text, ADD COLUMN n int")
	w.exec(`INSERT INTO outbox (id, n, aggregatetype, aggregateid, type, payload)
		SELECT n, n, 'order', 'key ' || n % $2::int, 'T', jsonb_build_object('n', n, 'filler', repeat(md5(n::text), 4)) FROM generate_series(0, $1::int - 1) n`, n, keys)
}

// eachOutboxRow visits the rows that fillOutbox wrote.
func (w *world) eachOutboxRow(visit func(n int, key, payload string)) {
	w.t.Helper()
	rows, err := w.conn.Query(w.t.Context(), "SELECT n, aggregateid, payload::text FROM outbox ORDER BY n")
	if err != nil {
		w.t.Fatal(err)
	}
	var n int
	var key, payload string
	if _, err := pgx.ForEachRow(rows, []any{&n, &key, &payload}, func() error {
		visit(n, key, payload)
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
}

// plantDefects publishes the rows of a filled outbox, but for so many defects of each kind, and returns what a report must
// say of them: kind and id.
func (w *world) plantDefects(topic string, rows, keys, each int, random *rand.Rand) (want []string) {
	w.t.Helper()
	const none, missing, duplicated, different, swapped = 0, 1, 2, 3, 4
	defects := make([]byte, rows)
	for kind := byte(missing); kind <= swapped; kind++ {
		for planted := 0; planted < each; {
			n := random.IntN(rows)
			switch {
			case defects[n] != none:
				continue
			case kind == swapped:
				if n+keys >= rows || defects[n+keys] != none {
					continue
				}
				defects[n+keys] = swapped
			}
			defects[n] = kind
			planted++
		}
	}
	p := w.publisher()
	later := map[int]*kgo.Record{} // the first of two that change places, by the number of the second
	w.eachOutboxRow(func(n int, key, payload string) {
		r := p.record(topic, fmt.Sprint(n), key, payload)
		switch defects[n] {
		case missing:
			want = append(want, "missing "+fmt.Sprint(n))
			return
		case duplicated:
			want = append(want, "duplicated "+fmt.Sprint(n))
			again := *r
			p.append(&again)
		case different:
			want = append(want, "different "+fmt.Sprint(n))
			r.Value[len(r.Value)/2] ^= 1
		case swapped:
			first, second := later[n]
			if !second {
				want = append(want, "out_of_order "+fmt.Sprint(n))
				later[n+keys] = r
				return
			}
			p.append(r)
			r = first
		}
		p.append(r)
	})
	p.flush()
	slices.Sort(want)
	return want
}

// found returns kind and id of the lines of a report.
func found(report []reported) (got []string) {
	for _, l := range report {
		got = append(got, l.Kind+" "+l.ID)
	}
	slices.Sort(got)
	return got
}

// missed fails unless both are the same.
func missed(t *testing.T, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	t.Errorf("%d defects are reported, %d were planted", len(got), len(want))
	for _, list := range []struct {
		name      string
		of, other []string
	}{{"not reported", want, got}, {"not planted", got, want}} {
		shown := 0
		for _, d := range list.of {
			if _, ok := slices.BinarySearch(list.other, d); !ok && shown < 10 {
				shown++
				t.Errorf("%s: %s", list.name, d)
			}
		}
	}
}

func TestReconcileFindsPlantedDefects(t *testing.T) {
	const rows, keys, each = 20_000, 100, 25
	w := newWorld(t, newest(t), nil)
	topic := w.createTopic("order", 3, nil)
	w.fillOutbox(rows, keys)
	want := w.plantDefects(topic, rows, keys, each, newSeed(t))
	w.confirmAll()

	r, report := w.reconcile(false)
	missed(t, found(report), want)
	c := r.Total
	if r.Agree || c.Rows != rows || c.Records != rows || c.Missing != each || c.Duplicated != each || c.Different != each || c.OutOfOrder != each ||
		c.Unknown+c.OrderUnknown+c.Pruned+c.Foreign+c.Replayed+c.Repaired+c.Unpublishable != 0 {
		t.Errorf("%+v", r)
	}
	w.repairs(each)
	c = w.reconciled().Total
	if c.Missing != 0 || c.Duplicated != each || c.Different != each || c.OutOfOrder != each || c.OrderUnknown != 0 {
		t.Errorf("after the repair: %+v", c)
	}
}

func (w *world) reconciled() *reconcile.Result {
	w.t.Helper()
	r, _ := w.reconcile(false)
	return r
}

// repairs publishes what is missing.
func (w *world) repairs(n int64) {
	w.t.Helper()
	r, report := w.reconcile(true)
	if r.Total.Repaired != n || r.Total.Missing != n {
		w.t.Errorf("%d of %d are repaired, want %d", r.Total.Repaired, r.Total.Missing, n)
	}
	for _, l := range report {
		if l.Repaired != (l.Kind == "missing") {
			w.t.Errorf("%+v", l)
		}
	}
}

func TestReconcileOfAHealthyPairUnderLoad(t *testing.T) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			w := newWorld(t, newest(t), func(c *config.Config) { c.Delivery = delivery })
			load := w.startLoad(newSeed(t))
			r := w.run("")
			for range 3 {
				load.more(200)
				found := w.agrees(200)
				if found.Total.Pruned == 0 { // the messages
					t.Errorf("%+v", found.Total)
				}
			}
			load.stop()
			w.agrees(600)
			r.drain()
		})
	}
}

func TestReconcileCommand(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	topic := w.createTopic("order", 3, nil)
	w.fillOutbox(300, 10)
	w.plantDefects(topic, 300, 10, 3, newSeed(t))
	stop := w.confirmAll()
	dir := t.TempDir()
	report, metrics := filepath.Join(dir, "report"), filepath.Join(dir, "walferry.prom")
	file := w.configFile("")

	stdout, stderr := walferry(t, "reconcile", "--config", file, "--json", "--report", report, "--metrics", metrics, "--dir", dir, "--memory", "1MiB").exit(68)
	var results []reconcile.Result
	if err := json.Unmarshal([]byte(stdout), &results); err != nil || len(results) != 1 {
		t.Fatalf("%v: %s", err, stdout)
	}
	if c := results[0].Total; c.Missing != 3 || c.Duplicated != 3 || c.Different != 3 || c.OutOfOrder != 3 || results[0].Agree {
		t.Errorf("%s", stdout)
	}
	if !strings.Contains(stderr, "do not agree: shop") {
		t.Errorf("stderr: %s", stderr)
	}
	lines, err := os.Open(report)
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	if n := len(parseReport(t, lines)); n != 12 {
		t.Errorf("%d lines in the report, want 12", n)
	}
	text, err := os.ReadFile(metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`walferry_reconcile_rows{database="shop"} 300`, `walferry_reconcile_records{database="shop"} 300`, `walferry_reconcile_missing{database="shop"} 3`,
		`walferry_reconcile_duplicated{database="shop"} 3`, `walferry_reconcile_different{database="shop"} 3`, `walferry_reconcile_out_of_order{database="shop"} 3`,
		`walferry_reconcile_unknown{database="shop"} 0`, `walferry_reconcile_repaired{database="shop"} 0`, `walferry_reconcile_timestamp_seconds{database="shop"} 1`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the metrics have no %s:\n%s", want, text)
		}
	}
	for _, data := range []string{"filler", "key 1"} { // of payloads and keys
		content, _ := os.ReadFile(report)
		if all := stdout + stderr + string(content) + string(text); strings.Contains(all, data) {
			t.Errorf("%q is shown", data)
		}
	}
	if _, stderr = walferry(t, "reconcile", "--config", file, "--repair", "--max-repair", "2", "--metrics", metrics).exit(1); !strings.Contains(stderr, "3 rows are missing, which is more than --max-repair 2") {
		t.Errorf("%s", stderr)
	}
	for _, want := range []string{`walferry_reconcile_success{database="shop"} 1`, `walferry_reconcile_missing{database="shop"} 3`} {
		if text, err = os.ReadFile(metrics); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%v: after a repair that was refused there is no %s in\n%s", err, want, text)
		}
	}
	if stdout, _ = walferry(t, "reconcile", "--config", file, "--repair", "--metrics", metrics).exit(68); !strings.Contains(stdout, "TABLES AND TOPICS DO NOT AGREE") {
		t.Errorf("%s", stdout)
	}
	if text, err = os.ReadFile(metrics); err != nil || !strings.Contains(string(text), `walferry_reconcile_missing{database="shop"} 0`) {
		t.Errorf("%v: after the repair the metrics are\n%s", err, text)
	}
	w.exec("DELETE FROM outbox")
	if stdout, _ = walferry(t, "reconcile", "--config", file).exit(0); !strings.Contains(stdout, "tables and topics agree") {
		t.Errorf("%s", stdout)
	}
	stop()
	w.walEnd()
	if stdout, stderr = walferry(t, "reconcile", "--config", file, "--timeout", "1s").exit(1); stdout != "" || !strings.Contains(stderr, "nobody holds it") {
		t.Errorf("%s%s", stdout, stderr)
	}
	walferry(t, "reconcile", "--config", file, "--memory", "1").exit(64)
	walferry(t, "reconcile", "--config", file, "--database", "nobody").exit(64)
	walferry(t, "reconcile", "--config", filepath.Join(dir, "absent")).exit(78)
}
