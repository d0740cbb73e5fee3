package bridge

import (
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

const unknownHint = "does not know this error"

func TestErrorsOfTheRooms(t *testing.T) {
	at := decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: 0x1500000}
	poison := &sink.PoisonError{Position: at, Topic: "orders", Reason: "too large"}
	for _, j := range []judged{
		{"an event against the contract", &decode.ContractError{Position: at, Where: "public.outbox", Reason: "null"}, Poison, "what writes such events"},
		{"an event that is no record", poison, Poison, "kafka.max_record"},
		{"poison, and Kafka fails at the drain", errors.Join(poison, kgo.ErrClientClosed), Poison, "kafka.max_record"},
		{"a lost slot", &replication.SlotLostError{Slot: "s", Reason: "wal_removed"}, Lost, "max_slot_wal_keep_size"},
		{"a precondition", &replication.PreconditionError{Reason: "wal_level", Hint: "ALTER SYSTEM"}, Fatal, "ALTER SYSTEM"},
		{"no slot", fmt.Errorf("slot %q: %w", "s", replication.ErrNoSlot), Fatal, "walferry init"},
		{"a malformed pgoutput message", &decode.MalformedError{Message: 'I'}, Fatal, "nothing was confirmed past it"},
		{"a malformed replication message", &replication.MalformedError{Size: 1}, Fatal, "nothing was confirmed past it"},
		{"the stream's end", replication.ErrStreamEnded, Retry, ""},
		{"silence", fmt.Errorf("slot: %w", replication.ErrSilent), Retry, ""},
		{"a shutdown", fmt.Errorf("slot: %w", replication.ErrServerShutdown), Retry, ""},
		{"a standby", replication.ErrInRecovery, Retry, ""},
		{"no host is read-write", fmt.Errorf("connect: %w", pgconn.ErrReadOnlyConnection), Retry, ""},
		{"no host is primary", fmt.Errorf("connect: %w", pgconn.ErrStandbyConnection), Retry, ""},
		{"a missing topic", &sink.MissingTopicError{Topic: "orders"}, Fatal, "--create --topic orders"},
		{"a topic that has vanished", &sink.MissingTopicError{Topic: "orders", Vanished: true}, Fatal, "find out who deleted it"},
		{"anything else", errors.New("new to us"), Fatal, unknownHint},
	} {
		j.err = fmt.Errorf("session: %w", j.err)
		j.check(t)
	}
}

func TestErrorsOfPostgres(t *testing.T) {
	for code, want := range map[string]judged{
		"55006": {class: Standby},               // object_in_use: the slot
		"08000": {class: Retry},                 // connection_exception
		"08006": {class: Retry},                 // connection_failure
		"08P01": {class: Fatal, hint: "pooler"}, // protocol_violation
		"40001": {class: Retry},
		"55P03": {class: Retry},
		"57014": {class: Retry},                         // query_canceled
		"57P01": {class: Retry},                         // admin_shutdown
		"57P02": {class: Retry},                         // crash_shutdown
		"57P03": {class: Retry},                         // cannot_connect_now
		"57P05": {class: Retry},                         // idle_session_timeout
		"53000": {class: Retry},                         // insufficient_resources
		"53100": {class: Retry},                         // disk_full
		"53200": {class: Retry},                         // out_of_memory
		"53300": {class: Retry},                         // too_many_connections
		"53400": {class: Retry},                         // configuration_limit_exceeded: no free slot or sender
		"58030": {class: Retry},                         // io_error
		"28000": {class: Fatal, hint: "pg_hba.conf"},    // invalid_authorization_specification
		"28P01": {class: Fatal, hint: "password"},       // invalid_password
		"3D000": {class: Fatal, hint: "does not exist"}, // invalid_catalog_name
		"42501": {class: Fatal, hint: "REPLICATION"},    // insufficient_privilege
		"42704": {class: Fatal, hint: "walferry init"},  // undefined_object
		"55000": {class: Fatal, hint: "see its log"},    // object_not_in_prerequisite_state
		"22021": {class: Fatal, hint: "encoding"},       // character_not_in_repertoire
		"57P04": {class: Fatal, hint: "SQLSTATE"},       // database_dropped
		"58P01": {class: Fatal, hint: "SQLSTATE"},       // undefined_file
		"XX000": {class: Fatal, hint: "SQLSTATE"},       // internal_error
		"XX001": {class: Fatal, hint: "SQLSTATE"},       // data_corrupted
	} {
		want.name, want.err = code, fmt.Errorf("read from slot %q: %w", "s", &pgconn.PgError{Severity: "FATAL", Code: code, Message: "translated"})
		want.check(t)
	}
}

// Errors of the brokers that reach a session before any record is sent.
func TestErrorsOfBrokers(t *testing.T) {
	const grant, login, defaults = "grant the client WRITE", "check kafka.sasl", "create the topic yourself"
	for err, want := range map[*kerr.Error]judged{
		kerr.TopicAuthorizationFailed:           {class: Fatal, hint: grant},
		kerr.ClusterAuthorizationFailed:         {class: Fatal, hint: grant},
		kerr.TransactionalIDAuthorizationFailed: {class: Fatal, hint: grant},
		kerr.SaslAuthenticationFailed:           {class: Fatal, hint: login},
		kerr.UnsupportedSaslMechanism:           {class: Fatal, hint: login},
		kerr.IllegalSaslState:                   {class: Fatal, hint: login},
		kerr.PolicyViolation:                    {class: Fatal, hint: defaults},
		kerr.InvalidReplicationFactor:           {class: Fatal, hint: defaults},
		kerr.InvalidPartitions:                  {class: Fatal, hint: defaults},
		kerr.NotController:                      {class: Retry},
		kerr.CoordinatorNotAvailable:            {class: Retry},
		kerr.RequestTimedOut:                    {class: Retry},
		kerr.UnsupportedVersion:                 {class: Fatal, hint: unknownHint},
		kerr.SecurityDisabled:                   {class: Fatal, hint: unknownHint},
	} {
		want.name, want.err = err.Message, fmt.Errorf("create topic %q: %w", "orders", fmt.Errorf("%w: as the broker says", err))
		want.check(t)
	}
}

// Errors of a record: most end with the session, and the next one sends it again.
func TestErrorsOfPublishing(t *testing.T) {
	for _, j := range []judged{
		{"", kerr.MessageTooLarge, Poison, "max.message.bytes"},
		{"", kerr.RecordListTooLarge, Poison, "max.message.bytes"},
		{"", kerr.InvalidRecord, Poison, "refuse this record"},
		{"", kerr.InvalidTopicException, Poison, "refuse this record"},
		{"", kerr.UnknownTopicOrPartition, Retry, ""}, // the next session looks whether it has vanished
		{"", kerr.UnknownTopicID, Retry, ""},
		{"", kerr.TopicAuthorizationFailed, Fatal, "grant the client WRITE on the topic"},
		{"", kerr.ClusterAuthorizationFailed, Fatal, "grant the client WRITE on the topic"},
		{"", kerr.OutOfOrderSequenceNumber, Retry, ""},
		{"", kerr.InvalidProducerEpoch, Retry, ""},
		{"", kerr.UnknownProducerID, Retry, ""},
		{"", kerr.NotEnoughReplicas, Retry, ""},
		{"", kerr.SaslAuthenticationFailed, Retry, ""}, // the next session's connect says it
		{"", kerr.InvalidTimestamp, Poison, "refuse this record"},
		{"", kerr.PolicyViolation, Fatal, "the brokers refuse the record"},
		{"", errors.New("new to us"), Fatal, "the brokers refuse the record"},
		{"", kgo.ErrRecordTimeout, Retry, ""},
		{"", kgo.ErrClientClosed, Retry, ""},
		{"", context.Canceled, Retry, ""},
	} {
		j.name = j.err.Error()
		j.err = fmt.Errorf("wait for Kafka's acknowledgements: %w", &sink.PublishError{Topic: "orders", Err: fmt.Errorf("produce: %w", j.err)})
		j.check(t)
	}
}

func TestErrorsOfNetworks(t *testing.T) {
	for _, j := range []judged{
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
	} {
		j.err = fmt.Errorf("connect: %w", j.err)
		j.check(t)
	}
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
			k, err := sink.Open(ctx, sink.Config{
				Brokers: []string{test.addr}, ClientID: "test", TLS: test.tls,
				MaxBuffered: 1 << 20, MaxRecord: 1 << 16, Topics: &sink.Topics{},
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
