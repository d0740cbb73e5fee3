// Package table reads the rows of outbox tables as the events that the WAL would have carried, byte for byte. It knows
// nothing of slots and of Kafka: what a row lacks of an event is its position.
package table

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/replication"
)

// Snapshot is a read-only REPEATABLE READ transaction on a connection of its own: each Read sees the same rows. While it is
// open Postgres cannot vacuum what has died since. One goroutine uses it at a time.
type Snapshot struct {
	XIDs        string          // its pg_current_snapshot()
	LSN         replication.LSN // pg_current_wal_insert_lsn() read after it: all that it sees commits before
	CommitTimes bool            // track_commit_timestamp is on

	conn *pgx.Conn
}

// settings are those of the connection beside what pins the form of values.
var settings = map[string]string{
	"row_security":          "off", // a policy that would hide rows is an error, see denied
	"cursor_tuple_fraction": "1",   // all of the rows are wanted, not the first ones soon
}

// Open begins the transaction. exported is the name of a snapshot that another session exports, "" for a new one.
func Open(ctx context.Context, cfg *pgx.ConnConfig, exported string) (*Snapshot, error) {
	conn, err := replication.ConnectToRead(ctx, cfg, settings)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{conn: conn}
	if err := s.begin(ctx, exported); err != nil {
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) begin(ctx context.Context, exported string) error {
	sql := "begin isolation level repeatable read read only"
	if exported != "" {
		sql += "; set transaction snapshot " + replication.QuoteLiteral(exported)
	}
	if _, err := s.conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("begin a transaction that reads: %w", err)
	}
	var lsn string
	err := s.conn.QueryRow(ctx, `/* walferry:snapshot */ select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text,
		current_setting('track_commit_timestamp') = 'on'`).Scan(&s.XIDs, &lsn, &s.CommitTimes)
	if err == nil {
		s.LSN, err = pglogrepl.ParseLSN(lsn)
	}
	if err != nil {
		return fmt.Errorf("read the transaction's snapshot: %w", err)
	}
	if exported != "" {
		return s.settle(ctx)
	}
	return nil
}

// settleEvery is how often settle looks.
const settleEvery = 10 * time.Millisecond

// settle waits until every transaction that an exported snapshot calls committed has given back its lock. The snapshot of a
// slot is made of commit records, and a commit record is in the WAL for a moment before pg_xact says that the transaction
// has committed: until then its rows would be read as those of one that has aborted (heapam_visibility.c,
// HeapTupleSatisfiesMVCC).
func (s *Snapshot) settle(ctx context.Context) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		var open int
		err := s.conn.QueryRow(ctx, `/* walferry:settle */ select count(*) from pg_catalog.pg_locks l, `+nextXID+`
			where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
			and pg_visible_in_snapshot((`+RunningXID("l.transactionid", "x.n")+`)::text::xid8, pg_current_snapshot())`).Scan(&open)
		if err != nil || open == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Server tells of the server that the snapshot is of.
func (s *Snapshot) Server(ctx context.Context) (replication.Server, error) {
	return replication.ReadServer(ctx, s.conn)
}

// Close ends the transaction and its connection.
func (s *Snapshot) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // it only read
}
