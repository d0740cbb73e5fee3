package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// waitEvery is how often await looks at the slot.
const waitEvery = 250 * time.Millisecond

// await waits until the slot has confirmed all that the snapshot sees: then Kafka has it.
func (w *work) await(ctx context.Context) error {
	_, published := w.o.Tables() // rows of a table that is not published would all be missing
	if _, err := replication.CheckPublication(ctx, w.conn, w.o.Database.Publication, published); err != nil {
		return err
	}
	report, first := w.progress(StageWait), replication.LSN(0)
	tick, over := time.NewTicker(waitEvery), time.After(w.o.Timeout)
	defer tick.Stop()
	for {
		slot, err := w.look(ctx)
		if err != nil {
			return err
		}
		if first == 0 {
			first = min(slot.ConfirmedFlush, w.lsn)
		}
		if reached(slot.ConfirmedFlush, w.lsn) {
			report(int64(w.lsn-first), int64(w.lsn-first))
			return nil
		}
		report(int64(slot.ConfirmedFlush-first), int64(w.lsn-first))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over:
			return w.behind(slot)
		case <-tick.C:
		}
	}
}

// look reads the slot and makes sure that it is one that can come to the snapshot.
func (w *work) look(ctx context.Context) (*replication.Slot, error) {
	slot, err := replication.ReadSlot(ctx, w.conn, w.o.Database.Slot)
	if err != nil {
		return nil, err
	}
	return slot, slot.Check(w.server.Database)
}

func (w *work) behind(slot *replication.Slot) error {
	who := "a bridge holds it"
	if !slot.Active {
		who = "nobody holds it"
	}
	return &replication.PreconditionError{
		Reason: fmt.Sprintf("slot %q has confirmed %s and not, within %s, %s, up to which the snapshot of the tables sees: %d bytes of WAL are left, and %s",
			slot.Name, slot.ConfirmedFlush, w.o.Timeout, w.lsn, uint64(w.lsn-slot.ConfirmedFlush), who),
		Hint: "only what is confirmed can be compared: is `walferry run` running? `walferry status` says how far it lags; or raise --timeout",
	}
}

const (
	walPage   = 8192 // XLOG_BLCKSZ, as nobody builds it otherwise
	walHeader = 40   // bytes of the longest page header, SizeOfXLogLongPHD
)

// reached reports whether everything that commits before lsn, an insert position, is confirmed. At the start of a page the
// insert position is behind the page's header while no record ends there: the last one ends at the page's beginning, and on an
// idle server nothing behind that is ever confirmed.
func reached(confirmed, lsn replication.LSN) bool {
	if in := lsn % walPage; in <= walHeader {
		lsn -= in
	}
	return confirmed >= lsn
}

// readHistory reads the snapshots of the checkpoint's index that are of this server.
func (w *work) readHistory(ctx context.Context) error {
	if w.o.Checkpoint.Topic == "" {
		return nil
	}
	cfg, err := w.o.Checkpoints("")
	if err != nil {
		return err
	}
	values, err := checkpoint.Read(ctx, cfg)
	if err != nil {
		return err
	}
	w.history = snapshots(checkpoint.Index(values, cfg.Key), w.server)
	return nil
}

// snapshots returns those of the entries that can be compared with rows: of this cluster and timeline, for a promotion may have
// given transaction IDs a second time, and none from before the IDs went back, as they do in an older copy of a server's files.
func snapshots(entries []checkpoint.Entry, server replication.Server) (history []snapshot) {
	last := replication.LSN(0)
	for _, e := range entries {
		s, ok := parseSnapshot(e.Snapshot)
		if e.SystemID != server.SystemID || e.Timeline != server.Timeline || !ok {
			continue
		}
		if n := len(history); n > 0 && (s.xmax < history[n-1].xmax || s.xmin < history[n-1].xmin || e.Pos.LSN < last) {
			history = nil
		}
		history, last = append(history, s), e.Pos.LSN
	}
	return history
}

func morePartitions(topic string) error {
	return &replication.PreconditionError{Reason: fmt.Sprintf("topic %q was given more partitions while it was read", topic), Hint: "run it again"}
}
