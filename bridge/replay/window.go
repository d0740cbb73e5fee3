// Package replay publishes once more what a bridge has published, from the WAL that its retention slot keeps. It never touches
// the slot of the bridge, nor its checkpoint, and promises what it can read: outside of the window it refuses.
package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// Window is what can be replayed: the transactions whose commit record lies at or behind From and before To.
type Window struct {
	Slot string         `json:"slot"` // that keeps the WAL
	From checkpoint.LSN `json:"from_lsn"`
	To   checkpoint.LSN `json:"to_lsn"`
	// FromTime and ToTime bound what can be asked for by time: the minutes of the index that lie in the window. Both are zero if
	// none does.
	FromTime time.Time `json:"from_time,omitzero"`
	ToTime   time.Time `json:"to_time,omitzero"`
	// Interrupted are replays that can be resumed, the oldest first.
	Interrupted []*State `json:"interrupted,omitempty"`

	entries []checkpoint.Entry // in the window, the oldest first
}

// String describes the window in LSNs and times.
func (w *Window) String() string {
	times := "no time in it is known yet, the index has an entry a minute"
	if !w.FromTime.IsZero() {
		times = fmt.Sprintf("published from %s to %s", w.FromTime.Format(time.RFC3339), w.ToTime.Format(time.RFC3339))
	}
	return fmt.Sprintf("from %s to %s, %s", w.From, w.To, times)
}

// skew is how far the clocks of Postgres and of the bridge may be apart.
const skew = time.Minute

// ReadWindow returns what can be replayed now.
func ReadWindow(ctx context.Context, o bridge.Options) (w *Window, err error) {
	err = with(ctx, o, func(conn *pgx.Conn) error {
		known, err := read(ctx, o) // first: the end of WAL must not be older than the checkpoint
		if err != nil {
			return err
		}
		slot, err := replication.ReadSlot(ctx, conn, o.Database.RetentionSlot())
		if err != nil {
			return err
		}
		server, err := replication.ReadServer(ctx, conn)
		if err != nil {
			return err
		}
		if err := slot.Check(server.Database); err != nil {
			return err
		}
		timelines, err := replication.ReadTimelines(ctx, conn.Config(), server)
		if err != nil {
			return err
		}
		w, err = known.window(o.Database.RetentionSlot(), slot.ConfirmedFlush, checkpoint.Found{SystemID: server.SystemID, Timelines: timelines, WALEnd: slot.SnapshotLSN})
		return err
	})
	return w, bridge.Explain(o.Database.Name, meant(err))
}

// with connects to the database of which WAL is kept.
func with(ctx context.Context, o bridge.Options, do func(*pgx.Conn) error) error {
	if o.Database.RetentionSlot() == "" {
		return replication.Refuse("set retain.max_bytes, retain.max_age or both, and run `walferry init`: from then on it is; what is still in the outbox table: --from-table",
			"no WAL is kept for replays of database %q", o.Database.Name)
	}
	cfg, err := o.ConnConfig()
	if err != nil {
		return err
	}
	conn, err := replication.ConnectSQL(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it only reads
	return do(conn)
}

// known is what the topic of checkpoints says.
type known struct {
	cfg     checkpoint.Config
	values  map[string][]byte
	current *checkpoint.Checkpoint
}

// read fails without a checkpoint.
func read(ctx context.Context, o bridge.Options) (*known, error) {
	cfg, err := o.Checkpoints("")
	if err != nil {
		return nil, err
	}
	k := &known{cfg: cfg}
	if k.values, err = checkpoint.Read(ctx, cfg); err != nil {
		return nil, err
	}
	if k.values[cfg.Key] == nil {
		return nil, &bridge.NoCheckpointError{Topic: cfg.Topic, Key: cfg.Key}
	}
	k.current, err = checkpoint.Parse(k.values[cfg.Key])
	return k, err
}

// window returns what can be replayed by a slot that begins at from.
func (k *known) window(slot string, from replication.LSN, found checkpoint.Found) (*Window, error) {
	found.Slot = slot
	left, err := k.current.Shared(found)
	if err != nil {
		return nil, err
	}
	w := &Window{Slot: slot, From: checkpoint.LSN{LSN: from}, To: checkpoint.LSN{LSN: min(k.current.Pos.LSN, left)}, Interrupted: k.states()}
	for _, e := range checkpoint.Index(k.values, k.cfg.Key) {
		if e.On(found.SystemID, found.Timelines) && e.Pos.LSN >= from && e.Pos.LSN <= w.To.LSN {
			w.entries = append(w.entries, e)
		}
	}
	if n := len(w.entries); n > 0 {
		w.FromTime, w.ToTime = w.entries[0].Time.Add(skew), k.current.Time
	}
	return w, nil
}
