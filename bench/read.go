package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// read is the subcommand "read": it reads a slot up to an LSN, to nowhere, with as little work as can be. What it
// reaches is what the walsender and the reading let through, whoever decodes and publishes.
func read(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("read", flag.ExitOnError)
	dsn := flags.String("dsn", "", "connection string")
	slot := flags.String("slot", "", "replication slot")
	until := flags.String("until", "", "LSN to stop at")
	events := flags.Int64("events", 0, "events that must come")
	coalesced := flags.Bool("coalesce", false, "let the kernel join the walsender's messages")
	_ = flags.Parse(args) // it exits
	end, err := pglogrepl.ParseLSN(*until)
	if err != nil {
		return err
	}
	dial := (&net.Dialer{}).DialContext
	if *coalesced {
		dial = dialCoalescing
	}
	conn, err := startReplication(ctx, *dsn, *slot, dial)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // there is nothing left to lose on it
	c := counter{until: uint64(end)}
	if err := drainInto(conn, &c); err != nil {
		return err
	}
	if c.events != *events {
		return fmt.Errorf("slot %s: got %d events up to %s, want %d", *slot, c.events, *until, *events)
	}
	return nil
}

// startReplication connects and asks for the stream; the answer is not read yet.
func startReplication(ctx context.Context, dsn, slot string, dial pgconn.DialFunc) (net.Conn, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.DialFunc = dial
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// Before the command: pgconn reads ahead, and would keep the stream's first bytes.
	raw, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	command := fmt.Sprintf(`START_REPLICATION SLOT "%s" LOGICAL 0/0 (proto_version '1', publication_names '%s', messages 'true')`, slot, publication)
	query, err := (&pgproto3.Query{String: command}).Encode(nil)
	if err != nil {
		return nil, err
	}
	_, err = raw.Conn.Write(query)
	return raw.Conn, err
}

// drainInto reads until c is done: one Read for each time that the socket wakes it up.
func drainInto(conn net.Conn, c *counter) error {
	buffer := make([]byte, 8<<20)
	filled := 0
	lastStatus := time.Now()
	for {
		n, err := conn.Read(buffer[filled:])
		if err != nil {
			return err
		}
		filled += n
		taken, err := c.feed(buffer[:filled])
		if err != nil || c.done {
			return err
		}
		if taken == 0 && filled == len(buffer) {
			return fmt.Errorf("a frame is larger than %d bytes", len(buffer))
		}
		filled = copy(buffer, buffer[taken:filled])
		if now := time.Now(); now.Sub(lastStatus) > time.Second {
			lastStatus = now
			if _, err := conn.Write(statusUpdate()); err != nil {
				return err
			}
		}
	}
}

// statusUpdate is a sign of life that confirms nothing: its LSNs are 0.
func statusUpdate() []byte {
	const size = 34 // of the message in the CopyData
	b := make([]byte, 5+size)
	b[0] = 'd'
	binary.BigEndian.PutUint32(b[1:], 4+size)
	b[5] = 'r'
	return b
}

// receiveBuffer is the SO_RCVBUF that a coalescing reader asks for, in bytes; net.core.rmem_max caps it.
const receiveBuffer = 2 << 20

// dialCoalescing connects with a fixed receive buffer. It has to be set before the connection is made, for then the
// window is agreed on (tcp(7)).
func dialCoalescing(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
		})
		if controlErr != nil {
			return controlErr
		}
		return err
	}}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return coalesce(conn), nil
}

// coalesce returns conn with a pause after each large Read. The receive buffer then fills, the window closes, and the
// kernel joins the walsender's messages in the send queue instead of sending each by itself.
func coalesce(conn net.Conn) net.Conn { return &coalescing{Conn: conn} }

type coalescing struct {
	net.Conn
	large bool // the last Read was
}

// Read reads what there is, after a pause if there was much the last time.
func (c *coalescing) Read(b []byte) (int, error) {
	const pause, much = 8 * time.Millisecond, 64 << 10
	if c.large {
		<-time.After(pause)
	}
	n, err := c.Conn.Read(b)
	c.large = n >= much
	return n, err
}
