package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// publish sends the candidates that are missing, in their order, and returns when all in-sync replicas have them. They are plain
// records also where a bridge uses transactions: consumers that read what is committed see them at once, and that a run which is
// killed here repeats none of them is due to find, not to a transaction.
func (r *recovery) publish(ctx context.Context, m *missing) (err error) {
	r.report.Topics = map[string]int64{}
	if m.n == 0 {
		return nil
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	cfg := r.TableSinkConfig()
	cfg.Created = func(topic string) { r.tell("created topic %s with the broker's defaults", topic) }
	cfg.Acknowledged = func(rec *kgo.Record) {
		if err := r.sent(rec, m.n); err != nil {
			fail(err)
		}
	}
	k, err := r.OpenSink(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.Close()
	preview := sink.NewPreview(cfg)
	for i := range r.tables {
		q := r.query(i)
		q.Broken = func(*table.RowError) error { return nil } // a dead letter
		if err := r.snapshot.Read(ctx, q, func(row *table.Row) error {
			rec, err := preview.Record(&row.Event)
			if _, dead := errors.AsType[*sink.PoisonError](err); dead {
				return nil
			}
			if err != nil {
				return err
			}
			if is, err := m.has(identity(rec.Topic, rec.Key, row.Event.ID)); !is {
				return err
			}
			return k.Publish(ctx, &row.Event, time.Now(), row.Done(r.tables[i], fail))
		}); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
	if err := k.Flush(ctx); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	return context.Cause(ctx)
}

// sent notes a record that all in-sync replicas have.
func (r *recovery) sent(rec *kgo.Record, total int64) error {
	s := Sent{string(rec.Headers[0].Value), rec.Topic, rec.Partition, rec.Offset}
	if r.report.Sent == 0 {
		r.report.First = s
	}
	r.report.Last = s
	r.report.Sent++
	r.report.Topics[s.Topic]++
	r.progress(stageSending, r.report.Sent, total)
	if r.Sent == nil {
		return nil
	}
	return r.Sent(s)
}

// finish writes the checkpoint and makes the slot last; see run for why in this order.
func (r *recovery) finish(ctx context.Context) error {
	resume := checkpoint.Resume{From: replication.Progress{Flushed: r.found.Start}, Snapshot: r.snapshot.XIDs}
	if r.kept != nil {
		resume = r.kept.resume
		if err := r.unmoved(ctx); err != nil {
			return err
		}
	}
	cfg, err := r.Checkpoints(r.found.SystemID)
	if err != nil {
		return err
	}
	k := &checkpoint.Keeper{Store: r.store, Key: cfg.Key, Kept: r.IndexKept()}
	if err := k.Begin(ctx, r.found, resume, true); err != nil {
		return err
	}
	r.report.Start = resume.From.Flushed
	r.tell("wrote the checkpoint, at %s, to topic %s", resume.From.Flushed, r.Checkpoint.Topic)
	if r.kept != nil {
		return nil
	}
	if err := r.dropLost(ctx); err != nil {
		return err
	}
	if err := r.successor.Become(ctx, r.Database.Slot); err != nil {
		return err
	}
	r.tell("created slot %s", r.Database.Slot)
	return nil
}

// unmoved makes sure that nobody has used a slot that stays.
func (r *recovery) unmoved(ctx context.Context) error {
	now, err := replication.ReadSlot(ctx, r.conn, r.Database.Slot)
	switch {
	case err != nil:
		return err
	case now.Active || now.ConfirmedFlush != r.slot.ConfirmedFlush:
		return replication.Refuse("stop whatever uses it, and try again", "somebody has used slot %q meanwhile: it is at %s, and was at %s", r.Database.Slot, now.ConfirmedFlush, r.slot.ConfirmedFlush)
	}
	return nil
}

// dropLost drops the slot that is lost, if it is still there.
func (r *recovery) dropLost(ctx context.Context) error {
	now, err := replication.ReadSlot(ctx, r.conn, r.Database.Slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ok := errors.AsType[*replication.SlotLostError](now.Check(r.successor.Server.Database)); !ok {
		return replication.Refuse("find out who made it, and run `walferry recover` again", "slot %q is another one now, which is not lost", r.Database.Slot)
	}
	if _, err := r.conn.Exec(ctx, `/* walferry:drop */ select pg_drop_replication_slot($1)`, r.Database.Slot); err != nil {
		return fmt.Errorf("drop the lost slot %q: %w", r.Database.Slot, err)
	}
	r.tell("dropped the lost slot %s", r.Database.Slot)
	return nil
}
