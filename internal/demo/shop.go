// Package demo holds the parts of walferry-demo: an order service that writes events in
// the transactions of its orders, a consumer, the ledger that compares what was committed
// with what arrived, and a Postgres server of its own.
package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// AggregateType is the aggregate type of every event of a Shop.
const AggregateType = "order"

// Shop is an order service. A change of an order and the event that tells of it are
// written in one transaction.
type Shop struct {
	Schema string // of its tables orders and outbox
	Prefix string // of the logical messages that are events
}

// Event is what identifies an event of a Shop: two events are the same one if all of it is
// equal.
type Event struct {
	ID      string // unique
	Order   string // the key of the record
	Version int64  // of the order: 1 and up, in the order of commits
}

// Work is what one transaction does with one order.
type Work struct {
	Order     string
	Changes   int  // of the order, each with an event
	Message   bool // the events are logical messages, not rows of the outbox table
	Savepoint bool // before, one more change is made and rolled back to a savepoint
	Rollback  bool // at the end everything is rolled back
}

// CreateTable makes the table of orders if it is missing. The outbox table is the business
// of the bridge's setup.
func (s Shop) CreateTable(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS `+s.table("orders")+` (
		id text PRIMARY KEY, version bigint NOT NULL, changed_at timestamptz NOT NULL)`)
	if err != nil {
		return fmt.Errorf("create table %s: %w", s.table("orders"), err)
	}
	return nil
}

func (s Shop) table(name string) string { return pgx.Identifier{s.Schema, name}.Sanitize() }

// Do runs one transaction and returns the events it has committed, none if it was to be
// rolled back. After an error nobody knows whether it was committed.
func (s Shop) Do(ctx context.Context, conn *pgx.Conn, w Work) ([]Event, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit it does nothing, else there is an error already
	if w.Savepoint {
		if err := s.abandon(ctx, tx, w); err != nil {
			return nil, err
		}
	}
	var events []Event
	for range w.Changes {
		event, err := s.change(ctx, tx, w)
		if err != nil {
			return nil, err
		}
		events = append(events, event)
	}
	if w.Rollback {
		return nil, tx.Rollback(ctx)
	}
	return events, tx.Commit(ctx)
}

// abandon makes a change in a subtransaction and rolls that back.
func (s Shop) abandon(ctx context.Context, tx pgx.Tx, w Work) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := s.change(ctx, savepoint, w); err != nil {
		return err
	}
	return savepoint.Rollback(ctx)
}

// payload is the value of a record.
type payload struct {
	Order     string    `json:"order"`
	Version   int64     `json:"version"`
	WrittenAt time.Time `json:"written_at"` // before the commit
}

// change changes the order and writes the event. The row of the order stays locked until
// the commit, so the versions of an order are in the order of commits, whoever makes them.
func (s Shop) change(ctx context.Context, tx pgx.Tx, w Work) (Event, error) {
	event := Event{ID: newID(), Order: w.Order}
	err := tx.QueryRow(ctx, `INSERT INTO `+s.table("orders")+` AS o VALUES ($1, 1, now())
		ON CONFLICT (id) DO UPDATE SET version = o.version + 1, changed_at = now() RETURNING version`,
		w.Order).Scan(&event.Version)
	if err != nil {
		return Event{}, fmt.Errorf("change an order: %w", err)
	}
	kind := "OrderChanged"
	if event.Version == 1 {
		kind = "OrderPlaced"
	}
	value := payload{event.Order, event.Version, time.Now()}
	if w.Message {
		err = s.emit(ctx, tx, event.ID, kind, value)
	} else {
		_, err = tx.Exec(ctx, `INSERT INTO `+s.table("outbox")+`
			(id, aggregatetype, aggregateid, type, payload) VALUES ($1, $2, $3, $4, $5)`,
			event.ID, AggregateType, event.Order, kind, value)
	}
	if err != nil {
		return Event{}, fmt.Errorf("write an event: %w", err)
	}
	return event, nil
}

// emit writes the event as a logical message, which is in the WAL and in no table.
func (s Shop) emit(ctx context.Context, tx pgx.Tx, id, kind string, value payload) error {
	content, err := json.Marshal(map[string]any{
		"id": id, "aggregatetype": AggregateType, "aggregateid": value.Order, "type": kind, "payload": value,
	})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `SELECT pg_logical_emit_message(true, $1, $2::text)`, s.Prefix, string(content))
	return err
}

// newID returns a random UUID, version 4.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
