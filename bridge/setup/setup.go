// Package setup makes what a bridge needs in Postgres: outbox tables, publication and slot.
package setup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/recovery"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
)

// Run makes what a bridge needs and is not there yet: outbox tables, the publication, and,
// last, the slot, for a slot that is older than its publication cannot decode what lies
// between, with its first checkpoint. It tells did what it did, a line each, and makes the
// checks that a bridge makes. It does not replace a slot that had a checkpoint, unless
// o.AcceptGap.
func Run(ctx context.Context, o bridge.Options, did func(string)) error {
	return bridge.Explain(o.Database.Name, run(ctx, o, did, nil))
}

// Backfill does what Run does, and publishes the rows that are older than the slot, which must not exist. It tells o.Say.
func Backfill(ctx context.Context, o recovery.Options) (report *recovery.Report, err error) {
	err = run(ctx, o.Options, o.Say, func() error {
		report, err = recovery.Backfill(ctx, o)
		return err
	})
	return report, bridge.Explain(o.Database.Name, err)
}

// run makes what is missing. The slot is made by backfill, if that is not nil.
func run(ctx context.Context, o bridge.Options, did func(string), backfill func() error) error {
	db := o.Database
	cfg, err := db.ConnConfig()
	if err != nil {
		return err
	}
	conn, err := replication.ConnectSQL(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // every statement is committed by itself
	server, err := replication.ReadServer(ctx, conn)
	if err != nil {
		return err
	}
	checkpointed, err := checkSlot(ctx, o, conn, server, backfill != nil)
	if err != nil {
		return err
	}
	var tables []replication.Table
	for _, outbox := range db.Outbox {
		t := bridge.OutboxTable(outbox)
		tables = append(tables, bridge.Published(t))
		if err := createTable(ctx, conn, t, did, backfill != nil); err != nil {
			return err
		}
	}
	if err := ensurePublication(ctx, conn, db.Publication, tables, did); err != nil {
		return err
	}
	if _, err := replication.CheckPublication(ctx, conn, db.Publication, tables); err != nil {
		return err
	}
	if backfill != nil {
		return backfill()
	}
	snapshot, err := ensureSlot(ctx, conn, server, db.Slot, did)
	switch {
	case err != nil || o.Checkpoint.Topic == "":
		return err
	case snapshot != "":
		at, err := bridge.FirstCheckpoint(ctx, o, conn, tables, snapshot)
		if err != nil {
			return err
		}
		did(fmt.Sprintf("wrote the first checkpoint, at %s, to topic %s", at, o.Checkpoint.Topic))
	case !checkpointed:
		did("note: the slot has no checkpoint, and `walferry run` refuses it: use --adopt-slot, once, if what it has skipped is known to be published")
	}
	return nil
}

// checkSlot looks, before anything is touched, whether a checkpoint says that there was a slot
// that is not there any more. It reports whether there is a checkpoint.
func checkSlot(ctx context.Context, o bridge.Options, conn *pgx.Conn, server replication.Server, backfill bool) (checkpointed bool, err error) {
	slot, err := replication.ReadSlot(ctx, conn, o.Database.Slot)
	if err != nil && !errors.Is(err, replication.ErrNoSlot) {
		return false, err
	}
	if slot != nil && backfill {
		return false, recovery.SlotExists(slot.Name)
	}
	if slot != nil {
		if err := slot.Check(server.Database); err != nil {
			return false, err
		}
	}
	if o.Checkpoint.Topic == "" {
		return false, nil
	}
	c, err := bridge.ReadCheckpoint(ctx, o)
	if err != nil || c == nil {
		return false, err
	}
	if slot == nil && !o.AcceptGap {
		return true, &replication.GapError{
			Slot: o.Database.Slot, From: c.Pos.LSN,
			Reason: "there is a checkpoint, but the slot does not exist any more, and a new one begins now",
		}
	}
	return true, nil
}

func createTable(ctx context.Context, conn *pgx.Conn, t decode.Table, did func(string), backfill bool) error {
	name := bridge.Published(t).String()
	var exists, rows bool
	if err := conn.QueryRow(ctx, `/* walferry:exists */ select to_regclass($1) is not null`, name).Scan(&exists); err != nil {
		return fmt.Errorf("look up table %s: %w", name, err)
	}
	if !exists {
		if _, err := conn.Exec(ctx, tableSQL(t)); err != nil {
			return fmt.Errorf("create table %s: %w", name, err)
		}
		did("created table " + name)
		return nil
	}
	did("table " + name + " exists")
	if backfill {
		return nil
	}
	if err := conn.QueryRow(ctx, `/* walferry:rows */ select exists(select from `+name+`)`).Scan(&rows); err != nil {
		return fmt.Errorf("look into table %s: %w", name, err)
	}
	if rows {
		did("note: rows that are older than the slot are never published, and " + name + " has rows; `walferry init --backfill` publishes them, as long as there is no slot")
	}
	return nil
}

func tableSQL(t decode.Table) string {
	q := func(column string) string { return pgx.Identifier{column}.Sanitize() }
	c := t.Columns
	columns := []string{
		q(c.ID) + " uuid PRIMARY KEY DEFAULT gen_random_uuid()",
		q(c.AggregateType) + " varchar(255) NOT NULL",
		q(c.AggregateID) + " varchar(255) NOT NULL",
	}
	if c.Type != "" {
		columns = append(columns, q(c.Type)+" varchar(255) NOT NULL")
	}
	columns = append(columns, q(c.Payload)+" jsonb")
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (\n  %s\n)", bridge.Published(t), strings.Join(columns, ",\n  "))
}

// SQL returns the SQL of Run for a person to read and run, with the role that walferry
// needs: LOGIN and REPLICATION, and no right on any table.
func SQL(db config.Database) (string, error) {
	cfg, err := db.ConnConfig()
	if err != nil {
		return "", err
	}
	if cfg.User == "" || cfg.Database == "" {
		return "", errors.New("database " + db.Name + ": the DSN names no user or no database")
	}
	role, database := pgx.Identifier{cfg.User}.Sanitize(), pgx.Identifier{cfg.Database}.Sanitize()
	var b strings.Builder
	fmt.Fprintf(&b, "-- database %s: run as the owner of the outbox tables, in database %s, in this order\n\n", db.Name, database)
	fmt.Fprintf(&b, "-- The role of walferry. REPLICATION reads everything in the cluster: give it a\n"+
		"-- password of its own and a pg_hba.conf line for this database and host only.\n"+
		"CREATE ROLE %s LOGIN REPLICATION CONNECTION LIMIT 6;\nGRANT CONNECT ON DATABASE %s TO %s;\n\n", role, database, role)
	var tables []replication.Table
	for _, o := range db.Outbox {
		t := bridge.OutboxTable(o)
		tables = append(tables, bridge.Published(t))
		b.WriteString(tableSQL(t) + ";\n")
	}
	fmt.Fprintf(&b, "\n%s;\n\n-- After the publication, never before it.\n", publicationSQL(db.Publication, tables))
	fmt.Fprintf(&b, "%s;\n-- On Postgres 17 and later, so that the slot survives a failover:\n-- %s;\n",
		slotSQL(db.Slot, 140000), slotSQL(db.Slot, 170000))
	if db.Messages.Prefix != "" {
		fmt.Fprintf(&b, "\n-- Any role may write logical messages, and so events, unless this is revoked:\n"+
			"-- REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM PUBLIC;\n"+
			"-- REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC;\n"+
			"-- (Postgres 17 and later: both have a fourth parameter, boolean.)\n")
	}
	return b.String(), nil
}
