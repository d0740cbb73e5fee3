//go:build capture

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/internal/pgoutput"
)

// TestCapture writes decode/testdata/wal and replication/testdata anew, what the unit tests and the
// fuzz targets know of real servers (decode/wal_test.go has the format):
//
//	go test -tags capture -count=1 -run TestCapture ./test/integration
//
// The bytes come from the walsender through pglogrepl, the events from SQL: the product has no
// part in either. OIDs, LSNs, times and some ids differ from run to run.
func TestCapture(t *testing.T) {
	for version, server := range shared.postgres {
		t.Run(version, func(t *testing.T) {
			admin, err := server.admin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w := bareWorld(t, admin, "", nil)
			for _, sql := range captureTables {
				w.exec(sql)
			}
			everything := "publish_via_partition_root = true"
			if w.serverVersion() >= 18 {
				everything += ", publish_generated_columns = stored"
			}
			w.exec("CREATE PUBLICATION everything FOR ALL TABLES WITH (" + everything + ")")
			w.exec("CREATE PUBLICATION events FOR TABLE " + captureOutboxes + " WITH (publish = 'insert', publish_via_partition_root = true)")
			for _, s := range captureScenarios {
				t.Run(s.name, func(t *testing.T) {
					world := *w
					world.t = t
					c := &capturing{world: &world}
					c.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", w.prefix)
					s.run(c)
					c.save(fmt.Sprintf("pg%d-%s", w.serverVersion(), s.name), c.stream(s.publication))
					c.dropSlot(w.prefix)
				})
			}
		})
	}
}

// capturing is one scenario on one server, whose statements it counts as pgoutput must.
type capturing struct {
	*world
	index   int      // changes of the open transaction so far
	pending []string // its events, without xid
	golden  []string
}

// commit runs a transaction.
func (c *capturing) commit(body func()) {
	c.exec("BEGIN")
	c.index, c.pending = 0, nil
	body()
	xid := c.query("SELECT pg_current_xact_id()::xid::text")
	c.exec("COMMIT")
	for _, line := range c.pending {
		c.golden = append(c.golden, xid+"\t"+line)
	}
}

// rolledBack runs a part of a transaction that leaves nothing behind.
func (c *capturing) rolledBack(body func()) {
	index, pending := c.index, len(c.pending)
	c.exec("SAVEPOINT s")
	body()
	c.exec("ROLLBACK TO s")
	c.exec("RELEASE s") // else one of the same name around it could not be reached
	c.index, c.pending = index, c.pending[:pending]
}

// changes runs a statement of which each row is a published change, without an event.
func (c *capturing) changes(sql string) {
	c.t.Helper()
	tag, err := c.conn.Exec(c.t.Context(), sql)
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	c.index += int(tag.RowsAffected())
}

// truncate runs a TRUNCATE, which is one change whatever its tables are.
func (c *capturing) truncate(sql string) {
	c.exec(sql)
	c.index++
}

// defaultColumns are those of DefaultColumns as text.
const defaultColumns = "id::text, aggregatetype::text, aggregateid::text, type::text, payload::text"

// rows inserts into an outbox with the default columns.
func (c *capturing) rows(table, insert string) {
	c.events("public."+table, "INSERT INTO "+table+" "+insert+" RETURNING "+defaultColumns)
}

// events runs a statement that returns the texts of the five values of each event.
func (c *capturing) events(outbox, sql string, args ...any) {
	c.t.Helper()
	// The simple protocol sends texts, and survives changes of the table.
	rows, err := c.conn.Query(c.t.Context(), sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var values [5]*string
		err := row.Scan(&values[0], &values[1], &values[2], &values[3], &values[4])
		line := fmt.Sprintf("%d\t%s", c.index, outbox)
		c.index++
		for _, v := range values {
			if v == nil {
				line += "\tNULL"
			} else {
				line += "\t" + strconv.Quote(*v)
			}
		}
		return line, err
	})
	if err != nil || len(lines) == 0 {
		c.t.Fatalf("%s: %d events, %v", sql, len(lines), err)
	}
	c.pending = append(c.pending, lines...)
}

// copied copies rows into the default outbox; the table itself says what they are.
func (c *capturing) copied(rows string) {
	c.t.Helper()
	sql := "COPY outbox (id, aggregatetype, aggregateid, type, payload) FROM STDIN"
	if _, err := c.conn.PgConn().CopyFrom(c.t.Context(), strings.NewReader(rows), sql); err != nil {
		c.t.Fatal(err)
	}
	c.events("public.outbox", "SELECT "+defaultColumns+" FROM outbox WHERE type = 'copied' ORDER BY id")
}

// message emits a transactional logical message with the outbox prefix. Its members are
// what Postgres' own json reads: ->> unescapes, -> leaves the text as it is.
func (c *capturing) message(content string) {
	c.exec("SELECT pg_logical_emit_message(true, 'outbox', $1)", content)
	c.events("message", `SELECT j->>'id', j->>'aggregatetype', j->>'aggregateid', j->>'type',
		CASE json_typeof(j->'payload') WHEN 'string' THEN j->>'payload' ELSE (j->'payload')::text END FROM (SELECT $1::json) AS s(j)`, content)
}

// foreign emits a message that is no event.
func (c *capturing) foreign(transactional bool, prefix, content string) {
	c.exec("SELECT pg_logical_emit_message($1, $2, $3)", transactional, prefix, content)
	if transactional {
		c.index++
	}
}

// stream returns all messages of the walsender since the slot was created, without their CopyData frames.
func (c *capturing) stream(publication string) (messages [][]byte) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsnOf(c.t, c.admin, c.prefix)+"&replication=database&client_encoding=UTF8&bytea_output=hex&TimeZone=UTC&DateStyle=ISO")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	end := c.insertLSN()
	err = pglogrepl.StartReplication(ctx, conn, c.prefix, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + publication + "'", "messages 'true'"},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		data, ok := message.(*pgproto3.CopyData)
		if !ok {
			c.t.Fatalf("%T in the stream", message)
		}
		messages = append(messages, append([]byte{}, data.Data...))
		if data.Data[0] != pglogrepl.PrimaryKeepaliveMessageByteID {
			continue
		}
		keepalive, err := pglogrepl.ParsePrimaryKeepaliveMessage(data.Data[1:])
		if err != nil {
			c.t.Fatal(err)
		}
		if keepalive.ServerWALEnd >= end {
			return messages
		}
	}
}

// save writes the pgoutput messages and the golden file, and of one scenario the walsender's messages.
func (c *capturing) save(name string, stream [][]byte) {
	var raw, wal []byte
	for _, m := range stream {
		raw = pgoutput.AppendCaptured(raw, m)
		if m[0] == pglogrepl.XLogDataByteID {
			data, err := pglogrepl.ParseXLogData(m[1:])
			if err != nil {
				c.t.Fatal(err)
			}
			wal = pgoutput.AppendCaptured(wal, data.WALData)
		}
	}
	write := func(path string, content []byte) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	write(filepath.Join("../../decode/testdata/wal", name+".wal"), wal)
	write(filepath.Join("../../decode/testdata/wal", name+".txt"), []byte(strings.Join(c.golden, "\n")+"\n"))
	if version, ok := strings.CutSuffix(name, "-messages"); ok {
		write(filepath.Join("../../replication/testdata/walsender", version+".wal"), raw)
	}
}
