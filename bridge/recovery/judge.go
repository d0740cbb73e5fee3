package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/table"
)

// judge decides from checkpoint and slot what there is to recover, and refuses if there is nothing, or if nothing could be
// proved.
func (r *recovery) judge(ctx context.Context) error {
	cfg, err := r.Checkpoints("")
	if err != nil {
		return err
	}
	values, err := checkpoint.Read(ctx, cfg)
	if err != nil {
		return err
	}
	r.value = values[cfg.Key]
	if r.backfill {
		return r.judgeBackfill()
	}
	if r.value == nil {
		return replication.Refuse("if rows may be in the table that were never published: drop the slot, if there is one, and run `walferry init --backfill`; if all that the slot has skipped is published: `walferry run --adopt-slot`, once",
			"topic %q has no checkpoint %s: it is not known what was published", r.Checkpoint.Topic, cfg.Key)
	}
	c, err := checkpoint.Parse(r.value)
	if err != nil {
		return err
	}
	shared, err := c.Shared(r.found)
	if gap, ok := errors.AsType[*replication.GapError](err); ok && !gap.OtherServer {
		return replication.Refuse("from that checkpoint follows nothing for this server. Drop the slot, if there is one; `walferry init --backfill --accept-gap` publishes every row that no topic has",
			"slot %q: %s", r.Database.Slot, gap.Reason)
	}
	if err != nil {
		return err
	}
	r.bound = newBound(c, shared, r.found, checkpoint.Index(values, cfg.Key))
	switch {
	case r.lost:
	case r.slot == nil:
		r.reason = fmt.Sprintf("slot %q does not exist, and its checkpoint is at %s", r.Database.Slot, c.Pos)
	default:
		resume, err := c.Resume(r.found)
		gap, ok := errors.AsType[*replication.GapError](err)
		if !ok {
			return replication.Refuse("run `walferry run`: it goes on where it stopped", "slot %q is whole and agrees with its checkpoint: there is nothing to recover", r.Database.Slot)
		}
		r.reason, r.kept = gap.Error(), &kept{resume}
	}
	return nil
}

// SlotExists is the error of a backfill that comes too late.
func SlotExists(name string) error {
	return replication.Refuse("`walferry recover` if it is lost; else `walferry reconcile --repair` publishes rows that are older than it",
		"slot %q exists already: what it does not send was decided when it was made", name)
}

func (r *recovery) judgeBackfill() error {
	if r.slot != nil {
		return SlotExists(r.Database.Slot)
	}
	if r.value != nil && !r.AcceptGap {
		return &replication.GapError{Slot: r.Database.Slot, Reason: "there is a checkpoint, but the slot does not exist any more"}
	}
	r.bound = bound{why: "every row is a candidate"}
	return nil
}

// fence takes the right to write checkpoints away from whoever had it, which aborts what an exactly-once bridge that is gone
// has left open.
func (r *recovery) fence(ctx context.Context) error {
	if r.DryRun {
		return nil
	}
	cfg, err := r.Checkpoints(r.found.SystemID)
	if err != nil {
		return err
	}
	if r.store, err = checkpoint.Open(ctx, cfg); err != nil {
		return err
	}
	if !bytes.Equal(r.store.Values()[cfg.Key], r.value) {
		return replication.Refuse("stop the other walferry and try again", "somebody has written a checkpoint of slot %q meanwhile", r.Database.Slot)
	}
	return nil
}

// freeze opens the snapshot: that of a new slot, unless the slot stays or nothing is to be changed.
func (r *recovery) freeze(ctx context.Context) error {
	if r.kept == nil && !r.DryRun {
		r.progress(stageSlot, 0, 1)
		if err := r.successor.Create(ctx); err != nil {
			return err
		}
		r.found.Start = r.successor.Start
		r.tell("a new slot begins at %s; what commits behind it is not a candidate", r.successor.Start)
	}
	cfg, err := r.ConnConfig()
	if err != nil {
		return err
	}
	if r.snapshot, err = table.Open(ctx, cfg, r.successor.Snapshot); err != nil {
		return err
	}
	if _, next, ok := limits(r.snapshot.XIDs); !ok || r.bound.since > next {
		r.bound = bound{why: fmt.Sprintf("every row is a candidate: the checkpoint knows of transaction %d, and this server has not come so far", r.bound.since)}
		r.Say(r.bound.String())
	}
	return nil
}

// The stages of a run, for Options.Progress.
const (
	stageSlot       = "waiting for the transactions that are open, to make a slot"
	stageCandidates = "reading candidates"
	stageTopics     = "reading topics"
	stageSending    = "sending"
)

// query returns that of the candidates of a table.
func (r *recovery) query(i int) table.Query {
	return table.Query{Table: r.tables[i], Source: i, OrderColumn: r.Database.Outbox[i].OrderColumn, Since: r.bound.since}
}

// count says how many rows are candidates, and in which order they would come.
func (r *recovery) count(ctx context.Context) error {
	for i, t := range r.tables {
		q := r.query(i)
		n, err := r.snapshot.Count(ctx, q)
		if err != nil {
			return err
		}
		r.report.Candidates += n
		r.tell("%d rows of %s.%s are candidates; they come %s", n, t.Schema, t.Name, r.snapshot.Order(q))
	}
	return nil
}
