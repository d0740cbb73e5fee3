// Package config reads and checks walferry's YAML configuration.
//
// The reader is strict: an unknown key, a repeated key, a wrong type and a bad value are all errors, each with its file,
// line and column, and all of them are reported at once. ${NAME} inside a value is replaced by an environment variable
// after YAML has been parsed, so that a variable may hold any character; $${ stands for a literal ${. Relative paths of
// files start at the working directory of the process. No error and no formatting of a Config shows a secret.
package config

import (
	"slices"
	"time"
)

// Config is everything one process of walferry needs to know. [Load] and [Parse] return it complete: defaults filled in
// and every rule checked. The tags below are read by this package: the key, whether it is required, its default, and the
// values it may have.
type Config struct {
	Databases []Database `yaml:"databases,required"` // at least one; one bridge runs for each
	Kafka     Kafka      `yaml:"kafka"`
	// Delivery is at_least_once or exactly_once: then events and the checkpoint that covers them are committed in one
	// Kafka transaction, and a consumer that reads what is committed gets each event once. It needs Checkpoint. Default
	// at_least_once.
	Delivery string `yaml:"delivery" default:"at_least_once" enum:"at_least_once|exactly_once"`
	// Checkpoint is shared by all databases, each under its own key.
	Checkpoint Checkpoint `yaml:"checkpoint"`
	Admin      Admin      `yaml:"admin"`
	Log        Log        `yaml:"log"`

	warnings []string
}

// ExactlyOnce reports whether Delivery is.
func (c *Config) ExactlyOnce() bool { return c.Delivery == "exactly_once" }

// Warnings returns what is allowed but unsafe, such as a password sent without TLS, each with its file, line and column.
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

// Database is one slot of one Postgres database, and what is published from it.
type Database struct {
	// Name labels the metrics and the log lines of this database: 1 to 63 of a-z, 0-9, _ and -. It also names the
	// position in Kafka, so it must stay the same for the life of the slot. Required, unique.
	Name string `yaml:"name,required"`
	// DSN is a libpq connection string, either a URL or key=value pairs. The PG* environment variables and ~/.pgpass fill
	// what it leaves out. Of several hosts the first that takes writes is chosen, and each has 3 s, unless it says otherwise
	// (target_session_attrs, connect_timeout). Exactly one of DSN and DSNFile is set.
	DSN Secret `yaml:"dsn"`
	// DSNFile is a file that holds the DSN. It is read again at every connect.
	DSNFile string `yaml:"dsn_file"`
	// PasswordFile is a file that holds the password, which replaces the DSN's. It is read again at every connect, so
	// that a rotated secret is used without a restart. Default none.
	PasswordFile string `yaml:"password_file"`
	// Slot is the name of the logical replication slot: 1 to 63 of a-z, 0-9 and _. Required.
	Slot string `yaml:"slot,required"`
	// Publication is the name of the publication, exactly as the catalog has it, at most 63 bytes. Required.
	Publication string `yaml:"publication,required"`
	// Outbox lists the outbox tables, each at most once. It may be empty when Messages are on.
	Outbox []Outbox `yaml:"outbox"`
	// Messages says which transactional logical messages are events.
	Messages Messages `yaml:"messages"`
	// DrainTimeout bounds how long a stop waits for Kafka to acknowledge what is in flight. Default 10s; 0s does not wait.
	DrainTimeout time.Duration `yaml:"drain_timeout" default:"10s"`
	// ShutdownGrace bounds how long a fast shutdown of Postgres may be delayed for the same reason. Default 5s; 0s does
	// not delay it.
	ShutdownGrace time.Duration `yaml:"shutdown_grace" default:"5s"`
	// Retain keeps WAL that is published, for `walferry replay`.
	Retain Retain `yaml:"retain"`
}

// RetentionSlot returns the name of the slot that keeps WAL for replays, "" if none does.
func (db *Database) RetentionSlot() string {
	if db.Retain == (Retain{}) {
		return ""
	}
	return db.RetentionName()
}

// RetentionName is how a slot of the database that keeps WAL for replays is called, whether one does or not.
func (db *Database) RetentionName() string { return db.Slot + retentionSuffix }

// retentionSuffix makes a slot's name that of its retention slot.
const retentionSuffix = "_retain"

// Retain says how far back `walferry replay` can go: a second slot, its name the first one's with _retain behind it, keeps
// the WAL, and the bridge moves it on. The first bound that is reached counts; without any there is no such slot. It costs the disk that
// the WAL takes, and keeps VACUUM from removing old rows of the catalog. It needs [Checkpoint].
type Retain struct {
	// MaxBytes bounds the WAL between the slot and its end. Default 0B: no bound.
	MaxBytes Size `yaml:"max_bytes"`
	// MaxAge bounds how long ago what is kept was published, 1m to 720h. Default 0s: no bound.
	MaxAge time.Duration `yaml:"max_age"`
}

// Outbox is one outbox table and the topic its rows go to.
type Outbox struct {
	// Table is schema.table, both parts exactly as the catalog has them, without quotes. Required. "outbox" alone is read
	// as public.outbox, and that is the value here.
	Table   string  `yaml:"table,required"`
	Columns Columns `yaml:"columns"`
	// Topic is the name of the topic, in which {aggregatetype}, the only placeholder, stands for the row's aggregate type.
	// It may be constant. Default outbox.event.{aggregatetype}.
	Topic string `yaml:"topic" default:"outbox.event.{aggregatetype}"`
	// TypeHeader is the Kafka header that carries the type column. Default "": it is not sent.
	TypeHeader string `yaml:"type_header"`
	// OrderColumn is a column that orders the rows of one key, such as a sequence or a time stamp, exactly as the catalog has
	// it. Only what reads the table itself uses it, such as `walferry recover`: the WAL has an order of its own. Default
	// "": there is none.
	OrderColumn string `yaml:"order_column"`
}

// Columns names the columns of an outbox table, exactly as the catalog has them. Each defaults to its own key.
type Columns struct {
	ID            string `yaml:"id" default:"id"`
	AggregateType string `yaml:"aggregatetype" default:"aggregatetype"`
	AggregateID   string `yaml:"aggregateid" default:"aggregateid"`
	Type          string `yaml:"type" default:"type"`
	Payload       string `yaml:"payload" default:"payload"`
}

// Messages says which transactional messages of pg_logical_emit_message are events, and where they go.
type Messages struct {
	// Prefix is the message prefix that marks an event. Default outbox; "" turns messages off.
	Prefix string `yaml:"prefix" default:"outbox"`
	// Topic is as in [Outbox]. Default outbox.event.{aggregatetype}.
	Topic string `yaml:"topic" default:"outbox.event.{aggregatetype}"`
	// TypeHeader is as in [Outbox]. Default "": it is not sent.
	TypeHeader string `yaml:"type_header"`
}

// Kafka is the cluster that all databases publish to.
type Kafka struct {
	// Brokers are the seed brokers, each host:port. YAML may also give one text with commas, which fits one environment
	// variable. Required.
	Brokers []string `yaml:"brokers,required"`
	// ClientID is what the brokers' logs and quotas show. Default walferry.
	ClientID string `yaml:"client_id" default:"walferry"`
	Topics   Topics `yaml:"topics"`
	// Compression is none, gzip, snappy, lz4 or zstd. Default lz4.
	Compression string `yaml:"compression" default:"lz4" enum:"none|gzip|snappy|lz4|zstd"`
	// Linger is how long a record may wait for others to share its batch, at most 1m. Events that are late by eight times as
	// much, those of a backlog, wait for it: fewer and larger requests cost bridge and brokers less. Others wait only
	// while a request is on its way. Default 20ms.
	Linger time.Duration `yaml:"linger" default:"20ms"`
	// MaxBuffered bounds the bytes of records in flight, of all databases of the process together; at least four times
	// MaxRecord. Each database has an equal share for itself, and never less than one record of MaxRecord with 1 KiB around
	// it, so that many databases may exceed it by that. Default 8MiB.
	MaxBuffered Size `yaml:"max_buffered" default:"8MiB"`
	// MaxRecord bounds key, value and headers of one record together, 1KiB to 64MiB. Default 1020KiB, which fits the
	// brokers' default of 1 MiB with the batch around it. It must not exceed max.message.bytes of any topic, less a little for the batch around the record.
	MaxRecord Size `yaml:"max_record" default:"1020KiB"`
	// PositionHeader is the Kafka header that carries the event's position in the WAL. Default walferry-position; ""
	// turns it off.
	PositionHeader string `yaml:"position_header" default:"walferry-position"`
	// DeadLetterTopic is where `walferry poison dead-letter` moves events that can never be published. A missing topic is
	// created if Topics.Create allows, to keep them for ever. No event may go to it otherwise. Default
	// walferry.dead-letters.
	DeadLetterTopic string `yaml:"dead_letter_topic" default:"walferry.dead-letters"`
	TLS             TLS    `yaml:"tls"`
	SASL            SASL   `yaml:"sasl"`
}

// Checkpoint says where the positions of all databases are kept in Kafka.
type Checkpoint struct {
	// Topic is compacted; a missing one is created if kafka.topics.create allows. Default walferry.checkpoints; "" turns
	// checkpoints off: then a crash of Postgres sends more events a second time, and a slot that was recreated or moved
	// goes unnoticed, with what it skipped.
	Topic string `yaml:"topic" default:"walferry.checkpoints"`
	// Interval is the least time between two checkpoints, 100ms to 1m. LSNs are confirmed to Postgres as often, and a
	// crash may send again what was acknowledged within it. Default 1s.
	Interval time.Duration `yaml:"interval" default:"1s"`
}

// Topics says what happens when a topic does not exist.
type Topics struct {
	// Create makes a missing topic with the broker's defaults. Default true; else a missing topic is an error.
	Create bool `yaml:"create" default:"true"`
}

// TLS secures the connections to Kafka. The other keys may be set only when Enabled is.
type TLS struct {
	Enabled bool `yaml:"enabled" default:"false"` // default false
	// CAFile holds the PEM certificates that sign the brokers'. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile hold the client's certificate chain and its key, unencrypted, as PEM; both or neither.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is the name in the brokers' certificates. Default: each broker's host.
	ServerName string `yaml:"server_name"`
	// InsecureSkipVerify accepts any certificate, which is for tests only. Default false.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify" default:"false"`
}

// SASL authenticates to Kafka.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Default "": no authentication.
	Mechanism string `yaml:"mechanism" enum:"PLAIN|SCRAM-SHA-256|SCRAM-SHA-512"`
	// Username is required with a mechanism, and so is exactly one of Password and PasswordFile.
	Username string `yaml:"username"`
	Password Secret `yaml:"password"`
	// PasswordFile is a file that holds the password. [SASL.Load] reads it again at every call.
	PasswordFile string `yaml:"password_file"`
}

// Admin is the HTTP server for metrics and health.
type Admin struct {
	// Listen is host:port; an empty host means every interface. It has no authentication. Default 127.0.0.1:9400; ""
	// turns the server off.
	Listen string `yaml:"listen" default:"127.0.0.1:9400"`
}

// Log says what is logged and how.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `yaml:"level" default:"info" enum:"debug|info|warn|error"`
	// Format is json, pretty, or auto: pretty on a terminal, json elsewhere. Default auto.
	Format string `yaml:"format" default:"auto" enum:"auto|json|pretty"`
}
