package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Slot is a row of pg_replication_slots.
type Slot struct {
	Name               string
	Active             bool
	ActivePID          string // of the walsender that holds it, "" when none does
	RestartLSN         LSN    // WAL from here on is kept for the slot
	ConfirmedFlush     LSN    // confirmed_flush_lsn
	WALStatus          string // reserved, extended, unreserved, lost
	SafeWALSize        int64  // bytes that can be written before it may be lost, -1: no limit
	InvalidationReason string // Postgres 16 and later
	ServerLSN          LSN    // end of WAL when this was read
	// WaitsForStandby says that the walsender waits until the standbys of synchronized_standby_slots have what it would
	// send next: Postgres 17 and later, of a failover slot. One that is healthy is waited for too, for moments.
	WaitsForStandby bool
	// Snapshot is a pg_current_snapshot(): all that it sees commits before SnapshotLSN, the
	// pg_current_wal_insert_lsn() read after it. Empty and 0 on a standby.
	Snapshot    string
	SnapshotLSN LSN

	plugin, kind, database string
	twoPhase               bool
}

// RestartLag returns the bytes of WAL that the server keeps for the slot: disk.
func (s *Slot) RestartLag() int64 { return lag(s.ServerLSN, s.RestartLSN) }

// ConfirmedLag returns the bytes of WAL that are not confirmed: delivery.
func (s *Slot) ConfirmedLag() int64 { return lag(s.ServerLSN, s.ConfirmedFlush) }

func lag(end, at LSN) int64 {
	if at == 0 || at > end {
		return 0
	}
	return int64(end - at)
}

// ErrNoSlot is a slot that does not exist.
var ErrNoSlot = errors.New("the slot does not exist")

// SlotLostError is a slot that the server has invalidated. Its WAL is gone.
type SlotLostError struct {
	Slot, Reason string
}

func (e *SlotLostError) Error() string {
	return fmt.Sprintf("slot %q is lost (%s): the server has removed WAL that was not confirmed", e.Slot, e.Reason)
}

// GapError says that events may exist that were not published and will not be.
type GapError struct {
	Slot   string
	Reason string
	// From is the last position that is known to be published. To is where the slot stands, 0
	// if that says nothing.
	From, To LSN
	// OtherServer says that the server has not the history of the one that the position is of: another may have.
	OtherServer bool
}

func (e *GapError) Error() string {
	where := fmt.Sprintf("behind %s", e.From)
	if e.To != 0 {
		where = fmt.Sprintf("between %s and %s", e.From, e.To)
	}
	return fmt.Sprintf("slot %q: events %s may not have been published: %s", e.Slot, where, e.Reason)
}

// ReadSlot reads the slot's state. It fails with ErrNoSlot when there is none.
func ReadSlot(ctx context.Context, conn *pgx.Conn, name string) (*Slot, error) {
	s := Slot{Name: name}
	// to_jsonb, because invalidation_reason and conflicting are of Postgres 16 and 17
	err := conn.QueryRow(ctx, `/* walferry:slot */ select coalesce(plugin::text, ''), slot_type, coalesce(database::text, ''),
		active, coalesce(active_pid::text, ''), coalesce(restart_lsn, '0/0'), coalesce(confirmed_flush_lsn, '0/0'),
		coalesce(wal_status, ''), coalesce(safe_wal_size, -1),
		coalesce(to_jsonb(s)->>'invalidation_reason', case when to_jsonb(s)->>'conflicting' = 'true' then 'conflict' else '' end),
		coalesce((to_jsonb(s)->>'two_phase')::bool, false),
		case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
		case when pg_is_in_recovery() then '' else pg_current_snapshot()::text end,
		case when pg_is_in_recovery() then '0/0' else pg_current_wal_insert_lsn() end,
		coalesce((select wait_event = 'WaitForStandbyConfirmation' from pg_catalog.pg_stat_activity where pid = s.active_pid), false)
		from pg_catalog.pg_replication_slots s where slot_name = $1`, name).
		Scan(&s.plugin, &s.kind, &s.database, &s.Active, &s.ActivePID, &s.RestartLSN, &s.ConfirmedFlush,
			&s.WALStatus, &s.SafeWALSize, &s.InvalidationReason, &s.twoPhase, &s.ServerLSN, &s.Snapshot, &s.SnapshotLSN, &s.WaitsForStandby)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("slot %q: %w", name, ErrNoSlot)
	}
	if err != nil {
		return nil, fmt.Errorf("read slot %q: %w", name, err)
	}
	return &s, nil
}

// Check makes sure that the slot can be streamed in this database. Its errors are
// *PreconditionError and *SlotLostError.
func (s *Slot) Check(database string) error {
	const other = "choose another slot name, or drop that slot and run `walferry init`"
	switch {
	case s.kind != "logical":
		return Refuse(other, "slot %q is a %s slot", s.Name, s.kind)
	case s.plugin != "pgoutput":
		return Refuse(other, "slot %q uses the output plugin %q, walferry reads pgoutput", s.Name, s.plugin)
	case s.twoPhase:
		return Refuse(other, "slot %q was created with two_phase, and would send transactions before their COMMIT PREPARED", s.Name)
	case s.database != database:
		return Refuse("correct the database in the DSN or the slot's name",
			"slot %q belongs to database %q, the connection is to %q", s.Name, s.database, database)
	case s.WALStatus == "lost" || s.InvalidationReason != "":
		// All that Postgres 14 and 15 can lose a slot by is WAL that was removed.
		return &SlotLostError{s.Name, cmp.Or(s.InvalidationReason, "wal_removed")}
	case s.ConfirmedFlush == 0:
		return Refuse("its creation did not finish: "+other, "slot %q has no confirmed_flush_lsn", s.Name)
	}
	return nil
}

// freeEvery is how often AwaitFree looks.
const freeEvery = 250 * time.Millisecond

// AwaitFree waits until nobody holds the slot, ctx ends, or the slot cannot be read.
func AwaitFree(ctx context.Context, conn *pgx.Conn, slot string) {
	tick := time.NewTicker(freeEvery)
	defer tick.Stop()
	for {
		s, err := ReadSlot(ctx, conn, slot)
		if err != nil || !s.Active {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Holder describes who holds an active slot, for people to find it.
func Holder(ctx context.Context, conn *pgx.Conn, slot string) string {
	var who string
	err := conn.QueryRow(ctx, `/* walferry:holder */ select concat_ws(' ', 'pid', s.active_pid, 'application', a.application_name, 'from', a.client_addr, 'since', a.backend_start)
		from pg_catalog.pg_replication_slots s left join pg_catalog.pg_stat_activity a on a.pid = s.active_pid
		where s.slot_name = $1`, slot).Scan(&who)
	if err != nil {
		return "unknown"
	}
	return who
}
