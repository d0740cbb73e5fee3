package replication

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Successor is a connection that makes the slot that follows a lost one, or the first. At first it is a temporary slot:
// Postgres drops that when the connection ends, and whoever is killed leaves nothing behind. Any error of the server on the
// connection drops it as well. One goroutine uses it.
type Successor struct {
	Server    Server
	Timelines Timelines
	// Start is where the slot begins: it sends what commits at or behind it.
	Start LSN
	// Snapshot is the name of an exported snapshot that sees exactly what commits before Start. It can be imported until the
	// next method is called.
	Snapshot string

	conn *pgconn.PgConn
	name string // of the temporary slot
}

// Succeed connects. It fails with ErrOtherServer unless the connection leads to server.
func Succeed(ctx context.Context, cfg *pgx.ConnConfig, server Server) (*Successor, error) {
	cfg = cfg.Copy()
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "walferry"
	}
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres for replication: %w", err)
	}
	s := &Successor{Server: server, conn: conn, name: "walferry_tmp_" + strconv.FormatUint(uint64(conn.PID()), 10)}
	if s.Timelines, err = readTimelines(ctx, conn, server); err == nil {
		err = untimed(ctx, conn)
	}
	if err != nil {
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// readTimelines reads the history of the server that a replication connection leads to, which must be that one.
func readTimelines(ctx context.Context, conn *pgconn.PgConn, server Server) (Timelines, error) {
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return Timelines{}, fmt.Errorf("identify system: %w", err)
	}
	if !server.Same(&Server{SystemID: id.SystemID, Timeline: uint32(id.Timeline)}) {
		return Timelines{}, ErrOtherServer
	}
	if id.Timeline == 1 {
		return Timelines{current: server.Timeline}, nil
	}
	history, err := pglogrepl.TimelineHistory(ctx, conn, id.Timeline)
	if err != nil {
		return Timelines{}, fmt.Errorf("read the history of timeline %d: %w", id.Timeline, err)
	}
	return ParseTimelines(server.Timeline, string(history.Content))
}

// Create makes the temporary slot, which waits for every transaction that is open when it begins.
func (s *Successor) Create(ctx context.Context) error {
	created, err := pglogrepl.CreateReplicationSlot(ctx, s.conn, s.name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT",
	})
	if err != nil {
		return fmt.Errorf("create a temporary slot: %w", err)
	}
	if s.Start, err = pglogrepl.ParseLSN(created.ConsistentPoint); err != nil {
		return fmt.Errorf("create a temporary slot: %w", err)
	}
	s.Snapshot = created.SnapshotName
	return nil
}

// Become makes the slot last under a name that no other has, where the temporary one stands: since Postgres 17 as one that
// synchronizes to standbys, which a temporary slot cannot be and a copy of it is not.
func (s *Successor) Become(ctx context.Context, slot string) error {
	_, err := s.conn.Exec(ctx, fmt.Sprintf("select pg_copy_logical_replication_slot(%s, %s, false)", QuoteLiteral(s.name), QuoteLiteral(slot))).ReadAll()
	if err != nil {
		return fmt.Errorf("create slot %q at %s: %w", slot, s.Start, err)
	}
	if s.Server.Version < 170000 {
		return nil
	}
	if _, err := s.conn.Exec(ctx, "ALTER_REPLICATION_SLOT "+QuoteIdentifier(slot)+" (FAILOVER true)").ReadAll(); err != nil {
		return fmt.Errorf("slot %q is there, but it does not synchronize to standbys: %w", slot, err)
	}
	return nil
}

// Close ends the connection, and with it the temporary slot. A slot that is still waited for is given up by a request to cancel,
// which must be on its way before the process ends: else the server goes on to wait.
func (s *Successor) Close(ctx context.Context) {
	closeConn(ctx, s.conn)
	select {
	case <-s.conn.CleanupDone():
	case <-time.After(cancelTimeout):
	}
}

const cancelTimeout = 5 * time.Second
