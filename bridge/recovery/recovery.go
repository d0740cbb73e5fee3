// Package recovery publishes from the outbox tables themselves what a lost slot has not sent, and makes the slot that follows
// it: `walferry recover`. Without anything that came before, it is `walferry init --backfill`.
//
// All that one snapshot sees commits before a position, and all else behind it. So what the snapshot sees is published from
// the tables, unless the topics have it already, and from the position on a new slot sends the rest.
package recovery

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/table"
)

// Options say what is recovered.
type Options struct {
	bridge.Options
	// DryRun changes nothing: it says what would be done.
	DryRun bool
	// Say is told what is going to happen, and what has, a line each.
	Say func(string)
	// Progress, if not nil, is told often how far a stage has come.
	Progress func(stage string, done, total int64)
	// Sent, if not nil, is called with each row that was sent, once all in-sync replicas have it: one at a time, from another
	// goroutine. Its error ends the run.
	Sent func(Sent) error
	// Dir is for temporary files, which hold 16 bytes for each candidate, each record of its topics and each row that is missing. "": the
	// system's.
	Dir string
}

// Sent is where the record of a row that was sent lies.
type Sent struct {
	ID        string `json:"id"` // of the event
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// Report is what was done.
type Report struct {
	Candidates int64            // rows that may not have been published
	Missing    int64            // of which the topics had none
	Sent       int64            // rows that were sent
	Topics     map[string]int64 // of them, by topic
	First      Sent             // of them, if there are any, as Last
	Last       Sent
	Start      replication.LSN // where a bridge goes on
}

// Run recovers what the slot of o.Database has lost. It can be killed at any time and run again. Its errors are *bridge.Error.
func Run(ctx context.Context, o Options) (*Report, error) {
	report, err := newRecovery(o, false).run(ctx)
	return report, bridge.Explain(o.Database.Name, err)
}

// Backfill publishes all rows that are in the outbox tables, but for those that the topics have, and makes the slot, which
// must not exist. Its errors are *bridge.Error.
func Backfill(ctx context.Context, o Options) (*Report, error) {
	report, err := newRecovery(o, true).run(ctx)
	return report, bridge.Explain(o.Database.Name, err)
}

// recovery is one run.
type recovery struct {
	Options
	backfill bool

	tables    []decode.Table
	conn      *pgx.Conn // has the lock
	successor *replication.Successor
	slot      *replication.Slot // nil: there is none
	lost      bool              // the slot is there, but the server has invalidated it
	found     checkpoint.Found

	value  []byte // of the checkpoint that was judged, nil: there is none
	kept   *kept  // the slot stays, nil: another one follows
	bound  bound
	reason string // why there is something to recover

	store    *checkpoint.Store // nil for a dry run
	snapshot *table.Snapshot
	report   Report
}

// kept is a slot that is whole but does not go on where the checkpoint ends.
type kept struct{ resume checkpoint.Resume }

func newRecovery(o Options, backfill bool) *recovery {
	return &recovery{Options: o, backfill: backfill}
}

// run is the order of things. What it relies on to be repeated after it was killed anywhere:
//
//   - Until the checkpoint is written nothing has changed but that rows were published: the next run has the same lower bound,
//     or that of an older snapshot, and finds them in the topics.
//   - The checkpoint at the successor's start says that everything before it is published, which is true then whether there is
//     a slot or not; its snapshot is the lower bound of a next run, which the rows that commit behind it are not below. So a
//     run that is killed before the lost slot is dropped, or before the new one is there, leaves what it began with: a lost
//     slot or none, and a checkpoint that is true.
//   - The slot comes last: with a checkpoint that is older than its start it would look like one that somebody has advanced.
//   - The temporary slot keeps the WAL behind its start until then, and dies with its connection.
//
// Nobody else publishes meanwhile: without a slot no bridge has a session, and whoever had the checkpoint, or a transaction of
// exactly-once open, is fenced before the topics are read.
func (r *recovery) run(ctx context.Context) (*Report, error) {
	defer r.close(ctx)
	steps := []func(context.Context) error{r.look, r.judge, r.promise, r.fence, r.freeze, r.count}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	m, err := r.find(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	r.report.Missing = m.n
	r.tell("%d of them are in no topic", m.n)
	if r.DryRun {
		return &r.report, nil
	}
	if err := r.publish(ctx, m); err != nil {
		return nil, err
	}
	if err := r.finish(ctx); err != nil {
		return nil, err
	}
	return &r.report, nil
}

func (r *recovery) tell(format string, args ...any) { r.Say(fmt.Sprintf(format, args...)) }

func (r *recovery) progress(stage string, done, total int64) {
	if r.Progress != nil {
		r.Progress(stage, done, total)
	}
}

func (r *recovery) close(ctx context.Context) {
	if r.snapshot != nil {
		r.snapshot.Close(ctx)
	}
	if r.successor != nil {
		r.successor.Close(ctx)
	}
	if r.store != nil {
		r.store.Close()
	}
	if r.conn != nil {
		_ = r.conn.Close(context.WithoutCancel(ctx)) // every statement is committed by itself
	}
}

// look takes the lock and reads what there is.
func (r *recovery) look(ctx context.Context) error {
	name := r.Database.Slot
	if r.Checkpoint.Topic == "" {
		return replication.Refuse("set checkpoint.topic: from a checkpoint follows which rows may not have been published, and what a run that is killed has done",
			"checkpoint.topic is empty, and this needs checkpoints")
	}
	cfg, err := r.ConnConfig()
	if err != nil {
		return err
	}
	if r.conn, err = replication.ConnectToRead(ctx, cfg, nil); err != nil {
		return err
	}
	server, err := replication.ReadServer(ctx, r.conn)
	if err != nil {
		return err
	}
	if err := bridge.Lock(ctx, r.conn, name); err != nil {
		return err
	}
	var published []replication.Table
	r.tables, published = r.Tables()
	publication, err := replication.CheckPublication(ctx, r.conn, r.Database.Publication, published)
	if err != nil {
		return err
	}
	if err := r.readSlot(ctx, server.Database); err != nil {
		return err
	}
	if r.successor, err = replication.Succeed(ctx, cfg, server); err != nil {
		return err
	}
	r.found = checkpoint.Found{Slot: name, SystemID: server.SystemID, Timelines: r.successor.Timelines, Membership: publication.Membership}
	if r.slot != nil {
		r.found.Start = r.slot.ConfirmedFlush
	}
	var end string
	if err := r.conn.QueryRow(ctx, `/* walferry:end */ select pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return fmt.Errorf("read the end of WAL: %w", err)
	}
	r.found.WALEnd, err = pglogrepl.ParseLSN(end)
	return err
}

// readSlot reads the slot and refuses one that cannot be recovered, or is in use.
func (r *recovery) readSlot(ctx context.Context, database string) (err error) {
	r.slot, err = replication.ReadSlot(ctx, r.conn, r.Database.Slot)
	if errors.Is(err, replication.ErrNoSlot) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.slot.Active {
		return replication.Refuse("stop it first, and what restarts it; a bridge that has halted holds nothing",
			"slot %q is held by %s", r.Database.Slot, replication.Holder(ctx, r.conn, r.Database.Slot))
	}
	err = r.slot.Check(database)
	if lost, ok := errors.AsType[*replication.SlotLostError](err); ok {
		r.lost, r.reason = true, lost.Error()
		return nil
	}
	return err
}
