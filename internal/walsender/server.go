// Package walsender is a scripted Postgres server for tests: it speaks the real wire protocol over in-memory connections
// and streams a model of the WAL through one logical replication slot, with the rules of a real walsender about what is
// sent, skipped, confirmed and asked. A test writes to the model with Commit, looks at what the client confirmed, and
// misbehaves as real servers and networks do: Hold, Crash, Shutdown, Terminate, Cut.
//
// Everything runs on goroutines, channels and timers of the package, without system calls, so that a Server made inside a
// testing/synctest bubble lives in the bubble's time. Close it before the bubble ends.
//
// Give pgconn an IP address as host (127.0.0.1) and set its DialFunc to Server.Dial. Queries must use the simple protocol.
package walsender

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Config describes a Server. Only Slot is required.
type Config struct {
	Slot     string            // name of the only slot
	Start    pglogrepl.LSN     // where the model WAL begins, also the slot's confirmed_flush_lsn; 0: 0/1500000
	SystemID string            // default "7500000000000000001"
	Timeline int32             // default 1
	History  map[int32]string  // contents of the timeline history files
	Settings map[string]string // answers to SHOW and the parameters reported at connect, over defaults of Postgres 18.1

	BufferSize    int           // bytes a connection buffers in each direction, default 64 KiB
	SenderTimeout time.Duration // wal_sender_timeout, 0 disables it

	// KeepaliveAfterCommit sends a keepalive with walEnd = EndLSN right after every COMMIT, not only when caught up.
	KeepaliveAfterCommit bool
	// OnStatusUpdate is called with each status update before the server acts on it, on the goroutine of the session.
	OnStatusUpdate func(StatusUpdate)
	// OnStream is called with each stream before it begins, with the server's lock held: it must not call the server.
	OnStream func(Streaming)
}

// state is what a client that connects finds.
type state int

const (
	up       state = iota
	stopping       // fast shutdown: waits for the walsender to send everything
	down           // nobody listens
)

// Server is a scripted Postgres server. Its methods may be called from any goroutine.
type Server struct {
	config  Config
	running sync.WaitGroup // goroutines of the sessions

	mu        sync.Mutex
	cond      sync.Cond // something below, in a session or in a stream changed
	state     state
	closed    bool
	handlers  map[string]func(sql string) Result
	live      map[*Session]struct{} // all connections
	sessions  []*Session            // all that ever sent a startup message
	pid       uint32                // given out last
	wal       []transaction
	walEnd    pglogrepl.LSN
	xid       uint32        // given out last
	held      int           // messages of the WAL that may still go out; negative: all
	confirmed pglogrepl.LSN // confirmed_flush_lsn of the slot
	holder    *Session      // streams from the slot
	updates   []StatusUpdate
	healed    chan struct{} // closed by Heal; nil without a partition
	stalled   []*pipeEnd    // connections in the partition, ended ones included
}

// New returns a server that is up.
func New(config Config) *Server {
	if config.Start == 0 {
		config.Start = 0x1500000
	}
	if config.SystemID == "" {
		config.SystemID = "7500000000000000001"
	}
	if config.Timeline == 0 {
		config.Timeline = 1
	}
	if config.BufferSize == 0 {
		config.BufferSize = 64 << 10
	}
	settings := map[string]string{
		"server_version": "18.1", "server_encoding": "UTF8", "client_encoding": "UTF8",
		"standard_conforming_strings": "on", "wal_level": "logical",
	}
	maps.Copy(settings, config.Settings)
	config.Settings = settings
	s := &Server{
		config: config, handlers: make(map[string]func(string) Result), live: make(map[*Session]struct{}),
		pid: 4000, xid: 700, walEnd: config.Start, confirmed: config.Start, held: -1,
	}
	s.cond.L = &s.mu
	return s
}

// Dial connects to the server; it fits pgconn.Config.DialFunc.
func (s *Server) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.reach(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == down {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: pipeAddr{}, Err: syscall.ECONNREFUSED}
	}
	client, conn := newPipe(s.config.BufferSize)
	s.pid++
	c := &Session{server: s, pid: s.pid, conn: conn, client: client, backend: pgproto3.NewBackend(conn, conn)}
	s.live[c] = struct{}{}
	s.running.Go(c.serve)
	return client, nil
}

// reach waits until no partition is between the client and the server.
func (s *Server) reach(ctx context.Context) error {
	for {
		s.mu.Lock()
		healed := s.healed
		s.mu.Unlock()
		if healed == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-healed:
		}
	}
}

// Partition makes the network swallow everything between the server and all clients until Heal: nothing arrives, no
// connection breaks, and none comes about. What was sent arrives after Heal, as TCP repeats it.
func (s *Server) Partition() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.healed == nil {
		s.healed = make(chan struct{})
	}
	for c := range s.live {
		s.stalled = append(s.stalled, c.client)
		c.client.stall(true)
	}
}

// Heal ends Partition.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.healed == nil {
		return
	}
	close(s.healed)
	s.healed = nil
	for _, client := range s.stalled {
		client.stall(false)
	}
	s.stalled = nil
}

// Close cuts all connections and returns when every goroutine of the server has ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.goDown()
	s.mu.Unlock()
	s.running.Wait()
}

// Handle sets the answer to SQL that starts with the comment /* walferry:tag */. f gets the statement with its comment;
// it runs on the goroutine of the session and may call the server.
func (s *Server) Handle(tag string, f func(sql string) Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[tag] = f
}

// Hold lets n more messages of the WAL out, Begin and Relation included, and then holds the stream back, also inside of a
// transaction. A stream that is held still answers the client's requests for a reply.
func (s *Server) Hold(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = n
	s.cond.Broadcast()
}

// Release ends Hold.
func (s *Server) Release() { s.Hold(-1) }

// Crash is an immediate shutdown: all connections are cut and new ones refused until Start.
func (s *Server) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goDown()
}

// Shutdown begins a fast shutdown and returns at once. All sessions end with 57P01 but for the one that streams: it is asked
// for replies until its client has confirmed the end of the WAL exactly, and new connections get 57P03 meanwhile. Then the
// server is down until Start. A client that confirms commits only never gets there if AdvanceWAL came after the last one.
func (s *Server) Shutdown() {
	s.mu.Lock()
	s.state = stopping
	if s.holder == nil {
		s.state = down
	}
	var idle []*Session
	for c := range s.live {
		if c != s.holder {
			idle = append(idle, c)
		}
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	for _, c := range idle {
		c.Terminate()
	}
}

// Start brings the server up again after Crash or Shutdown; a shutdown still under way is cut short. confirmed is the
// slot's confirmed_flush_lsn as the restart finds it on disk: it can be older than what the client confirmed. A confirmed
// that is not older, or 0, keeps what there is.
func (s *Server) Start(confirmed pglogrepl.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goDown()
	s.state = up
	if confirmed != 0 {
		s.confirmed = min(s.confirmed, confirmed)
	}
}

// goDown cuts everything; mu is held.
func (s *Server) goDown() {
	s.state = down
	for c := range s.live {
		c.client.cutAfter(0)
		c.drop()
	}
	s.cond.Broadcast()
}

// Confirmed returns the slot's confirmed_flush_lsn.
func (s *Server) Confirmed() pglogrepl.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confirmed
}

// WaitConfirmed waits until confirmed_flush_lsn is at least lsn.
func (s *Server) WaitConfirmed(ctx context.Context, lsn pglogrepl.LSN) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.confirmed < lsn {
		err := context.Cause(ctx)
		if s.closed {
			err = errors.New("server closed")
		}
		if err != nil {
			return fmt.Errorf("confirmed_flush_lsn is %s, waited for %s: %w", s.confirmed, lsn, err)
		}
		s.cond.Wait()
	}
	return nil
}

// WALEnd returns the end of the model WAL.
func (s *Server) WALEnd() pglogrepl.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.walEnd
}

// Updates returns all status updates received, in order.
func (s *Server) Updates() []StatusUpdate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.updates)
}

// Sessions returns all sessions, ended ones included, in the order of their startup messages.
func (s *Server) Sessions() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sessions)
}

// ActivePID returns active_pid of the slot, as SQL shows it: empty if nobody streams from it.
func (s *Server) ActivePID() string {
	if holder := s.Holder(); holder != nil {
		return fmt.Sprint(holder.pid)
	}
	return ""
}

// Holder returns the session that streams from the slot, or nil.
func (s *Server) Holder() *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holder
}
