package replication

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Watch holds an ordinary SQL connection. At a fast shutdown Postgres ends ordinary
// connections at once but waits for walsenders, for ever if need be, until they have
// confirmed everything: this connection's end is how we learn of it.
type Watch struct {
	Conn *pgx.Conn // owned by Run, which may replace it and closes it
	Slot string
	// Every is the interval between two looks at the slot.
	Every time.Duration
	// Grace is how long a shutdown may wait for us.
	Grace time.Duration
	// Report is called with the slot's state after each look.
	Report func(*Slot)
}

// ErrServerShutdown is a server that has waited for us as long as we let it.
var ErrServerShutdown = errors.New("the server is shutting down")

// Run watches until ctx is done, or fails with ErrServerShutdown once the server
// has refused ordinary connections for longer than Grace.
func (w *Watch) Run(ctx context.Context) error {
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = w.Conn.Close(closing) // a connection that holds nothing
	}()
	for {
		err := w.look(ctx)
		if err != nil && ctx.Err() == nil {
			err = w.reopen(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// look reports the slot and waits until the next look is due. It fails when the
// connection is gone.
func (w *Watch) look(ctx context.Context) error {
	slot, err := ReadSlot(ctx, w.Conn, w.Slot)
	switch {
	case err == nil:
		w.Report(slot)
	case w.Conn.IsClosed():
		return err
	}
	due, cancel := context.WithTimeout(ctx, w.Every)
	defer cancel()
	if _, err = w.Conn.WaitForNotification(due); w.Conn.IsClosed() {
		return err
	}
	return nil
}

// reopen connects again, or fails with ErrServerShutdown.
func (w *Watch) reopen(ctx context.Context) error {
	lost := time.Now()
	retry := time.NewTicker(250 * time.Millisecond)
	defer retry.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, w.Grace)
		conn, err := ConnectSQL(try, w.Conn.Config())
		cancel()
		if err == nil {
			w.Conn = conn
			return nil
		}
		// Any other refusal, too many connections for one, says nothing of a shutdown.
		down := sqlState(err) == "57P03" || errors.Is(err, syscall.ECONNREFUSED)
		if down && time.Since(lost) >= w.Grace {
			return fmt.Errorf("slot %q: %w", w.Slot, ErrServerShutdown)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry.C:
		}
	}
}
