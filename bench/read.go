package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/replication"
)

// read is the subcommand "read": it reads a slot up to an LSN, to nowhere, with as little work as can be. What it
// reaches is what the walsender and the reading let through, whoever decodes and publishes.
func read(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("read", flag.ExitOnError)
	dsn := flags.String("dsn", "", "connection string")
	slot := flags.String("slot", "", "replication slot")
	until := flags.String("until", "", "LSN to stop at")
	events := flags.Int64("events", 0, "events that must come")
	paced := flags.Bool("pace", false, "read as walferry does in a backlog: let the kernel join the walsender's messages")
	_ = flags.Parse(args) // it exits
	end, err := pglogrepl.ParseLSN(*until)
	if err != nil {
		return err
	}
	var dial pgconn.DialFunc = (&net.Dialer{}).DialContext
	if *paced {
		dial = replication.Paced(dial, replication.ReadBuffer, func() time.Duration { return time.Hour })
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
	buffer := make([]byte, 512<<10)
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
