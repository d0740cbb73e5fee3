//go:build capture

package integration

// captureTables are those of decode/wal_test.go, and one that is no outbox.
var captureTables = []string{
	"SET TimeZone = 'UTC'", "SET DateStyle = 'ISO'",
	"CREATE TYPE mood AS ENUM ('happy', 'so ''so''')",
	"CREATE DOMAIN short AS text CHECK (length(value) < 50)",
	"CREATE DOMAIN blob AS bytea",
	"CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, aggregateid text NOT NULL, type text, payload jsonb, created_at timestamptz DEFAULT now())",
	"CREATE TABLE outbox_bytea (id bigserial PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload bytea)",
	"CREATE TABLE outbox_domain (payload blob, type short, id int PRIMARY KEY, aggregateid text, aggregatetype text)",
	"CREATE TABLE outbox_json (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload json)",
	"ALTER TABLE outbox_json ALTER payload SET STORAGE EXTERNAL",
	"CREATE TABLE outbox_typed (id numeric(20,4) PRIMARY KEY, aggregatetype mood, aggregateid timestamptz, type short, payload int[][])",
	"CREATE TABLE outbox_part (id int, aggregatetype text, aggregateid text, type text, payload text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
	"CREATE TABLE outbox_part_low PARTITION OF outbox_part FOR VALUES FROM (0) TO (100)",
	"CREATE TABLE outbox_part_rest (payload text, id int PRIMARY KEY, type text, aggregateid text, aggregatetype text)",
	"ALTER TABLE outbox_part ATTACH PARTITION outbox_part_rest DEFAULT",
	"CREATE TABLE outbox_gen (id int PRIMARY KEY, shout text GENERATED ALWAYS AS (upper(type)) STORED, aggregatetype text, aggregateid text, type text, payload text)",
	`CREATE SCHEMA "Odd Schema"`,
	`CREATE TABLE "Odd Schema"."Out""Box ä" ("Event Id" bigint PRIMARY KEY, "agg.type" text, "Kéy" date, "pay load" xml)`,
	"CREATE TABLE orders (id int PRIMARY KEY, note text)",
	"CREATE TABLE order_lines (id int PRIMARY KEY, order_id int REFERENCES orders)",
}

const captureOutboxes = `outbox, outbox_bytea, outbox_domain, outbox_json, outbox_typed, outbox_part, outbox_gen, "Odd Schema"."Out""Box ä"`

// captureScenarios run in this order, each on the rows and definitions that the ones before it have left.
var captureScenarios = []struct {
	name, publication string
	run               func(*capturing)
}{
	{"types", "events", captureTypes},
	{"large", "events", captureLarge},
	{"bulk", "events", captureBulk},
	{"ddl", "events", captureDDL},
	{"others", "everything", captureOthers},
	{"messages", "events", captureMessages},
}

func captureTypes(c *capturing) {
	c.commit(func() {
		c.rows("outbox", `(aggregatetype, aggregateid, type, payload) VALUES ('order', '42', 'OrderPlaced', '{"b": 1.50, "a": [true, null], "ü": "\u00e9😀"}')`)
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('', '')`)
		c.rows("outbox", `(aggregatetype, aggregateid, type, payload) VALUES ('Bestellung ß', E'tab\t"quote"\\', '', 'null')`)
	})
	c.commit(func() {
		c.rows("outbox_bytea", `(aggregatetype, aggregateid, type, payload) VALUES ('order', 'k', 'T', '\x00ff10'), ('order', 'k', NULL, ''), ('order', 'k', 'T', NULL)`)
		c.rows("outbox_domain", `(id, aggregatetype, aggregateid, type, payload) VALUES (1, 'order', 'k', 'T', '\xdeadbeef'), (-2, 'order', 'k', NULL, NULL)`)
		c.rows("outbox_json", `VALUES ('odd', 'order', 'k', 'T', E' {"a" :\t[ 1,\n2 ] , "a":"\\u00e9" } ')`)
	})
	c.commit(func() {
		c.rows("outbox_typed", `VALUES (1234567890.5, 'happy', '2026-03-08 14:00:00.5+02', 'T', '{{1,NULL},{-3,4}}'), (-0.0001, 'so ''so''', 'infinity', NULL, '{}')`)
		c.rows("outbox_typed", `VALUES ('NaN', 'happy', '0044-03-15 12:00:00+00 BC', 'Idus', '[5:6]={7,8}')`)
		c.rows("outbox_part", `VALUES (7, 'order', 'low', 'T', 'a'), (700, 'order', 'rest', 'T', NULL), (8, 'order', 'low', NULL, '')`)
		c.rows("outbox_gen", `(id, aggregatetype, aggregateid, type, payload) VALUES (1, 'order', 'k', 'placed', 'p')`)
		c.events(`Odd Schema.Out"Box ä`, `INSERT INTO "Odd Schema"."Out""Box ä" VALUES (9223372036854775807, 'order', '2026-02-28', '<a>ä</a>')
			RETURNING "Event Id"::text, "agg.type", "Kéy"::text, NULL, "pay load"::text`)
	})
}

func captureLarge(c *capturing) {
	c.commit(func() {
		// Out of line and not compressed, then compressed and, at 9 kB, in line.
		c.rows("outbox_json", `VALUES ('toast', 'order', 'k', 'T', to_json(repeat('0123456789', 300)))`)
		c.rows("outbox", `(aggregatetype, aggregateid, type, payload) VALUES ('order', 'large', 'T', jsonb_build_object('a', repeat('walferry ', 1000)))`)
	})
}

func captureBulk(c *capturing) {
	c.commit(func() {
		c.copied("00000000-0000-0000-0000-000000000001\torder\tk\tcopied\t{\"a\": 1}\n" +
			"00000000-0000-0000-0000-000000000002\torder\t\\\\k\\t\tcopied\t\\N\n" +
			"00000000-0000-0000-0000-000000000003\torder\tk\tcopied\t[]\n")
		c.rows("outbox", `(aggregatetype, aggregateid, payload) SELECT 'order', n::text, to_jsonb(n) FROM generate_series(1, 5) n`)
	})
	c.commit(func() {
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'kept')`)
		c.rolledBack(func() {
			c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'rolled back')`)
			c.rolledBack(func() { c.rows("outbox_gen", `(id, aggregatetype, aggregateid) VALUES (2, 'order', 'rolled back')`) })
			c.foreign(true, "outbox", "rolled back, and no JSON")
		})
		c.exec("SAVEPOINT released")
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'released')`)
		c.exec("RELEASE released")
	})
	c.exec("BEGIN")
	c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'aborted')`)
	c.exec("ROLLBACK")
	c.commit(func() {
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'last')`)
	})
}

func captureDDL(c *capturing) {
	c.commit(func() {
		c.rows("outbox", `(aggregatetype, aggregateid, payload) VALUES ('order', 'before', '1')`)
		c.exec("ALTER TABLE outbox ADD trace mood, ADD ignored blob DEFAULT '\\x01'")
		c.rows("outbox", `(aggregatetype, aggregateid, payload, trace) VALUES ('order', 'added', '2', 'happy')`)
		c.exec("ALTER TABLE outbox DROP created_at")
		c.rows("outbox", `(aggregatetype, aggregateid, payload) VALUES ('order', 'dropped', '3')`)
		c.exec("ALTER TABLE outbox ALTER payload TYPE text USING payload::text")
		c.rows("outbox", `(aggregatetype, aggregateid, payload) VALUES ('order', 'retyped', ' 4 ')`)
		c.exec("ALTER TABLE outbox ALTER payload TYPE bytea USING payload::bytea")
		c.rows("outbox", `(aggregatetype, aggregateid, payload) VALUES ('order', 'bytea', '\x05')`)
		c.exec("ALTER TABLE outbox ALTER payload TYPE jsonb USING NULL")
		c.rows("outbox", `(aggregatetype, aggregateid, payload) VALUES ('order', 'jsonb again', '6')`)
	})
	c.exec("ALTER TABLE outbox DROP trace, DROP ignored, ADD created_at timestamptz DEFAULT now()")
	c.commit(func() {
		c.exec("CREATE TABLE outbox_gen2 (LIKE outbox_gen INCLUDING ALL)")
		c.exec("DROP TABLE outbox_gen")
		c.exec("ALTER TABLE outbox_gen2 RENAME TO outbox_gen")
		c.exec("ALTER PUBLICATION events ADD TABLE outbox_gen")
		c.rows("outbox_gen", `(id, aggregatetype, aggregateid, type, payload) VALUES (3, 'order', 'recreated', 'T', 'p')`)
	})
	c.commit(func() {
		c.exec("CREATE TABLE outbox_part_high PARTITION OF outbox_part FOR VALUES FROM (1000) TO (2000)")
		c.rows("outbox_part", `VALUES (1001, 'order', 'high', 'T', 'b')`)
	})
}

func captureOthers(c *capturing) {
	c.commit(func() {
		c.changes("INSERT INTO orders VALUES (1, 'a'), (2, NULL)")
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', '1')`)
		c.changes("UPDATE orders SET note = repeat('x', 100)")
		c.changes("UPDATE orders SET id = id + 10")
		c.changes("DELETE FROM orders WHERE id = 12")
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', '11')`)
		c.changes("UPDATE outbox SET type = 'changed'")
		c.changes("DELETE FROM outbox")
	})
	c.commit(func() {
		c.truncate("TRUNCATE orders, order_lines RESTART IDENTITY CASCADE")
		c.rows("outbox_gen", `(id, aggregatetype, aggregateid, type, payload) VALUES (4, 'order', 'k', 'placed', 'p')`)
		c.truncate("TRUNCATE outbox, outbox_gen")
		c.rows("outbox_part", `VALUES (9, 'order', 'k', 'T', 'p')`)
	})
	c.exec("SELECT pg_replication_origin_create($1)", c.prefix)
	c.exec("SELECT pg_replication_origin_session_setup($1)", c.prefix)
	c.commit(func() {
		c.changes("INSERT INTO orders VALUES (3, 'from elsewhere')")
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'from elsewhere')`)
	})
	c.exec("SELECT pg_replication_origin_session_reset()")
	c.exec("SELECT pg_replication_origin_drop($1)", c.prefix)
	c.commit(func() { c.changes("INSERT INTO orders VALUES (4, 'nothing for us')") })
}

func captureMessages(c *capturing) {
	c.foreign(false, "outbox", "not transactional")
	c.commit(func() {
		c.message(`{"id":"m1","aggregatetype":"order","aggregateid":"42","type":"T","payload":{"a": 1}}`)
		c.foreign(true, "other", "\x01\x02")
		c.foreign(false, "outbox", "sent before its transaction")
		c.rows("outbox", `(aggregatetype, aggregateid) VALUES ('order', 'between')`)
		c.message("\n{ \"payload\" : [ 1 ,\t2 ] , \"id\" : 7, \"aggregatetype\":\"\", \"aggregateid\":-1.50e3 , \"type\": null }\r\n")
		c.message(`{"id":"\u00e9\ud83d\ude00 é😀","aggregatetype":"o","aggregateid":"\"\\\/\b\f\n\r\t","payload":"text \u20ac"}`)
		c.message(`{"id":"first","aggregatetype":"o","aggregateid":"k","payload":1,"id":"last","payload":null,"more":{"id":"nested"}}`)
		c.message(`{"id":true,"aggregatetype":"o","aggregateid":"k","payload":""}`)
		c.foreign(true, "", "no prefix")
		c.foreign(true, "outbox2", "{}")
		c.foreign(true, "préfixe", "ü")
	})
	c.commit(func() {
		c.rolledBack(func() { c.message(`{"id":"rolled back","aggregatetype":"o","aggregateid":"k","payload":1}`) })
		c.message(`{"id":"m2","aggregatetype":"o","aggregateid":"k","payload":false}`)
	})
	c.exec("BEGIN")
	c.foreign(false, "other", "of a transaction that aborts")
	c.foreign(true, "outbox", "aborted")
	c.exec("ROLLBACK")
}
