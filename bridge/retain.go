package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// retention moves the slot that keeps WAL for replays. It is a courtesy: whatever happens to it, the session goes on.
type retention struct {
	s     *session
	slot  string
	every time.Duration
	// orphan is a slot that is left although the configuration wants none any more: it is watched, not moved.
	orphan bool

	mu      sync.Mutex
	entries []checkpoint.Entry // of the index, the oldest first

	warned string // the last problem that was logged
}

const (
	// retainEvery is how often the slot is moved.
	retainEvery = time.Minute
	// advanceTimeout bounds one move: the first after a long pause reads all WAL since.
	advanceTimeout = 10 * time.Minute
)

// RetentionStatus is how far back `walferry replay` can go, and what that costs.
type RetentionStatus struct {
	Slot       string    `json:"slot"`
	From       string    `json:"from_lsn,omitempty"`   // what commits at or behind it can be replayed
	FromTime   time.Time `json:"from_time,omitzero"`   // about when what is there was published
	WAL        int64     `json:"wal_bytes"`            // that the server keeps for the slot
	CatalogAge int64     `json:"catalog_transactions"` // how long ago, in transactions, VACUUM of the catalog is held up
	Problem    string    `json:"problem,omitempty"`
}

// retain moves the retention slot until the function that it returns is called.
func (s *session) retain(ctx context.Context) (end func()) {
	r := s.retention
	if r == nil {
		r = &retention{s: s, slot: s.db.RetentionName(), every: s.retainEvery(), orphan: true}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// newRetention returns nil if no slot is to keep WAL.
func (s *session) newRetention(values map[string][]byte) *retention {
	slot := s.db.RetentionSlot()
	if slot == "" {
		return nil
	}
	r := &retention{s: s, slot: slot, every: s.retainEvery()}
	for _, e := range checkpoint.Index(values, checkpointKey(s.db)) {
		if e.On(s.stream.Server.SystemID, s.stream.Timelines) {
			r.entries = append(r.entries, e)
		}
	}
	return r
}

func (s *session) retainEvery() time.Duration { return cmp.Or(s.options.RetainEvery, retainEvery) }

// reached notes a checkpoint that was written.
func (r *retention) reached(c *checkpoint.Checkpoint) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.entries); n == 0 || c.Time.Sub(r.entries[n-1].Time) >= r.every {
		r.entries = append(r.entries, c.Entry())
	}
	oldest := c.Time.Add(-max(checkpoint.IndexKept, r.s.options.IndexKept()))
	r.entries = slices.DeleteFunc(r.entries, func(e checkpoint.Entry) bool { return e.Time.Before(oldest) })
}

// IndexKept is how long the index is needed: an entry must be older than what it bounds.
func (o Options) IndexKept() time.Duration { return o.Database.Retain.MaxAge + 24*time.Hour }

func (r *retention) run(ctx context.Context) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		status, err := r.move(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errNoOrphan) {
			r.forget()
			return
		}
		if err != nil {
			status.Problem = err.Error()
		}
		if !r.orphan || status.From != "" { // whether there is an orphan is nobody's problem
			r.report(status)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errNoOrphan says that there is nothing to watch.
var errNoOrphan = errors.New("no retention slot is left")

// move moves the slot as far as its bounds demand, and never past what is published.
func (r *retention) move(ctx context.Context) (status RetentionStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, advanceTimeout)
	defer cancel()
	status.Slot = r.slot
	conn, err := r.s.connectSQL(ctx)
	if err != nil {
		return status, err
	}
	defer func() { _ = conn.Close(ctx) }() // each statement stands for itself
	if r.orphan {
		return r.watch(ctx, conn)
	}
	slot, err := replication.ReadRetention(ctx, conn, r.slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return status, fmt.Errorf("%w: `walferry init` creates it; until then nothing is kept for `walferry replay`", err)
	}
	if err != nil {
		return status, err
	}
	if err := slot.Check(r.s.stream.Server.Database); err != nil {
		return status, fmt.Errorf("%w; `walferry init` makes a new one, and nothing before that can be replayed", err)
	}
	to := r.bound(time.Now(), slot.ServerLSN)
	// Only what was used lately is safe from idle_replication_slot_timeout.
	if to > slot.ConfirmedFlush || slot.IdleLimit > 0 {
		err = slot.Advance(ctx, conn, to)
	}
	status.From, status.FromTime = slot.ConfirmedFlush.String(), r.timeOf(slot.ConfirmedFlush)
	status.WAL, status.CatalogAge = slot.RestartLag(), slot.CatalogAge
	return status, cmp.Or(err, r.danger(slot))
}

// watch says what an orphan costs.
func (r *retention) watch(ctx context.Context, conn *pgx.Conn) (status RetentionStatus, err error) {
	status.Slot = r.slot
	is, err := replication.HasSlot(ctx, conn, r.slot)
	if err != nil {
		return status, err
	}
	if !is {
		return status, errNoOrphan
	}
	slot, err := replication.ReadRetention(ctx, conn, r.slot)
	if err != nil {
		return status, err
	}
	if slot.Active || slot.Check(r.s.stream.Server.Database) != nil { // somebody else's, or it keeps nothing
		return status, errNoOrphan
	}
	status.From, status.WAL, status.CatalogAge = slot.ConfirmedFlush.String(), slot.RestartLag(), slot.CatalogAge
	return status, fmt.Errorf("retain is not set any more, so nobody moves slot %[1]q, and it keeps all WAL, %[2]s by now, until the disk is full: set retain, or, unless something else reads it, SELECT pg_drop_replication_slot('%[1]s')",
		r.slot, humanize.IBytes(uint64(max(0, status.WAL))))
}

// bound returns the LSN before which nothing is to be kept.
func (r *retention) bound(now time.Time, end replication.LSN) (to replication.LSN) {
	limits := r.s.db.Retain
	if size := replication.LSN(limits.MaxBytes); size > 0 && end > size {
		to = end - size // any LSN will do for a slot that nobody streams from
	}
	if limits.MaxAge > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.entries {
			if now.Sub(e.Time) >= limits.MaxAge {
				to = max(to, e.Pos.LSN)
			}
		}
	}
	return min(to, r.s.confirmable())
}

// timeOf returns about when an LSN was reached, zero if that is not known.
func (r *retention) timeOf(lsn replication.LSN) (at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		if e.Pos.LSN <= lsn {
			at = e.Time
		}
	}
	return at
}

// danger says which settings of the server may lose the slot.
func (r *retention) danger(slot *replication.Retention) error {
	limits := r.s.db.Retain
	switch {
	case slot.KeepLimit >= 0 && limits.MaxBytes == 0:
		return fmt.Errorf("max_slot_wal_keep_size is %s: slot %q is lost once it needs more, whatever retain.max_age says; set retain.max_bytes below it", humanize.IBytes(uint64(slot.KeepLimit)), r.slot)
	case slot.KeepLimit >= 0 && int64(limits.MaxBytes) >= slot.KeepLimit:
		return fmt.Errorf("max_slot_wal_keep_size is %s, and retain.max_bytes not below it: slot %q is lost once it needs as much", humanize.IBytes(uint64(slot.KeepLimit)), r.slot)
	case slot.IdleLimit > 0 && slot.IdleLimit < 3*r.every:
		return fmt.Errorf("idle_replication_slot_timeout is %s: slot %q, which is used once in %s, may be lost; set it to %s or more", slot.IdleLimit, r.slot, r.every, 3*r.every)
	}
	return nil
}

// report shows the status, and logs a problem once.
func (r *retention) report(status RetentionStatus) {
	r.s.metrics.retention(r.s.db.Name, &status)
	if status.Problem != "" && status.Problem != r.warned {
		r.s.log.Warn().Str("retention_slot", r.slot).Str("problem", status.Problem).Msg("the slot that keeps WAL for replays needs somebody; events are published all the same")
	}
	r.warned = status.Problem
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.status.Retention = &status
}

// forget shows nothing any more.
func (r *retention) forget() {
	r.s.metrics.noRetention(r.s.db.Name)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.status.Retention = nil
}
