package walsender

import (
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/internal/pgoutput"
)

// Sizes of WAL records. Only that they are positive and aligned like real ones matters.
const (
	recordHeader = 48
	commitRecord = 48
)

// Tx is a transaction to commit: its changes in the order of the plugin's output.
type Tx []Change

// Change is one change of a transaction. Make it with Insert, Row, Message, Raw or Keepalive.
type Change struct {
	size int // bytes of content in its WAL record; negative: it has none
	// item returns what the walsender sends for the record in [start, end).
	item func(start, end pglogrepl.LSN) item
}

// item is one message in the output of a record: either data for an XLogData or a keepalive.
type item struct {
	lsn      pglogrepl.LSN // WALStart of the XLogData
	end      pglogrepl.LSN // sentPtr once this is sent; 0: unchanged
	data     []byte        // pgoutput message; nil for a keepalive
	relation []byte        // Relation message that must have been sent before
	relID    uint32
	logical  bool // written by pg_logical_emit_message: sent only to who asked for messages
	reply    bool // keepalive: ask for a reply
}

// transaction is what the plugin says about a commit record.
type transaction struct {
	Committed
	begin, commit item
	changes       []item
}

// Committed tells where a transaction is in the WAL.
type Committed struct {
	Xid        uint32
	CommitLSN  pglogrepl.LSN // start of the commit record: BEGIN's final_lsn
	EndLSN     pglogrepl.LSN // end of the commit record: what the client confirms
	CommitTime time.Time
}

// Insert is a new row. Its relation is announced before the first row of each stream and when its definition changed.
func Insert(rel pgoutput.Relation, row ...pgoutput.Value) Change {
	return Row(rel, pgoutput.AppendInsert(nil, rel.ID, row))
}

// Row is any change of a row, data being its pgoutput message; the relation is announced as for Insert.
func Row(rel pgoutput.Relation, data []byte) Change {
	relation := pgoutput.AppendRelation(nil, rel)
	return Change{size: len(data), item: func(start, _ pglogrepl.LSN) item {
		return item{lsn: start, data: data, relation: relation, relID: rel.ID}
	}}
}

// Message is a transactional pg_logical_emit_message. It is sent only to a client that asked for messages 'true'.
func Message(prefix string, content []byte) Change {
	return Change{size: len(prefix) + len(content), item: func(_, end pglogrepl.LSN) item {
		data := pgoutput.AppendMessage(nil, true, uint64(end), prefix, content)
		return item{lsn: end, data: data, logical: true}
	}}
}

// Raw sends data as it is where a change would be: a Truncate or a Type message, or what no server would send.
func Raw(data []byte) Change {
	data = append([]byte{}, data...) // not nil: that would be a keepalive
	return Change{size: len(data), item: func(start, _ pglogrepl.LSN) item {
		return item{lsn: start, data: data}
	}}
}

// Keepalive makes the walsender send a keepalive in the middle of the transaction's output, as it does when it gets slow
// or the client asks. Its walEnd is what the server has decoded so far: not past the transaction's CommitLSN.
func Keepalive(replyRequested bool) Change {
	return Change{size: -1, item: func(start, _ pglogrepl.LSN) item {
		return item{lsn: start, reply: replyRequested}
	}}
}

// Commit appends a transaction to the WAL; it is streamed at once to whoever holds the slot. A transaction without
// changes takes its place in the WAL and is not sent, as since Postgres 15.
func (s *Server) Commit(tx Tx) Committed { return s.GroupCommit(tx)[0] }

// GroupCommit commits transactions that ran at the same time: the changes of all come first in the WAL, then their commit
// records without a gap, so that each CommitLSN equals the EndLSN before it.
func (s *Server) GroupCommit(txs ...Tx) []Committed {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().Truncate(time.Microsecond)
	changes := make([][]item, len(txs))
	for i, tx := range txs {
		for _, change := range tx {
			start, end := s.write(change.size)
			changes[i] = append(changes[i], change.item(start, end))
		}
	}
	committed := make([]Committed, len(txs))
	for i := range txs {
		s.xid++
		c := Committed{Xid: s.xid, CommitTime: now, CommitLSN: s.walEnd, EndLSN: s.walEnd + commitRecord}
		s.walEnd = c.EndLSN
		s.wal = append(s.wal, frame(c, changes[i]))
		committed[i] = c
	}
	s.cond.Broadcast()
	return committed
}

// frame puts the changes of a transaction between its Begin and its Commit.
func frame(c Committed, changes []item) transaction {
	t := transaction{Committed: c, changes: changes}
	t.begin.data = pgoutput.AppendBegin(nil, uint64(c.CommitLSN), c.CommitTime, c.Xid)
	if len(changes) > 0 {
		t.begin.lsn = changes[0].lsn // it is sent together with the first change
	}
	t.commit.data = pgoutput.AppendCommit(nil, 0, uint64(c.CommitLSN), uint64(c.EndLSN), c.CommitTime)
	t.commit.lsn, t.commit.end = c.EndLSN, c.EndLSN
	return t
}

// AdvanceWAL writes n bytes of WAL that the slot's publication does not contain. A client that is behind hears of it by
// a keepalive only. The result is the new end of the WAL.
func (s *Server) AdvanceWAL(n int) pglogrepl.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, end := s.write(n)
	s.cond.Broadcast()
	return end
}

// write appends a record with size bytes of content to the WAL, none if size is negative; mu is held.
func (s *Server) write(size int) (start, end pglogrepl.LSN) {
	start = s.walEnd
	if size >= 0 {
		s.walEnd += pglogrepl.LSN(recordHeader+size+7) &^ 7
	}
	return start, s.walEnd
}
