package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// PreconditionError is a server, publication or slot that is not set up as the
// bridge needs it. It is not going to get better by itself.
type PreconditionError struct {
	Reason string
	Hint   string // what to do, often SQL
}

func (e *PreconditionError) Error() string { return e.Reason }

// Table is a published table that the bridge reads, with the columns it needs.
type Table struct {
	Schema, Name string
	Columns      []string
}

func (t Table) String() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// Server is what an SQL connection tells of the server it leads to.
type Server struct {
	Version       int // as server_version_num: 180001
	Database      string
	SenderTimeout time.Duration // wal_sender_timeout, 0: none
}

// ConnectSQL opens an ordinary connection. The simple protocol keeps it usable
// behind poolers.
func ConnectSQL(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	cfg = cfg.Copy()
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	// It demands these two, whatever encoding the database has and whatever the role's defaults are.
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.RuntimeParams["standard_conforming_strings"] = "on"
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "walferry"
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// ReadServer checks that the server can serve a logical stream to this role.
func ReadServer(ctx context.Context, conn *pgx.Conn) (Server, error) {
	var version, walLevel, recovery, encoding, timeout string
	var s Server
	err := conn.QueryRow(ctx, `/* walferry:server */ select current_setting('server_version_num'),
		current_setting('wal_level'), pg_is_in_recovery()::text, current_setting('server_encoding'), current_database()::text,
		(select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout')`).
		Scan(&version, &walLevel, &recovery, &encoding, &s.Database, &timeout)
	if err != nil {
		return s, fmt.Errorf("read the server's settings: %w", err)
	}
	if s.Version, err = strconv.Atoi(version); err != nil {
		return s, fmt.Errorf("server_version_num: %w", err)
	}
	ms, err := strconv.Atoi(timeout)
	if err != nil {
		return s, fmt.Errorf("wal_sender_timeout: %w", err)
	}
	s.SenderTimeout = time.Duration(ms) * time.Millisecond
	switch {
	case s.Version < 140000:
		return s, &PreconditionError{fmt.Sprintf("the server is Postgres %d", s.Version/10000), "walferry needs Postgres 14 or later"}
	case recovery == "true":
		return s, ErrInRecovery
	case walLevel != "logical":
		return s, &PreconditionError{
			"wal_level is " + walLevel,
			"logical replication needs: ALTER SYSTEM SET wal_level = 'logical'; then restart Postgres",
		}
	case encoding == "SQL_ASCII":
		return s, &PreconditionError{
			fmt.Sprintf("database %q has encoding SQL_ASCII", s.Database),
			"bytes that are not UTF-8 would stop the walsender for good; move the outbox to a database with a real encoding",
		}
	}
	return s, nil
}

// ErrInRecovery is a standby where the primary is needed. Failover may be under way.
var ErrInRecovery = errors.New("the server is a standby in recovery; walferry reads the primary (list several hosts with target_session_attrs=read-write)")

// CheckPublication makes sure that every insert into every table, with all columns
// asked for, is published under the table's own name.
func CheckPublication(ctx context.Context, conn *pgx.Conn, name string, tables []Table) error {
	var inserts, viaRoot bool
	err := scanBools(conn.QueryRow(ctx, `/* walferry:publication */ select pubinsert::text, pubviaroot::text
		from pg_catalog.pg_publication where pubname = $1`, name), &inserts, &viaRoot)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &PreconditionError{
			fmt.Sprintf("publication %q does not exist", name),
			"run `walferry init`, or create the publication and, after it, a new slot: a slot older than its publication cannot decode what lies between",
		}
	case err != nil:
		return fmt.Errorf("read publication %q: %w", name, err)
	case !inserts:
		return &PreconditionError{
			fmt.Sprintf("publication %q does not publish inserts", name),
			fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert')", quote(name)),
		}
	}
	for _, t := range tables {
		if err := checkTable(ctx, conn, name, viaRoot, t); err != nil {
			return err
		}
	}
	return nil
}

func checkTable(ctx context.Context, conn *pgx.Conn, publication string, viaRoot bool, t Table) error {
	var kind, persistence, columns, published string
	// to_jsonb, because attnames and rowfilter do not exist before Postgres 15
	err := conn.QueryRow(ctx, `/* walferry:table */ select c.relkind::text, c.relpersistence::text,
		(select json_agg(attname) from pg_catalog.pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped)::text,
		coalesce((select to_jsonb(p)::text from pg_catalog.pg_publication_tables p
			where p.pubname = $1 and p.schemaname = n.nspname and p.tablename = c.relname), '')
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $2 and c.relname = $3`, publication, t.Schema, t.Name).
		Scan(&kind, &persistence, &columns, &published)
	if errors.Is(err, pgx.ErrNoRows) {
		return &PreconditionError{fmt.Sprintf("table %s does not exist", t), "run `walferry init`, or correct outbox.table"}
	}
	if err != nil {
		return fmt.Errorf("read table %s: %w", t, err)
	}
	if kind == "p" && !viaRoot {
		return &PreconditionError{
			fmt.Sprintf("publication %q would publish the partitions of %s under their own names", publication, t),
			fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)", quote(publication)),
		}
	}
	if persistence == "u" {
		return &PreconditionError{
			fmt.Sprintf("table %s is unlogged, its rows are not in the WAL", t),
			fmt.Sprintf("ALTER TABLE %s SET LOGGED", t),
		}
	}
	if published == "" {
		return &PreconditionError{
			fmt.Sprintf("publication %q does not contain table %s", publication, t),
			fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s; rows inserted before are not published by it", quote(publication), t),
		}
	}
	return checkColumns(publication, t, columns, published)
}

func checkColumns(publication string, t Table, columns, published string) error {
	var have []string
	var p struct {
		AttNames  []string `json:"attnames"`
		RowFilter *string  `json:"rowfilter"`
	}
	if err := errors.Join(json.Unmarshal([]byte(columns), &have), json.Unmarshal([]byte(published), &p)); err != nil {
		return fmt.Errorf("read the columns of %s: %w", t, err)
	}
	if p.RowFilter != nil {
		return &PreconditionError{
			fmt.Sprintf("publication %q filters the rows of %s, what it leaves out would be lost", publication, t),
			"take the WHERE off the table: ALTER PUBLICATION … SET TABLE",
		}
	}
	for _, c := range t.Columns {
		if !slices.Contains(have, c) {
			return &PreconditionError{
				fmt.Sprintf("table %s has no column %q", t, c),
				"map the roles to the table's columns with outbox.columns; it has: " + strings.Join(have, ", "),
			}
		}
		if p.AttNames != nil && !slices.Contains(p.AttNames, c) {
			return &PreconditionError{
				fmt.Sprintf("publication %q leaves out column %q of %s", publication, c, t),
				"take the column list off the table: ALTER PUBLICATION … SET TABLE",
			}
		}
	}
	return nil
}

// scanBools reads text columns 'true' and 'false'.
func scanBools(row pgx.Row, dst ...*bool) error {
	texts, targets := make([]string, len(dst)), make([]any, len(dst))
	for i := range texts {
		targets[i] = &texts[i]
	}
	if err := row.Scan(targets...); err != nil {
		return err
	}
	for i := range dst {
		*dst[i] = texts[i] == "true"
	}
	return nil
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}
