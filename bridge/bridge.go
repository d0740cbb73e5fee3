// Package bridge runs the way from a Postgres slot to Kafka: sessions one after
// another, a policy for errors, and what people need to watch it. It alone knows the
// rooms replication, decode and sink.
package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// Options make a Bridge.
type Options struct {
	Database   config.Database
	Kafka      config.Kafka
	Checkpoint config.Checkpoint
	Log        zerolog.Logger
	Metrics    *Metrics
	// Databases is how many there are in the process, which share its memory equally; 0 is one.
	Databases int
	// ExactlyOnce commits events and the checkpoint that covers them in one Kafka transaction.
	ExactlyOnce bool
	// AdoptSlot lets the bridge begin where a slot stands that has no checkpoint.
	AdoptSlot bool
	// AcceptGap lets it go on, once, behind a gap.
	AcceptGap bool
	// Until, if not 0, ends Run as soon as everything up to it is confirmed.
	Until replication.LSN
	// Dial and DialPostgres, if not nil, open the connections to brokers and to Postgres;
	// for tests.
	Dial         func(ctx context.Context, network, addr string) (net.Conn, error)
	DialPostgres pgconn.DialFunc

	kafkaLog kgo.Logger // of all of a Bridge's Kafka clients
}

// Bridge carries the events of one database.
type Bridge struct {
	options          Options
	db               config.Database
	log              zerolog.Logger
	metrics          *Metrics
	nonTransactional prometheus.Counter
	skipped          prometheus.Counter
	commitToAck      prometheus.Observer
	until            replication.LSN
	replication      replication.Config              // without Conn, which is read anew for each session
	decode           decode.Config                   // without what a session learns of the server
	connConfig       func() (*pgx.ConnConfig, error) // with the secrets as they are now
	reached          context.CancelFunc              // ends Run when Until is confirmed
	topics           sink.Topics
	sent             sent // the last event of the sessions so far

	acknowledged atomic.Uint64 // events, since the process started
	confirmed    atomic.Uint64 // LSN, as we told Postgres
	lastEvent    atomic.Int64  // commit time of the last acknowledged transaction, microseconds of Unix time

	mu     sync.Mutex // guards the following
	status Status
}

// sent is the last event that a session handed to Kafka, whatever became of it.
type sent struct {
	timeline uint32 // of the server
	commit   replication.LSN
}

// Error is what made a bridge stop.
type Error struct {
	Database string
	Class    Class
	Hint     string // what to do next, may be empty
	Err      error
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("database %s: %v", e.Database, e.Err)
	}
	return fmt.Sprintf("database %s: %v (hint: %s)", e.Database, e.Err, e.Hint)
}

func (e *Error) Unwrap() error { return e.Err }

// Explain returns err, if it is one, with the class and the hint that a running bridge would
// give it.
func Explain(database string, err error) error {
	if err == nil {
		return nil
	}
	v := classify(err)
	return &Error{database, v.class, v.hint, err}
}

// New returns a Bridge that is ready to Run.
func New(o Options) *Bridge {
	db := o.Database
	b := &Bridge{
		options: o, db: db, metrics: o.Metrics, until: o.Until,
		log:              o.Log.With().Str("database", db.Name).Str("slot", db.Slot).Logger(),
		nonTransactional: o.Metrics.nonTransactional.WithLabelValues(db.Name),
		skipped:          o.Metrics.skipped.WithLabelValues(db.Name),
		commitToAck:      o.Metrics.commitToAck.WithLabelValues(db.Name),
		replication:      replication.Config{Slot: db.Slot, Publication: db.Publication, ReadBuffer: o.share().read},
		decode:           decode.Config{Prefix: db.Messages.Prefix},
		status:           Status{Database: db.Name, Slot: db.Slot},
	}
	b.options.kafkaLog = newKafkaLogger(b.log)
	b.decode.Tables, b.replication.Tables = o.Tables()
	b.connConfig = o.ConnConfig
	b.enter(Starting)
	return b
}

const (
	backoffFirst = 250 * time.Millisecond
	backoffLast  = 5 * time.Second
	standbyWait  = 250 * time.Millisecond
	logAgain     = time.Minute // for an error that repeats
)

// Run runs sessions until ctx is done, which drains and returns nil, until Until is
// confirmed, or until an error that waiting does not cure: an *Error.
func (b *Bridge) Run(ctx context.Context) error {
	stop, reached := context.WithCancel(ctx)
	defer reached()
	b.reached = reached
	wait := backoffFirst
	for {
		began := time.Now()
		confirmed, err := b.session(stop)
		if stop.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			b.enter(Stopped)
			return nil
		}
		v := classify(err)
		if v.class != Standby { // whose attempts are no sessions
			b.metrics.restarts.WithLabelValues(b.db.Name, string(v.class)).Inc()
		}
		if v.class != Retry && v.class != Standby {
			b.failed(v, err)
			return Explain(b.db.Name, err)
		}
		if confirmed || time.Since(began) > backoffLast {
			wait = backoffFirst // both servers are there
		}
		if stop.Err() == nil {
			b.waiting(v, err)
			wait = b.pause(stop, v.class, wait)
		}
		if stop.Err() != nil {
			if v.class == Retry {
				b.log.Warn().Err(err).Msg("stopped without a drain; what is not confirmed comes with the next start, at least once also what is published")
			}
			b.enter(Stopped)
			return nil
		}
	}
}

// pause waits before the next session, and returns how long to wait the next time.
func (b *Bridge) pause(stop context.Context, class Class, wait time.Duration) time.Duration {
	next := min(2*wait, backoffLast)
	if class == Standby {
		wait, next = standbyWait, backoffFirst
	}
	timer := time.NewTimer(wait/2 + rand.N(wait)) // jitter, for bridges that failed together
	defer timer.Stop()
	select {
	case <-stop.Done():
	case <-timer.C:
	}
	return next
}

// session opens a session and runs it to its end. It reports whether anything was
// confirmed: an LSN behind the one that Postgres itself began with.
func (b *Bridge) session(stop context.Context) (confirmed bool, err error) {
	ctx, fail := context.WithCancelCause(context.WithoutCancel(stop))
	defer fail(nil)
	s := &session{Bridge: b, fail: fail}
	opening, cancel := context.WithTimeout(stop, openTimeout)
	defer cancel()
	if err := s.open(opening); err != nil {
		if errors.Is(err, replication.ErrNoSlot) {
			err = cmp.Or(b.missingSlot(opening), err)
		}
		if classify(err).class == Standby {
			b.awaitSlot(opening)
		}
		return false, err
	}
	defer s.stream.Close(ctx)
	defer func() {
		if s.store != nil {
			s.store.Close()
		}
	}()
	b.confirmed.Store(uint64(s.stream.Start)) // Postgres may have forgotten what we told it
	err = s.run(ctx, stop)
	if at := s.inflight.Added(); at != 0 {
		b.sent = sent{s.stream.Timelines.Current(), at}
	}
	return b.confirmed.Load() > uint64(s.stream.Start), err
}

// connectSQL opens an ordinary connection with the secrets as they are now.
func (b *Bridge) connectSQL(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := b.connConfig()
	if err != nil {
		return nil, err
	}
	return replication.ConnectSQL(ctx, cfg)
}

// awaitSlot waits until nobody has the slot, or ctx ends. It is a cheap question, asked often on one connection: to try and
// open the stream each time would cost the server two processes.
func (b *Bridge) awaitSlot(ctx context.Context) {
	sql, err := b.connectSQL(ctx)
	if err != nil {
		return // the next session says so
	}
	replication.AwaitFree(ctx, sql, b.db.Slot)
	_ = sql.Close(ctx) // nothing is left to lose on it
}

const (
	// openTimeout bounds the steps up to the stream; a network may swallow any of them.
	openTimeout = 30 * time.Second
	watchEvery  = 5 * time.Second
)

// open makes all parts of a session but the sink. The slot comes first: it is the lock
// between two instances, and only its owner has business with Kafka.
func (s *session) open(ctx context.Context) error {
	cfg, err := s.connConfig()
	if err != nil {
		return err
	}
	sql, err := replication.ConnectSQL(ctx, cfg)
	if err != nil {
		return err
	}
	open := s.replication
	open.Conn = cfg
	if s.stream, err = replication.Open(ctx, open, sql); err != nil {
		if classify(err).class == Standby {
			s.standby(replication.Holder(ctx, sql, s.db.Slot))
		}
		_ = sql.Close(ctx) // it only read
		return err
	}
	dec := s.decode
	dec.SystemID, dec.OIDs = s.stream.Server.SystemID, s.stream.Publication.OIDs
	dec.Timeline = func(l decode.LSN) uint32 { return s.stream.Timelines.Of(replication.LSN(l)) }
	s.decoder = decode.NewDecoder(dec)
	s.inflight = replication.NewInflight(s.stream.Start, s.options.share().runs, replication.Hooks{Failed: s.fail, Finished: s.finished})
	s.feedback = &replication.Feedback{Stream: s.stream, Confirmable: s.confirmable, Tick: s.tick}
	s.watch = &replication.Watch{
		Conn: sql, Server: s.stream.Server, Slot: s.db.Slot, Publication: s.db.Publication, Tables: s.replication.Tables,
		Membership: s.stream.Publication.Membership, Every: watchEvery, Grace: s.db.ShutdownGrace, Report: s.look, Lost: s.hurry,
	}
	return nil
}
