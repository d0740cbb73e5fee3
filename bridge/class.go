package bridge

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// Class says what an error means to a bridge.
type Class string

// The classes, and what follows from each.
const (
	Retry   Class = "retry"     // end the session, wait, start a new one
	Standby Class = "standby"   // somebody else holds the slot: wait for it
	Poison  Class = "poison"    // an event that can never be published: stop before it
	Lost    Class = "slot_lost" // the server has thrown the slot's WAL away: stop
	Gap     Class = "gap"       // events may exist that were not published: stop
	Fatal   Class = "fatal"     // somebody has to do something first: stop
)

// ExitCode is what a process ends with after an error of this class (README,
// "Exit codes"). 2 is Go's own, of a panic: a broken invariant.
func (c Class) ExitCode() int {
	switch c {
	case Poison:
		return 65
	case Lost:
		return 66
	case Gap:
		return 67
	}
	return 1
}

// verdict is what is known of an error.
type verdict struct {
	class Class
	hint  string // what to do next, may be empty
}

// classify judges an error by the first rule that knows it. An error that no rule knows
// is fatal: to go on would be a guess.
func classify(err error) verdict {
	for _, rule := range rules {
		if v, ok := rule(err); ok {
			return v
		}
	}
	return verdict{Fatal, "walferry does not know this error and will not guess; report it unless its text says what to do"}
}

// wayOut is of every event that can never be published.
const wayOut = "`walferry poison show` says how to move it out of the way"

type rule func(error) (verdict, bool)

// rules is the one table of errors, most specific first.
var rules = []rule{
	as(func(e *table.RowError) verdict {
		return verdict{Poison, "correct the row or delete it: SELECT … WHERE tableoid = … AND ctid = … shows it"}
	}),
	as(func(e *decode.ContractError) verdict {
		return verdict{Poison, "correct the table, or what writes such events; until then nothing behind it is published; " + wayOut}
	}),
	as(func(e *sink.PoisonError) verdict {
		return verdict{Poison, "see kafka.max_record and outbox.topic; until then nothing behind it is published; " + wayOut}
	}),
	as(func(e *replication.SlotLostError) verdict {
		return verdict{Lost, "events between the last confirmed LSN and now are not in WAL any more: `walferry recover` publishes those whose rows the outbox table still holds, and makes a new slot; raise max_slot_wal_keep_size"}
	}),
	as(func(e *replication.GapError) verdict {
		if e.OtherServer {
			return verdict{Gap, "if another server is the primary, shut this server down or take it out of the DSN, and start walferry again; only if this one is to stay: publish from the outbox table what is missing behind that position, then: `walferry run --accept-gap`"}
		}
		return verdict{Gap, "`walferry recover` publishes what the outbox table still holds of it, and makes a new slot if there is none; to go on without: `walferry run --accept-gap`, or, if the slot is gone, `walferry init --accept-gap`"}
	}),
	as(func(e *NoCheckpointError) verdict {
		return verdict{Fatal, "a new slot: drop it and run `walferry init`; a slot that walferry has used, or whose events are known to be published: `walferry run --adopt-slot`, once; checkpoint.topic: \"\" does without"}
	}),
	as(func(e *checkpoint.TopicError) verdict { return verdict{Fatal, e.Hint} }),
	as(func(e *checkpoint.FencedError) verdict { return verdict{Retry, ""} }), // the next session finds out who has the slot
	as(func(e *checkpoint.HangingError) verdict {
		return verdict{Fatal, "find out, by the ids in the partitions, whether its events were published or not; then end it with `kafka-transactions.sh --bootstrap-server <broker> abort --topic <topic> --partition <partition> --start-offset <of find-hanging>`, publish what is missing, and restart walferry"}
	}),
	as(func(e *checkpoint.CorruptError) verdict {
		return verdict{Fatal, "find out who wrote it; if what was published is known: delete the topic, then `walferry run --adopt-slot`"}
	}),
	as(func(e *DeadLetterError) verdict { return verdict{Fatal, e.Hint} }),
	as(func(e *replication.PreconditionError) verdict { return verdict{Fatal, e.Hint} }),
	is(Fatal, "run `walferry init`; events before the slot exists are not published", replication.ErrNoSlot),
	as(func(e *decode.MalformedError) verdict { return malformed }),
	as(func(e *replication.MalformedError) verdict { return malformed }),
	as(missingTopic),
	is(Retry, "", checkpoint.ErrUnanswered, replication.ErrStreamEnded, replication.ErrSilent, replication.ErrStoodStill, replication.ErrServerShutdown, replication.ErrInRecovery,
		replication.ErrOtherServer, pgconn.ErrConnClosed, // all that pgx may leave of a connection that broke in an answer
		pgconn.ErrReadOnlyConnection, pgconn.ErrStandbyConnection), // target_session_attrs: a failover is under way
	standbyIsAway,
	as(func(e *pgconn.PgError) verdict { return sqlState(e.Code) }),
	published,
	is(Fatal, "grant the client WRITE, DESCRIBE and, for kafka.topics.create, CREATE on the topic; READ and DESCRIBE_CONFIGS as well on checkpoint.topic; and IDEMPOTENT_WRITE on clusters before 2.8; `walferry reconcile` needs READ and DESCRIBE_CONFIGS on all topics of events, READ and DESCRIBE on kafka.dead_letter_topic",
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed),
	is(Fatal, "grant the client WRITE on transactional IDs that begin with walferry/", kerr.TransactionalIDAuthorizationFailed),
	is(Fatal, "check kafka.sasl and the listener's mechanisms", kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState),
	// The next session begins with another producer.
	is(Retry, "", kerr.TransactionAbortable, kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidTxnState,
		kerr.OperationNotAttempted, kerr.ConcurrentTransactions, kerr.UnknownServerError),
	is(Fatal, "compare this host's clock with the brokers'", kerr.InvalidTimestamp),
	is(Fatal, "create the topic yourself: the broker refuses its defaults", kerr.PolicyViolation, kerr.InvalidReplicationFactor, kerr.InvalidPartitions),
	as(func(e *tls.CertificateVerificationError) verdict { return certificates }),
	as(func(e x509.UnknownAuthorityError) verdict { return certificates }),
	as(func(e x509.HostnameError) verdict { return certificates }),
	as(func(e x509.CertificateInvalidError) verdict { return certificates }),
	tlsAlert,
	as(func(e tls.RecordHeaderError) verdict {
		return verdict{Fatal, "the other side does not speak TLS on this port"}
	}),
	retriable,
	as(func(e *pgconn.ConnectError) verdict { return unequal }),
	as(func(e *sink.PublishError) verdict { return refused }),
}

var (
	malformed    = verdict{Fatal, "nothing was confirmed past it; report it with the versions of Postgres and walferry"}
	certificates = verdict{Fatal, "check the CA, the host name and the validity of the certificate"}
	refused      = verdict{Fatal, "the brokers refuse the record: see their logs and the topic's configuration"}
	// What pgconn refuses by itself has no type: TLS, authentication methods, versions.
	unequal = verdict{Fatal, "the server does not offer what the DSN asks for: compare sslmode with the server's ssl, channel_binding and require_auth with pg_hba.conf"}
)

// as is a rule for errors of one type.
func as[E error](judge func(E) verdict) rule {
	return func(err error) (verdict, bool) {
		if e, ok := errors.AsType[E](err); ok {
			return judge(e), true
		}
		return verdict{}, false
	}
}

// is is a rule for certain errors.
func is(class Class, hint string, targets ...error) rule {
	return func(err error) (verdict, bool) {
		return verdict{class, hint}, isAny(err, targets...)
	}
}

// standbyIsAway knows how a walsender that waits for a standby (synchronized_standby_slots) ends when its server shuts
// down: with 55000, of which nothing else passes. What tells it from others is the function in Postgres (slot.c).
func standbyIsAway(err error) (verdict, bool) {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return verdict{Retry, ""}, ok && e.Routine == "StandbySlotsHaveCaughtup"
}

// passing are the SQLSTATEs of what a new session may cure: connection exceptions, timeouts of
// idle sessions and transactions, rolled back, lock not available, pg_cancel_backend and
// statement_timeout, admin and crash shutdown, cannot connect now, out of connections, memory
// or disk, I/O error.
var passing = []string{"08", "25P03", "57P05", "40", "55P03", "57014", "57P01", "57P02", "57P03", "53", "58030"}

// sqlState judges by Postgres' SQLSTATE, a class of two characters or a whole code
// (src/backend/utils/errcodes.txt).
func sqlState(code string) verdict {
	if code != "08P01" && slices.ContainsFunc(passing, func(prefix string) bool { return strings.HasPrefix(code, prefix) }) {
		return verdict{Retry, ""}
	}
	for _, s := range []struct {
		prefix string
		verdict
	}{
		{"55006", verdict{Standby, ""}},
		{"08P01", verdict{Fatal, "is there a pooler in between? walferry needs a direct connection"}},
		{"28", verdict{Fatal, "check user, password, client certificate and pg_hba.conf; a replication connection matches lines of its database, not `replication`"}},
		{"3D000", verdict{Fatal, "the database of the DSN does not exist"}},
		{"42501", verdict{Fatal, "the role needs LOGIN and REPLICATION: see `walferry init --print`"}},
		{"42704", verdict{Fatal, "slot or publication is missing, now or when this WAL was written: run `walferry init`; a slot older than its publication must be recreated"}},
		{"55000", verdict{Fatal, "the server cannot stream from this slot: see its log"}},
		{"22021", verdict{Fatal, "the WAL holds bytes that are not valid in the database's encoding"}},
	} {
		if strings.HasPrefix(code, s.prefix) {
			return s.verdict
		}
	}
	return verdict{Fatal, "unexpected SQLSTATE: see the server's log"}
}

// published judges what became of a record, as far as that differs from other errors of Kafka.
func published(err error) (verdict, bool) {
	e, ok := errors.AsType[*sink.PublishError](err)
	out := wayOut
	if ok && e.Position == (decode.Position{}) {
		out = "or correct the row or delete it"
	}
	switch {
	case !ok:
	case isAny(err, kerr.MessageTooLarge, kerr.RecordListTooLarge):
		return verdict{Poison, "raise max.message.bytes of the topic to kafka.max_record or above, or lower kafka.max_record so that such events are found before they are sent; " + out}, true
	case isAny(err, kerr.InvalidRecord, kerr.InvalidTopicException):
		return verdict{Poison, "the brokers refuse this record: see the topic's configuration; " + out}, true
	case isAny(err, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, // the next session looks whether it has vanished
		kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidProducerIDMapping,
		kerr.SaslAuthenticationFailed, // the next session reads the secret anew
		kgo.ErrRecordTimeout, kgo.ErrRecordRetries, context.Canceled):
		return verdict{Retry, ""}, true
	case isAny(err, kerr.PolicyViolation): // of a record, not of creating its topic
		return refused, true
	}
	return verdict{}, false
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

func missingTopic(e *sink.MissingTopicError) verdict {
	create := fmt.Sprintf("kafka-topics.sh --bootstrap-server <broker> --create --topic %s %s", e.Topic, cmp.Or(e.Options, "--partitions <n>"))
	if e.Vanished {
		return verdict{Fatal, "find out who deleted it, and whether consumers need its events again; then: " + create}
	}
	return verdict{Fatal, create}
}

// tlsAlert knows the other side's TLS alerts. crypto/tls does not export their type on TCP,
// but wraps nothing else like this.
func tlsAlert(err error) (verdict, bool) {
	e, ok := errors.AsType[*net.OpError](err)
	return verdict{Fatal, "the other side refuses our part of TLS: does it want a client certificate, or one of another CA?"}, ok && e.Op == "remote error"
}

// retriable knows the errors of a network.
func retriable(err error) (verdict, bool) {
	var netErr net.Error
	_, op := errors.AsType[*net.OpError](err)
	_, dns := errors.AsType[*net.DNSError](err)
	// net.Error alone would take in a file that does not exist.
	ok := op || dns || errors.As(err, &netErr) && netErr.Timeout() || kerr.IsRetriable(err) ||
		isAny(err, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, kgo.ErrClientClosed,
			syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE)
	return verdict{Retry, ""}, ok
}
