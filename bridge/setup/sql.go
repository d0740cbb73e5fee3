package setup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/replication"
)

// publicationSQL creates a publication of inserts into the tables, under the name of a
// partitioned table's root.
func publicationSQL(name string, tables []replication.Table) string {
	sql := "CREATE PUBLICATION " + replication.QuoteIdentifier(name)
	if len(tables) > 0 {
		names := make([]string, len(tables))
		for i, t := range tables {
			names[i] = t.String()
		}
		sql += " FOR TABLE " + strings.Join(names, ", ")
	}
	return sql + " WITH (publish = 'insert', publish_via_partition_root = true)"
}

// slotSQL creates a slot on a server of the given server_version_num: since Postgres 17
// one that synchronizes to standbys.
func slotSQL(name string, version int) string {
	if version >= 170000 {
		return fmt.Sprintf("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', temporary => false, twophase => false, failover => true)", replication.QuoteLiteral(name))
	}
	return fmt.Sprintf("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", replication.QuoteLiteral(name))
}

// ensurePublication creates the publication, or adds to it the tables it lacks. It tells did
// what it did.
func ensurePublication(ctx context.Context, conn *pgx.Conn, name string, tables []replication.Table, did func(string)) error {
	var exists bool
	err := conn.QueryRow(ctx, `/* walferry:exists */ select exists(select from pg_catalog.pg_publication where pubname = $1)`, name).Scan(&exists)
	if err != nil {
		return fmt.Errorf("look up publication %q: %w", name, err)
	}
	if !exists {
		if _, err := conn.Exec(ctx, publicationSQL(name, tables)); err != nil {
			return fmt.Errorf("create publication %q: %w", name, err)
		}
		did("created publication " + replication.QuoteIdentifier(name))
		return nil
	}
	did("publication " + replication.QuoteIdentifier(name) + " exists")
	for _, t := range tables {
		if err := addTable(ctx, conn, name, t, did); err != nil {
			return err
		}
	}
	return nil
}

func addTable(ctx context.Context, conn *pgx.Conn, publication string, t replication.Table, did func(string)) error {
	var published bool
	err := conn.QueryRow(ctx, `/* walferry:exists */ select exists(select from pg_catalog.pg_publication_tables
		where pubname = $1 and schemaname = $2 and tablename = $3)`, publication, t.Schema, t.Name).Scan(&published)
	if err != nil {
		return fmt.Errorf("look up publication %q: %w", publication, err)
	}
	if published {
		return nil
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", replication.QuoteIdentifier(publication), t)); err != nil {
		return fmt.Errorf("add %s to publication %q: %w", t, publication, err)
	}
	did(fmt.Sprintf("added %s to publication %s", t, replication.QuoteIdentifier(publication)))
	return nil
}

// ensureSlot creates the slot if there is none, and returns a snapshot of which all commits before its start, or "" if there was
// one. Creation waits for every transaction that is open when it begins.
func ensureSlot(ctx context.Context, conn *pgx.Conn, server replication.Server, name string, did func(string)) (snapshot string, err error) {
	_, err = replication.ReadSlot(ctx, conn, name)
	switch {
	case err == nil:
		did("slot " + name + " exists")
		return "", nil
	case !errors.Is(err, replication.ErrNoSlot):
		return "", err
	}
	if err := conn.QueryRow(ctx, `/* walferry:before */ select pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
		return "", fmt.Errorf("read the present snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, slotSQL(name, server.Version)); err != nil {
		if ctx.Err() != nil {
			<-conn.PgConn().CleanupDone() // it cancels the statement: else the slot would still appear, with nobody to read it
			return "", &replication.PreconditionError{
				Reason: fmt.Sprintf("slot %q was not created in time: it waits for transactions that were open before", name),
				Hint:   "end them: SELECT pid, xact_start, application_name FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start",
			}
		}
		return "", fmt.Errorf("create slot %q: %w", name, err)
	}
	did("created slot " + name)
	return snapshot, nil
}
