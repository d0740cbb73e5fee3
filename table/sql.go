package table

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
)

// nextXID is, in a FROM list, the first transaction ID that the snapshot does not see any more, n, with its epoch.
const nextXID = `(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as n) as x`

// FullXID is the SQL expression of a transaction ID with its epoch, bigint, for one of type xid: of all numbers with its 32
// bits the highest one below next, a bigint. Those below 3 are not transactions, but mark rows that are as old as the cluster
// (transam.h). A row keeps its ID when VACUUM freezes it, so of one that is 2^32 transactions old the result is too high.
func FullXID(xid, next string) string {
	return fmt.Sprintf(`case when %[1]s < 3 then %[1]s
		when (%[2]s >> 32 << 32) + %[1]s < %[2]s then (%[2]s >> 32 << 32) + %[1]s
		else (%[2]s >> 32 << 32) + %[1]s - 4294967296 end`, xid+"::text::bigint", next)
}

// RunningXID is FullXID for the ID of a transaction that runs, which may be newer than the snapshot, and is fewer than 2^31 away
// from it.
func RunningXID(xid, next string) string {
	return fmt.Sprintf("%[2]s + (%[1]s - (%[2]s & 4294967295) + 6442450944) %% 4294967296 - 2147483648", xid+"::text::bigint", next)
}

// fullXID is FullXID beside nextXID.
func fullXID(xid string) string { return FullXID(xid, "x.n") }

// Order says how the rows of a table are ordered.
type Order int

// The orders, from the one that says least.
const (
	ByXID    Order = iota // by transaction ID
	ByCommit              // by the time of the commit
	ByColumn              // by Query.OrderColumn
)

// String says what the order is worth.
func (o Order) String() string {
	switch o {
	case ByColumn:
		return "by the order column: it is the order of commits as far as the column's values are"
	case ByCommit:
		return "by the time of the commit, as the server's clock had it"
	}
	return "by transaction ID, which is the order in which transactions first wrote, not the order of their commits: " +
		"events of one key may change places if their transactions ran at the same time, or wrote them inside and outside of a savepoint"
}

// Order returns how Read orders the rows of a query. Where it says nothing of two rows they come in the order of the
// transaction's commands, unless somebody has tried to delete them since, and those of one command as they lie in the table.
// A savepoint has a transaction ID of its own, which ByXID cannot tell from another transaction's.
func (s *Snapshot) Order(q Query) Order {
	switch {
	case q.OrderColumn != "":
		return ByColumn
	case s.CommitTimes:
		return ByCommit
	}
	return ByXID
}

// selectSQL reads a query's rows. The columns are printed by the output functions of their own types, without a cast, as
// pgoutput does.
func (s *Snapshot) selectSQL(q Query, only bool) string {
	c, committed := q.Table.Columns, "null::timestamptz"
	if s.CommitTimes {
		committed = "pg_xact_commit_timestamp(t.xmin)"
	}
	columns := []string{
		fullXID("t.xmin"), fmt.Sprintf("(extract(epoch from %s) * 1000000)::bigint", committed), "t.tableoid", "t.ctid",
		column(c.ID), column(c.AggregateType), column(c.AggregateID), column(c.Type), column(c.Payload),
	}
	order := []string{fullXID("t.xmin"), "t.cmin::text::bigint", "t.tableoid", "t.ctid"}
	if s.CommitTimes {
		// Before it was turned on no time was kept: those rows are the oldest. With a time the commands come first, for they
		// are counted over all savepoints of a transaction.
		order = append([]string{
			committed + " nulls first", "case when " + committed + " is null then " + order[0] + " end", order[1],
		}, order...)
	}
	if q.OrderColumn != "" {
		order = append([]string{column(q.OrderColumn)}, order...)
	}
	return "select " + strings.Join(columns, ", ") + from(q, only) + " order by " + strings.Join(order, ", ")
}

func countSQL(q Query, only bool) string { return "select count(*)" + from(q, only) }

func from(q Query, only bool) string {
	sql := " from "
	if only {
		sql += "only "
	}
	sql += tableName(q.Table) + " as t, " + nextXID
	if q.Since > 0 {
		sql += " where " + fullXID("t.xmin") + " >= " + strconv.FormatUint(q.Since, 10)
	}
	return sql
}

// column is a column of t, NULL for none.
func column(name string) string {
	if name == "" {
		return "null"
	}
	return "t." + replication.QuoteIdentifier(name)
}

func tableName(t decode.Table) string {
	return replication.Table{Schema: t.Schema, Name: t.Name}.String()
}
