package integration

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
)

// deadLetters returns the world's records in the dead-letter topic, which all worlds share, those of one letter as one.
func (w *world) deadLetters() (letters []*kgo.Record) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	topic := w.cfg.Kafka.DeadLetterTopic
	client, err := kgo.NewClient(kgo.SeedBrokers(shared.kafka...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	end, ok := ends.Lookup(topic, 0)
	if err != nil || !ok || end.Err != nil {
		w.t.Fatalf("topic %q: %v, %v", topic, err, end.Err)
	}
	for at := int64(0); at < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			w.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at = r.Offset + 1
			part := header(r, "walferry-part")
			switch {
			case header(r, "walferry-slot") != w.prefix:
			case part == "" || strings.HasPrefix(part, "1/"):
				letters = append(letters, r)
			default:
				last := letters[len(letters)-1]
				last.Value = append(last.Value, r.Value...)
			}
		})
	}
	return letters
}

// peeked returns the one message that holds a mark, as Postgres itself shows it from another slot.
func (w *world) peeked(slot, mark string) []byte {
	w.t.Helper()
	var data []byte
	if err := w.conn.QueryRow(w.t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'walferry', 'messages', 'true') WHERE position($2::bytea IN data) > 0`,
		slot, []byte(mark)).Scan(&data); err != nil {
		w.t.Fatal(err)
	}
	return data
}

// What halts the bridge is shown and moved away, one event after another, and the bridge goes on: everything else
// arrives once and in order, and what was moved is what Postgres has.
func TestPoisonIsMovedOutOfTheWay(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) { c.Databases[0].Outbox[0].Topic = "{aggregatetype}" })
		w.exec("CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload jsonb)")
		writer := w.prefix + "_writer"
		w.exec("CREATE ROLE " + writer)
		t.Cleanup(func() { _, _ = w.conn.Exec(context.Background(), "DROP ROLE "+writer) })
		w.setup()
		second := w.prefix + "_second"
		w.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", second)
		defer w.dropSlot(second)
		small := "2000"
		if _, err := w.kafkaAdmin().CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": &small}, w.prefix+".small"); err != nil {
			t.Fatal(err)
		}
		path := w.configFile("")
		show := func() string {
			t.Helper()
			stdout, stderr := walferry(t, "poison", "show", "--config", path).exit(0)
			w.mustHoldNoSecret(stdout + stderr)
			return stdout
		}
		move := func(code int, position string, says string) {
			t.Helper()
			stdout, stderr := walferry(t, "poison", "dead-letter", "--config", path, position).exit(code)
			w.mustHoldNoSecret(stdout + stderr)
			if !strings.Contains(stdout+stderr, says) {
				t.Errorf("dead-letter says %q, want %q", stdout+stderr, says)
			}
		}
		good := func() []event {
			return w.emit("INSERT INTO outbox VALUES (gen_random_uuid()::text, '" + w.prefix + ".order', 'k', 'T', '1')" + returning)
		}
		if got := show(); !strings.Contains(got, "no other event is known") {
			t.Errorf("without poison: %s", got)
		}
		var want []event
		for i, test := range []struct {
			write, where, id, reason string
			last                     bool // what lies behind it could be sent before the brokers refuse it
		}{
			{"BEGIN; SET LOCAL ROLE " + writer + "; SELECT pg_logical_emit_message(true, 'outbox', '{\"id\": secret-MARK}'); COMMIT", "logical message outbox", "", "not valid JSON", false},
			{"INSERT INTO outbox VALUES ('id-2', 'order', NULL, 'T', '\"secret-MARK\"')", "public.outbox", "id-2", "aggregateid is NULL", false},
			{"INSERT INTO outbox VALUES ('id-3', 'no topic', 'secret', 'T', '\"secret-MARK\"')", "public.outbox", "id-3", "legal topic name", false},
			{"INSERT INTO outbox VALUES ('id-4', 'order', 'secret', 'T', to_jsonb('secret-MARK' || repeat('x', 3000000)))", "public.outbox", "id-4", "kafka.max_record", false},
			{"INSERT INTO outbox VALUES ('id-5', 'PREFIX.small', 'secret', 'T', to_jsonb('secret-MARK' || 'NOISE'))", "public.outbox", "id-5", "MESSAGE_TOO_LARGE", true},
		} {
			mark := fmt.Sprintf("secret-%d", i)
			want = append(want, good()...)
			w.exec(strings.NewReplacer("secret-MARK", mark, "PREFIX", w.prefix, "NOISE", strings.ReplaceAll(noise(5000, 1), "'", "")).Replace(test.write))
			if !test.last {
				want = append(want, good()...)
			}
			w.mustHoldNoSecret(mustExit(t, 65, []string{"run", "--config", path}, "poison show"))

			shown := show()
			position := regexp.MustCompile(`halted before event (\S+) at `).FindStringSubmatch(shown)
			if position == nil {
				t.Fatalf("show says %q", shown)
			}
			for _, part := range []string{test.where, test.reason, test.id, "--database shop " + position[1]} {
				if !strings.Contains(shown, part) {
					t.Errorf("show does not say %q:\n%s", part, shown)
				}
			}
			confirmed := w.confirmed()
			move(0, position[1], "restart walferry")
			if got := w.confirmed(); got != confirmed {
				t.Errorf("the slot went from %s to %s", confirmed, got)
			}
			if got := show(); !strings.Contains(got, "event "+position[1]+" is a dead letter") {
				t.Errorf("after it: %s", got)
			}
			letters := w.deadLetters()
			if len(letters) != i+1 {
				t.Fatalf("%d dead letters, want %d", len(letters), i+1)
			}
			letter := letters[i]
			if original := w.peeked(second, mark); !bytes.Equal(letter.Value, original) {
				t.Errorf("the dead letter has %d bytes, not the %d of Postgres", len(letter.Value), len(original))
			}
			if string(letter.Key) != position[1] || header(letter, "walferry-position") != position[1] || header(letter, "walferry-where") != test.where ||
				header(letter, "walferry-id") != test.id || !strings.Contains(header(letter, "walferry-reason"), test.reason) {
				t.Errorf("headers %q", letter.Headers)
			}
			if columns := header(letter, "walferry-columns"); test.id != "" && columns != `["id","aggregatetype","aggregateid","type","payload"]` {
				t.Errorf("columns %s", columns)
			}
			if test.last {
				want = append(want, good()...)
			}
			_, stderr := walferry(t, "run", "--until-lsn", w.walEnd(), "--config", path).exit(0)
			w.mustHoldNoSecret(stderr)
			if !strings.Contains(stderr, position[1]) || !strings.Contains(stderr, "is a dead letter") {
				t.Errorf("the log does not say what was passed over:\n%s", stderr)
			}
			move(1, position[1], "is past event "+position[1])
			got := w.published("order")
			if test.last { // the event before it was in flight, perhaps, and comes again
				got = slices.Compact(got)
			}
			mustEqual(t, "order", got, want)
		}
		if got := show(); !strings.Contains(got, "no other event is known") {
			t.Errorf("in the end: %s", got)
		}
	})
}

// An event that can be published is not taken out of the stream, nor anything while a bridge has the slot.
func TestGoodEventsAreNotMoved(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	path := w.configFile("")
	want := w.order("k", "1")
	w.drainAll()
	position := header(w.records()[0], "walferry-position")
	mustExit(t, 1, []string{"poison", "dead-letter", "--config", path, position}, "is past event "+position)

	want = append(want, w.order("k", "2")...)
	// A BEGIN holds the LSN of the commit record that an event's position has.
	var commit int64
	await(t, "the slot to be free", func() error {
		return w.conn.QueryRow(t.Context(), `SELECT ('x' || encode(substr(data, 2, 8), 'hex'))::bit(64)::bigint
			FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walferry')
			WHERE get_byte(data, 0) = ascii('B') ORDER BY lsn DESC LIMIT 1`, w.prefix).Scan(&commit)
	})
	second := regexp.MustCompile(`/1/.*`).ReplaceAllString(position, fmt.Sprintf("/1/%s/0", pglogrepl.LSN(commit)))
	mustExit(t, 1, []string{"poison", "dead-letter", "--config", path, second}, "event "+second+" is not moved: it can be published")

	r := w.run("")
	w.awaitCaughtUp()
	mustExit(t, 1, []string{"poison", "dead-letter", "--config", path, second}, "slot", "is held by pid", "walferry/"+w.prefix)
	r.drain()
	w.mustPublish("order", want)
	if n := len(w.records()); n != 2 {
		t.Errorf("%d records, want 2", n)
	}
}

// mustHoldNoSecret fails if a text has data of the events that these tests write.
func (w *world) mustHoldNoSecret(text string) {
	w.t.Helper()
	if strings.Contains(text, "secret") {
		w.t.Errorf("it shows data of an event:\n%s", text)
	}
}
