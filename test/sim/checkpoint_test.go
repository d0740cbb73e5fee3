package sim

import (
	"time"

	"github.com/walferry/walferry/checkpoint"
)

// position is a checkpoint.
type position = checkpoint.Checkpoint

// ending is what a request makes of the open transaction of checkpoints.
type ending int

const (
	undecided ending = iota
	aborted
	committed
)

// checkpointKey is the key of the bridge's checkpoint.
const checkpointKey = "shop/walferry"

// settleCheckpoint finds out what became of the last request as far as it concerns
// checkpoints; mu is held. A batch appends its records, the end of a transaction a marker.
func (h *history) settleCheckpoint() {
	at := place{checkpointTopic, 0}
	info := h.kafka.PartitionInfo(at.topic, at.partition)
	if info == nil { // the bridge has yet to create it
		return
	}
	l := h.log[at]
	if l == nil {
		l = &partitionLog{}
		h.log[at] = l
	}
	end := info.HighWatermark
	if l.pending != nil && end >= l.records+int64(len(l.pending.records)) {
		l.records += int64(len(l.pending.records))
		for _, r := range l.pending.records {
			switch string(r.Key) {
			case checkpointKey:
				h.wrote(r.Value)
			case checkpointKey + "/session":
				h.opens(l.pending.by)
			}
		}
		l.pending = nil
	}
	if end == l.records+1 { // a marker; one that no request asked for is of a timeout
		l.records = end
		if h.ending == committed {
			for _, c := range h.open {
				h.judge(&c)
			}
		}
		h.open, h.ending, h.late = nil, undecided, false
	}
	if end != l.records {
		h.world.violate("checkpoint: the topic holds %d records, want %d", end, l.records)
		l.records = end
	}
}

// opens notes that a session has written the record up to which it reads the checkpoints: whatever was committed lies
// before it. If it never gets that far it publishes nothing. A session that opens them anew goes on as it was.
func (h *history) opens(s *stream) {
	if s != nil && !s.opened {
		s.opened, s.resume = true, h.checkpoint
	}
}

func (h *history) wrote(value []byte) {
	c, err := checkpoint.Parse(value)
	if err != nil {
		h.world.violate("checkpoint: %v", err)
		return
	}
	h.open = append(h.open, *c)
}

// judge judges a checkpoint that has come true: it never goes back, and whatever it says is
// published is in Kafka.
func (h *history) judge(c *position) {
	h.written++
	if last := h.checkpoint; last != nil && c.Pos.LSN < last.Pos.LSN {
		h.world.violate("checkpoint: %s after %s", c.Pos, last.Pos)
	}
	h.checkpoint = c
	if !h.safe(c.Pos.LSN) {
		t := h.txns[h.whole]
		h.world.violate("checkpoint: %s, but of the transaction %s to %s %d of %d events are not in Kafka",
			c.Pos, t.CommitLSN, t.EndLSN, t.missing, len(t.events))
	}
	for _, t := range h.txns[h.whole:] {
		for _, e := range t.events {
			if t.CommitLSN == c.OpenCommit.LSN && uint64(e.index) < c.OpenIndex && !e.delivered {
				h.world.violate("checkpoint: %s before %d, but event %d is not in Kafka", c.OpenCommit, c.OpenIndex, e.index)
				return
			}
		}
	}
}

func (h *history) hasCheckpoint() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settle()
	return h.checkpoint != nil
}

// precedes reports whether an event lies before what the stream's session has to publish:
// the server does not send it, or it is published already by what the checkpoint says.
func (s *stream) precedes(e *event) bool {
	return e.txn.CommitLSN < s.start || s.resume != nil && s.resume.Progress().Covers(e.txn.CommitLSN, uint64(e.index))
}

// crashSlack is, beyond the interval, how old an acknowledged event may be that a crash sends
// again: the ticks of Keeper and Feedback, and the five requests of a checkpoint.
const crashSlack = 500 * time.Millisecond

// again judges an event that comes again although nothing but a crash was in the way of its
// session: it must have been acknowledged shortly before. Of the transaction that was open
// at the crash whole runs of events count only (replication.Inflight).
func (h *history) again(e *event, s *stream) {
	if e.by == nil || e.by == s || h.world.precede(s, e.by) || e.by.crashed.IsZero() || h.world.profile.interval == 0 || e.txn.whole.IsZero() {
		return
	}
	latency := h.world.profile.latency * 3 / 2 // at most, of each response
	limit := h.world.profile.interval + crashSlack + 6*latency
	if age := e.by.crashed.Sub(e.txn.whole); age > limit {
		h.world.violate("duplicates: event %s came again, in Kafka since %s before the crash of its session, allowed are %s", e.id, age, limit)
	}
}

// crash notes that the stream of a process ends in a crash, of the process or of Postgres.
// Only the first counts: Postgres may crash once more while the process is dead.
func (h *history) crash(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s != nil && s.crashed.IsZero() {
		s.crashed = time.Now()
	}
}

// undisturbed returns the stream of a process if nothing was in its way since it began, and
// nil otherwise; the world's lock is held.
func (p *process) undisturbed() *stream {
	if p == nil || p.stream != p.world.latest || p.breaks != p.world.breaks || p.slowed != p.world.strikes[&slowAcks] {
		return nil
	}
	return p.stream
}
