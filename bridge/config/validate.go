package config

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"

	aggregateType = "{aggregatetype}"
	eventIDHeader = "id" // always sent with the event's id

	maxIdentifier = 63  // bytes of a Postgres name
	maxTopic      = 249 // bytes of a Kafka topic name
	maxLinger     = time.Minute
	minInterval   = 100 * time.Millisecond
	maxInterval   = time.Minute
	minRecord     = Size(1 << 10)
	maxRecord     = Size(64 << 20)
	minRetained   = time.Minute
	maxRetained   = 30 * 24 * time.Hour
	bufferRecords = 4 // the least number of largest records that MaxBuffered holds
)

// validate checks what the types cannot say. It also completes table names.
func (d *document) validate(c *Config) {
	names, slots := make(map[string]string), make(map[string]string)
	for i := range c.Databases {
		path, db := fmt.Sprintf("databases[%d]", i), &c.Databases[i]
		d.database(path, db, c.Kafka.PositionHeader)
		d.unique(names, path+".name", db.Name, "the file")
		if at := d.connection(path, db); at != "" && db.Slot != "" {
			d.unique(slots, path+".slot", at+" "+db.Slot, "its Postgres server")
			if retention := db.RetentionSlot(); retention != "" {
				d.unique(slots, path+".retain", at+" "+retention, "its Postgres server, as the name of a slot")
			}
		}
	}
	d.kafka("kafka", &c.Kafka)
	for i := range c.Databases {
		d.retain(fmt.Sprintf("databases[%d].retain", i), c, &c.Databases[i])
	}
	d.ownTopic("kafka.dead_letter_topic", c.Kafka.DeadLetterTopic, c.Databases)
	if c.Kafka.DeadLetterTopic == c.Checkpoint.Topic && c.Checkpoint.Topic != "" {
		d.errorf("kafka.dead_letter_topic", "must differ from checkpoint.topic")
	}
	d.checkpoint("checkpoint", c)
	if _, port, err := net.SplitHostPort(c.Admin.Listen); c.Admin.Listen != "" && (err != nil || !isPort(port)) {
		d.errorf("admin.listen", `must be host:port such as 127.0.0.1:9400, or "" to turn it off, not %s`, d.quote("admin.listen"))
	}
}

func (d *document) database(path string, db *Database, positionHeader string) {
	if !consistsOf(db.Name, lower+digits+"_-") || len(db.Name) > maxIdentifier {
		d.errorf(path+".name", "must be 1 to 63 of a-z, 0-9, _ and -, not %s", d.quote(path+".name"))
	}
	if !consistsOf(db.Slot, lower+digits+"_") || len(db.Slot) > maxIdentifier {
		d.errorf(path+".slot", "must be 1 to 63 of a-z, 0-9 and _, not %s", d.quote(path+".slot"))
	}
	if !isIdentifier(db.Publication) {
		d.errorf(path+".publication", "must be a name of 1 to 63 bytes without control characters, not %s", d.quote(path+".publication"))
	}
	tables := make(map[string]string)
	for i := range db.Outbox {
		path, outbox := fmt.Sprintf("%s.outbox[%d]", path, i), &db.Outbox[i]
		d.table(path+".table", outbox)
		d.unique(tables, path+".table", outbox.Table, "its database")
		d.columns(path+".columns", &outbox.Columns)
		if at := path + ".order_column"; outbox.OrderColumn != "" && !isIdentifier(outbox.OrderColumn) {
			d.errorf(at, "must be a column name of 1 to 63 bytes, not %s", d.quote(at))
		}
		d.topic(path+".topic", outbox.Topic)
		d.header(path+".type_header", outbox.TypeHeader, positionHeader)
	}
	if db.Messages.Prefix != "" {
		d.topic(path+".messages.topic", db.Messages.Topic)
		d.header(path+".messages.type_header", db.Messages.TypeHeader, positionHeader)
	} else if len(db.Outbox) == 0 {
		d.errorf(path+".outbox", "must list a table when messages.prefix is empty: else there is nothing to publish")
	}
}

// connection checks the connection string and the files it depends on, and returns what identifies the server, whose databases share the names of slots.
func (d *document) connection(path string, db *Database) string {
	if !d.oneOf(path, "dsn", db.DSN != "", "dsn_file", db.DSNFile != "") {
		return ""
	}
	config, fault := db.connConfig()
	if fault != nil {
		d.errorf(path+"."+fault.key, "%v", fault.err)
		return ""
	}
	if plaintextPossible(&config.Config) {
		key := ".dsn"
		if db.DSNFile != "" {
			key = ".dsn_file"
		}
		d.warnf(path+key, "may connect to another host without TLS: sslmode is disable, allow or prefer, which is the default; "+
			"use verify-full, or at least require")
	}
	return fmt.Sprintf("%s:%d", strings.ToLower(config.Host), config.Port)
}

func (d *document) table(path string, outbox *Outbox) {
	schema, table, qualified := strings.Cut(outbox.Table, ".")
	if !qualified {
		schema, table = "public", outbox.Table
	}
	if !isIdentifier(schema) || !isIdentifier(table) || strings.Contains(table, ".") {
		d.errorf(path, "must be schema.table such as public.outbox, each part 1 to 63 bytes, not %s", d.quote(path))
		return
	}
	outbox.Table = schema + "." + table
}

func (d *document) columns(path string, c *Columns) {
	seen := make(map[string]string)
	for _, column := range []struct{ key, name string }{
		{"id", c.ID}, {"aggregatetype", c.AggregateType}, {"aggregateid", c.AggregateID}, {"type", c.Type}, {"payload", c.Payload},
	} {
		at := path + "." + column.key
		if !isIdentifier(column.name) {
			d.errorf(at, "must be a column name of 1 to 63 bytes, not %s", d.quote(at))
		}
		d.unique(seen, at, column.name, "its table")
	}
}

func (d *document) topic(path, template string) {
	name := strings.ReplaceAll(template, aggregateType, "probe")
	switch {
	case strings.ContainsAny(name, "{}"):
		d.errorf(path, "must have no placeholder but %s, not %s", aggregateType, d.quote(path))
	case !isTopic(name):
		d.errorf(path, "must give a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not %s", d.quote(path))
	}
}

func (d *document) header(path, name, positionHeader string) {
	if name != "" && name == positionHeader {
		d.errorf(path, "must differ from kafka.position_header")
	} else if name == eventIDHeader {
		d.errorf(path, "must not be %q: that header carries the event's id", eventIDHeader)
	}
}

func (d *document) kafka(path string, k *Kafka) {
	loopback := true
	for i, broker := range k.Brokers {
		host, port, err := net.SplitHostPort(broker)
		if at := fmt.Sprintf("%s.brokers[%d]", path, i); err != nil || host == "" || port == "0" || !isPort(port) {
			d.errorf(at, "must be host:port such as 127.0.0.1:9092, not %s", d.quote(at))
		}
		loopback = loopback && isLoopback(host)
	}
	if k.Linger > maxLinger {
		d.errorf(path+".linger", "must be at most %v, not %s", maxLinger, d.quote(path+".linger"))
	}
	if k.MaxRecord < minRecord || k.MaxRecord > maxRecord {
		d.errorf(path+".max_record", "must be from %v to %v, not %s", minRecord, maxRecord, d.quote(path+".max_record"))
	} else if k.MaxBuffered/bufferRecords < k.MaxRecord {
		d.errorf(path+".max_buffered", "must be at least %d times max_record, that is %v", bufferRecords, bufferRecords*k.MaxRecord)
	}
	d.header(path+".position_header", k.PositionHeader, "")
	d.tls(path+".tls", &k.TLS)
	d.sasl(path+".sasl", &k.SASL)
	if k.SASL.Mechanism == "PLAIN" && !k.TLS.Enabled && !loopback {
		d.warnf(path+".sasl.mechanism", "is PLAIN without TLS: the password travels in clear text; enable kafka.tls or use SCRAM-SHA-512")
	}
}

func (d *document) checkpoint(path string, c *Config) {
	if c.Checkpoint.Topic == "" {
		if c.ExactlyOnce() {
			d.errorf(path+".topic", "must not be empty with delivery: exactly_once, which is nothing but events and checkpoints in one transaction")
		}
		d.warnf(path+".topic", "is empty: without checkpoints a slot that was recreated or moved goes unnoticed, and so do the events that it skipped")
		return
	}
	d.ownTopic(path+".topic", c.Checkpoint.Topic, c.Databases)
	if c.Checkpoint.Interval < minInterval || c.Checkpoint.Interval > maxInterval {
		d.errorf(path+".interval", "must be from %v to %v, not %s", minInterval, maxInterval, d.quote(path+".interval"))
	}
}

func (d *document) retain(path string, c *Config, db *Database) {
	switch {
	case db.RetentionSlot() == "":
	case len(db.RetentionSlot()) > maxIdentifier:
		d.errorf(path, "needs a slot named as the database's with %s behind it, which is longer than 63: shorten slot", retentionSuffix)
	case c.Checkpoint.Topic == "":
		d.errorf(path, "needs checkpoint.topic: what is kept is found by the positions in it")
	case db.Retain.MaxAge != 0 && (db.Retain.MaxAge < minRetained || db.Retain.MaxAge > maxRetained):
		d.errorf(path+".max_age", "must be from %v to %v, or 0s for no bound, not %s", minRetained, maxRetained, d.quote(path+".max_age"))
	case db.Retain.MaxBytes == 0:
		d.warnf(path+".max_bytes", "is 0: nothing bounds the WAL that is kept but its age, and a burst may fill the disk")
	}
}

// ownTopic checks a topic that is for walferry alone.
func (d *document) ownTopic(path, topic string, databases []Database) {
	if !isTopic(topic) {
		d.errorf(path, "must be a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not %s", d.quote(path))
	}
	for _, db := range databases {
		for i, o := range db.Outbox {
			if o.Topic == topic {
				d.errorf(path, "must not be a topic of events, as it is in outbox[%d] of database %s", i, db.Name)
			}
		}
		if db.Messages.Prefix != "" && db.Messages.Topic == topic {
			d.errorf(path, "must not be a topic of events, as it is in messages of database %s", db.Name)
		}
	}
}

func isTopic(name string) bool {
	return consistsOf(name, lower+upper+digits+"._-") && len(name) <= maxTopic && name != "." && name != ".."
}

func (d *document) tls(path string, t *TLS) {
	if *t != (TLS{}) && !t.Enabled {
		d.errorf(path+".enabled", "must be true for the other keys of %s to have an effect", path)
		return
	}
	if _, fault := t.load(); fault != nil {
		d.errorf(path+"."+fault.key, "%v", fault.err)
	}
	if t.InsecureSkipVerify {
		d.warnf(path+".insecure_skip_verify", "is true: any server can pass itself off as the broker")
	}
}

func (d *document) sasl(path string, s *SASL) {
	if s.Mechanism == "" {
		if *s != (SASL{}) {
			d.errorf(path+".mechanism", "is required for the other keys of %s to have an effect", path)
		}
		return
	}
	if s.Username == "" {
		d.errorf(path+".username", "is required with a mechanism")
	}
	if d.oneOf(path, "password", s.Password != "", "password_file", s.PasswordFile != "") {
		if _, fault := s.secret(); fault != nil {
			d.errorf(path+"."+fault.key, "%v", fault.err)
		}
	}
}

// oneOf checks that exactly one of two keys is set.
func (d *document) oneOf(path, a string, hasA bool, b string, hasB bool) bool {
	switch {
	case hasA && hasB:
		d.errorf(path+"."+b, "must not be set together with %s", a)
	case !hasA && !hasB:
		d.errorf(path+"."+a, "is required, or else %s", b)
	}
	return hasA != hasB
}

// unique checks that no other path has the same value; seen maps values to paths.
func (d *document) unique(seen map[string]string, path, value, scope string) {
	if first, ok := seen[value]; ok && value != "" {
		d.errorf(path, "must be unique in %s: %s at %s is the same", scope, first, d.place(first))
		return
	}
	seen[value] = path
}

func consistsOf(text, allowed string) bool {
	return text != "" && strings.Trim(text, allowed) == ""
}

func isIdentifier(name string) bool {
	return name != "" && len(name) <= maxIdentifier && strings.IndexFunc(name, unicode.IsControl) < 0
}

func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 64)
	return err == nil && n <= math.MaxUint16
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
