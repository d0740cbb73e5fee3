package integration

import (
	"fmt"
	"testing"
)

func TestRowsAndMessagesInCommitOrder(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		const message = `SELECT pg_logical_emit_message(true, 'outbox', '{"id":"m-%d","aggregatetype":"order","aggregateid":"k","type":"T","payload":%s}')`
		w.insert("k", `{"n": 0}`)
		w.exec("BEGIN")
		w.insert("k", `{"n": 1}`)
		w.exec(fmt.Sprintf(message, 2, `{"n":   2}`))
		w.insert("k", `{"n": 3}`)
		w.exec("COMMIT")
		w.exec(fmt.Sprintf(message, 4, `"text with \"quotes\""`))
		w.exec("SELECT pg_logical_emit_message(true, 'other-prefix', 'no JSON at all')")
		w.exec("SELECT pg_logical_emit_message(false, 'outbox', 'not transactional')")
		w.exec("BEGIN")
		w.exec(fmt.Sprintf(message, 99, `"never"`))
		w.insert("k", `{"n": 99}`)
		w.exec("ROLLBACK")
		w.insert("k", `{"n": 5}`)
		w.drainAll()

		want := []string{`{"n": 0}`, `{"n": 1}`, `{"n":   2}`, `{"n": 3}`, `text with "quotes"`, `{"n": 5}`}
		records := w.records()
		if len(records) != len(want) {
			t.Fatalf("%d records, want %d", len(records), len(want))
		}
		positions := map[string]bool{}
		for i, r := range records {
			if r.Topic != w.prefix+".order" || string(r.Key) != "k" || string(r.Value) != want[i] {
				t.Errorf("record %d: %s %q %q, want value %q", i, r.Topic, r.Key, r.Value, want[i])
			}
			if header(r, "id") == "" || len(r.Headers) != 2 {
				t.Errorf("record %d: headers %v", i, r.Headers)
			}
			positions[header(r, "walferry-position")] = true
		}
		if len(positions) != len(want) {
			t.Errorf("positions are not unique: %v", positions)
		}
		if got, want := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix), w.query("SELECT pg_current_wal_flush_lsn()::text"); got == "" || want == "" {
			t.Errorf("confirmed %s of %s", got, want)
		}
	})
}

func TestNothingIsPublishedTwiceAfterADrain(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	for round := range 5 {
		for i := range 20 {
			w.insert("k", fmt.Sprint(round*20+i))
		}
		w.drainAll()
	}
	records := w.records()
	for i, r := range records {
		if string(r.Value) != fmt.Sprint(i) {
			t.Fatalf("record %d is %s", i, r.Value)
		}
	}
	if len(records) != 100 {
		t.Errorf("%d records, want 100", len(records))
	}
}
