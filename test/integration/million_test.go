package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxRSS is what the process may take, whatever the size of a transaction.
const maxRSS = 128 << 20

func TestAMillionRowsInOneTransaction(t *testing.T) {
	const rows = 1_000_000
	w := newWorld(t, newest(t), nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text, ADD COLUMN n int")
	w.exec(`INSERT INTO outbox (id, n, aggregatetype, aggregateid, type, payload)
		SELECT n, n, 'order', 'key ' || n % 1000, 'T', jsonb_build_object('n', n, 'filler', repeat(md5(n::text), 4)) FROM generate_series(0, $1::int - 1) n`, rows)
	w.drainWithBinary(rows)

	// To read them all takes the race detector a minute. Instead: as many as there should be,
	// and all over the topic each at its place.
	ends, err := w.kafkaAdmin().ListEndOffsets(t.Context(), w.prefix+".order")
	if end, _ := ends.Lookup(w.prefix+".order", 0); err != nil || end.Offset != rows {
		t.Fatalf("%d records, want %d: %v", end.Offset, rows, err)
	}
	for offset := int64(0); offset < rows; offset = min(offset+rows/40, max(offset+1, rows-1)) {
		records := w.fetch("order", offset)
		for i, r := range records {
			if n := offset + int64(i); r.Offset != n || header(r, "id") != fmt.Sprint(n) || string(r.Key) != fmt.Sprint("key ", n%1000) {
				t.Fatalf("record %d at %d has id %s and key %s", n, r.Offset, header(r, "id"), r.Key)
			}
		}
		if got, want := string(records[0].Value), w.query("SELECT payload::text FROM outbox WHERE id = $1", fmt.Sprint(offset)); got != want {
			t.Errorf("value %s, want %s", got, want)
		}
	}
}

// fetch returns records of a topic's only partition, one or more, from an offset on.
func (w *world) fetch(topic string, offset int64) []*kgo.Record {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(shared.kafka...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		w.prefix + "." + topic: {0: kgo.NewOffset().At(offset)},
	}), kgo.FetchMaxPartitionBytes(1), kgo.FetchMaxBytes(1)) // no more than it takes for one batch
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	fetches := client.PollFetches(ctx)
	if err := fetches.Err(); err != nil || fetches.NumRecords() == 0 {
		w.t.Fatalf("no record from offset %d on: %v", offset, err)
	}
	return fetches.Records()
}

func TestRowsAndMessagesInALargeTransaction(t *testing.T) {
	const pairs = 100_000
	w := newWorld(t, newest(t), nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text")
	w.exec(fmt.Sprintf(`DO $$ BEGIN FOR i IN 0..%d LOOP
		INSERT INTO outbox VALUES (2*i, 'order', 'k', 'T', to_jsonb(2*i));
		PERFORM pg_logical_emit_message(true, 'outbox', format('{"id":%%s,"aggregatetype":"order","aggregateid":"k","payload":%%s}', 2*i+1, 2*i+1));
	END LOOP; END $$`, pairs-1))
	w.drainWithBinary(2 * pairs)

	next := 0
	w.eachRecord(func(r *kgo.Record) {
		if want := fmt.Sprint(next); header(r, "id") != want || string(r.Value) != want {
			t.Fatalf("record %d has id %s and value %s", next, header(r, "id"), r.Value)
		}
		next++
	})
	if next != 2*pairs {
		t.Errorf("%d records, want %d", next, 2*pairs)
	}
}

// drainWithBinary runs the binary up to the present end of WAL and checks its memory.
func (w *world) drainWithBinary(events int) {
	w.t.Helper()
	began := time.Now()
	c := walferry(w.t, "run", "--config", w.configFile(""), "--until-lsn", w.walEnd())
	peak := c.peakRSS()
	c.exit(0)
	took := time.Since(began)
	w.t.Logf("%d events in %s, peak RSS %d MiB", events, took.Round(time.Millisecond), peak>>20)
	if peak == 0 || peak > maxRSS {
		w.t.Errorf("peak RSS is %d bytes, want at most %d", peak, maxRSS)
	}
}
