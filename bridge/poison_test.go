package bridge

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/refusal"
	"github.com/walferry/walferry/internal/walsender"
)

const deadLetterTopic = "walferry.dead-letters"

// badRow is the message of a row whose aggregate type makes no topic, or for "" is NULL.
func badRow(aggregateType string) []byte {
	is := pgoutput.Text(aggregateType)
	if aggregateType == "" {
		is = pgoutput.Null()
	}
	return pgoutput.AppendInsert(nil, outboxRelation.ID, []pgoutput.Value{
		pgoutput.Text("id-x"), is, pgoutput.Text(secretPayload), pgoutput.Text("T"), pgoutput.Text(secretPayload),
	})
}

// first is the position of the first event of a transaction.
func first(c walsender.Committed) decode.Position {
	return decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: decode.LSN(c.CommitLSN)}
}

// poisoned returns what `walferry poison show` would show.
func (r *rig) poisoned() *Poisoned {
	r.t.Helper()
	p, err := ReadPoison(r.t.Context(), r.options)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// stored returns the value of a key beside the checkpoint, nil if there is none.
func (r *rig) stored(key string) []byte {
	r.t.Helper()
	cfg, err := r.options.checkpoints("")
	if err != nil {
		r.t.Fatal(err)
	}
	values, err := checkpoint.Read(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return values[key]
}

// seed creates a topic.
func (r *rig) seed(topic string) {
	r.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(r.kafka.ListenAddrs()...), kgo.Dialer(r.network.DialContext))
	if err == nil {
		defer client.Close()
		_, err = kadm.NewClient(client).CreateTopic(r.t.Context(), 1, 1, map[string]*string{"cleanup.policy": new("compact")}, topic)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// refuseEvents has the brokers refuse, for good, that many requests of events, or of dead letters.
func (r *rig) refuseEvents(requests *atomic.Int32) {
	r.kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		produce := request.(*kmsg.ProduceRequest)
		if produce.TransactionID != nil || requests.Add(-1) < 0 { // checkpoints are transactional
			return nil, nil, false
		}
		return refusal.Of(produce, kerr.MessageTooLarge.Code, -1), nil, true
	})
}

func TestPoisonIsMovedOutOfTheWay(t *testing.T) {
	for _, test := range []struct {
		name, where, id, reason string
		wal                     []byte // of the bad event; nil: a good one, which the brokers refuse
		bad                     func(wal []byte) walsender.Change
	}{
		{
			"malformed message", "logical message outbox", "", "valid JSON",
			[]byte(secretPayload), func(wal []byte) walsender.Change { return walsender.Message("outbox", wal) },
		},
		{
			"a NULL", "public.outbox", "id-x", "aggregatetype is NULL",
			badRow(""), func(wal []byte) walsender.Change { return walsender.Row(outboxRelation, wal) },
		},
		{
			"no topic", "public.outbox", "id-x", "legal topic name",
			badRow("no topic"), func(wal []byte) walsender.Change { return walsender.Row(outboxRelation, wal) },
		},
		{
			"the dead-letter topic", "public.outbox", "id-x", "for walferry alone",
			badRow("dead"), func(wal []byte) walsender.Change { return walsender.Row(outboxRelation, wal) },
		},
		{"refused by the brokers", "public.outbox", "id-100", "MESSAGE_TOO_LARGE", nil, func([]byte) walsender.Change { return event(100) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newCheckpointedRig(t, time.Second)
				r.options.Kafka.DeadLetterTopic = deadLetterTopic
				if test.name == "the dead-letter topic" {
					r.options.Database.Outbox[0].Topic = "walferry.{aggregatetype}-letters"
				}
				r.bridge = New(r.options)
				var refusals atomic.Int32
				r.refuseEvents(&refusals)
				good := func(n int) walsender.Change { // with a topic that is there, whatever the route is
					return walsender.Message("outbox", []byte(`{"id":"`+ids(n, n)[0]+`","aggregatetype":"order","aggregateid":"k","payload":1}`))
				}
				r.start()
				r.commit(good(0))
				sleep(5 * time.Second)
				if test.wal == nil {
					refusals.Store(1000)
				}
				c := r.commit(test.bad(test.wal))
				r.commit(good(1))
				r.mustEnd(Poison, "poison show")
				refusals.Store(0)
				if test.wal == nil {
					refusals.Store(1) // the first is of the event again, the second of the dead letter
				}
				before := r.pg.Confirmed()

				at := first(c)
				p := r.poisoned()
				if n := p.Note; n == nil || n.Position != at.String() || n.Where != test.where || n.ID != test.id ||
					!strings.Contains(n.Reason, test.reason) || strings.Contains(n.Reason, secretPayload) {
					t.Fatalf("the note is %+v", n)
				}
				letter, err := MoveToDeadLetters(t.Context(), r.options, at)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.pg.Confirmed(); got != before {
					t.Errorf("it confirmed %s, the bridge had come to %s", got, before)
				}
				letters := r.records(deadLetterTopic)
				if len(letters) != 1 {
					t.Fatalf("%d dead letters", len(letters))
				}
				value, isRow := letters[0].Value, bytes.Contains(test.wal, []byte("id-x")) || test.wal == nil
				if !bytes.HasSuffix(value, test.wal) || test.wal == nil && !bytes.Contains(value, []byte(secretPayload)) ||
					isRow != (value[0] == 'I') || letter.Size != len(value) || string(letters[0].Key) != at.String() {
					t.Errorf("dead letter %q of %+v", value, letter)
				}
				want := map[string]string{
					"position": at.String(), "database": "shop", "slot": "walferry", "where": test.where,
					"reason": letter.Reason, "committed": c.CommitTime.UTC().Format(time.RFC3339Nano),
				}
				if test.id != "" {
					want["id"] = test.id
				}
				if isRow {
					want["columns"] = `["id","aggregatetype","aggregateid","type","payload"]`
				}
				for _, h := range letters[0].Headers {
					if name := strings.TrimPrefix(h.Key, "walferry-"); want[name] != string(h.Value) {
						t.Errorf("header %s is %q, want %q", h.Key, h.Value, want[name])
					}
				}
				if len(letters[0].Headers) != len(want) {
					t.Errorf("%d headers, want %d", len(letters[0].Headers), len(want))
				}
				if p := r.poisoned(); p.Note != nil || !slices.Equal(p.DeadLettered, []decode.Position{at}) {
					t.Errorf("after it: %+v", p)
				}
				if _, err := MoveToDeadLetters(t.Context(), r.options, at); err == nil || !strings.Contains(err.Error(), "is a dead letter already") {
					t.Errorf("a second time: %v", err)
				}

				r.again()
				r.start()
				r.finishAfter(5 * time.Second)
				if p := r.poisoned(); p.Note != nil || len(p.DeadLettered) != 0 {
					t.Errorf("when it is passed: %+v", p)
				}
				// Postgres forgets what was confirmed: what is published, or a dead letter, comes again.
				r.pg.Crash()
				r.pg.Start(0x1500000)
				r.again()
				r.start()
				r.commit(good(2))
				r.finishAfter(5 * time.Second)
				cfg, _ := r.options.checkpoints("7000")
				if got := r.stored(cfg.Key + deadKey + at.String()); got != nil {
					t.Errorf("the decision is kept: %s", got)
				}
				if got := r.delivered(); !slices.Equal(got, ids(0, 2)) {
					t.Errorf("delivered %v", got)
				}
			})
		})
	}
}

// Whatever lies around it in its transaction is published, once.
func TestADeadLetterInsideOfATransaction(t *testing.T) {
	for _, bad := range []walsender.Change{walsender.Message("outbox", nil), walsender.Row(outboxRelation, badRow("no topic"))} {
		bubble(t, func(t *testing.T) { testDeadLetterInside(t, bad) })
	}
}

func testDeadLetterInside(t *testing.T, bad walsender.Change) {
	r := newCheckpointedRig(t, time.Second)
	r.start()
	c := r.commit(walsender.Message("other", nil), event(0), bad, event(1), bad, event(2))
	for _, index := range []uint64{2, 4} {
		r.mustEnd(Poison, "poison show")
		at := first(c)
		at.Index = index
		if n := r.poisoned().Note; n == nil || n.Position != at.String() {
			t.Fatalf("the note is %+v, want %s", n, at)
		}
		if _, err := MoveToDeadLetters(t.Context(), r.options, at); err != nil {
			t.Fatal(err)
		}
		r.again()
		r.start()
	}
	r.finishAfter(5 * time.Second)
	if got := r.delivered(); !slices.Equal(got, ids(0, 2)) {
		t.Errorf("delivered %v", got)
	}
	if n := len(r.records(deadLetterTopic)); n != 2 {
		t.Errorf("%d dead letters", n)
	}
}

func TestWhatIsNotMovedToDeadLetters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		refused := func(what string, at decode.Position, says string) {
			t.Helper()
			synctest.Wait() // for the server to have freed the slot
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			letter, err := MoveToDeadLetters(ctx, r.options, at)
			if classOf(err) != Fatal || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v (%+v), want %q", what, err, letter, says)
			}
		}
		refused("no checkpoint", decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: 0x1500000}, "has no checkpoint")
		r.start()
		published := r.commit(event(0))
		sleep(5 * time.Second)
		refused("while the bridge runs", first(published), `slot "walferry" is held by pid 1 application somebody`)
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		good := r.commit(walsender.Message("other", nil), event(1))
		refused("published", first(published), "the checkpoint ")
		at := first(good)
		refused("not an event", at, "there is no outbox event "+at.String())
		at.Index = 1
		refused("not poison", at, "it can be published")
		at.Timeline = 2
		refused("another timeline", at, "there is no outbox event")
		at.SystemID = "7001"
		refused("another cluster", at, "position of another cluster")
		r.commit(event(2))
		at = first(good)
		at.CommitLSN++
		refused("between two transactions", at, "there is no outbox event")
		refused("behind the end", decode.Position{SystemID: "7000", Timeline: 1, CommitLSN: decode.LSN(r.pg.WALEnd())}, "there is no outbox event")
		r.options.Checkpoint.Topic = ""
		refused("no checkpoints", at, "needs checkpoints")
		if _, err := ReadPoison(t.Context(), r.options); !errors.Is(err, errNeedsCheckpoints) {
			t.Errorf("show without checkpoints: %v", err)
		}
		if n := len(r.records(deadLetterTopic)); n != 0 {
			t.Errorf("%d dead letters", n)
		}
		if got := r.delivered(); !slices.Equal(got, ids(0, 0)) {
			t.Errorf("delivered %v", got)
		}
	})
}

// The dead letter comes first: when the decision cannot be written the event is still in the way.
func TestADeadLetterWithoutADecision(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		at := first(r.commit(walsender.Message("outbox", nil)))
		r.mustEnd(Poison, "valid JSON")
		commits := 0
		r.kafka.ControlKey(int16(kmsg.EndTxn), func(request kmsg.Request) (kmsg.Response, error, bool) {
			r.kafka.KeepControl()
			if commits++; commits != 2 { // the first is of the store that takes over
				return nil, nil, false
			}
			response := request.ResponseKind().(*kmsg.EndTxnResponse)
			response.ErrorCode = kerr.ProducerFenced.Code
			return response, nil, true
		})
		if _, err := MoveToDeadLetters(t.Context(), r.options, at); err == nil || !strings.Contains(err.Error(), "could not be noted") {
			t.Fatalf("%v", err)
		}
		r.again()
		r.start()
		r.mustEnd(Poison, "valid JSON")
		if _, err := MoveToDeadLetters(t.Context(), r.options, at); err != nil {
			t.Fatal(err)
		}
		r.again()
		r.start()
		r.finishAfter(5 * time.Second)
		if n := len(r.records(deadLetterTopic)); n != 2 {
			t.Errorf("%d dead letters, want one too many", n)
		}
	})
}

// The brokers refuse a whole batch, of which the bridge can note the first event only. That one is not poison.
func TestOnlyWhatTheBrokersRefuseNowIsMoved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.options.Kafka.DeadLetterTopic = deadLetterTopic
		r.bridge = New(r.options)
		var refusals atomic.Int32
		r.refuseEvents(&refusals)
		refusals.Store(1)
		r.start()
		at := first(r.commit(event(0), event(1), event(2)))
		r.mustEnd(Poison, "max.message.bytes")
		if n := r.poisoned().Note; n == nil || n.Position != at.String() {
			t.Fatalf("the note is %+v", n)
		}
		_, err := MoveToDeadLetters(t.Context(), r.options, at)
		if classOf(err) != Fatal || !strings.Contains(err.Error(), "the brokers take it now") {
			t.Errorf("%v", err)
		}
		r.again()
		r.start()
		r.finishAfter(5 * time.Second)
		if got := firstCopies(r.delivered()); !slices.Equal(got, ids(0, 2)) {
			t.Errorf("delivered %v", got)
		}
		if n := len(r.records(deadLetterTopic)); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// An aggregate type that was mistyped needs a topic that nobody wants.
func TestAnEventWithoutATopicIsMovedOutOfTheWay(t *testing.T) {
	for _, test := range []struct {
		name  string
		class Class
		edit  func(r *rig)
	}{
		{"it must not be created", Fatal, func(r *rig) {
			r.options.Kafka.Topics.Create = false
			r.seed(deadLetterTopic)
		}},
		{"it collides with another", Poison, func(r *rig) {
			r.kafka.ControlKey(int16(kmsg.CreateTopics), func(request kmsg.Request) (kmsg.Response, error, bool) {
				create := request.(*kmsg.CreateTopicsRequest)
				if !strings.HasSuffix(create.Topics[0].Topic, ".typo") {
					return nil, nil, false
				}
				r.kafka.KeepControl()
				response := request.ResponseKind().(*kmsg.CreateTopicsResponse)
				topic := kmsg.NewCreateTopicsResponseTopic()
				topic.Topic, topic.ErrorCode = create.Topics[0].Topic, kerr.InvalidTopicException.Code
				response.Topics = append(response.Topics, topic)
				return response, nil, true
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newCheckpointedRig(t, time.Second)
				r.options.Kafka.DeadLetterTopic = deadLetterTopic
				r.seed(checkpointTopic)
				test.edit(r)
				r.bridge = New(r.options)
				r.start()
				c := r.commit(event(0), walsender.Row(outboxRelation, badRow("typo")), event(1))
				r.mustEnd(test.class, "outbox.event.typo")
				at := first(c)
				at.Index = 1
				if n := r.poisoned().Note; n == nil || n.Position != at.String() || !strings.Contains(n.Reason, "outbox.event.typo") {
					t.Fatalf("the note is %+v", n)
				}
				if _, err := MoveToDeadLetters(t.Context(), r.options, at); err != nil {
					t.Fatal(err)
				}
				r.again()
				r.start()
				r.finishAfter(5 * time.Second)
				if got := firstCopies(r.delivered()); !slices.Equal(got, ids(0, 1)) {
					t.Errorf("delivered %v", got)
				}
			})
		})
	}
}

// The note of a halt takes two round trips of Kafka more than a session in a hurry has time for.
func TestAHaltIsNotedWhenKafkaIsSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
			r.kafka.KeepControl()
			if request.(*kmsg.ProduceRequest).TransactionID != nil {
				r.kafka.SleepControl(func() { sleep(time.Second) })
			}
			return nil, nil, false
		})
		var refusals atomic.Int32
		r.start()
		r.commit(event(0))
		sleep(5 * time.Second)
		r.refuseEvents(&refusals)
		r.commit(event(1))
		sleep(300 * time.Millisecond) // a checkpoint is on its way
		refusals.Store(1)
		at := first(r.commit(event(2)))
		r.mustEnd(Poison, "max.message.bytes")
		if n := r.poisoned().Note; n == nil || n.Position != at.String() {
			t.Fatalf("the note is %+v", n)
		}
	})
}

// A dead letter finds room in any topic.
func TestALargeDeadLetterComesInParts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.options.Kafka.DeadLetterTopic = deadLetterTopic
		r.bridge = New(r.options)
		r.start()
		large := bytes.Repeat([]byte("no JSON "), 150_000)
		at := first(r.commit(walsender.Message("outbox", large)))
		r.mustEnd(Poison, "valid JSON")
		letter, err := MoveToDeadLetters(t.Context(), r.options, at)
		if err != nil {
			t.Fatal(err)
		}
		var value []byte
		var parts []string
		for _, record := range r.records(deadLetterTopic) {
			value = append(value, record.Value...)
			last := record.Headers[len(record.Headers)-1]
			parts = append(parts, last.Key+"="+string(last.Value))
		}
		if len(value) != letter.Size || !bytes.HasSuffix(value, large) {
			t.Errorf("%d bytes, want %d", len(value), letter.Size)
		}
		if want := []string{"walferry-part=1/3", "walferry-part=2/3", "walferry-part=3/3"}; !slices.Equal(parts, want) {
			t.Errorf("parts %v, want %v", parts, want)
		}
	})
}
