package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	SystemID      string // of the cluster, the same on its standbys
	Timeline      uint32
	Version       int // as server_version_num: 180001
	Database      string
	SenderTimeout time.Duration // wal_sender_timeout, 0: none
}

// Same reports whether both are one server, and not its twin after a promotion.
func (s *Server) Same(o *Server) bool { return s.SystemID == o.SystemID && s.Timeline == o.Timeline }

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

// ConnectToRead opens an ordinary connection that prints values as a stream does, and that no timeout of the role or the
// database ends between two statements or within one. settings are its own besides.
func ConnectToRead(ctx context.Context, cfg *pgx.ConnConfig, settings map[string]string) (*pgx.Conn, error) {
	cfg = cfg.Copy()
	maps.Copy(cfg.RuntimeParams, pinned)
	maps.Copy(cfg.RuntimeParams, settings)
	conn, err := ConnectSQL(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := untimed(ctx, conn.PgConn()); err != nil {
		_ = conn.Close(ctx) // it holds nothing
		return nil, err
	}
	return conn, nil
}

// untimed turns off what would end a session that waits, or reads, for hours. Of these settings transaction_timeout is of
// Postgres 17: a start-up packet that names it is refused before.
func untimed(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Exec(ctx, `/* walferry:untimed */ select set_config(name, '0', false) from pg_catalog.pg_settings
		where name in ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')`).ReadAll()
	if err != nil {
		return fmt.Errorf("turn the session's timeouts off: %w", err)
	}
	return nil
}

// ReadServer checks that the server can serve a logical stream to this role.
func ReadServer(ctx context.Context, conn *pgx.Conn) (Server, error) {
	var s Server
	var walLevel, encoding string
	var recovery bool
	var milliseconds int64
	err := conn.QueryRow(ctx, `/* walferry:server */ select (select system_identifier::text from pg_control_system()),
		case when pg_is_in_recovery() then 0 else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint end,
		current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),
		current_setting('server_encoding'), current_database()::text,
		(select setting::bigint from pg_catalog.pg_settings where name = 'wal_sender_timeout')`).
		Scan(&s.SystemID, &s.Timeline, &s.Version, &walLevel, &recovery, &encoding, &s.Database, &milliseconds)
	s.SenderTimeout = time.Duration(milliseconds) * time.Millisecond
	switch {
	case err != nil:
		return s, fmt.Errorf("read the server's settings: %w", err)
	case s.Version < 140000:
		return s, Refuse("walferry needs Postgres 14 or later", "the server is Postgres %d", s.Version/10000)
	case recovery:
		return s, ErrInRecovery
	case walLevel != "logical":
		return s, Refuse("logical replication needs: ALTER SYSTEM SET wal_level = 'logical'; then restart Postgres", "wal_level is %s", walLevel)
	case encoding == "SQL_ASCII":
		return s, Refuse("bytes that are not UTF-8 would stop the walsender for good; move the outbox to a database with a real encoding",
			"database %q has encoding SQL_ASCII", s.Database)
	}
	return s, nil
}

var (
	// ErrInRecovery is a standby where the primary is needed. Failover may be under way.
	ErrInRecovery = errors.New("the server is a standby in recovery; walferry reads the primary (list several hosts with target_session_attrs=read-write)")
	// ErrOtherServer is a connection that leads to another server than the one before it.
	// Failover may be under way.
	ErrOtherServer = errors.New("two connections of one DSN lead to different servers")
)

// Publication is what the server says of a publication that is as it must be.
type Publication struct {
	OIDs       []uint32 // of the tables, in their order: rows written before a table was renamed carry its OID
	Membership Membership
}

// Membership tells two states of a publication apart, also when it was changed and changed
// back: by the OIDs and the xmin of its rows in the catalog. Its keys are publicationKey and
// the tables.
type Membership map[string]string

const publicationKey = "publication"

// Changed says what differs in now, "" if nothing does. A table that is in only one of them was
// taken into the configuration, or out of it.
func (m Membership) Changed(now Membership) string {
	if row, ok := now[publicationKey]; ok && row != m[publicationKey] {
		return "the publication was recreated or altered"
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if row, ok := now[key]; ok && row != m[key] {
			return "table " + key + " was taken out of the publication and put back, or what is published of it was altered"
		}
	}
	return ""
}

// CheckPublication makes sure that every insert into every table, with all columns
// asked for, is published under the table's own name.
func CheckPublication(ctx context.Context, conn *pgx.Conn, name string, tables []Table) (*Publication, error) {
	var row string
	var inserts, viaRoot bool
	err := conn.QueryRow(ctx, `/* walferry:publication */ select concat_ws('/', oid, xmin), pubinsert, pubviaroot
		from pg_catalog.pg_publication where pubname = $1`, name).Scan(&row, &inserts, &viaRoot)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, Refuse("run `walferry init`, or create the publication and, after it, a new slot: a slot older than its publication cannot decode what lies between",
			"publication %q does not exist", name)
	case err != nil:
		return nil, fmt.Errorf("read publication %q: %w", name, err)
	case !inserts:
		return nil, Refuse("ALTER PUBLICATION "+QuoteIdentifier(name)+" SET (publish = 'insert')", "publication %q does not publish inserts", name)
	}
	p := &Publication{Membership: Membership{publicationKey: row}}
	for _, t := range tables {
		if err := p.add(ctx, conn, name, viaRoot, t); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// add checks one table.
func (p *Publication) add(ctx context.Context, conn *pgx.Conn, name string, viaRoot bool, t Table) error {
	var oid uint32
	var kind, persistence string
	var row *string
	var columns []string
	var pub *published
	// to_jsonb, because attnames and rowfilter do not exist before Postgres 15
	err := conn.QueryRow(ctx, `/* walferry:table */ select c.oid, c.relkind::text, c.relpersistence::text,
		(select json_agg(attname) from pg_catalog.pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped),
		(select to_jsonb(p) from pg_catalog.pg_publication_tables p
			where p.pubname = $1 and p.schemaname = n.nspname and p.tablename = c.relname),
		(select coalesce(string_agg(concat_ws('/', r.oid, r.xmin), ' ' order by r.oid) filter (where r.oid is not null), case when p.puballtables then c.oid::text end)
			from pg_catalog.pg_publication p left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
				and (r.prrelid = c.oid or r.prrelid in (select pg_catalog.pg_partition_ancestors(c.oid)))
			where p.pubname = $1 group by p.oid)
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $2 and c.relname = $3`, name, t.Schema, t.Name).
		Scan(&oid, &kind, &persistence, &columns, &pub, &row)
	quoted := QuoteIdentifier(name)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Refuse("run `walferry init`, or correct outbox.table", "table %s does not exist", t)
	case err != nil:
		return fmt.Errorf("read table %s: %w", t, err)
	case kind == "p" && !viaRoot:
		return Refuse("ALTER PUBLICATION "+quoted+" SET (publish_via_partition_root = true)",
			"publication %q would publish the partitions of %s under their own names", name, t)
	case persistence == "u":
		return Refuse(fmt.Sprintf("ALTER TABLE %s SET LOGGED", t), "table %s is unlogged, its rows are not in the WAL", t)
	case pub == nil:
		return Refuse(fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s; rows inserted before are not published by it", quoted, t),
			"publication %q does not contain table %s", name, t)
	case row == nil: // that it was published all the time could not be told
		return Refuse(fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", quoted, t), "publication %q contains table %s only by its schema", name, t)
	case pub.RowFilter != nil:
		return Refuse("take the WHERE off the table: ALTER PUBLICATION … SET TABLE",
			"publication %q filters the rows of %s, what it leaves out would be lost", name, t)
	}
	for _, c := range t.Columns {
		if !slices.Contains(columns, c) {
			return Refuse("map the roles to the table's columns with outbox.columns; it has: "+strings.Join(columns, ", "), "table %s has no column %q", t, c)
		}
		if pub.AttNames != nil && !slices.Contains(pub.AttNames, c) {
			return Refuse("take the column list off the table: ALTER PUBLICATION … SET TABLE", "publication %q leaves out column %q of %s", name, c, t)
		}
	}
	p.OIDs = append(p.OIDs, oid)
	p.Membership[t.Schema+"."+t.Name] = *row
	return nil
}

// published is a row of pg_publication_tables.
type published struct {
	AttNames  []string `json:"attnames"`
	RowFilter *string  `json:"rowfilter"`
}

// Refuse returns a *PreconditionError with what to do about it.
func Refuse(hint, format string, args ...any) error {
	return &PreconditionError{fmt.Sprintf(format, args...), hint}
}

// QuoteIdentifier makes a name an identifier in SQL.
func QuoteIdentifier(name string) string { return pgx.Identifier{name}.Sanitize() }

// QuoteLiteral makes a text a literal in SQL, with standard_conforming_strings on.
func QuoteLiteral(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}
