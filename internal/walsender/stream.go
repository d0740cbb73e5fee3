package walsender

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walferry/walferry/internal/pgoutput"
)

// StatusUpdate is a standby status update as the server received it.
type StatusUpdate struct {
	PID                 uint32 // of the session it came on
	Write, Flush, Apply pglogrepl.LSN
	ReplyRequested      bool
	At                  time.Time     // when the server read it
	Sent                pglogrepl.LSN // how far the server had decoded for this session
}

// Streaming is the beginning of a stream.
type Streaming struct {
	PID         uint32
	Application string        // application_name of the client
	Start       pglogrepl.LSN // transactions with an earlier commit LSN are skipped
}

// stream is what a walsender process knows while it streams. The server's lock guards it.
type stream struct {
	session   *Session
	start     pglogrepl.LSN     // transactions with an earlier commit LSN are skipped
	messages  bool              // the client asked for logical messages
	announced map[uint32][]byte // relation id: the Relation message sent last

	next  int           // index of the next transaction to decode
	items []item        // what is left to send of the last decoded transaction
	sent  pglogrepl.LSN // sentPtr: end of what is decoded

	write, flush pglogrepl.LSN // reported by the client on this connection
	heard        time.Time     // when the client spoke last
	asked        bool          // a reply was requested and nothing came since
	told         pglogrepl.LSN // walEnd of the last keepalive, 0 when the client spoke since
	timer        *time.Timer   // runs checkTimeout; nil without a timeout
}

func newStream(c *Session, start pglogrepl.LSN, messages bool) *stream {
	st := &stream{
		session: c, start: start, messages: messages, announced: make(map[uint32][]byte),
		sent: c.server.confirmed, heard: time.Now(),
	}
	if timeout := c.server.config.SenderTimeout; timeout > 0 {
		st.timer = time.AfterFunc(timeout/2, st.checkTimeout)
	}
	return st
}

// nextMessage returns what the walsender sends next, nil while it can only wait.
func (st *stream) nextMessage() pgproto3.BackendMessage {
	s := st.session.server
	if s.held == 0 {
		return nil
	}
	st.decode(s.wal)
	if len(st.items) == 0 {
		return st.idle()
	}
	it := st.items[0]
	st.items = st.items[1:]
	if s.held > 0 {
		s.held--
	}
	st.sent = max(st.sent, it.end)
	if it.data == nil {
		return st.keepalive(it.reply)
	}
	return xlogData(it.lsn, it.lsn, it.data)
}

// decode goes on in the WAL until there is something to send.
func (st *stream) decode(wal []transaction) {
	for len(st.items) == 0 && st.next < len(wal) {
		t := wal[st.next]
		st.next++
		st.sent = t.EndLSN
		if t.CommitLSN < st.start {
			continue
		}
		if st.items = st.output(t); len(st.items) > 0 {
			st.sent = t.CommitLSN // the commit record counts as decoded when all is sent
		}
	}
}

// output is what this client gets to see of a transaction: nothing if no change is for it.
func (st *stream) output(t transaction) []item {
	out := []item{t.begin}
	for _, it := range t.changes {
		if it.logical && !st.messages {
			continue
		}
		if it.relation != nil && !bytes.Equal(st.announced[it.relID], it.relation) {
			st.announced[it.relID] = it.relation
			out = append(out, item{data: it.relation}) // without an LSN, as on a real server
		}
		out = append(out, it)
	}
	if len(out) == 1 {
		return nil
	}
	out = append(out, t.commit)
	if st.session.server.config.KeepaliveAfterCommit {
		out = append(out, item{})
	}
	return out
}

// idle is what the walsender does when all WAL is sent: tell a client that is behind where the WAL ends, and during a
// shutdown ask until the client has confirmed exactly that.
func (st *stream) idle() pgproto3.BackendMessage {
	c, s := st.session, st.session.server
	st.sent = max(st.sent, s.walEnd)
	switch {
	case s.state == stopping && st.sent == st.flush:
		c.release()
		c.closing = true
		return commandComplete("COPY 0")
	case st.asked:
		return nil
	case s.state == stopping:
		return st.keepalive(true)
	case max(st.flush, st.write) < st.sent && st.told != st.sent:
		return st.keepalive(false)
	}
	return nil
}

// keepalive tells the client how far the server has decoded.
func (st *stream) keepalive(replyRequested bool) pgproto3.BackendMessage {
	st.asked = st.asked || replyRequested
	st.told = st.sent
	return keepalive(st.sent, replyRequested)
}

// checkTimeout is wal_sender_timeout: ask when half of it is over, give up when all of it is.
func (st *stream) checkTimeout() {
	c, s := st.session, st.session.server
	s.mu.Lock()
	defer s.mu.Unlock()
	timeout, silence := s.config.SenderTimeout, time.Since(st.heard)
	switch {
	case c.stream != st: // it ended while the timer fired
	case silence >= timeout:
		c.drop()
	case silence >= timeout/2:
		if !st.asked {
			c.enqueue(st.keepalive(true))
		}
		st.timer.Reset(timeout - silence)
	default:
		st.timer.Reset(timeout/2 - silence)
	}
}

// standbyMessage handles a CopyData of the client.
func (c *Session) standbyMessage(data []byte) {
	if len(data) != 34 || data[0] != pglogrepl.StandbyStatusUpdateByteID {
		c.SendFatal("08P01", "unexpected standby message")
		return
	}
	lsn := func(at int) pglogrepl.LSN { return pglogrepl.LSN(binary.BigEndian.Uint64(data[at:])) }
	update := StatusUpdate{
		PID: c.pid, Write: lsn(1), Flush: lsn(9), Apply: lsn(17), ReplyRequested: data[33] != 0, At: time.Now(),
	}
	s := c.server
	s.mu.Lock()
	st := c.stream
	if st == nil {
		s.mu.Unlock()
		return
	}
	update.Sent = st.sent
	if s.config.OnStatusUpdate != nil {
		s.mu.Unlock()
		s.config.OnStatusUpdate(update)
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if c.stream != st { // it ended meanwhile
		return
	}
	s.updates = append(s.updates, update)
	if update.ReplyRequested {
		c.enqueue(st.keepalive(false))
	}
	// Postgres wakes up by any message, and may then tell or ask the same again.
	st.heard, st.asked, st.told = update.At, false, 0
	st.write, st.flush = update.Write, update.Flush
	s.confirmed = max(s.confirmed, update.Flush)
	s.cond.Broadcast()
}

// xlogData wraps data as the walsender does.
func xlogData(walStart, walEnd pglogrepl.LSN, data []byte) pgproto3.BackendMessage {
	b := []byte{pglogrepl.XLogDataByteID}
	b = binary.BigEndian.AppendUint64(b, uint64(walStart))
	b = binary.BigEndian.AppendUint64(b, uint64(walEnd))
	b = pgoutput.AppendTime(b, time.Now())
	return &pgproto3.CopyData{Data: append(b, data...)}
}

func keepalive(walEnd pglogrepl.LSN, replyRequested bool) pgproto3.BackendMessage {
	b := []byte{pglogrepl.PrimaryKeepaliveMessageByteID}
	b = binary.BigEndian.AppendUint64(b, uint64(walEnd))
	b = append(pgoutput.AppendTime(b, time.Now()), 0)
	if replyRequested {
		b[len(b)-1] = 1
	}
	return &pgproto3.CopyData{Data: b}
}
