package integration

import (
	"bytes"
	"fmt"
	"strconv"
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
	t0 := time.Now()
	w.drainWithBinary(rows)
	println("drained", time.Since(t0).String())

	next, sum := 0, 0
	var id, key []byte // a million records leave no time for more
	w.eachRecord(func(r *kgo.Record) {
		id, key = strconv.AppendInt(id[:0], int64(next), 10), strconv.AppendInt(append(key[:0], "key "...), int64(next%1000), 10)
		if !bytes.Equal(r.Headers[0].Value, id) || !bytes.Equal(r.Key, key) {
			t.Fatalf("record %d has headers %q and key %s", next, r.Headers, r.Key)
		}
		next++
		sum += len(r.Value)
	})
	println("read", time.Since(t0).String())
	if next != rows {
		t.Errorf("%d records, want %d", next, rows)
	}
	if got, want := fmt.Sprint(sum), w.query("SELECT sum(octet_length(payload::text))::text FROM outbox"); got != want {
		t.Errorf("the values have %s bytes, want %s", got, want)
	}
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
