// Package checkpoint keeps the position of a bridge in Kafka, beside the events. Postgres
// forgets confirmed LSNs when it crashes, and cannot tell a slot from another one that was
// created later under its name; a checkpoint that is written before the slot is confirmed
// makes duplicates few, and gaps visible.
package checkpoint

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/replication"
)

// Checkpoint is what is known for good of the events of one slot.
type Checkpoint struct {
	Version  int    `json:"version"`
	SystemID string `json:"system_id"` // of the Postgres cluster
	Timeline uint32 `json:"timeline"`  // of the server when it was written
	// TimelineBegan is where that timeline began, 0 if it is not known.
	TimelineBegan LSN `json:"timeline_began,omitzero"`
	// Pos is the LSN before which everything is acknowledged by Kafka.
	Pos LSN `json:"pos"`
	// OpenCommit, if not 0, is the commit LSN of a transaction of which the events before
	// OpenIndex are acknowledged as well.
	OpenCommit LSN    `json:"open_commit_lsn,omitzero"`
	OpenIndex  uint64 `json:"open_index,omitempty"`
	// Time is when it was written, by our clock.
	Time time.Time `json:"time"`
	// Membership is what was published when it was written.
	Membership replication.Membership `json:"membership"`
	// Snapshot is a pg_current_snapshot() all of whose visible transactions commit before Pos.
	Snapshot string `json:"snapshot,omitempty"`
}

// version is that of the JSON. Readers refuse a later one.
const version = 1

// LSN is an LSN in Postgres' own notation in JSON.
type LSN struct{ replication.LSN }

// MarshalText implements encoding.TextMarshaler.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what MarshalText writes and nothing
// else: pglogrepl alone would read an LSN out of a damaged text.
func (l *LSN) UnmarshalText(text []byte) (err error) {
	l.LSN, err = pglogrepl.ParseLSN(string(text))
	if err == nil && l.String() != string(text) {
		err = fmt.Errorf("%q is not an LSN", text)
	}
	return err
}

// CorruptError is a checkpoint that cannot be read.
type CorruptError struct{ Reason string }

func (e *CorruptError) Error() string { return "the checkpoint cannot be used: " + e.Reason }

// Parse reads a checkpoint. It fails with *CorruptError.
func Parse(value []byte) (*Checkpoint, error) {
	var c Checkpoint
	if err := json.Unmarshal(value, &c); err != nil {
		return nil, &CorruptError{err.Error()}
	}
	if c.Version != version || c.SystemID == "" || c.Timeline == 0 || c.Pos.LSN == 0 {
		return nil, &CorruptError{fmt.Sprintf("it has version %d, system identifier %q, timeline %d and position %s; walferry writes version %d and all of the others",
			c.Version, c.SystemID, c.Timeline, c.Pos, version)}
	}
	return &c, nil
}

// Progress returns what is published.
func (c *Checkpoint) Progress() replication.Progress {
	return replication.Progress{Flushed: c.Pos.LSN, Commit: c.OpenCommit.LSN, Index: c.OpenIndex}
}

// Found is what a session finds when the slot is its own.
type Found struct {
	Slot       string
	SystemID   string
	Timelines  replication.Timelines
	Start      replication.LSN // confirmed_flush_lsn
	WALEnd     replication.LSN // pg_current_wal_insert_lsn()
	Membership replication.Membership
	// Sent is the commit LSN of the last event that was handed to Kafka on the checkpoint's timeline, 0 if that is not
	// known: the brokers may have more than the checkpoint covers.
	Sent replication.LSN
}

// Range is a part of the WAL, from one LSN to another.
type Range struct{ From, To replication.LSN }

// Resume says where a session goes on.
type Resume struct {
	// From is what is published already; its events are skipped, no others are.
	From replication.Progress
	// Phantoms, if not empty, is WAL that a promotion has thrown away: events in it may have
	// been published and do not exist in the database.
	Phantoms Range
	// Snapshot is the checkpoint's, if it is still true of From.
	Snapshot string
}

// Resume compares the checkpoint with what is found. With a *replication.GapError it returns where to go
// on if the gap is accepted.
//
// An LSN only means something together with its timeline: after a promotion new events may lie
// at LSNs that the old primary has used (docs/adr/0008). So the position is cut back to where
// the checkpoint's timeline was left.
func (c *Checkpoint) Resume(f Found) (Resume, error) {
	anew := Resume{From: replication.Progress{Flushed: f.Start}}
	changed := c.Membership.Changed(f.Membership)
	gap := func(format string, args ...any) *replication.GapError {
		reason := fmt.Sprintf(format, args...)
		if changed != "" {
			reason += "; besides, " + changed // a gap is accepted with all of its reasons
		}
		return &replication.GapError{Slot: f.Slot, Reason: reason, From: c.Pos.LSN, To: f.Start}
	}
	left, other := c.left(f)
	if other != "" {
		err := gap("%s", other)
		err.OtherServer = true
		return anew, err
	}
	r := Resume{From: c.Progress(), Snapshot: c.Snapshot}
	covered := max(c.Pos.LSN, c.OpenCommit.LSN)
	if covered > left {
		r.From, r.Snapshot = replication.Progress{Flushed: min(c.Pos.LSN, left)}, ""
	}
	if covered > left || f.Sent >= left {
		r.Phantoms = Range{left, max(covered, f.Sent)}
	}
	switch {
	case f.Start > r.From.Flushed:
		return anew, gap("its confirmed_flush_lsn is ahead of the checkpoint; it was recreated, somebody has advanced it, or checkpoints were turned off for a while")
	case max(r.From.Flushed, r.From.Commit) > f.WALEnd:
		return anew, gap("%s", restored(f))
	case changed != "":
		return r, &replication.GapError{Slot: f.Slot, Reason: changed, From: c.Pos.LSN}
	}
	return r, nil
}

// Shared returns the LSN up to which the server has the history that the checkpoint is of. It fails with
// *replication.GapError if it has another, or has lost some of it without leaving the timeline.
func (c *Checkpoint) Shared(f Found) (replication.LSN, error) {
	left, other := c.left(f)
	switch {
	case other != "":
		return 0, &replication.GapError{Slot: f.Slot, Reason: other, From: c.Pos.LSN, OtherServer: true}
	case min(max(c.Pos.LSN, c.OpenCommit.LSN), left) > f.WALEnd:
		return 0, &replication.GapError{Slot: f.Slot, Reason: restored(f), From: c.Pos.LSN}
	}
	return left, nil
}

func restored(f Found) string {
	return fmt.Sprintf("the server's WAL ends at %s, before the checkpoint: the server was restored from an older copy of its files", f.WALEnd)
}

// left returns where the server has left the checkpoint's timeline, or says why its history is not the one that the
// checkpoint is of.
func (c *Checkpoint) left(f Found) (at replication.LSN, other string) {
	if c.SystemID != f.SystemID {
		return 0, fmt.Sprintf("the checkpoint is of the cluster with system identifier %s, the server is of %s", c.SystemID, f.SystemID)
	}
	at, ok := f.Timelines.End(c.Timeline)
	if !ok {
		return 0, fmt.Sprintf("the checkpoint was written on timeline %d, the server is on timeline %d and has never been on that", c.Timeline, f.Timelines.Current())
	}
	if began := f.Timelines.Began(c.Timeline); c.TimelineBegan.LSN != 0 && began != c.TimelineBegan.LSN {
		return 0, fmt.Sprintf("the checkpoint was written on a timeline %d that began at %s, the server's began at %s: another standby was promoted", c.Timeline, c.TimelineBegan, began)
	}
	return at, ""
}

// merge returns the progress that may be written by a session that resumed at r and has come
// to p: a session that is still skipping must not fall behind what it resumed from.
func merge(r, p replication.Progress) replication.Progress {
	p.Flushed = max(p.Flushed, r.Flushed)
	if r.Commit != 0 && p.Flushed <= r.Commit && (p.Commit != r.Commit || p.Index < r.Index) {
		p.Commit, p.Index = r.Commit, r.Index
	}
	return p
}
