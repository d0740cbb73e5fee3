package bridge

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/internal/walsender"
)

// newExactlyOnceRig is a rig whose slot is adopted.
func newExactlyOnceRig(t *testing.T) *rig {
	t.Helper()
	r := newCheckpointedRig(t, time.Second)
	r.options.ExactlyOnce = true
	r.bridge = New(r.options)
	return r
}

// mustHaveOnce judges what a consumer gets that reads what is committed: the events from 0 to n, once and in order.
func (r *rig) mustHaveOnce(n int) {
	r.t.Helper()
	var got, want []string
	for _, p := range r.positions(kgo.FetchIsolationLevel(kgo.ReadCommitted())) {
		got = append(got, p.id)
	}
	for i := range n {
		want = append(want, fmt.Sprintf("id-%d", i))
	}
	if !slices.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		r.t.Errorf("%d events are committed, want %d; the first %d are right, then comes %v", len(got), n, at, got[at:min(at+3, len(got))])
	}
}

// What is published waits for its commit, and is confirmed to Postgres behind it.
func TestExactlyOnceIsVisibleSoon(t *testing.T) {
	t.Run("by default", func(t *testing.T) { testVisibleSoon(t, 20*time.Millisecond) })
	t.Run("without linger", func(t *testing.T) { testVisibleSoon(t, 0) })
}

func testVisibleSoon(t *testing.T, linger time.Duration) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		r := newExactlyOnceRig(t)
		r.options.Kafka.Linger = linger
		r.bridge = New(r.options)
		r.start()
		sleep(time.Second)
		for n := range 5 {
			c := r.commit(event(2*n), event(2*n+1))
			sleep(300 * time.Millisecond)
			if got := r.pg.Confirmed(); got != c.EndLSN {
				t.Errorf("confirmed %s, want %s", got, c.EndLSN)
			}
		}
		r.mustHaveOnce(10)
		if pending := r.bridge.Status().Inflight; pending != 0 {
			t.Errorf("%d events are in flight", pending)
		}
		r.finishAfter(time.Second)
	})
}

// Wherever a process dies, a consumer that reads what is committed gets each event once.
func TestExactlyOnceOverCrashes(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				r := newExactlyOnceRig(t)
				n := 0
				for round := range 10 {
					r.start()
					if round == 0 {
						sleep(time.Second) // for the first checkpoint, without which nobody goes on
					}
					for range 1 + random.IntN(20) {
						var changes []walsender.Change
						for range 1 + random.IntN(30) {
							changes = append(changes, event(n))
							n++
						}
						r.commit(changes...)
						sleep(time.Duration(random.IntN(200)) * time.Millisecond)
					}
					r.abandon()
					if random.IntN(3) == 0 {
						r.pg.Crash()
						r.pg.Start(0x1500000)
					}
					r.again()
				}
				r.start()
				r.finishAfter(5 * time.Second)
				r.mustHaveOnce(n)
			})
		})
	}
}

// An instance that stood still goes on where its successor has been: nothing that it had published becomes visible.
func TestExactlyOnceFencesAFrozenInstance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newExactlyOnceRig(t)
		r.start()
		r.commit(event(0))
		sleep(5 * time.Second)
		held, release := r.holdEnd()
		r.commit(event(1))
		<-held

		r.fence()
		close(release)
		sleep(time.Second)
		if s := r.bridge.Status(); s.LastError == "" {
			t.Errorf("%s: want it to notice that it was fenced", s.State)
		}
		r.finishAfter(20 * time.Second)
		r.mustHaveOnce(2)
	})
}

// A commit takes the brokers a while. What comes meanwhile is read, and waits for the next transaction.
func TestExactlyOnceReadsOnWhileItCommits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newExactlyOnceRig(t)
		r.start()
		sleep(time.Second)
		held, release := r.holdEnd()
		r.commit(event(0))
		<-held
		for n := range 100 {
			r.commit(event(1 + n))
		}
		sleep(time.Second)
		if n := r.bridge.Status().Inflight; n != 101 {
			t.Errorf("%d events are read, want 101", n)
		}
		if n := r.kafka.PartitionInfo("outbox.event.order", 0).HighWatermark; n != 1 {
			t.Errorf("%d events are in the topic, want that of the transaction that is committed", n)
		}
		close(release)
		r.finishAfter(5 * time.Second)
		r.mustHaveOnce(101)
	})
}

// holdEnd has the next request that ends a transaction wait for release. held is closed when it has come.
func (r *rig) holdEnd() (held, release chan struct{}) {
	held, release = make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	r.kafka.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		if first.CompareAndSwap(false, true) {
			r.kafka.SleepControl(func() {
				close(held)
				<-release
			})
		}
		return nil, nil, false
	})
	return held, release
}

// refuse has the brokers refuse each request with an event, which must not be compressed.
func (r *rig) refuse(id string) *kfake.FaultHandle {
	return r.kafka.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "outbox.event.order", Partitions: []int32{0}, Err: kerr.MessageTooLarge, Count: 1000,
		When: func(request kmsg.Request) bool {
			for _, topic := range request.(*kmsg.ProduceRequest).Topics {
				for _, p := range topic.Partitions {
					if bytes.Contains(p.Records, []byte(id)) {
						return true
					}
				}
			}
			return false
		},
	})
}

// A record that only the brokers refuse takes its transaction with it. What precedes it comes again, and is committed.
func TestExactlyOnceHaltsBeforePoison(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newExactlyOnceRig(t)
		r.start()
		sleep(time.Second)
		r.commit(event(0))
		sleep(time.Second)
		r.commit(event(1), walsender.Row(outboxRelation, badRow("no topic")), event(3))
		r.mustEnd(Poison, "legal topic name")
		r.mustHaveOnce(2)
		if p := r.poisoned(); p.Note == nil || !strings.HasSuffix(p.Note.Position, "/1") {
			t.Errorf("poison: %+v", p.Note)
		}
	})
	bubble(t, func(t *testing.T) {
		r := newExactlyOnceRig(t)
		r.options.Kafka.Compression = "none" // so that the fault finds the event
		r.bridge = New(r.options)
		r.start()
		r.commit(event(0))
		sleep(time.Second)
		refusing := r.refuse("id-5")
		r.commit(event(1), event(2), event(3), event(4), event(5), event(6))
		r.mustEnd(Poison, "MESSAGE_TOO_LARGE")
		r.mustHaveOnce(1)
		if p := r.poisoned(); p.Note == nil {
			t.Errorf("the halt was not noted:\n%s", r.log)
		}
		for range 6 { // the brokers name the first of a batch
			r.again()
			r.start()
			sleep(time.Minute)
			_ = r.finish()
		}
		if p := r.poisoned(); p.Note == nil || p.Note.ID != "id-5" {
			t.Errorf("the note is %+v, want one of id-5", p.Note)
		}
		r.mustHaveOnce(5)
		refusing.Remove()
		r.again()
		r.start()
		r.finishAfter(5 * time.Second)
		r.mustHaveOnce(7)
	})
}

// Whether the brokers take an event they are asked in a transaction, which is aborted.
func TestExactlyOnceAsksTheBrokersInVain(t *testing.T) {
	for _, taken := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			r := newExactlyOnceRig(t)
			r.options.Kafka.Compression, r.options.Kafka.DeadLetterTopic = "none", deadLetterTopic
			r.seed(deadLetterTopic)
			r.bridge = New(r.options)
			r.start()
			r.commit(event(0))
			sleep(time.Second)
			refusing := r.refuse("id-1")
			at := first(r.commit(event(1)))
			r.mustEnd(Poison, "MESSAGE_TOO_LARGE")
			if n := r.poisoned().Note; n == nil || n.Position != at.String() {
				t.Fatalf("the note is %+v", n)
			}
			if taken {
				refusing.Remove()
			}
			_, err := MoveToDeadLetters(t.Context(), r.options, at)
			if refused := err != nil && strings.Contains(err.Error(), "the brokers take it now"); refused != taken || err != nil && !taken {
				t.Errorf("%v", err)
			}
			if n := len(r.records(deadLetterTopic)); (n == 0) != taken {
				t.Errorf("%d dead letters", n)
			}
			r.mustHaveOnce(1)
			r.again()
			r.start()
			r.finishAfter(5 * time.Second)
			if taken {
				r.mustHaveOnce(2)
			} else {
				r.mustHaveOnce(1)
			}
		})
	}
}
