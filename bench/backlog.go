package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	publication   = "walferry"
	messagePrefix = "outbox" // of logical messages that are events
	keys          = 10_000   // aggregate ids of a backlog
	sampleSize    = 1_000    // payloads that produce repeats
)

// fill is a part of a backlog: so many transactions of one kind.
type fill struct {
	kind string // see schema
	txns int64
	per  int64 // rows or messages of each transaction
}

// events returns how many events the transactions carry.
func (f fill) events() int64 {
	switch f.kind {
	case "rows", "messages":
		return f.txns * f.per
	case "mixed":
		return f.txns
	default:
		return 0
	}
}

// wal is a backlog that was written: it waits in a slot, in a database of its own.
type wal struct {
	Backlog
	database string
	base     string // slot that stands at its beginning, of which every run gets a copy
	until    string // LSN that every contestant must reach
	sample   string // file of payloads like its own
	conn     *pgx.Conn
}

// schema is what every database of a backlog has. The payload is that of an order, of about 245 bytes as text; filler
// makes it larger, with hexadecimal digits that compress badly, by so many bytes. There are 200 different ones, which lie
// farther apart than lz4 looks back.
const schema = `
CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, aggregateid text NOT NULL, type text, payload jsonb);
CREATE TABLE business (id bigint PRIMARY KEY, customer text NOT NULL, note text NOT NULL);
CREATE PUBLICATION ` + publication + ` FOR TABLE outbox WITH (publish = 'insert');

CREATE FUNCTION payload(n bigint, note text) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('order_id', n, 'customer', 'customer-' || (n % 997), 'amount', (n % 9973) * 1.25, 'currency', 'EUR',
		'items', jsonb_build_array(jsonb_build_object('sku', 'SKU-' || (n % 100), 'quantity', n % 7)), 'note', note)
$$;

CREATE FUNCTION notes(filler int) RETURNS text[] LANGUAGE sql AS $$
	SELECT array_agg(CASE WHEN filler = 0 THEN repeat('x', 107)
		ELSE (SELECT string_agg(md5(n::text || '/' || k::text), '') FROM generate_series(1, filler / 32) k) END)
	FROM generate_series(0, 199) n
$$;

CREATE PROCEDURE fill(kind text, first bigint, txns bigint, per bigint, filler int) LANGUAGE plpgsql AS $$
DECLARE
	n bigint := first;
	notes text[] := notes(filler);
BEGIN
	FOR i IN 1..txns LOOP
		IF kind = 'rows' THEN
			INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
				SELECT 'order', ((n + j) % 10000)::text, 'OrderPlaced', payload(n + j, notes[1 + (n + j) % 200]) FROM generate_series(0, per - 1) j;
		ELSIF kind = 'messages' THEN
			PERFORM pg_logical_emit_message(true, 'outbox', jsonb_build_object('id', gen_random_uuid(), 'aggregatetype', 'order',
				'aggregateid', ((n + j) % 10000)::text, 'type', 'OrderPlaced', 'payload', payload(n + j, notes[1 + (n + j) % 200]))::text) FROM generate_series(0, per - 1) j;
		ELSE -- rows of a table that is not published; in "mixed" one row of each transaction is an event
			IF kind = 'mixed' THEN
				INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', (i % 10000)::text, 'OrderPlaced', payload(i, notes[1 + i % 200]));
			END IF;
			INSERT INTO business (id, customer, note)
				SELECT n + j, 'customer-' || (n + j) % 997, repeat(md5((n + j)::text), 1 + filler / 32) FROM generate_series(1, per - (kind = 'mixed')::int) j;
		END IF;
		n := n + per;
		COMMIT;
	END LOOP;
END $$;
`

// writeBacklog creates the database and the slot, and then the WAL.
func (bed *testbed) writeBacklog(ctx context.Context, s spec) (*wal, error) {
	w := &wal{Backlog: Backlog{Name: s.name}, database: "bench_" + s.name, base: "base_" + s.name, sample: filepath.Join(bed.dir, s.name+".sample")}
	if err := execute(ctx, bed.pg.DSN("postgres"), "CREATE DATABASE "+w.database); err != nil {
		return nil, err
	}
	var err error
	if w.conn, err = pgx.Connect(ctx, bed.pg.DSN(w.database)); err != nil {
		return nil, err
	}
	if err := w.write(ctx, s); err != nil {
		return nil, errors.Join(fmt.Errorf("write backlog %s: %w", s.name, err), w.conn.Close(ctx))
	}
	return w, nil
}

func (w *wal) write(ctx context.Context, s spec) error {
	var start string
	err := w.exec(ctx, schema)
	if err == nil {
		err = w.conn.QueryRow(ctx, `SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, w.base).Scan(&start)
	}
	if err == nil {
		err = w.exec(ctx, "SET synchronous_commit = off")
	}
	if err != nil {
		return err
	}
	for _, f := range s.fills {
		sql := fmt.Sprintf("CALL fill('%s', %d, %d, %d, %d)", f.kind, w.Events, f.txns, f.per, s.filler)
		if err := w.exec(ctx, sql); err != nil {
			return err
		}
		w.Events += f.events()
	}
	// Two transactions that are no events: one that waits until all before it is on disk, and one behind until, so that
	// a COMMIT with an end LSN beyond it comes to whoever does not look at keepalives.
	const marker = "SELECT pg_logical_emit_message(true, 'bench', '')"
	if err := w.exec(ctx, "SET synchronous_commit = on; "+marker); err != nil {
		return err
	}
	if err := w.conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&w.until); err != nil {
		return err
	}
	if err := w.exec(ctx, marker); err != nil {
		return err
	}
	if err := w.conn.QueryRow(ctx, "SELECT ($1::pg_lsn - $2::pg_lsn)::bigint", w.until, start).Scan(&w.WALBytes); err != nil {
		return err
	}
	if err := w.writeSample(ctx, s.filler); err != nil {
		return err
	}
	return w.exec(ctx, "CHECKPOINT") // now, and not while something is measured
}

func (w *wal) exec(ctx context.Context, sql string) error {
	_, err := w.conn.Exec(ctx, sql)
	return err
}

func (w *wal) writeSample(ctx context.Context, filler int) error {
	rows, err := w.conn.Query(ctx, "SELECT payload(n, notes[1 + n % 200])::text FROM notes($1) notes, generate_series(1::bigint, $2) n", filler, sampleSize)
	if err != nil {
		return err
	}
	payloads, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	w.Payload = len(strings.Join(payloads, "")) / len(payloads)
	return writeSample(w.sample, payloads)
}

// copySlot makes a slot that stands where the base slot does.
func (w *wal) copySlot(ctx context.Context, slot string) error {
	_, err := w.conn.Exec(ctx, "SELECT pg_copy_logical_replication_slot($1, $2)", w.base, slot)
	return err
}

// dropSlot waits for the walsender to leave the slot, for a minute at most.
func (w *wal) dropSlot(ctx context.Context, slot string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		_, err := w.conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slot)
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "55006" { // object_in_use
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return fmt.Errorf("drop slot %s: %w", slot, err)
	}
	return nil
}

// drop makes room for the next backlog.
func (bed *testbed) drop(ctx context.Context, w *wal) error {
	return errors.Join(w.dropSlot(ctx, w.base), w.conn.Close(ctx),
		execute(ctx, bed.pg.DSN("postgres"), "DROP DATABASE "+w.database+" WITH (FORCE)", "CHECKPOINT"))
}
