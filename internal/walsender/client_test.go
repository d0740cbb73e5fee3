package walsender_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
)

const walStart pglogrepl.LSN = 0x1500000 // the default

// bubble runs a test with a server inside a synctest bubble, which fails if a goroutine is left at its end.
func bubble(t *testing.T, config walsender.Config, f func(*testing.T, *walsender.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		config.Slot = "ferry"
		srv := walsender.New(config)
		defer srv.Close()
		f(t, srv)
	})
}

func outbox() pgoutput.Relation {
	return pgoutput.Relation{
		ID: 16385, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd',
		Columns: []pgoutput.Column{{Key: true, Name: "id", TypeOID: 25, TypeMod: -1}},
	}
}

func insert(id string) walsender.Change { return walsender.Insert(outbox(), pgoutput.Text(id)) }

func config(t *testing.T, srv *walsender.Server, parameters string) *pgconn.Config {
	t.Helper()
	c, err := pgconn.ParseConfig("host=127.0.0.1 user=ferry dbname=shop sslmode=disable " + parameters)
	if err != nil {
		t.Fatal(err)
	}
	c.DialFunc = srv.Dial
	return c
}

// connect opens a connection in the manner of pglogrepl.
func connect(t *testing.T, srv *walsender.Server) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.ConnectConfig(t.Context(), config(t, srv, "replication=database"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// query opens an ordinary SQL connection.
func query(t *testing.T, srv *walsender.Server) *pgx.Conn {
	t.Helper()
	c, err := pgx.ParseConfig("host=127.0.0.1 user=ferry dbname=shop sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	c.DialFunc = srv.Dial
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func start(t *testing.T, conn *pgconn.PgConn, lsn pglogrepl.LSN) error {
	t.Helper()
	return pglogrepl.StartReplication(t.Context(), conn, `"ferry"`, lsn, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'outbox'", "messages 'true'"},
	})
}

// stream connects and starts to stream.
func stream(t *testing.T, srv *walsender.Server, lsn pglogrepl.LSN) *pgconn.PgConn {
	t.Helper()
	conn := connect(t, srv)
	if err := start(t, conn, lsn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// receive returns the next message in words.
func receive(t *testing.T, conn *pgconn.PgConn) string {
	t.Helper()
	msg, err := conn.ReceiveMessage(context.Background())
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s %s: %s", pgErr.Severity, pgErr.Code, pgErr.Message)
	}
	if err != nil {
		return "failed: " + strings.TrimPrefix(err.Error(), "receive message failed: ")
	}
	data, ok := msg.(*pgproto3.CopyData)
	if !ok {
		return words(msg)
	}
	switch data.Data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data.Data[1:])
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("keepalive %s %t", k.ServerWALEnd, k.ReplyRequested)
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data.Data[1:])
		if err != nil {
			t.Fatal(err)
		}
		m, err := pglogrepl.Parse(x.WALData)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s at %s", words(m), x.WALStart)
	}
	return fmt.Sprintf("CopyData %q", data.Data)
}

func words(msg any) string {
	switch m := msg.(type) {
	case *pglogrepl.BeginMessage:
		return fmt.Sprintf("begin %d %s", m.Xid, m.FinalLSN)
	case *pglogrepl.CommitMessage:
		return fmt.Sprintf("commit %s %s", m.CommitLSN, m.TransactionEndLSN)
	case *pglogrepl.RelationMessage:
		return fmt.Sprintf("relation %s with %d columns", m.RelationName, m.ColumnNum)
	case *pglogrepl.InsertMessage:
		return fmt.Sprintf("insert %s", m.Tuple.Columns[0].Data)
	case *pglogrepl.LogicalDecodingMessage:
		return fmt.Sprintf("message %s %s %s", m.LSN, m.Prefix, m.Content)
	case *pglogrepl.TruncateMessage:
		return "truncate"
	case *pgproto3.CommandComplete:
		return string(m.CommandTag)
	case *pgproto3.ErrorResponse:
		return fmt.Sprintf("%s %s: %s", m.Severity, m.Code, m.Message)
	case *pgproto3.NoticeResponse:
		return fmt.Sprintf("%s %s: %s", m.Severity, m.Code, m.Message)
	}
	return fmt.Sprintf("%T", msg)
}

// expect receives the given messages.
func expect(t *testing.T, conn *pgconn.PgConn, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := receive(t, conn); got != w {
			t.Fatalf("received %q, want %q", got, w)
		}
	}
}

// expectNothing waits for a while and fails if a message comes.
func expectNothing(t *testing.T, conn *pgconn.PgConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	msg, err := conn.ReceiveMessage(ctx)
	if err == nil {
		t.Fatalf("received %s, want nothing", words(msg))
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("received %v, want nothing", err)
	}
}

// transaction is how a transaction with one insert arrives; rel is set if the relation is announced.
func transaction(c walsender.Committed, at pglogrepl.LSN, id string, rel bool) []string {
	out := []string{fmt.Sprintf("begin %d %s at %s", c.Xid, c.CommitLSN, at)}
	if rel {
		out = append(out, "relation outbox with 1 columns at 0/0")
	}
	return append(out, fmt.Sprintf("insert %s at %s", id, at), commit(c))
}

func commit(c walsender.Committed) string {
	return fmt.Sprintf("commit %s %s at %s", c.CommitLSN, c.EndLSN, c.EndLSN)
}

func keepalive(lsn pglogrepl.LSN, reply bool) string {
	return fmt.Sprintf("keepalive %s %t", lsn, reply)
}

// confirm reports lsn as written, flushed and applied and waits until the server knows.
func confirm(t *testing.T, conn *pgconn.PgConn, lsn pglogrepl.LSN, reply bool) {
	t.Helper()
	err := pglogrepl.SendStandbyStatusUpdate(t.Context(), conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: lsn, WALFlushPosition: lsn, WALApplyPosition: lsn, ReplyRequested: reply,
	})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func code(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return fmt.Sprint(err)
}
