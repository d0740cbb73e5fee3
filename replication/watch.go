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
	Conn   *pgx.Conn // owned by Run, which may replace it and closes it
	Server Server    // to which Conn leads
	// Slot, Publication and Tables are looked at again and again; no publication is not.
	Slot        string
	Publication string
	Tables      []Table
	Membership  Membership // that the session began with
	// Every is the interval between two looks at the slot.
	Every time.Duration
	// Grace is how long a shutdown may wait for us.
	Grace time.Duration
	// Report is called with the slot's state after each look.
	Report func(*Slot)
	// Lost is called with true when the connection has ended, for the server may be shutting
	// down, and with false when there is another.
	Lost func(bool)
}

// ErrServerShutdown is a server that has waited for us as long as we let it.
var ErrServerShutdown = errors.New("the server is shutting down")

const (
	lookTimeout    = 5 * time.Second  // of one look
	connectTimeout = 20 * time.Second // of one attempt to connect, to all hosts of the DSN
)

// Run watches until ctx is done. It fails with ErrServerShutdown once the server has
// refused ordinary connections for Grace, and with a *PreconditionError when the
// publication no longer publishes what it must, or a *GapError when it did not for a while.
func (w *Watch) Run(ctx context.Context) error {
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = w.Conn.Close(closing) // a connection that holds nothing
	}()
	for {
		err := w.look(ctx)
		if w.Conn.IsClosed() && ctx.Err() == nil {
			w.Lost(true)
			err = w.reopen(ctx)
			w.Lost(false)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// look reports the slot, checks the publication, and waits until the next look is due or
// the connection ends. A look that fails for another reason is made again.
func (w *Watch) look(ctx context.Context) error {
	soon, cancel := context.WithTimeout(ctx, lookTimeout) // pgx closes the connection behind it
	slot, err := ReadSlot(soon, w.Conn, w.Slot)
	if err == nil {
		w.Report(slot)
	}
	if err == nil && w.Publication != "" {
		err = w.checkPublication(soon, slot)
	}
	cancel()
	if _, ok := errors.AsType[*PreconditionError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*GapError](err); ok {
		return err
	}
	due, cancel := context.WithTimeout(ctx, w.Every)
	defer cancel()
	_, _ = w.Conn.WaitForNotification(due) // there are none; it ends with due, or with the connection
	return nil
}

// checkPublication fails also when the publication was changed and changed back since the last look.
func (w *Watch) checkPublication(ctx context.Context, slot *Slot) error {
	p, err := CheckPublication(ctx, w.Conn, w.Publication, w.Tables)
	if err != nil {
		return err
	}
	if changed := w.Membership.Changed(p.Membership); changed != "" {
		return &GapError{Slot: w.Slot, Reason: changed, From: slot.ConfirmedFlush}
	}
	return nil
}

// reopen connects again, or fails with ErrServerShutdown.
func (w *Watch) reopen(ctx context.Context) error {
	lost := time.Now()
	retry := time.NewTicker(250 * time.Millisecond)
	defer retry.Stop()
	for {
		err := w.connect(ctx)
		if err == nil {
			return nil
		}
		// Any other refusal, too many connections for one, says nothing of a shutdown. Another
		// host of the DSN says that ours is gone.
		down := sqlState(err) == "57P03" || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, ErrInRecovery) || errors.Is(err, ErrOtherServer)
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

func (w *Watch) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := ConnectSQL(ctx, w.Conn.Config())
	if err != nil {
		return err
	}
	server, err := ReadServer(ctx, conn)
	if err == nil && !server.Same(&w.Server) {
		err = ErrOtherServer
	}
	if err != nil {
		_ = conn.Close(ctx) // it only read
		return err
	}
	w.Conn = conn
	return nil
}
