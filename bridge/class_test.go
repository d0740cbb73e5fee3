package bridge

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// judged is an error and what the table must say of it.
type judged struct {
	name  string
	err   error
	class Class
	hint  string // a part of it; "" wants none
}

func (j judged) check(t *testing.T) {
	t.Helper()
	v := classify(j.err)
	if v.class != j.class || !strings.Contains(v.hint, j.hint) || (j.hint == "") != (v.hint == "") {
		t.Errorf("%s: %v:\n got %s, %q\nwant %s, %q", j.name, j.err, v.class, v.hint, j.class, j.hint)
	}
}

// checkAll checks cases whose errors reach the table wrapped. A case without a name is called by its error.
func checkAll(t *testing.T, wrap func(error) error, cases []judged) {
	t.Helper()
	for _, j := range cases {
		j.name = cmp.Or(j.name, j.err.Error())
		j.err = wrap(j.err)
		j.check(t)
	}
}

const unknownHint = "does not know this error"

func TestErrorsOfTheRooms(t *testing.T) {
	at := decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: 0x1500000}
	poison := &sink.PoisonError{Refused: sink.Refused{Position: at, Topic: "orders"}, Reason: "too large"}
	wrap := func(err error) error { return fmt.Errorf("session: %w", err) }
	checkAll(t, wrap, []judged{
		{"an event against the contract", &decode.ContractError{Position: at, Where: "public.outbox", Reason: "null"}, Poison, "what writes such events"},
		{"an event that is no record", poison, Poison, "kafka.max_record"},
		{"poison, and Kafka fails at the drain", errors.Join(poison, kgo.ErrClientClosed), Poison, "kafka.max_record"},
		{"a lost slot", &replication.SlotLostError{Slot: "s", Reason: "wal_removed"}, Lost, "max_slot_wal_keep_size"},
		{"a precondition", &replication.PreconditionError{Reason: "wal_level", Hint: "ALTER SYSTEM"}, Fatal, "ALTER SYSTEM"},
		{"no slot", fmt.Errorf("slot %q: %w", "s", replication.ErrNoSlot), Fatal, "walferry init"},
		{"a malformed pgoutput message", &decode.MalformedError{Message: 'I'}, Fatal, "nothing was confirmed past it"},
		{"a malformed replication message", &replication.MalformedError{Size: 1}, Fatal, "nothing was confirmed past it"},
		{"an outage of Kafka", fmt.Errorf("write: %w", checkpoint.ErrUnanswered), Retry, ""},
		{"the stream's end", replication.ErrStreamEnded, Retry, ""},
		{"frozen", fmt.Errorf("slot: %w", replication.ErrStoodStill), Retry, ""},
		{"silence", fmt.Errorf("slot: %w", replication.ErrSilent), Retry, ""},
		{"a shutdown", fmt.Errorf("slot: %w", replication.ErrServerShutdown), Retry, ""},
		{"a standby", replication.ErrInRecovery, Retry, ""},
		{"no host is read-write", fmt.Errorf("connect: %w", pgconn.ErrReadOnlyConnection), Retry, ""},
		{"no host is primary", fmt.Errorf("connect: %w", pgconn.ErrStandbyConnection), Retry, ""},
		{"SQL led elsewhere", fmt.Errorf("slot: %w", replication.ErrOtherServer), Retry, ""},
		{"a connection that broke in an answer", fmt.Errorf("read slot: %w", pgconn.ErrConnClosed), Retry, ""},
		{"a gap on another server", &replication.GapError{Slot: "s", OtherServer: true}, Gap, "shut this server down or take it out of the DSN"},
		{"a gap", &replication.GapError{Slot: "s", From: 1, To: 2}, Gap, "--accept-gap"},
		{"no checkpoint", &NoCheckpointError{"t", "k"}, Fatal, "--adopt-slot"},
		{"a topic that keeps no checkpoints", &checkpoint.TopicError{Topic: "t", Hint: "alter it"}, Fatal, "alter it"},
		{"a checkpoint that nobody can read", &checkpoint.CorruptError{Reason: "x"}, Fatal, "who wrote it"},
		{"fenced", &checkpoint.FencedError{Topic: "t", Err: kerr.ProducerFenced}, Retry, ""},
		{"a missing topic", &sink.MissingTopicError{Topic: "orders"}, Fatal, "--create --topic orders"},
		{"a topic that has vanished", &sink.MissingTopicError{Topic: "orders", Vanished: true}, Fatal, "find out who deleted it"},
		{"anything else", errors.New("new to us"), Fatal, unknownHint},
	})
}

func TestErrorsOfPostgres(t *testing.T) {
	code := func(sqlstate string) error {
		return &pgconn.PgError{Severity: "FATAL", Code: sqlstate, Message: "translated"}
	}
	away := &pgconn.PgError{Severity: "ERROR", Code: "55000", Message: "translated", File: "slot.c", Routine: "StandbySlotsHaveCaughtup"}
	wrap := func(err error) error { return fmt.Errorf("read from slot %q: %w", "s", err) }
	checkAll(t, wrap, []judged{
		{"a shutdown while a standby is away", away, Retry, ""},
		{"", code("55006"), Standby, ""},     // object_in_use: the slot
		{"", code("08000"), Retry, ""},       // connection_exception
		{"", code("08006"), Retry, ""},       // connection_failure
		{"", code("08P01"), Fatal, "pooler"}, // protocol_violation
		{"", code("40001"), Retry, ""},
		{"", code("55P03"), Retry, ""},
		{"", code("57014"), Retry, ""},               // query_canceled
		{"", code("57P01"), Retry, ""},               // admin_shutdown
		{"", code("57P02"), Retry, ""},               // crash_shutdown
		{"", code("57P03"), Retry, ""},               // cannot_connect_now
		{"", code("57P05"), Retry, ""},               // idle_session_timeout
		{"", code("53000"), Retry, ""},               // insufficient_resources
		{"", code("53100"), Retry, ""},               // disk_full
		{"", code("53200"), Retry, ""},               // out_of_memory
		{"", code("53300"), Retry, ""},               // too_many_connections
		{"", code("53400"), Retry, ""},               // configuration_limit_exceeded: no free slot or sender
		{"", code("58030"), Retry, ""},               // io_error
		{"", code("28000"), Fatal, "pg_hba.conf"},    // invalid_authorization_specification
		{"", code("28P01"), Fatal, "password"},       // invalid_password
		{"", code("3D000"), Fatal, "does not exist"}, // invalid_catalog_name
		{"", code("42501"), Fatal, "REPLICATION"},    // insufficient_privilege
		{"", code("42704"), Fatal, "walferry init"},  // undefined_object
		{"", code("55000"), Fatal, "see its log"},    // object_not_in_prerequisite_state
		{"", code("22021"), Fatal, "encoding"},       // character_not_in_repertoire
		{"", code("57P04"), Fatal, "SQLSTATE"},       // database_dropped
		{"", code("58P01"), Fatal, "SQLSTATE"},       // undefined_file
		{"", code("XX000"), Fatal, "SQLSTATE"},       // internal_error
		{"", code("XX001"), Fatal, "SQLSTATE"},       // data_corrupted
	})
}

// Errors of the brokers that reach a session before any record is sent.
func TestErrorsOfBrokers(t *testing.T) {
	const grant, login, defaults = "grant the client WRITE", "check kafka.sasl", "create the topic yourself"
	wrap := func(err error) error {
		return fmt.Errorf("create topic %q: %w", "orders", fmt.Errorf("%w: as the broker says", err))
	}
	checkAll(t, wrap, []judged{
		{"", kerr.TopicAuthorizationFailed, Fatal, grant},
		{"", kerr.ClusterAuthorizationFailed, Fatal, grant},
		{"", kerr.TransactionalIDAuthorizationFailed, Fatal, grant},
		{"", kerr.SaslAuthenticationFailed, Fatal, login},
		{"", kerr.UnsupportedSaslMechanism, Fatal, login},
		{"", kerr.IllegalSaslState, Fatal, login},
		{"", kerr.PolicyViolation, Fatal, defaults},
		{"", kerr.InvalidReplicationFactor, Fatal, defaults},
		{"", kerr.InvalidPartitions, Fatal, defaults},
		{"", kerr.NotController, Retry, ""},
		{"", kerr.CoordinatorNotAvailable, Retry, ""},
		{"", kerr.RequestTimedOut, Retry, ""},
		{"", kerr.TransactionAbortable, Retry, ""}, // of checkpoints, as the following
		{"", kerr.InvalidTxnState, Retry, ""},
		{"", kerr.OperationNotAttempted, Retry, ""},
		{"", kerr.ConcurrentTransactions, Retry, ""},
		{"", kerr.OutOfOrderSequenceNumber, Retry, ""},
		{"", kerr.UnknownServerError, Retry, ""},
		{"", kerr.TransactionalIDAuthorizationFailed, Fatal, "transactional IDs"},
		{"", kerr.UnsupportedVersion, Fatal, unknownHint},
		{"", kerr.SecurityDisabled, Fatal, unknownHint},
	})
}

// Errors of a record: most end with the session, and the next one sends it again.
func TestErrorsOfPublishing(t *testing.T) {
	wrap := func(err error) error {
		return fmt.Errorf("wait for Kafka's acknowledgements: %w", &sink.PublishError{Refused: sink.Refused{Topic: "orders"}, Err: fmt.Errorf("produce: %w", err)})
	}
	checkAll(t, wrap, []judged{
		{"", kerr.MessageTooLarge, Poison, "max.message.bytes"},
		{"", kerr.RecordListTooLarge, Poison, "max.message.bytes"},
		{"", kerr.InvalidRecord, Poison, "refuse this record"},
		{"", kerr.InvalidTopicException, Poison, "refuse this record"},
		{"", kerr.UnknownTopicOrPartition, Retry, ""}, // the next session looks whether it has vanished
		{"", kerr.UnknownTopicID, Retry, ""},
		{"", kerr.TopicAuthorizationFailed, Fatal, "grant the client WRITE, DESCRIBE"},
		{"", kerr.ClusterAuthorizationFailed, Fatal, "grant the client WRITE, DESCRIBE"},
		{"", kerr.OutOfOrderSequenceNumber, Retry, ""},
		{"", kerr.InvalidProducerEpoch, Retry, ""},
		{"", kerr.UnknownProducerID, Retry, ""},
		{"", kerr.NotEnoughReplicas, Retry, ""},
		{"", kerr.SaslAuthenticationFailed, Retry, ""}, // the next session's connect says it
		{"", kerr.InvalidTimestamp, Fatal, "clock"},    // ours, and not the event's
		{"", kerr.PolicyViolation, Fatal, "the brokers refuse the record"},
		{"", errors.New("new to us"), Fatal, "the brokers refuse the record"},
		{"", kgo.ErrRecordTimeout, Retry, ""},
		{"", kgo.ErrClientClosed, Retry, ""},
		{"", context.Canceled, Retry, ""},
	})
}

func TestErrorsOfNetworks(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("connect: %w", err) }
	checkAll(t, wrap, []judged{
		{"no such host", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}, Retry, ""},
		{"reset", &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, Retry, ""},
		{"reset, bare", syscall.ECONNRESET, Retry, ""},
		{"refused, bare", syscall.ECONNREFUSED, Retry, ""},
		{"broken pipe", syscall.EPIPE, Retry, ""},
		{"end of file", io.EOF, Retry, ""},
		{"end within a message", io.ErrUnexpectedEOF, Retry, ""},
		{"closed", net.ErrClosed, Retry, ""},
		{"closed pipe", io.ErrClosedPipe, Retry, ""},
		{"too late", context.DeadlineExceeded, Retry, ""},
		{"a client that is closed", kgo.ErrClientClosed, Retry, ""},
	})
}

// closedAddr is an address that refuses connections.
func closedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listen answers every connection to the returned address with serve and closes it.
func listen(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// patience bounds a connect that must end by itself, glance one that must not.
const patience, glance = 30 * time.Second, 100 * time.Millisecond

// webServer is not a broker, but it speaks TLS, with a certificate that trusting trusts.
func webServer(t *testing.T, clientAuth tls.ClientAuthType) (addr string, trusting *tls.Config) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: clientAuth}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return server.Listener.Addr().String(), &tls.Config{RootCAs: roots}
}

func TestConnectingToKafka(t *testing.T) {
	secure, trusting := webServer(t, tls.NoClientCert)
	picky, trustingPicky := webServer(t, tls.RequireAnyClientCert)
	elsewhere, late := trusting.Clone(), trusting.Clone()
	elsewhere.ServerName = "elsewhere.invalid"
	late.Time = func() time.Time { return time.Now().AddDate(100, 0, 0) }
	web := listen(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.0 400 Bad Request\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	for _, test := range []struct {
		judged
		addr    string
		tls     *tls.Config
		timeout time.Duration
	}{
		{judged{"nobody there", nil, Retry, ""}, closedAddr(t), nil, patience},
		{judged{"hanging up", nil, Retry, ""}, listen(t, func(net.Conn) {}), nil, patience},
		{judged{"hanging up on TLS", nil, Retry, ""}, listen(t, func(net.Conn) {}), trusting, patience},
		{judged{"silence on TLS", nil, Retry, ""}, listen(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }), trusting, glance},
		{judged{"an authority that we do not trust", nil, Fatal, "check the CA"}, secure, &tls.Config{}, patience},
		{judged{"another host's certificate", nil, Fatal, "check the CA"}, secure, elsewhere, patience},
		{judged{"an expired certificate", nil, Fatal, "check the CA"}, secure, late, patience},
		{judged{"no client certificate", nil, Fatal, "client certificate"}, picky, trustingPicky, patience},
		{judged{"TLS to a plain port", nil, Fatal, "does not speak TLS"}, web, trusting, patience},
		{judged{"no broker", nil, Fatal, unknownHint}, web, nil, patience},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
			defer cancel()
			client := []kgo.Opt{kgo.SeedBrokers(test.addr)}
			if test.tls != nil {
				client = append(client, kgo.DialTLSConfig(test.tls))
			}
			k, err := sink.Open(ctx, sink.Config{
				Client: client, Compression: sink.LZ4(), MaxBuffered: 1 << 20, MaxRecord: 1 << 16, MaxBufferedRecords: 16 << 10, Topics: &sink.Topics{},
			})
			if err == nil {
				k.Close()
				t.Fatal("connected")
			}
			test.err = err
			test.check(t)
		})
	}
}

func TestConnectingToPostgres(t *testing.T) {
	// answer reads the request for TLS and answers it.
	answer := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			if _, err := io.ReadFull(conn, make([]byte, 8)); err == nil {
				_, _ = io.WriteString(conn, text)
			}
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	for _, test := range []struct {
		judged
		addr    string
		timeout time.Duration
	}{
		{judged{"nobody there", nil, Retry, ""}, closedAddr(t), patience},
		{judged{"hanging up", nil, Retry, ""}, listen(t, func(net.Conn) {}), patience},
		{judged{"silence", nil, Retry, ""}, listen(t, answer("")), glance},
		{judged{"no TLS", nil, Fatal, "compare sslmode"}, listen(t, answer("N")), patience},
		{judged{"no TLS although it says so", nil, Fatal, "does not speak TLS"}, listen(t, answer("SHTTP/1.0 400 Bad Request\r\n\r\n")), patience},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := pgx.ParseConfig("postgres://walferry@" + test.addr + "/shop?sslmode=require")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
			defer cancel()
			if _, test.err = replication.ConnectSQL(ctx, cfg); test.err == nil {
				t.Fatal("connected")
			}
			test.check(t)
		})
	}
}

func TestExitCodes(t *testing.T) {
	for class, want := range map[Class]int{Retry: 1, Standby: 1, Poison: 65, Lost: 66, Fatal: 1} {
		if got := class.ExitCode(); got != want {
			t.Errorf("%s: exit code %d, want %d", class, got, want)
		}
	}
}

func TestAnErrorSaysWhereAndWhatToDo(t *testing.T) {
	err := &Error{Database: "shop", Class: Fatal, Err: replication.ErrNoSlot}
	if got, want := err.Error(), "database shop: the slot does not exist"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err.Hint = "make one"
	if got, want := err.Error(), "database shop: the slot does not exist (hint: make one)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, replication.ErrNoSlot) {
		t.Error("the cause cannot be found in it")
	}
}
