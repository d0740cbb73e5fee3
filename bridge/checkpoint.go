package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// NoCheckpointError is a slot of which nothing is known.
type NoCheckpointError struct{ Topic, Key string }

func (e *NoCheckpointError) Error() string {
	return fmt.Sprintf("topic %q has no checkpoint %s: it is not known what was published from this slot", e.Topic, e.Key)
}

// checkpointKey is the key of a database's checkpoint.
func checkpointKey(db config.Database) string { return db.Name + "/" + db.Slot }

// checkpoints returns where the checkpoints of a database are kept. The transactional ID has
// the system identifier, so that two clusters never fence each other.
func (o Options) checkpoints(systemID string) (checkpoint.Config, error) {
	key := checkpointKey(o.Database)
	client, err := kafkaClient(o)
	cfg := checkpoint.Config{
		Client: client, Topic: o.Checkpoint.Topic, Key: key,
		TransactionalID: "walferry/" + systemID + "/" + key, Create: o.Kafka.Topics.Create,
	}
	if o.ExactlyOnce {
		cfg.IsEvents = sink.NewPreview(o.SinkConfig()).MayPublish
	}
	return cfg, err
}

// resume reads the checkpoint, which takes the right to write it away from any other
// instance, and decides where the session goes on.
func (s *session) resume(ctx context.Context) error {
	if s.options.Checkpoint.Topic == "" {
		return nil
	}
	found := checkpoint.Found{
		Slot: s.db.Slot, SystemID: s.stream.Server.SystemID, Timelines: s.stream.Timelines,
		Start: s.stream.Start, WALEnd: s.stream.WALEnd, Membership: s.stream.Publication.Membership,
	}
	cfg, err := s.options.checkpoints(found.SystemID)
	if err != nil {
		return err
	}
	if s.batch != nil {
		cfg.Producer, cfg.Settle = s.batch.options, s.sink.Settle
	}
	if s.store, err = checkpoint.Open(ctx, cfg); err != nil {
		return err
	}
	k := &checkpoint.Keeper{
		Store: s.store, Key: cfg.Key, Interval: s.options.Checkpoint.Interval,
		Progress: s.inflight.Progress, Written: s.checkpointed, Kept: s.options.IndexKept(), Hurry: func() bool { return s.waiters.Load() > 0 || s.batch.overdue() },
	}
	if s.batch != nil {
		s.sink.Use(s.store.Client())
		if hung := s.store.Hung(); hung != "" {
			s.log.Warn().Str("partitions", hung).Msg("the brokers have never ended the last transaction there, as partitions without a leader get no marker (KAFKA-20734): it was committed, and is now")
		}
		k.Events, k.Due, k.Interval = s.batch, s.batch.due, min(k.Interval, batchTime)
		if v := s.store.TransactionVersion(); v < 2 {
			s.log.Warn().Int16("transaction_version", v).Msg("the brokers' transactions are those before KIP-890: late requests of one can become part of the next, so exactly-once is not sure; Kafka 4.0 with transaction.version=2 is")
		}
	}
	r, rewrite, err := s.judge(ctx, s.store.Values()[cfg.Key], found)
	if err != nil {
		return err
	}
	if err := k.Begin(ctx, found, r, rewrite); err != nil {
		return err
	}
	s.options.AcceptGap = false // this one, no later one
	s.retention = s.newRetention(s.store.Values())
	s.resumed = r.From
	s.keeper.Store(k)
	return nil
}

// judge says where to go on from a checkpoint's value, and whether that has to be written.
func (s *session) judge(ctx context.Context, value []byte, found checkpoint.Found) (r checkpoint.Resume, rewrite bool, err error) {
	if value == nil {
		if !s.options.AdoptSlot {
			return r, false, &NoCheckpointError{s.options.Checkpoint.Topic, checkpointKey(s.db)}
		}
		s.log.Warn().Stringer("confirmed_lsn", found.Start).Msg("adopted a slot without a checkpoint; what it skipped before is not known")
		return checkpoint.Resume{From: replication.Progress{Flushed: found.Start}}, true, nil
	}
	c, err := checkpoint.Parse(value)
	if err != nil {
		return r, false, err
	}
	if s.batch == nil && s.sent.timeline == c.Timeline { // exactly-once has aborted what the checkpoint does not cover
		found.Sent = s.sent.commit
	}
	r, err = c.Resume(found)
	gap, ok := errors.AsType[*replication.GapError](err)
	if ok {
		err := s.holdsSlot(ctx)
		if errors.Is(err, replication.ErrStreamEnded) {
			err = s.stream.Ending()
		}
		if err != nil && classify(err).class == Retry { // else it failed by itself, and the gap is one all the same
			return r, false, err
		}
	}
	if p := r.Phantoms; p != (checkpoint.Range{}) {
		s.log.Warn().Stringer("from", p.From).Stringer("to", p.To).Uint32("timeline", found.Timelines.Current()).
			Msg("the new primary has lost WAL of which events were published: they may not exist in the database")
		rewrite = true
	}
	if ok && s.options.AcceptGap {
		s.log.Warn().Str("reason", gap.Reason).Stringer("from", gap.From).Stringer("to", gap.To).
			Msg("a gap is accepted: events in it may not have been published")
		return r, true, nil
	}
	return r, rewrite || c.Timeline != found.Timelines.Current() || !maps.Equal(c.Membership, found.Membership), err
}

// holdsSlot makes sure that the slot is ours, before anybody is told of a gap or fenced. Whoever was frozen behind START_REPLICATION
// compares what it found then, the end of WAL for one, with the checkpoint of its successor.
func (s *session) holdsSlot(ctx context.Context) error {
	conn, err := s.connectSQL(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only read
	return s.stream.Holds(ctx, conn)
}

// confirmable is what Feedback may confirm: with checkpoints never more than is written.
func (s *session) confirmable() replication.LSN {
	if s.options.Checkpoint.Topic == "" {
		return s.inflight.Flushed()
	}
	if k := s.keeper.Load(); k != nil {
		return k.Confirmable()
	}
	return s.stream.Start
}

// keepCheckpoints writes checkpoints until the function that it returns is called.
func (s *session) keepCheckpoints(ctx context.Context) (end func()) {
	k := s.keeper.Load()
	if k == nil {
		return func() {}
	}
	running, cancel := context.WithCancel(ctx)
	// A write that has begun may come to its end, else nothing would be known of it. A session that
	// has failed is in a hurry: Postgres may be waiting to shut down.
	writing, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		if !stuck(context.Cause(ctx)) {
			time.AfterFunc(hasty, giveUp)
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := k.Run(running, writing)
			if errors.Is(err, checkpoint.ErrUnanswered) && running.Err() == nil && s.batch == nil {
				s.log.Warn().Err(err).Msg("nothing is confirmed until Kafka takes a checkpoint")
				if err = s.reopenStore(running, k); err == nil {
					continue
				}
			}
			if err != nil {
				s.fail(err)
			}
			return
		}
	}()
	return func() {
		cancel()
		defer giveUp()
		defer unhook()
		defer time.AfterFunc(confirmTimeout, giveUp).Stop()
		<-done
	}
}

// reopenStore opens the checkpoints again as soon as Kafka answers, or until ctx is done: an outage is no
// reason to end a session, which would begin with duplicates.
func (s *session) reopenStore(ctx context.Context, k *checkpoint.Keeper) error {
	cfg, err := s.options.checkpoints(s.stream.Server.SystemID)
	if err != nil {
		return err
	}
	pause := time.NewTicker(time.Second)
	defer pause.Stop()
	for {
		err := s.holdsSlot(ctx) // or a successor has it, and would be fenced
		var store *checkpoint.Store
		if err == nil {
			store, err = checkpoint.Open(ctx, cfg)
		}
		switch {
		case errors.Is(err, replication.ErrStreamEnded):
			return err
		case err == nil:
			s.store.Close()
			s.store = store // of this goroutine until the session has ended
			return k.Reopen(store)
		case ctx.Err() != nil:
			return nil
		case classify(err).class != Retry:
			return err
		}
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// hasty is how long a session that has failed tries to write its last checkpoint.
const hasty = 500 * time.Millisecond

// lastCheckpoint writes what has been reached, for the last status update to confirm.
func (s *session) lastCheckpoint(ctx context.Context) error {
	k := s.keeper.Load()
	switch {
	case k == nil:
		return nil
	case s.batch.spoiled():
		return nil // the next session aborts the transaction, and what precedes the event that failed comes again
	}
	return k.Write(ctx)
}

// missingSlot says more of a slot that does not exist, if a checkpoint of it does: that it did.
func (b *Bridge) missingSlot(ctx context.Context) error {
	if b.options.Checkpoint.Topic == "" {
		return nil
	}
	c, err := ReadCheckpoint(ctx, b.options)
	if err != nil || c == nil {
		return err
	}
	return &replication.GapError{Slot: b.db.Slot, Reason: "the slot does not exist any more: it was dropped, or this server never had it", From: c.Pos.LSN}
}

// ReadCheckpoint returns the checkpoint of a database, nil if there is none, and takes the right
// to write it away from nobody.
func ReadCheckpoint(ctx context.Context, o Options) (*checkpoint.Checkpoint, error) {
	c, _, err := readCheckpoints(ctx, o)
	return c, err
}

// readCheckpoints returns, beside the checkpoint, all that is written of the slot and of others.
func readCheckpoints(ctx context.Context, o Options) (c *checkpoint.Checkpoint, values map[string][]byte, err error) {
	cfg, err := o.checkpoints("")
	if err != nil {
		return nil, nil, err
	}
	values, err = checkpoint.Read(ctx, cfg)
	if err == nil && values[cfg.Key] != nil {
		c, err = checkpoint.Parse(values[cfg.Key])
	}
	return c, values, err
}

// FirstCheckpoint writes the checkpoint of a slot that was just created, before anything was
// streamed from it, and returns its position. snapshot is a pg_current_snapshot() of before the slot was created.
func FirstCheckpoint(ctx context.Context, o Options, conn *pgx.Conn, tables []replication.Table, snapshot string) (replication.LSN, error) {
	server, err := replication.ReadServer(ctx, conn)
	if err != nil {
		return 0, err
	}
	publication, err := replication.CheckPublication(ctx, conn, o.Database.Publication, tables)
	if err != nil {
		return 0, err
	}
	slot, err := replication.ReadSlot(ctx, conn, o.Database.Slot)
	if err != nil {
		return 0, err
	}
	cfg, err := o.checkpoints(server.SystemID)
	if err != nil {
		return 0, err
	}
	store, err := checkpoint.Open(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer store.Close()
	timelines, _ := replication.ParseTimelines(server.Timeline, "") // without a past there is nothing to parse
	start := replication.Progress{Flushed: slot.ConfirmedFlush}
	k := &checkpoint.Keeper{Store: store, Key: cfg.Key, Kept: o.IndexKept()}
	return start.Flushed, k.Begin(ctx, checkpoint.Found{
		Slot: slot.Name, SystemID: server.SystemID, Timelines: timelines, Start: start.Flushed, Membership: publication.Membership,
	}, checkpoint.Resume{From: start, Snapshot: snapshot}, true)
}
