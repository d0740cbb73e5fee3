package bridge

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// session is one life of a bridge, from START_REPLICATION to the first doubt. It is
// crash-only: whatever goes wrong, all of it is dropped, and the next session begins
// where Postgres says that the slot stands.
type session struct {
	*Bridge
	stream   *replication.Stream
	decoder  *decode.Decoder
	sink     *sink.Kafka
	inflight *replication.Inflight
	feedback *replication.Feedback
	watch    *replication.Watch
	store    *checkpoint.Store // nil without checkpoints, as keeper
	keeper   atomic.Pointer[checkpoint.Keeper]

	resumed replication.Progress     // what earlier sessions have published; it comes again and is skipped
	dead    map[decode.Position]bool // events that are dead letters and are passed over, nil if there are none
	note    *PoisonNote              // of the event that an earlier session halted before, nil if there is none
	fail    context.CancelCauseFunc  // ends the session at once

	retention *retention // nil: no slot keeps WAL for replays

	batch *batch // nil: events are delivered one by one, at least once

	looked           *replication.Slot // look's, the last
	waiters          atomic.Int32      // who want each progress to be confirmed at once
	lastAcknowledged uint64            // tick's
}

// hurry notes that somebody waits for confirmations, or no longer does.
func (s *session) hurry(on bool) {
	if on {
		s.waiters.Add(1)
	} else {
		s.waiters.Add(-1)
	}
}

// pump is the path of an event, on one goroutine from the socket to the Kafka client. It
// returns nil once stop is done and no transaction is open.
//
//	Receive → Decode → Inflight.Add → Publish → (Kafka) → done → Inflight → Feedback → Postgres
func (s *session) pump(ctx, stop context.Context) error {
	if err := s.batch.take(ctx); err != nil {
		return err
	}
	defer func() { s.batch.leave() }()
	lingers := false // something was published since the last Send
	for {
		if !s.inflight.Open() && stop.Err() != nil {
			return nil
		}
		if lingers && !s.stream.More() && s.inTime() {
			lingers = false
			s.sink.Send()
			s.batch.wanted()
		}
		m, err := s.receive(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, replication.ErrInterrupted): // by stop: read on to the COMMIT
			if s.stream.Resume(); ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		case err != nil:
			return err
		case m.Keepalive():
			s.inflight.Idle(m.WALEnd)
			continue
		}
		c, err := s.decoder.Decode(m.Data)
		if err != nil {
			if s.passesOver(err) {
				continue
			}
			return err
		}
		switch c.Kind {
		case decode.Begin:
			s.stream.Begin(c.CommitTime)
			s.inflight.Begin(replication.LSN(c.CommitLSN), c.CommitTime)
		case decode.Row, decode.Message:
			if s.passes(&c.Event.Position) {
				continue
			}
			if err := s.batch.apart(ctx, &c.Event.Position); err != nil {
				return err
			}
			index := c.Event.Position.Index
			done, err := s.inflight.Add(ctx, index)
			if err != nil {
				return err
			}
			if err := s.sink.Publish(ctx, &c.Event, m.At, done); err != nil {
				s.inflight.Withdraw(index)
				return err
			}
			lingers = true
			if err := s.batch.full(ctx); err != nil {
				return err
			}
		case decode.Commit:
			if err := s.inflight.Commit(replication.LSN(c.EndLSN)); err != nil {
				return err
			}
		case decode.NonTransactional:
			s.nonTransactional.Inc()
		}
	}
}

// inTime reports whether what was received last is not to wait for what comes behind it.
func (s *session) inTime() bool {
	linger := s.options.Kafka.Linger
	if s.batch != nil {
		linger = max(linger, batchLinger)
	}
	patience := s.stream.Patience()
	return patience == 0 || patience < linger
}

// receive lets a commit come in between while it waits for Postgres.
func (s *session) receive(ctx context.Context) (*replication.Message, error) {
	if s.batch == nil || s.stream.More() {
		return s.stream.Receive()
	}
	s.batch.leave()
	m, err := s.stream.Receive()
	return m, cmp.Or(err, s.batch.take(ctx))
}

// run opens the sink and pumps until stop is done or something fails. Beside the pump there
// are two goroutines: Feedback, which alone writes to the stream, and Watch. They start
// before Kafka is asked for anything, so that Postgres never waits for Kafka. The order at
// the end: pump, Kafka and its client, Feedback and Watch, the last status update, stream.
func (s *session) run(ctx, stop context.Context) error {
	end := s.beside(ctx)
	defer context.AfterFunc(ctx, s.stream.Interrupt)()
	defer context.AfterFunc(stop, s.stream.Interrupt)()
	defer context.AfterFunc(stop, func() { s.drainWithin(ctx) })()

	err := s.publish(ctx, stop)
	end()
	return s.confirm(ctx, err)
}

// beside runs Feedback and Watch until the function that it returns is called, which waits for them.
func (s *session) beside(ctx context.Context) (end func()) {
	beside, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{s.feedback.Run, s.watch.Run} {
		wg.Go(func() {
			if err := f(beside); err != nil {
				s.fail(err)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// publish runs the pump with a sink, and waits for the last acknowledgements when it has
// come to an end that leaves the stream whole.
func (s *session) publish(ctx, stop context.Context) error {
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(stop, cancel)()
	var err error
	if s.options.ExactlyOnce {
		s.sink, s.batch, err = s.newBatch(opening)
	}
	if err == nil {
		err = s.resume(opening)
	}
	if err == nil {
		err = s.recallPoison(opening)
	}
	if err == nil && s.batch == nil {
		s.sink, err = s.openSink(opening)
	}
	if err != nil {
		return cmp.Or(context.Cause(ctx), stop.Err(), err)
	}
	defer s.sink.Close()
	defer s.keepCheckpoints(ctx)()
	defer s.retain(ctx)()
	s.enter(Streaming)
	s.log.Info().Stringer("confirmed_lsn", s.stream.Start).Str("system_id", s.stream.Server.SystemID).
		Int("server_version", s.stream.Server.Version).Bool("exactly_once", s.batch != nil).Msg("streaming")

	err = s.pump(ctx, stop)
	if ctx.Err() != nil {
		return context.Cause(ctx) // says more than what the pump saw of it
	}
	if err != nil && classify(err).class != Poison {
		return err
	}
	s.enter(Draining)
	s.hurry(true)
	if err != nil {
		s.drainWithin(ctx) // after a stop it runs already
	}
	flushed := s.sink.Flush(ctx)
	if flushed == nil {
		flushed = s.batch.drain(ctx)
	}
	if err == nil && flushed != nil {
		err = cmp.Or(context.Cause(ctx), flushed)
	}
	return err // poison, for which what precedes it has been waited for, or nil
}

// errDrainTimeout ends a session that has been draining for drain_timeout.
var errDrainTimeout = errors.New("drain_timeout is over")

func (s *session) drainWithin(ctx context.Context) {
	timer := time.AfterFunc(s.db.DrainTimeout, func() { s.fail(errDrainTimeout) })
	context.AfterFunc(ctx, func() { timer.Stop() })
}

// confirm writes the last checkpoint, tells Postgres for the last time what is acknowledged,
// and, if the stream may still be whole, waits until Postgres has noted it.
func (s *session) confirm(ctx context.Context, err error) error {
	timeout := confirmTimeout
	if ctx.Err() != nil && !stuck(err) {
		timeout = hasty
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	s.inflight.EndRun() // or the next session repeats what precedes the halt
	confirmErr := s.lastCheckpoint(last)
	s.notePoison(last, err)
	drained := err == nil
	if !drained && !errors.Is(err, errDrainTimeout) && classify(err).class != Poison {
		_ = s.feedback.Final() // a courtesy to consumers: what Postgres does not hear is sent again
		return err
	}
	if finalErr := s.feedback.Final(); confirmErr == nil {
		confirmErr = cmp.Or(finalErr, s.awaitConfirmed(last))
	}
	if confirmErr != nil || !drained {
		comes := "may be delivered a second time"
		if s.batch != nil {
			comes = "are delivered"
		}
		s.log.Warn().AnErr("cause", confirmErr).Stringer("confirmed_lsn", s.confirmable()).
			Int64("unacknowledged_events", s.inflight.Pending()).Bool("open_transaction", s.inflight.Open()).
			Msg("events behind the confirmed LSN " + comes + " by the next session")
	}
	if errors.Is(err, errDrainTimeout) {
		return nil
	}
	return err
}

const confirmTimeout = 3 * time.Second

// awaitConfirmed reads confirmed_flush_lsn back.
func (s *session) awaitConfirmed(ctx context.Context) error {
	conn, err := s.connectSQL(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only read
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		slot, err := replication.ReadSlot(ctx, conn, s.db.Slot)
		if err != nil || slot.ConfirmedFlush >= s.confirmable() {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("confirmed_flush_lsn did not follow: " + slot.ConfirmedFlush.String())
		case <-retry.C:
		}
	}
}
