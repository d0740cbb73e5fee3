package walsender

import (
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Session is one client connection. What its Send methods are given goes out before the next message of the WAL, in
// order, and is dropped if the session has ended.
type Session struct {
	server       *Server
	pid          uint32
	conn, client *pipeEnd
	backend      *pgproto3.Backend // Receive belongs to serve, Send and Flush to transmit

	// The server's lock guards the fields below.
	startup map[string]string
	queries []string
	queue   []pgproto3.BackendMessage
	stream  *stream // nil unless between START_REPLICATION and its end
	closing bool    // close when the queue is empty
	ended   bool
}

// PID is the server process id of the session.
func (c *Session) PID() uint32 { return c.pid }

// Startup returns the parameters of the client's startup message.
func (c *Session) Startup() map[string]string {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return maps.Clone(c.startup)
}

// Queries returns the text of all simple queries and replication commands, in order.
func (c *Session) Queries() []string {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return slices.Clone(c.queries)
}

// Send sends any messages.
func (c *Session) Send(msgs ...pgproto3.BackendMessage) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.enqueue(msgs...)
}

// SendXLogData sends data, a pgoutput message, that is not in the model WAL.
func (c *Session) SendXLogData(walStart, walEnd pglogrepl.LSN, data []byte) {
	c.Send(xlogData(walStart, walEnd, data))
}

// SendKeepalive sends a keepalive with any walEnd.
func (c *Session) SendKeepalive(walEnd pglogrepl.LSN, replyRequested bool) {
	c.Send(keepalive(walEnd, replyRequested))
}

// Keepalive sends a keepalive that tells, as those of a real server, how far it has decoded. It is dropped if the session
// does not stream.
func (c *Session) Keepalive(replyRequested bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.stream != nil {
		c.enqueue(c.stream.keepalive(replyRequested))
	}
}

// SendNotice sends a WARNING.
func (c *Session) SendNotice(code, message string) {
	notice := pgproto3.NoticeResponse(*Error(code, "%s", message))
	notice.Severity, notice.SeverityUnlocalized = "WARNING", "WARNING"
	c.Send(&notice)
}

// SendError ends the stream with an ERROR, as a failure to decode does. The client can send commands again.
func (c *Session) SendError(code, message string) {
	c.finish(false, Error(code, "%s", message), &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// SendFatal sends a FATAL error and closes the connection.
func (c *Session) SendFatal(code, message string) {
	err := Error(code, "%s", message)
	err.Severity, err.SeverityUnlocalized = "FATAL", "FATAL"
	c.finish(true, err)
}

// Terminate is pg_terminate_backend.
func (c *Session) Terminate() {
	c.SendFatal("57P01", "terminating connection due to administrator command")
}

// EndStream ends stream and connection in the orderly way, as the end of a fast shutdown does.
func (c *Session) EndStream() { c.finish(true, commandComplete("COPY 0")) }

// finish ends the stream, sends the messages and closes the connection if so told.
func (c *Session) finish(closing bool, msgs ...pgproto3.BackendMessage) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.release()
	c.enqueue(msgs...)
	c.closing = c.closing || closing
}

// Cut breaks the connection: the client gets ECONNRESET, what it has not read yet is lost.
func (c *Session) Cut() {
	c.client.cutAfter(0)
	c.end()
}

// CutAfter breaks the connection when the client has read n more bytes, be it in the middle of a message.
func (c *Session) CutAfter(n int) { c.client.cutAfter(n) }

// serve reads what the client sends until the connection ends.
func (c *Session) serve() {
	defer c.end()
	if !c.accept() {
		return
	}
	c.server.running.Go(c.transmit)
	for {
		msg, err := c.backend.Receive()
		if err != nil {
			return
		}
		streaming := c.server.Holder() == c
		switch msg := msg.(type) {
		case *pgproto3.Query:
			if streaming {
				c.SendFatal("08P01", `invalid standby message type "Q"`)
				continue
			}
			c.noteQuery(msg.String)
			c.query(msg.String)
		case *pgproto3.CopyData:
			if streaming { // else it is late: Postgres ignores it too
				c.standbyMessage(msg.Data)
			}
		case *pgproto3.CopyDone:
			if streaming {
				c.finish(false, &pgproto3.CopyDone{}, commandComplete("COPY 0"),
					commandComplete("START_REPLICATION"), &pgproto3.ReadyForQuery{TxStatus: 'I'})
			}
		case *pgproto3.Terminate:
			return
		default:
			c.SendFatal("08P01", fmt.Sprintf("%T is not scripted: use QueryExecModeSimpleProtocol", msg))
		}
	}
}

func (c *Session) noteQuery(sql string) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.queries = append(c.queries, sql)
}

// accept handles the start of a connection and reports whether there is a session to serve.
func (c *Session) accept() bool {
	for {
		msg, err := c.backend.ReceiveStartupMessage()
		if err != nil {
			return false
		}
		switch msg := msg.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := c.conn.Write([]byte{'N'}); err != nil {
				return false
			}
		case *pgproto3.StartupMessage:
			c.greet(msg.Parameters)
			return true
		default: // a CancelRequest, answered by closing
			return false
		}
	}
}

// greet answers the startup message.
func (c *Session) greet(startup map[string]string) {
	s := c.server
	s.mu.Lock()
	c.startup = maps.Clone(startup)
	s.sessions = append(s.sessions, c)
	state := s.state
	s.mu.Unlock()
	if state == stopping {
		c.SendFatal("57P03", "the database system is shutting down")
		return
	}
	c.Send(&pgproto3.AuthenticationOk{})
	for _, name := range []string{"server_version", "server_encoding", "client_encoding", "standard_conforming_strings"} {
		c.Send(&pgproto3.ParameterStatus{Name: name, Value: s.config.Settings[name]})
	}
	c.Send(&pgproto3.BackendKeyData{ProcessID: c.pid, SecretKey: []byte{1, 2, 3, 4}},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// transmit is the only writer after the startup message. It waits for a slow client without the lock, so that in a bubble
// time can pass meanwhile.
func (c *Session) transmit() {
	defer c.end()
	for msg := c.nextMessage(); msg != nil; msg = c.nextMessage() {
		c.backend.Send(msg)
		if err := c.backend.Flush(); err != nil {
			return
		}
	}
}

// nextMessage waits for something to send; nil means that the session is over.
func (c *Session) nextMessage() pgproto3.BackendMessage {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	for {
		switch {
		case c.ended:
			return nil
		case len(c.queue) > 0:
			msg := c.queue[0]
			c.queue = c.queue[1:]
			return msg
		case c.closing:
			return nil
		case c.stream != nil:
			if msg := c.stream.nextMessage(); msg != nil {
				return msg
			}
		}
		c.server.cond.Wait()
	}
}

// end closes the connection; what was written can still be read by the client.
func (c *Session) end() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.drop()
}

// drop is end with the server's lock held, as the methods below want it.
func (c *Session) drop() {
	c.release()
	c.ended = true
	delete(c.server.live, c)
	_ = c.conn.Close() // fails only if it is closed
	c.server.cond.Broadcast()
}

// release ends the stream and gives the slot back, which is what a shutdown waits for.
func (c *Session) release() {
	if c.stream == nil {
		return
	}
	if c.stream.timer != nil {
		c.stream.timer.Stop()
	}
	c.stream = nil
	c.server.holder = nil
	if c.server.state == stopping {
		c.server.state = down
	}
}

func (c *Session) enqueue(msgs ...pgproto3.BackendMessage) {
	if !c.ended && !c.closing {
		c.queue = append(c.queue, msgs...)
		c.server.cond.Broadcast()
	}
}

func commandComplete(tag string) pgproto3.BackendMessage {
	return &pgproto3.CommandComplete{CommandTag: []byte(tag)}
}
