package bridge

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// batch is the Kafka transaction that a session publishes into, and the turn of those who work on it: the pump,
// which publishes, and the keeper, which commits. A channel and not a mutex, for in fake time nobody may wait for a mutex.
// The methods of a nil batch do nothing: then each event is delivered by itself.
type batch struct {
	session *session
	options []kgo.Opt     // of the client
	most    int           // events of a transaction
	turn    chan struct{} // holds one value while somebody has it
	held    bool          // by the pump; of its goroutine, as noted
	noted   bool          // the last event is the one that an earlier session halted on
	due     chan struct{} // tells the keeper that what was published is all there is
	room    chan struct{} // tells the pump that a commit has made room
	waits   atomic.Bool   // something published is due and not committed
}

// The most that a transaction holds, beside share.batch: consumers see none of it before all of it. Its bytes are not held
// here: a record that is acknowledged is used again.
const (
	batchBytes  = 64 << 20
	batchTime   = time.Second
	batchLinger = 20 * time.Millisecond // what is later by eight times as much waits for batchTime
)

func (s *session) newBatch(ctx context.Context) (*sink.Kafka, *batch, error) {
	cfg, err := s.liveSinkConfig()
	if err != nil {
		return nil, nil, err
	}
	k, options := sink.NewTransactional(ctx, cfg)
	return k, &batch{session: s, options: options, most: s.options.share().batch, turn: make(chan struct{}, 1), due: make(chan struct{}, 1), room: make(chan struct{}, 1)}, nil
}

// take waits for the pump's turn.
func (b *batch) take(ctx context.Context) error {
	if b == nil {
		return nil
	}
	err := b.lock(ctx)
	b.held = err == nil
	return err
}

// lock waits for the turn, whose end is unlock.
func (b *batch) lock(ctx context.Context) error {
	select {
	case b.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *batch) unlock() { <-b.turn }

// leave ends the pump's turn, if it has it.
func (b *batch) leave() {
	if b != nil && b.held {
		b.held = false
		b.unlock()
	}
}

// wanted says that what was published is all that there is for now, and in time.
func (b *batch) wanted() {
	if b == nil {
		return
	}
	b.waits.Store(true)
	tell(b.due)
}

// tell wakes who waits, or whoever waits next.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is told
	}
}

// full waits for a commit if the transaction is as large as it may get.
func (b *batch) full(ctx context.Context) error {
	if b == nil {
		return nil
	}
	return b.shrink(ctx, b.most, batchBytes)
}

// apart gives the event that an earlier session halted on a transaction of its own: the brokers may refuse it again, and
// what shares its transaction with it. It is called before each event.
func (b *batch) apart(ctx context.Context, at *decode.Position) error {
	if b == nil || b.session.note == nil {
		return nil
	}
	noted := b.session.note.Position == at.String()
	if !noted && !b.noted {
		return nil
	}
	if !noted {
		b.session.note = nil // passed
	}
	b.noted = noted
	return b.shrink(ctx, 1, 1)
}

// shrink waits for commits until the transaction has fewer events and bytes than that.
func (b *batch) shrink(ctx context.Context, events, bytes int) error {
	for b.session.sink.Full(events, bytes) {
		b.wanted()
		b.leave()
		select {
		case <-b.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := b.take(ctx); err != nil {
			return err
		}
	}
	return nil
}

// drain waits until all that was published is committed. Nothing may be published any more.
func (b *batch) drain(ctx context.Context) error {
	for b != nil && b.session.inflight.Pending() > 0 {
		b.wanted()
		select {
		case <-b.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// overdue reports whether something waits to be committed.
func (b *batch) overdue() bool { return b != nil && b.waits.Load() }

// spoiled reports whether an event has failed, so that nothing of the transaction can be committed.
func (b *batch) spoiled() bool { return b != nil && b.session.sink.Failed() != nil }

// Pause implements checkpoint.Events.
func (b *batch) Pause(ctx context.Context) (resume func(), err error) {
	return b.unlock, b.lock(ctx)
}

// Ahead implements checkpoint.Events.
func (b *batch) Ahead() replication.Progress { return b.session.inflight.Ahead() }

// Cut implements checkpoint.Events.
func (b *batch) Cut() {
	b.session.sink.Cut()
	b.waits.Store(false)
}

// Committed implements checkpoint.Events.
func (b *batch) Committed() {
	b.session.sink.Committed()
	tell(b.room)
}
