package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Copy makes a temporary copy of cfg.Slot under a name that no other slot has, on a connection of its own, and starts nothing yet:
// StartAt does. Start is the LSN before which the copy has forgotten everything. Postgres drops it with the connection, however that
// ends. The slot itself may be in use, and is left as it is. Errors are those of Open.
func Copy(ctx context.Context, cfg Config, sql *pgx.Conn, name string) (*Stream, error) {
	s, err := newStream(ctx, cfg, sql)
	if err != nil {
		return nil, err
	}
	if err := s.copy(ctx, cfg.Slot, name); err != nil {
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *Stream) copy(ctx context.Context, slot, name string) (err error) {
	if s.Timelines, err = readTimelines(ctx, s.conn, s.Server); err != nil {
		return err
	}
	results, err := s.copied(ctx, slot, name)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "53400" {
		return Refuse("raise max_replication_slots and restart Postgres, or drop a slot that nobody needs", "there is no room for a copy of slot %q: all replication slots are in use", slot)
	}
	if err != nil {
		return fmt.Errorf("copy slot %q: %w", slot, err)
	}
	if s.Start, err = pglogrepl.ParseLSN(string(results[0].Rows[0][0])); err != nil {
		return fmt.Errorf("copy slot %q: %w", slot, err)
	}
	s.slot = name
	return nil
}

const (
	copyEvery = 250 * time.Millisecond
	copyFor   = 10 * time.Second
)

// copied waits for a copy of the same name to be gone: that of a process which was killed lives until the server notices.
func (s *Stream) copied(ctx context.Context, slot, name string) ([]*pgconn.Result, error) {
	tick := time.NewTicker(copyEvery)
	defer tick.Stop()
	for began := time.Now(); ; {
		results, err := s.conn.Exec(ctx, fmt.Sprintf("select lsn from pg_copy_logical_replication_slot(%s, %s, true)", QuoteLiteral(slot), QuoteLiteral(name))).ReadAll()
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "42710" {
			return results, err
		}
		if time.Since(began) > copyFor {
			return nil, Refuse("end it, or wait until the server notices that it is gone, which takes wal_sender_timeout: SELECT pid FROM pg_stat_replication", "another process holds the copy %q of slot %q", name, slot)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// ReadTimelines reads the history of the server, on a connection of its own. It fails with ErrOtherServer if that leads to another.
func ReadTimelines(ctx context.Context, cfg *pgx.ConnConfig, server Server) (Timelines, error) {
	cfg = cfg.Copy()
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return Timelines{}, fmt.Errorf("connect to Postgres for replication: %w", err)
	}
	defer closeConn(ctx, conn)
	return readTimelines(ctx, conn, server)
}

// StartAt starts streaming what commits at or behind from, which must not be before Start: the server would begin there, and not say so.
// From then on Start is from.
func (s *Stream) StartAt(ctx context.Context, publication string, from LSN) error {
	if from < s.Start {
		return fmt.Errorf("slot %q has nothing before %s, and %s was asked for", s.slot, s.Start, from)
	}
	s.Start = from
	s.updatedAt(time.Now()) // the server waits for the first update from the start on
	if err := pglogrepl.StartReplication(ctx, s.conn, s.slot, from, options(publication)); err != nil {
		return fmt.Errorf("start replication from slot %q at %s: %w", s.slot, from, err)
	}
	return nil
}
