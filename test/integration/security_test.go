package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/setup"
	"github.com/walferry/walferry/internal/servers"
)

// What no log line and no error may show.
const (
	secretKey      = "s3cret-key"
	secretPayload  = "s3cret-payload"
	secretPassword = "s3cret-p4ssword"
	wrongPassword  = "s3cret-but-wr0ng"
	privateKey     = "PRIVATE KEY"
)

// Parts of the hints in bridge/class.go.
const (
	checkCertificate = "check the CA, the host name and the validity of the certificate"
	checkLogin       = "check user, password, client certificate and pg_hba.conf"
	clientRefused    = "does it want a client certificate"
	checkSASL        = "check kafka.sasl"
)

// soon is how long a bridge may take to stop for what waiting does not cure.
const soon = 30 * time.Second

// in returns the world for a subtest, with a configuration of its own.
func (w *world) in(t *testing.T) *world {
	sub, cfg := *w, *w.cfg
	cfg.Databases = slices.Clone(cfg.Databases)
	sub.t, sub.cfg = t, &cfg
	return &sub
}

// runVerbosely is run for a bridge that logs all it has to say.
func (w *world) runVerbosely(until string) *running {
	w.t.Helper()
	return w.start(w.options(until, zerolog.DebugLevel))
}

// keepsSecrets looks for secrets in what a bridge that has ended said.
func (r *running) keepsSecrets() {
	r.t.Helper()
	said := r.log.String() + r.bridge.Status().LastError + fmt.Sprint(r.err)
	for _, secret := range []string{secretKey, secretPayload, secretPassword, wrongPassword, privateKey} {
		if strings.Contains(said, secret) {
			r.t.Errorf("%q is in the log or in an error", secret)
		}
	}
}

// emitSecret writes an event and returns its id.
func (w *world) emitSecret(aggregateType string) string {
	w.t.Helper()
	return w.query(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
		VALUES ($1, $2, 'T', to_jsonb($3::text)) RETURNING id::text`, aggregateType, secretKey, secretPayload)
}

// delivers makes sure that a bridge publishes an event of the aggregate type, and all that
// is still due. plain are brokers that a test can read from.
func (w *world) delivers(aggregateType string, plain []string) {
	w.t.Helper()
	id := w.emitSecret(aggregateType)
	r := w.runVerbosely(w.walEnd())
	if err := r.wait(); err != nil {
		w.t.Fatal(err)
	}
	r.keepsSecrets()
	w.cfg.Kafka.Brokers = plain
	for _, record := range w.records() {
		if header(record, "id") == id && string(record.Key) == secretKey && record.Topic == w.prefix+"."+aggregateType {
			return
		}
	}
	w.t.Errorf("event %s is not in Kafka", id)
}

// refused makes sure that a bridge soon stops for something that somebody has to do, and
// that the error says all the parts.
func (w *world) refused(parts ...string) {
	w.t.Helper()
	began := time.Now()
	r := w.runVerbosely("")
	err := r.wait()
	if took := time.Since(began); took > soon {
		w.t.Errorf("it took %s to stop, want at most %s", took, soon)
	}
	e, ok := errors.AsType[*bridge.Error](err)
	if !ok || e.Class != bridge.Fatal || e.Hint == "" {
		w.t.Fatalf("ended with %v, want a fatal error with a hint", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			w.t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	r.keepsSecrets()
}

// waits makes sure that a bridge tries again and says why.
func (w *world) waits(parts ...string) {
	w.t.Helper()
	r := w.runVerbosely("")
	r.awaitState(bridge.Waiting)
	s := r.bridge.Status()
	if s.Ready {
		w.t.Error("it is ready")
	}
	for _, part := range parts {
		if !strings.Contains(s.Reason, part) {
			w.t.Errorf("the reason does not say %q: %s", part, s.Reason)
		}
	}
	r.drain()
	r.keepsSecrets()
}

// verdict is what must come of a configuration.
type verdict func(w *world)

func refused(parts ...string) verdict { return func(w *world) { w.t.Helper(); w.refused(parts...) } }

func waits(parts ...string) verdict { return func(w *world) { w.t.Helper(); w.waits(parts...) } }

func delivers(plain ...string) verdict {
	return func(w *world) { w.t.Helper(); w.delivers("order", plain) }
}

// securePostgres starts a server that lets each role in by one way only, and makes a world
// in it.
func securePostgres(t *testing.T) (*servers.PG, *world) {
	t.Helper()
	pg := ownPostgres(t, "18", servers.PostgresOptions{})
	// The file exists and stays the server's.
	err := os.WriteFile(filepath.Join(pg.DataDir(), "pg_hba.conf"), []byte(`
host    all postgres        127.0.0.1/32 trust
hostssl all encrypted       127.0.0.1/32 trust
hostssl all certified       127.0.0.1/32 cert
host    all known,powerless 127.0.0.1/32 scram-sha-256
`), 0o600)
	if err == nil {
		err = pg.SetConf(t.Context(), nil) // reload
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, pg.DSN("postgres"), nil)
	w.exec("CREATE ROLE encrypted LOGIN REPLICATION")
	w.exec("CREATE ROLE certified LOGIN REPLICATION")
	w.exec("CREATE ROLE known LOGIN REPLICATION PASSWORD '" + secretPassword + "'")
	w.exec("CREATE ROLE powerless LOGIN PASSWORD '" + secretPassword + "'")
	return pg, w
}

// tlsOn has the server speak TLS with a certificate, and take those of clients that the
// authority has signed.
func tlsOn(t *testing.T, pg *servers.PG, server keyPair, clients *authority) {
	t.Helper()
	if err := pg.SetTLS(t.Context(), server.cert, server.key, clients.pem); err != nil {
		t.Fatal(err)
	}
}

func TestPostgresOverTLS(t *testing.T) {
	pg, world := securePostgres(t)
	ca, other, namesake := newAuthority(t, "ca"), newAuthority(t, "another ca"), newAuthority(t, "ca")
	certified := func(p keyPair) string {
		cert, key := p.files(t)
		return "&sslcert=" + cert + "&sslkey=" + key
	}
	dsn := func(role, parameters string) config.Secret {
		return config.Secret(fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?%s", role, pg.Port(), world.prefix, parameters))
	}
	full, onlyCA := "sslmode=verify-full&sslrootcert="+ca.file(), "sslmode=verify-ca&sslrootcert="+ca.file()
	works := delivers(shared.kafka...)

	t.Run("a server without TLS", func(t *testing.T) {
		w := world.in(t)
		w.cfg.Databases[0].DSN = dsn("encrypted", "sslmode=require")
		w.refused("refused TLS", "compare sslmode")
	})
	for _, test := range []struct {
		name   string
		server keyPair
		dsn    config.Secret
		want   verdict
	}{
		{"verify-full", ca.server(), dsn("encrypted", full), works},
		{"verify-full with another CA", ca.server(), dsn("encrypted", "sslmode=verify-full&sslrootcert="+other.file()), refused(checkCertificate)},
		{"verify-full of a server elsewhere", ca.elsewhere(), dsn("encrypted", full), refused(checkCertificate, "127.0.0.1")},
		{"verify-full of an expired certificate", ca.expired(), dsn("encrypted", full), refused(checkCertificate, "expired")},
		{"verify-ca of a server elsewhere", ca.elsewhere(), dsn("encrypted", onlyCA), works},
		{"verify-ca with another CA", ca.server(), dsn("encrypted", "sslmode=verify-ca&sslrootcert="+other.file()), refused(checkCertificate)},
		{"verify-ca of an expired certificate", ca.expired(), dsn("encrypted", onlyCA), refused(checkCertificate, "expired")},
		{"no TLS where pg_hba.conf wants it", ca.server(), dsn("encrypted", "sslmode=disable"), refused("28000", checkLogin)},
		{"a client certificate", ca.server(), dsn("certified", full+certified(ca.client("certified"))), works},
		{"no client certificate", ca.server(), dsn("certified", full), refused("28000", checkLogin)},
		// The client keeps back what none of the server's authorities has signed, by its name.
		{"a client certificate of another CA", ca.server(), dsn("certified", full+certified(other.client("certified"))), refused("28000", checkLogin)},
		{"a client certificate of the CA's namesake", ca.server(), dsn("certified", full+certified(namesake.client("certified"))), refused(clientRefused)},
		{"somebody else's client certificate", ca.server(), dsn("certified", full+certified(ca.client("somebody"))), refused("28000", checkLogin)},
	} {
		t.Run(test.name, func(t *testing.T) {
			tlsOn(t, pg, test.server, ca)
			w := world.in(t)
			w.cfg.Databases[0].DSN = test.dsn
			test.want(w)
		})
	}
	t.Run("both connections are encrypted", func(t *testing.T) {
		tlsOn(t, pg, ca.server(), ca)
		w := world.in(t)
		w.cfg.Databases[0].DSN = dsn("encrypted", full)
		r := w.runVerbosely("")
		r.awaitState(bridge.Streaming)
		// One that is closed may still be on its way out.
		got := w.query(`SELECT string_agg(DISTINCT backend_type || ' ' || ssl, ', ')
			FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'encrypted'`)
		if want := "client backend true, walsender true"; got != want {
			t.Errorf("connections: %s, want %s", got, want)
		}
		r.drain()
	})
}

func TestPasswordsOfPostgres(t *testing.T) {
	pg, world := securePostgres(t)
	works := delivers(shared.kafka...)
	url := func(user, password string) string {
		return fmt.Sprintf("dsn: postgres://%s:%s@127.0.0.1:%d/%s", user, password, pg.Port(), world.prefix)
	}
	file := func(content string) string { return "\n    password_file: " + secretFile(t, content) }
	for _, test := range []struct {
		name string
		yaml string
		want verdict
	}{
		{"in the DSN", url("known", secretPassword), works},
		{"from the environment", url("known", "${PGSECRET}"), works},
		{"in a file", url("known", wrongPassword) + file(secretPassword+"\n"), works},
		{"wrong", url("known", wrongPassword), refused("28P01", checkLogin)},
		{"wrong in a file", url("known", secretPassword) + file(wrongPassword), refused("28P01", checkLogin)},
		{"empty", url("known", ""), refused("28P01", checkLogin)},
		{"of a role without REPLICATION", url("powerless", secretPassword), refused("42501", "the role needs LOGIN and REPLICATION")},
		{"for no database", url("known", secretPassword) + "_nowhere", refused("3D000", "does not exist")},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := config.Parse("test.yaml", []byte("databases:\n  - name: shop\n    slot: x\n    publication: x\n    "+test.yaml+
				"\nkafka: {brokers: ['127.0.0.1:1']}\n"), func(name string) (string, bool) { return secretPassword, name == "PGSECRET" })
			if err != nil {
				t.Fatal(err)
			}
			w := world.in(t)
			db := &w.cfg.Databases[0]
			db.DSN, db.PasswordFile = cfg.Databases[0].DSN, cfg.Databases[0].PasswordFile
			test.want(w)
			// What init says of the same configuration, if it minds.
			said := fmt.Sprint(setup.Run(t.Context(), w.options("", zerolog.Disabled), func(string) {}))
			if strings.Contains(said, secretPassword) || strings.Contains(said, wrongPassword) {
				t.Errorf("init shows a password: %s", said)
			}
		})
	}
}

// secureKafka starts a broker that has a listener for each way in. "admin" may do everything,
// "limited" what a test grants; both have the same password.
func secureKafka(t *testing.T, ca *authority) *servers.Broker {
	t.Helper()
	const (
		listener = "listener.name."
		scram    = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
		plain    = `org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="` + secretPassword + `";`
	)
	opts := servers.KafkaOptions{
		Listeners: map[string]string{
			"TLS": "SSL", "ELSEWHERE": "SSL", "EXPIRED": "SSL", "MUTUAL": "SSL", "LOGIN": "SASL_SSL", "SCRAM": "SASL_PLAINTEXT",
		},
		Properties: map[string]string{
			"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":           "User:ANONYMOUS;User:admin;User:CN=walferry",

			listener + "mutual.ssl.client.auth":               "required",
			listener + "login.sasl.enabled.mechanisms":        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
			listener + "login.plain.sasl.jaas.config":         plain,
			listener + "login.scram-sha-256.sasl.jaas.config": scram,
			listener + "login.scram-sha-512.sasl.jaas.config": scram,
			listener + "scram.sasl.enabled.mechanisms":        "SCRAM-SHA-512",
			listener + "scram.scram-sha-512.sasl.jaas.config": scram,
		},
	}
	for name, pair := range map[string]keyPair{
		"tls": ca.server(), "elsewhere": ca.elsewhere(), "expired": ca.expired(), "mutual": ca.server(), "login": ca.server(),
	} {
		ssl := listener + name + ".ssl."
		opts.Properties[ssl+"keystore.type"] = "PEM"
		opts.Properties[ssl+"keystore.certificate.chain"] = pair.cert
		opts.Properties[ssl+"keystore.key"] = pair.key
		opts.Properties[ssl+"truststore.type"] = "PEM"
		opts.Properties[ssl+"truststore.certificates"] = ca.pem
	}
	for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
		for _, user := range []string{"admin", "limited"} {
			opts.FormatArgs = append(opts.FormatArgs, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, user, secretPassword))
		}
	}
	broker, err := servers.Kafka(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of Kafka:\n%s", broker.Log())
		}
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	return broker
}

// kafkaConfig reads keys of the section kafka, as YAML in flow style.
func kafkaConfig(t *testing.T, broker string, keys ...string) config.Kafka {
	t.Helper()
	return parseConfig(t, fmt.Sprintf(`
databases: [{name: x, dsn: "postgres://x@127.0.0.1/x", slot: x, publication: x}]
kafka: {brokers: [%q], %s}
`, broker, strings.Join(keys, ", "))).Kafka
}

func saslKeys(mechanism, user, password string) string {
	return fmt.Sprintf("sasl: {mechanism: %s, username: %s, password: %q}", mechanism, user, password)
}

func TestKafkaSecurity(t *testing.T) {
	ca := newAuthority(t, "ca")
	broker := secureKafka(t, ca)
	t.Run("TLS", func(t *testing.T) { testKafkaOverTLS(t, broker, ca) })
	t.Run("SASL", func(t *testing.T) { testKafkaWithSASL(t, broker, ca) })
	t.Run("ACLs", func(t *testing.T) { testKafkaWithACLs(t, broker) })
	t.Run("ACLs of checkpoints", func(t *testing.T) { testCheckpointsWithACLs(t, broker) })
	t.Run("ACLs of reconcile", func(t *testing.T) { testReconcileWithACLs(t, broker) })
}

func testKafkaOverTLS(t *testing.T, broker *servers.Broker, ca *authority) {
	world, other, works := newWorld(t, newest(t), on(broker.Addr())), newAuthority(t, "another ca"), delivers(broker.Addr())
	trust := func(a *authority, more string) string {
		return fmt.Sprintf("tls: {enabled: true, ca_file: %q%s}", a.file(), more)
	}
	certified := func(p keyPair) string {
		cert, key := p.files(t)
		return trust(ca, fmt.Sprintf(", cert_file: %q, key_file: %q", cert, key))
	}
	for _, test := range []struct {
		name     string
		listener string
		tls      string
		want     verdict
	}{
		{"a CA", "TLS", trust(ca, ""), works},
		{"another CA", "TLS", trust(other, ""), refused(checkCertificate)},
		{"a broker elsewhere", "ELSEWHERE", trust(ca, ""), refused(checkCertificate, "127.0.0.1")},
		{"a broker elsewhere by its name", "ELSEWHERE", trust(ca, ", server_name: elsewhere.example"), works},
		{"an expired certificate", "EXPIRED", trust(ca, ""), refused(checkCertificate, "expired")},
		{"a client certificate", "MUTUAL", certified(ca.client("walferry")), works},
		{"no client certificate", "MUTUAL", trust(ca, ""), refused(clientRefused)},
		{"a client certificate of another CA", "MUTUAL", certified(other.client("walferry")), refused(clientRefused)},
		{"no TLS where the broker wants it", "TLS", "", refused("is this a plaintext connection speaking to a tls endpoint?")},
		// The broker hangs up, as one does that is about to restart.
		{"TLS where the broker has none", "SCRAM", trust(ca, ""), waits("is TLS misconfigured")},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := world.in(t)
			w.cfg.Kafka = kafkaConfig(t, broker.ListenerAddr(test.listener), test.tls)
			test.want(w)
		})
	}
}

func testKafkaWithSASL(t *testing.T, broker *servers.Broker, ca *authority) {
	world, works := newWorld(t, newest(t), on(broker.Addr())), delivers(broker.Addr())
	tls := fmt.Sprintf("tls: {enabled: true, ca_file: %q}", ca.file())
	for _, test := range []struct {
		name     string
		listener string
		keys     []string
		want     verdict
	}{
		{"PLAIN", "LOGIN", []string{tls, saslKeys("PLAIN", "admin", secretPassword)}, works},
		{"SCRAM-SHA-256", "LOGIN", []string{tls, saslKeys("SCRAM-SHA-256", "admin", secretPassword)}, works},
		{"SCRAM-SHA-512", "LOGIN", []string{tls, saslKeys("SCRAM-SHA-512", "admin", secretPassword)}, works},
		{"a password in a file", "SCRAM", []string{fmt.Sprintf("sasl: {mechanism: SCRAM-SHA-512, username: admin, password_file: %q}", secretFile(t, secretPassword))}, works},
		{"PLAIN with a wrong password", "LOGIN", []string{tls, saslKeys("PLAIN", "admin", wrongPassword)}, refused(checkSASL)},
		{"SCRAM-SHA-256 with a wrong password", "LOGIN", []string{tls, saslKeys("SCRAM-SHA-256", "admin", wrongPassword)}, refused(checkSASL)},
		{"SCRAM-SHA-512 with a wrong password", "SCRAM", []string{saslKeys("SCRAM-SHA-512", "admin", wrongPassword)}, refused(checkSASL)},
		{"an unknown user", "SCRAM", []string{saslKeys("SCRAM-SHA-512", "nobody", secretPassword)}, refused(checkSASL)},
		{"a mechanism that the broker does not have", "SCRAM", []string{saslKeys("PLAIN", "admin", secretPassword)}, refused(checkSASL)},
		{"SASL where the broker has none", "TLS", []string{tls, saslKeys("PLAIN", "admin", secretPassword)}, refused(checkSASL)},
		// The broker hangs up, as one does that is about to restart.
		{"no SASL where the broker wants it", "SCRAM", nil, waits("is SASL missing")},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := world.in(t)
			w.cfg.Kafka = kafkaConfig(t, broker.ListenerAddr(test.listener), test.keys...)
			test.want(w)
		})
	}
}

// limited is a client that may do what grantLimited grants.
func limited(t *testing.T, broker *servers.Broker) config.Kafka {
	t.Helper()
	return kafkaConfig(t, broker.ListenerAddr("SCRAM"), saslKeys("SCRAM-SHA-512", "limited", secretPassword))
}

func adminOf(t *testing.T, broker *servers.Broker) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

func grantLimited(t *testing.T, admin *kadm.Client, acls *kadm.ACLBuilder) {
	t.Helper()
	acls = acls.ResourcePatternType(kadm.ACLPatternLiteral).Allow("User:limited").AllowHosts()
	created, err := admin.CreateACLs(t.Context(), acls)
	for _, r := range created {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The controller has answered; the broker, which decides, learns of it a moment later.
	await(t, "grants", func() error {
		found, err := admin.DescribeACLs(t.Context(), acls)
		for _, r := range found {
			err = errors.Join(err, r.Err)
			if len(r.Described) == 0 {
				err = errors.Join(err, fmt.Errorf("%s is not granted yet", r.Operation))
			}
		}
		return err
	})
}

func testKafkaWithACLs(t *testing.T, broker *servers.Broker) {
	w := newWorld(t, newest(t), withoutCheckpoints)
	w.cfg.Kafka = limited(t, broker)
	admin := adminOf(t, broker)
	grant := func(topic string, operations ...kadm.ACLOperation) {
		t.Helper()
		grantLimited(t, admin, kadm.NewACLs().Topics(w.prefix+"."+topic).Operations(operations...))
	}
	create := func(topic string) {
		t.Helper()
		if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, w.prefix+"."+topic); err != nil {
			t.Fatal(err)
		}
	}
	deliver := func(topic string) { t.Helper(); w.in(t).delivers(topic, []string{broker.Addr()}) }

	// Nothing is granted: an idempotent producer needs WRITE on some topic.
	w.refused("grant the client WRITE", "CLUSTER_AUTHORIZATION_FAILED")

	w.emitSecret("order")
	grant("order", kadm.OpWrite, kadm.OpDescribe)
	w.refused("create topic", w.prefix+".order", "TOPIC_AUTHORIZATION_FAILED", "CREATE on the topic")
	grant("order", kadm.OpCreate)
	deliver("order")

	w.emitSecret("invoice")
	create("invoice")
	w.refused("look up topic", w.prefix+".invoice", "TOPIC_AUTHORIZATION_FAILED", "WRITE, DESCRIBE")
	grant("invoice", kadm.OpDescribe)
	w.refused("publish event", w.prefix+".invoice", "TOPIC_AUTHORIZATION_FAILED", "grant the client WRITE, DESCRIBE")
	grant("invoice", kadm.OpWrite)
	deliver("invoice")

	w.cfg.Kafka.Brokers = []string{broker.Addr()}
	if got, want := len(w.records()), 4; got != want {
		t.Errorf("%d records, want %d: what was refused comes once it is allowed", got, want)
	}
}

func testCheckpointsWithACLs(t *testing.T, broker *servers.Broker) {
	w := newWorld(t, newest(t), on(broker.Addr()))
	w.cfg.Kafka = limited(t, broker)
	admin, topic := adminOf(t, broker), w.cfg.Checkpoint.Topic
	system := w.query("SELECT system_identifier::text FROM pg_control_system()")
	id := fmt.Sprintf("walferry/%s/shop/%s", system, w.prefix)
	grantLimited(t, admin, kadm.NewACLs().Topics(w.prefix+".order").Operations(kadm.OpWrite, kadm.OpCreate))

	const hint = "READ and DESCRIBE_CONFIGS as well on checkpoint.topic"
	w.refused("look up topic", topic, "TOPIC_AUTHORIZATION_FAILED", hint)
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpWrite))
	w.refused("cleanup.policy", topic, "TOPIC_AUTHORIZATION_FAILED", hint)
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpDescribeConfigs))
	w.refused(topic, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "grant the client WRITE on transactional IDs that begin with walferry/")
	grantLimited(t, admin, kadm.NewACLs().TransactionalIDs(id).Operations(kadm.OpWrite))
	w.refused("read checkpoints", topic, "TOPIC_AUTHORIZATION_FAILED", hint)
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpRead))
	w.delivers("order", []string{broker.Addr()})
}
