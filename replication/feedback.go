package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
)

// Feedback confirms LSNs: it alone writes to the stream's socket. It waits for
// neither Receive nor Kafka, so that a stalled broker never makes the server drop us
// for silence.
type Feedback struct {
	Stream *Stream
	// Confirmable returns the LSN that may be confirmed. It never decreases.
	Confirmable func() LSN
	// Tick, if not nil, is called after each look, every 100 ms.
	Tick func(confirmed LSN)

	sent LSN
}

const (
	// feedbackInterval also throttles replies: a server that shuts down asks for
	// one after each, as fast as it can (walsender.c, WalSndDone).
	feedbackInterval = 100 * time.Millisecond
	heartbeatMax     = 10 * time.Second
	silenceDefault   = time.Minute
)

// ErrSilent is a server that no longer answers, behind a connection that looks whole.
var ErrSilent = errors.New("the server is silent")

// Run sends a status update when Confirmable has moved, when the server asks, and as a
// heartbeat at least each third of wal_sender_timeout, until ctx is done. It fails with
// ErrSilent when Receive waits in vain for longer than wal_sender_timeout although the
// heartbeats ask for an answer.
func (f *Feedback) Run(ctx context.Context) error {
	silence := f.Stream.Server.SenderTimeout
	if silence == 0 {
		silence = silenceDefault
	}
	heartbeat := min(silence/3, heartbeatMax)
	// A server that does not read must not hold up the end.
	defer context.AfterFunc(ctx, func() { f.Stream.setWriteDeadline(time.Now().Add(time.Second)) })()
	tick := time.NewTicker(feedbackInterval)
	defer tick.Stop()

	f.sent = f.Stream.Start
	now := time.Now()
	lastSent, lastHeard, heard := now, now, f.Stream.frames.reads.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
			if ctx.Err() != nil {
				return nil
			}
		}
		n, waiting := f.Stream.frames.reads.Load(), f.Stream.frames.waiting.Load()
		if f.Stream.paced != nil {
			f.Stream.paced.look(n != heard || waiting)
		}
		if n != heard || !waiting {
			heard, lastHeard = n, now
		}
		quiet := now.Sub(lastHeard)
		if quiet > silence {
			return fmt.Errorf("slot %q: nothing received for %s: %w", f.Stream.slot, quiet.Round(time.Second), ErrSilent)
		}
		lsn := f.Confirmable()
		if asked := f.Stream.asked.Swap(false); asked || lsn != f.sent || now.Sub(lastSent) >= heartbeat {
			if err := f.Stream.send(lsn, quiet >= heartbeat, silence); err != nil {
				return err
			}
			f.sent, lastSent = lsn, now
		}
		if f.Tick != nil {
			f.Tick(f.sent)
		}
	}
}

// Final sends the last status update, after Run has returned.
func (f *Feedback) Final() error {
	f.sent = f.Confirmable()
	return f.Stream.send(f.sent, true, time.Second)
}

// statusUpdate encodes a standby status update as CopyData. write, flush and apply are always
// set and equal: a library that puts the write position for a flush position of zero
// confirms what is not safe.
func statusUpdate(lsn LSN, now time.Time, reply bool) []byte {
	b := make([]byte, 0, 39)
	b = append(b, 'd', 0, 0, 0, 38, pglogrepl.StandbyStatusUpdateByteID)
	for range 3 {
		b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMicro()-pgEpoch))
	if reply {
		return append(b, 1)
	}
	return append(b, 0)
}
