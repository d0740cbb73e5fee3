package table

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
)

// Query says which rows are read.
type Query struct {
	Table       decode.Table
	Source      int    // decode.Event.Source of its events
	OrderColumn string // "": none
	Since       uint64 // only rows whose xmin, with its epoch, is at or after this transaction ID; 0: all
	// Broken, if not nil, is called in the place of visit with a row that breaks the contract; else Read ends with it.
	Broken func(*RowError) error
}

// Row is a row; it and the bytes of its Event are valid until visit returns.
type Row struct {
	Event     decode.Event // its Position is zero
	XID       uint64       // xmin with its epoch
	Committed time.Time    // by Postgres' clock; zero if it is not known
	TableOID  uint32       // of the partition, or the table itself
	CTID      string       // where it lies in that
}

// RowError is a row that is not an outbox event although it should be. Its text has names and coordinates, never values.
type RowError struct {
	Table    string // schema.table
	TableOID uint32 // as in Row, as CTID
	CTID     string
	Column   string // may be empty
	Reason   string
	ID       string // of the event, empty if it cannot be read
}

func (e *RowError) Error() string {
	where := e.Table
	if e.Column != "" {
		where += "." + e.Column
	}
	return fmt.Sprintf("the row of %s with tableoid %d and ctid '%s' breaks the outbox contract: %s: %s", e.Table, e.TableOID, e.CTID, where, e.Reason)
}

// Refuse returns the error of a row that cannot become an event.
func (r *Row) Refuse(t decode.Table, column, reason string) *RowError {
	return &RowError{Table: t.Schema + "." + t.Name, TableOID: r.TableOID, CTID: r.CTID, Column: column, Reason: reason, ID: string(r.Event.ID)}
}

// Done returns a function for a sink to call once the row is published, or never will be: then it tells fail, and which row it is,
// or the first of a batch that it is in.
// It may be called when the row is not valid any more.
func (r *Row) Done(t decode.Table, fail func(error)) func(error) {
	oid, ctid := r.TableOID, r.CTID
	return func(err error) {
		if err != nil {
			fail(fmt.Errorf("the row of %s.%s with tableoid %d and ctid '%s', or one that shares its batch: %w", t.Schema, t.Name, oid, ctid, err))
		}
	}
}

// fetched is how many rows the server sends at a time. A Read that visit ends reads no more than these.
const fetched = 500

// Read visits the rows of a query in their order. It ends with visit's first error, and with a *RowError at a row without
// id, aggregate type or aggregate id, see Query.Broken. A *replication.PreconditionError says which right is missing. Of a table that is
// partitioned the rows of all partitions are read, of one that others inherit from only its own: so it is published. After an
// error of the server the Snapshot cannot be used any more.
func (s *Snapshot) Read(ctx context.Context, q Query, visit func(*Row) error) error {
	only, err := s.only(ctx, q)
	if err == nil {
		_, err = s.conn.Exec(ctx, "declare walferry no scroll cursor for "+s.selectSQL(q, only))
	}
	for n := fetched; err == nil && n == fetched; {
		n, err = s.fetch(ctx, q, visit)
	}
	if err != nil {
		err = s.failed(q, err)
	}
	if !s.conn.IsClosed() {
		_, _ = s.conn.Exec(ctx, "close walferry") // that fails if the transaction has, or the cursor was never there
	}
	return err
}

// fetch visits the next rows, and returns how many there were.
func (s *Snapshot) fetch(ctx context.Context, q Query, visit func(*Row) error) (n int, err error) {
	results := s.conn.PgConn().Exec(ctx, fmt.Sprintf("fetch %d from walferry", fetched))
	for results.NextResult() {
		r := results.ResultReader()
		hex := r.FieldDescriptions()[payload].DataTypeOID == pgtype.ByteaOID // also of a domain over it
		for r.NextRow() {
			if n++; err != nil {
				continue // what is on its way has to be read
			}
			var row Row
			err = row.read(q, r.Values(), hex)
			broken, ok := errors.AsType[*RowError](err)
			switch {
			case ok && q.Broken != nil:
				err = q.Broken(broken)
			case err == nil:
				err = visit(&row)
			}
		}
	}
	if closed := results.Close(); closed != nil {
		err = errors.Join(err, closed)
	}
	return n, err
}

// The columns of selectSQL.
const (
	xid = iota
	committed
	tableOID
	ctid
	id
	aggregateType
	aggregateID
	eventType
	payload
)

// read makes r the row of these values, which it keeps.
func (r *Row) read(q Query, values [][]byte, hex bool) error {
	x, xidErr := strconv.ParseUint(string(values[xid]), 10, 64)
	oid, oidErr := strconv.ParseUint(string(values[tableOID]), 10, 32)
	if err := errors.Join(xidErr, oidErr); err != nil {
		return fmt.Errorf("a row without xmin or tableoid: %w", err)
	}
	*r = Row{XID: x, TableOID: uint32(oid), CTID: string(values[ctid]), Event: decode.Event{
		Source: q.Source, ID: values[id], AggregateType: values[aggregateType], AggregateID: values[aggregateID],
		Type: values[eventType], Payload: values[payload], PayloadHex: hex,
	}}
	if values[committed] != nil {
		micros, err := strconv.ParseInt(string(values[committed]), 10, 64)
		if err != nil {
			return fmt.Errorf("a row's commit time: %w", err)
		}
		r.Committed = time.UnixMicro(micros)
	}
	switch c := &q.Table.Columns; {
	case r.Event.ID == nil:
		return r.Refuse(q.Table, c.ID, "is NULL")
	case r.Event.AggregateType == nil:
		return r.Refuse(q.Table, c.AggregateType, "is NULL")
	case r.Event.AggregateID == nil:
		return r.Refuse(q.Table, c.AggregateID, "is NULL")
	}
	return nil
}

// Count returns how many rows Read would visit.
func (s *Snapshot) Count(ctx context.Context, q Query) (n int64, err error) {
	only, err := s.only(ctx, q)
	if err == nil {
		err = s.conn.QueryRow(ctx, countSQL(q, only)).Scan(&n)
	}
	if err != nil {
		return 0, s.failed(q, err)
	}
	return n, nil
}

// Updates returns how many updates of rows of a query's table, in all of its partitions, the server's statistics count, and the SQL
// that has them counted anew. A row that was updated has the transaction ID of that, not of when it was written.
func (s *Snapshot) Updates(ctx context.Context, q Query) (n int64, reset string, err error) {
	only, err := s.only(ctx, q)
	if err == nil {
		err = s.conn.QueryRow(ctx, `/* walferry:updates */ select coalesce(sum(pg_stat_get_tuples_updated(t.oid)), 0)::bigint
			from (select to_regclass($1)::oid union select relid from pg_partition_tree(to_regclass($1))) as t(oid)`, tableName(q.Table)).Scan(&n)
	}
	if err != nil {
		return 0, "", s.failed(q, err)
	}
	name := replication.QuoteLiteral(tableName(q.Table))
	if only {
		return n, fmt.Sprintf("SELECT pg_stat_reset_single_table_counters(%s::regclass)", name), nil
	}
	return n, fmt.Sprintf("SELECT pg_stat_reset_single_table_counters(relid) FROM pg_partition_tree(%s)", name), nil
}

// only reports whether the rows of tables that inherit from this one are left out: pgoutput sends them under the names of
// those tables, but for partitions.
func (s *Snapshot) only(ctx context.Context, q Query) (only bool, err error) {
	err = s.conn.QueryRow(ctx, `/* walferry:relkind */ select relkind <> 'p' from pg_catalog.pg_class where oid = to_regclass($1)`, tableName(q.Table)).Scan(&only)
	return only, err
}

// failed says what is missing for a table to be read.
func (s *Snapshot) failed(q Query, err error) error {
	name := tableName(q.Table)
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pgErr.Code == "42501" && pgErr.Routine == "check_enable_rls":
		return &replication.PreconditionError{
			Reason: "row-level security would hide rows of table " + name + " from walferry's role",
			Hint:   fmt.Sprintf("ALTER ROLE %s BYPASSRLS, or use a DSN whose role may see every row", replication.QuoteIdentifier(s.role())),
		}
	case ok && pgErr.Code == "42501":
		return &replication.PreconditionError{
			Reason: "walferry's role may not read table " + name,
			Hint: fmt.Sprintf("GRANT SELECT ON %s TO %s, and USAGE on its schema: only what reads the table itself needs it",
				name, replication.QuoteIdentifier(s.role())),
		}
	case ok && pgErr.Code == "42703":
		return &replication.PreconditionError{
			Reason: fmt.Sprintf("table %s has not all of the columns that outbox.columns and outbox.order_column name", name),
			Hint:   "correct outbox.columns and outbox.order_column",
		}
	case ok:
		return fmt.Errorf("read table %s: %w", name, replication.Withheld(pgErr))
	}
	if _, ok := errors.AsType[*RowError](err); ok {
		return err
	}
	return fmt.Errorf("read table %s: %w", name, err)
}

func (s *Snapshot) role() string { return s.conn.Config().User }
