package replication

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Retention is a slot that nobody streams from: it keeps WAL for copies of it to read again.
type Retention struct {
	Slot
	// CatalogAge is how many transactions ago the oldest one began whose dead rows of the catalog VACUUM must keep for the slot.
	CatalogAge int64
	// KeepLimit is max_slot_wal_keep_size in bytes, -1: none. A slot that needs more is lost.
	KeepLimit int64
	// IdleLimit is idle_replication_slot_timeout, 0: none; Postgres 18 and later. A slot that nobody uses for so long is lost.
	IdleLimit time.Duration
}

// ReadRetention reads the slot's state. It fails with ErrNoSlot when there is none.
func ReadRetention(ctx context.Context, conn *pgx.Conn, name string) (*Retention, error) {
	slot, err := ReadSlot(ctx, conn, name)
	if err != nil {
		return nil, err
	}
	r := &Retention{Slot: *slot}
	var megabytes, seconds int64
	err = conn.QueryRow(ctx, `/* walferry:retention */ select coalesce((select age(catalog_xmin) from pg_catalog.pg_replication_slots where slot_name = $1), 0)::bigint,
		(select setting::bigint from pg_catalog.pg_settings where name = 'max_slot_wal_keep_size'),
		coalesce((select setting::bigint from pg_catalog.pg_settings where name = 'idle_replication_slot_timeout'), 0)`, name).
		Scan(&r.CatalogAge, &megabytes, &seconds)
	if err != nil {
		return nil, fmt.Errorf("read slot %q: %w", name, err)
	}
	r.KeepLimit, r.IdleLimit = megabytes, time.Duration(seconds)*time.Second
	if megabytes >= 0 {
		r.KeepLimit = megabytes << 20
	}
	return r, nil
}

// HasSlot reports whether there is a slot of this name.
func HasSlot(ctx context.Context, conn *pgx.Conn, name string) (has bool, err error) {
	if err := conn.QueryRow(ctx, `/* walferry:has-slot */ select exists(select from pg_catalog.pg_replication_slots where slot_name = $1)`, name).Scan(&has); err != nil {
		return false, fmt.Errorf("look up slot %q: %w", name, err)
	}
	return has, nil
}

// Advance lets the slot forget what commits before an LSN, and counts as using it, also where it stands. The server reads the WAL in
// between, at about 1 GB/s, and no timeout of the role ends that. The connection is left without them.
func (r *Retention) Advance(ctx context.Context, conn *pgx.Conn, to LSN) error {
	to = max(to, r.ConfirmedFlush) // a slot never goes back
	if err := untimed(ctx, conn.PgConn()); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `/* walferry:advance */ select pg_replication_slot_advance($1, $2::pg_lsn)`, r.Name, to.String()); err != nil {
		return fmt.Errorf("advance slot %q to %s: %w", r.Name, to, err)
	}
	r.ConfirmedFlush = to
	return nil
}
