// Package demo holds the parts of walferry-demo: an order service that writes events in
// the transactions of its orders, a consumer, the ledger that compares what was committed
// with what arrived, and a Postgres server of its own.
package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// AggregateType is the aggregate type of every event of a Shop.
const AggregateType = "order"

// Shop is an order service. Every change of an order and the event that tells of it are
// written in one transaction.
type Shop struct {
	Schema string // of its tables orders and outbox
	Prefix string // of the logical messages that are events
}

// Event identifies an event of a Shop. Two records are the same event if and only if all
// of it is equal.
type Event struct {
	ID      string // unique
	Order   string // the key of the record
	Version int64  // of the order, 1 and up in the order of commits
}

// Work is what one transaction does with one order.
type Work struct {
	Order     string
	Changes   int  // of the order, each with an event
	Messages  bool // events are logical messages, else rows of the outbox table
	Savepoint bool // one more change is made first, and rolled back to a savepoint
	Rollback  bool // all of it is rolled back at the end
}

// CreateTable makes the table of orders if it is missing. The outbox table is not made:
// that is the bridge's setup.
func (s Shop) CreateTable(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS `+s.table("orders")+` (
		id text PRIMARY KEY, version bigint NOT NULL, changed_at timestamptz NOT NULL)`)
	if err != nil {
		return fmt.Errorf("create table %s: %w", s.table("orders"), err)
	}
	return nil
}

func (s Shop) table(name string) string { return pgx.Identifier{s.Schema, name}.Sanitize() }

var errOnPurpose = errors.New("rolled back on purpose")

// Do runs the transaction and returns the events that it has committed: none when it was
// to be rolled back. After an error it is not known whether it was committed.
func (s Shop) Do(ctx context.Context, conn *pgx.Conn, w Work) ([]Event, error) {
	var events []Event
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if w.Savepoint {
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				_, err := s.change(ctx, tx, w)
				return errors.Join(err, errOnPurpose)
			})
			if err != errOnPurpose && !onPurpose(err) {
				return err
			}
		}
		for range w.Changes {
			event, err := s.change(ctx, tx, w)
			if err != nil {
				return err
			}
			events = append(events, event)
		}
		if w.Rollback {
			return errOnPurpose
		}
		return nil
	})
	switch {
	case w.Rollback && errors.Is(err, errOnPurpose):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("change %s: %w", w.Order, err)
	}
	return events, nil
}
