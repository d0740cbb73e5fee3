package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
	"github.com/walferry/walferry/replication"
)

const checkpointTopic = "walferry.checkpoints"

// newCheckpointedRig is a rig with checkpoints, whose slot is adopted.
func newCheckpointedRig(t *testing.T, interval time.Duration) *rig {
	t.Helper()
	r := newRig(t, time.Minute, nil)
	r.options.Checkpoint = config.Checkpoint{Topic: checkpointTopic, Interval: interval}
	r.options.AdoptSlot = true
	r.bridge = New(r.options)
	return r
}

// again makes a new bridge, as another process would be one, without the flags of the first.
func (r *rig) again() {
	r.options.AdoptSlot, r.options.AcceptGap = false, false
	r.bridge = New(r.options)
}

// checkpoint returns the checkpoint in the topic.
func (r *rig) checkpoint() *checkpoint.Checkpoint {
	r.t.Helper()
	c, err := ReadCheckpoint(r.t.Context(), r.options)
	if err != nil || c == nil {
		r.t.Fatalf("checkpoint %v: %v", c, err)
	}
	return c
}

// abandon ends the bridge as kill -9 does: what it does from now on reaches nobody.
func (r *rig) abandon() {
	r.cut.Store(true)
	for _, session := range r.pg.Sessions() {
		session.Cut()
	}
	r.stop()
	if err := <-r.ended; err != nil {
		r.t.Log("abandoned:", err)
	}
	r.cut.Store(false)
}

// recreate makes the slot one that was created at the end of WAL.
func (r *rig) recreate() {
	at := r.pg.AdvanceWAL(5000)
	r.seen.add(at) // as confirmed_flush_lsn
	r.pg.Handle("slot", func(string) walsender.Result {
		confirmed := max(at, r.pg.Confirmed())
		return walsender.Answer("pgoutput", "logical", "shop", r.pg.ActivePID() != "", r.pg.ActivePID(), at, confirmed, "reserved", -1, "", false, r.pg.WALEnd(), "1:1:", r.pg.WALEnd(), false)
	})
}

// acceptGap publishes event 0, makes a gap and leaves a bridge that is told to accept it.
func (r *rig) acceptGap() {
	r.t.Helper()
	r.start()
	r.commit(event(0))
	r.finishAfter(5 * time.Second)
	r.recreate()
	r.options.AdoptSlot, r.options.AcceptGap = false, true
	r.bridge = New(r.options)
}

// mustEnd waits for the bridge to stop by itself with an error of the class, which says text.
func (r *rig) mustEnd(class Class, text string) {
	r.t.Helper()
	sleep(time.Minute)
	select {
	case err := <-r.ended:
		r.ended <- err
		if classOf(err) != class || !strings.Contains(fmt.Sprint(err), text) {
			r.t.Errorf("ended with %v, want class %s and %q", err, class, text)
		}
	default:
		r.t.Errorf("still %s, want it to end with class %s", r.bridge.Status().State, class)
	}
	_ = r.finish()
}

// I3: what is confirmed to Postgres is never ahead of what a checkpoint says.
func TestNothingIsConfirmedBeforeItsCheckpoint(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, 10*time.Second)
		r.start()
		sleep(time.Second)
		c := r.commit(event(0))
		sleep(2 * time.Second)
		if got := r.bridge.acknowledged.Load(); got != 1 {
			t.Fatalf("%d events acknowledged", got)
		}
		if got := r.pg.Confirmed(); got >= c.EndLSN {
			t.Errorf("%s is confirmed, the checkpoint is at %s", got, r.checkpoint().Pos)
		}
		sleep(10 * time.Second)
		if got, pos := r.pg.Confirmed(), r.checkpoint().Pos.LSN; got != c.EndLSN || pos != c.EndLSN {
			t.Errorf("confirmed %s, checkpoint %s, want both at %s", got, pos, c.EndLSN)
		}
		last := r.commit(event(1)).EndLSN
		sleep(time.Second)
		if err := r.finish(); err != nil { // a drain does not wait for the interval
			t.Error(err)
		}
		if got, pos := r.pg.Confirmed(), r.checkpoint().Pos.LSN; got != pos || got < last {
			t.Errorf("after the drain: confirmed %s, checkpoint %s, want both at %s", got, pos, last)
		}
	})
}

// A crash of Postgres takes confirmed_flush_lsn back. The checkpoint does not go back.
func TestWhatIsPublishedIsSkipped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		for i := range 10 {
			r.commit(event(i), event(100+i))
		}
		sleep(5 * time.Second)
		r.pg.Crash()
		r.pg.Start(0x1500000) // all of it is forgotten
		sleep(5 * time.Second)
		r.commit(event(10))
		r.finishAfter(5 * time.Second)
		r.again()
		r.pg.Crash()
		r.pg.Start(0x1500000)
		r.start()
		sleep(5 * time.Second)
		_ = r.finish()
		if ids := r.delivered(); len(ids) != 21 || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 21 {
			t.Errorf("%d events delivered: %v, want 21, each once", len(ids), ids)
		}
	})
}

// A crash in the middle of a large transaction repeats only what was acknowledged after the
// last checkpoint.
func TestALargeTransactionGoesOnWhereItStood(t *testing.T) {
	const events = 20_000
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		sleep(time.Second)
		var all []walsender.Change
		for i := range events {
			all = append(all, event(i))
		}
		r.pg.Hold(events * 3 / 4)
		r.commit(all...)
		sleep(5 * time.Second)
		c := r.checkpoint()
		if c.OpenCommit.LSN == 0 || c.OpenIndex < events/2 {
			t.Errorf("checkpoint %+v, want it inside of the transaction", c)
		}
		r.abandon()
		r.again()
		r.pg.Release()
		r.start()
		r.finishAfter(5 * time.Second)
		// A run that was not whole is all that may come twice.
		if ids := r.delivered(); len(ids) < events || len(ids) > events+512 {
			t.Errorf("%d events delivered, want %d and at most a run of 512 twice", len(ids), events)
		}
	})
}

// fence takes the right to write checkpoints away from the bridge, as another instance would.
func (r *rig) fence() {
	r.t.Helper()
	other, err := r.options.checkpoints("7000")
	if err != nil {
		r.t.Fatal(err)
	}
	store, err := checkpoint.Open(r.t.Context(), other)
	if err != nil {
		r.t.Fatal(err)
	}
	store.Close()
}

func TestAFrozenInstanceIsFenced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		r.commit(event(0))
		sleep(5 * time.Second)
		r.fence()
		r.commit(event(1))
		sleep(1200 * time.Millisecond)
		if s := r.bridge.Status(); !strings.Contains(s.LastError, "has taken over") {
			t.Errorf("%s, %q: want it to notice that it was fenced", s.State, s.LastError)
		}
		r.finishAfter(10 * time.Second)
	})
}

// An instance that was frozen behind START_REPLICATION compares what it found then with its successor's checkpoint.
func TestAFrozenInstanceSeesNoGap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		r.commit(event(0))
		r.finishAfter(5 * time.Second)
		r.again()
		successor := New(r.options)
		thaw := make(chan struct{})
		r.options.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			select {
			case <-thaw:
			case <-ctx.Done():
			}
			return r.dialKafka(ctx, network, addr)
		}
		r.bridge = New(r.options)
		r.start() // it has the slot, and stands still before Kafka
		r.pg.Holder().Cut()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- successor.Run(ctx) }()
		synctest.Wait()
		r.commit(event(1))
		sleep(5 * time.Second)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		close(thaw)
		r.commit(event(2))
		r.finishAfter(10 * time.Second)
		if got := r.delivered(); !slices.Equal(got, ids(0, 2)) {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestGapsStopTheBridge(t *testing.T) {
	for _, test := range []struct {
		name  string
		class Class
		text  string
		do    func(r *rig) // between two runs
	}{
		{"confirmed ahead of the checkpoint", Gap, "ahead of the checkpoint", func(r *rig) {
			r.recreate()
		}},
		{"publication changed and changed back", Gap, "taken out of the publication and put back", func(r *rig) { r.republished.Add(1) }},
		{"slot dropped", Gap, "does not exist any more", func(r *rig) {
			r.pg.Handle("slot", func(string) walsender.Result { return walsender.Result{} })
		}},
		{"slot invalidated", Lost, "wal_removed", func(r *rig) { r.slot("lost", "wal_removed") }},
		{"checkpoint deleted", Fatal, "--adopt-slot", func(r *rig) { r.options.Checkpoint.Topic = "other.checkpoints" }},
		{"checkpoint corrupted", Fatal, "cannot be used", func(r *rig) {
			cfg, _ := r.options.checkpoints("7000")
			store, err := checkpoint.Open(r.t.Context(), cfg)
			if err != nil {
				r.t.Fatal(err)
			}
			defer store.Close()
			if err := store.Write(r.t.Context(), map[string][]byte{cfg.Key: []byte(`{"version": 7}`)}); err != nil {
				r.t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newCheckpointedRig(t, time.Second)
				r.start()
				r.commit(event(0))
				r.finishAfter(5 * time.Second)
				test.do(r)
				r.again()
				r.start()
				c := r.commit(event(1))
				r.mustEnd(test.class, test.text)
				if got := r.pg.Confirmed(); got >= c.EndLSN {
					t.Errorf("confirmed %s, and with it the event behind the gap", got)
				}
			})
		})
	}
}

func TestANewSlotIsNotAdoptedBySilence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.again()
		r.start()
		r.commit(event(0))
		r.mustEnd(Fatal, "--adopt-slot")
		if ids := r.delivered(); len(ids) != 0 {
			t.Errorf("%v were published", ids)
		}
	})
}

func TestAnAcceptedGapIsLoggedAndClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.acceptGap()
		r.start()
		r.commit(event(1))
		r.finishAfter(5 * time.Second)
		if !strings.Contains(r.log.String(), "a gap is accepted") {
			t.Error("the log does not tell of the gap")
		}
		r.again() // without the flag
		r.start()
		r.commit(event(2))
		r.finishAfter(5 * time.Second)
		if ids := r.delivered(); len(ids) != 3 {
			t.Errorf("delivered %v", ids)
		}
	})
}

// The flag is for the gap that is found, not for the attempt to write it down.
func TestAnAcceptedGapSurvivesAFailedWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.acceptGap()
		ends := 0
		r.kafka.ControlKey(int16(kmsg.EndTxn), func(request kmsg.Request) (kmsg.Response, error, bool) {
			r.kafka.KeepControl()
			if ends++; ends != 2 { // the first opens the checkpoints
				return nil, nil, false
			}
			response := request.ResponseKind().(*kmsg.EndTxnResponse)
			response.ErrorCode = kerr.TransactionAbortable.Code
			return response, nil, true
		})
		r.start()
		r.commit(event(1))
		sleep(10 * time.Second)
		if err := r.finish(); err != nil || ends < 4 {
			t.Errorf("%v after %d transactions", err, ends)
		}
		if ids := r.delivered(); len(ids) != 2 {
			t.Errorf("delivered %v", ids)
		}
	})
}

// A table that was taken into the configuration is part of the next comparison.
func TestANewTableIsWrittenDownAtOnce(t *testing.T) {
	bubble(t, testNewTable)
}

func testNewTable(t *testing.T) {
	before := replication.Membership{"publication": "1/10", "public.a": "2/20"}
	after := replication.Membership{"publication": "1/10", "public.a": "2/20", "public.b": "3/30"}
	timelines, _ := replication.ParseTimelines(1, "")
	s := &session{Bridge: newCheckpointedRig(t, time.Second).bridge}
	for _, test := range []struct {
		now  replication.Membership
		want bool
	}{{before, false}, {after, true}} {
		c := checkpoint.Checkpoint{Version: 1, SystemID: "7000", Timeline: 1, Pos: checkpoint.LSN{LSN: 100}, Membership: before}
		value, _ := json.Marshal(&c)
		_, rewrite, err := s.judge(t.Context(), value, checkpoint.Found{SystemID: "7000", Timelines: timelines, Start: 100, WALEnd: 100, Membership: test.now})
		if err != nil || rewrite != test.want {
			t.Errorf("%v: rewrite %t, want %t: %v", test.now, rewrite, test.want, err)
		}
	}
}

// What was on its way when a primary died may be in Kafka: lost WAL is reported up to there. Exactly-once has aborted it, and
// what was sent on another timeline says nothing.
func TestLostWALIsReportedAsFarAsItWasSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		r.commit(event(0))
		last := r.commit(event(1), event(2))
		sleep(time.Second)
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if want := (sent{1, last.CommitLSN}); r.bridge.sent != want {
			t.Errorf("sent %+v, want %+v", r.bridge.sent, want)
		}

		timelines, _ := replication.ParseTimelines(2, "1\t0/1500000\tno recovery target specified\n")
		value, _ := json.Marshal(&checkpoint.Checkpoint{Version: 1, SystemID: "7000", Timeline: 1, Pos: checkpoint.LSN{LSN: 0x14fff00}})
		for name, test := range map[string]struct {
			timeline uint32
			batch    *batch
			want     checkpoint.Range
		}{
			"at least once":        {1, nil, checkpoint.Range{From: 0x1500000, To: 0x1500100}},
			"exactly once":         {1, &batch{}, checkpoint.Range{}},
			"on the next timeline": {2, nil, checkpoint.Range{}},
		} {
			s := &session{Bridge: &Bridge{sent: sent{test.timeline, 0x1500100}}, batch: test.batch}
			got, _, err := s.judge(t.Context(), value, checkpoint.Found{SystemID: "7000", Timelines: timelines, Start: 0x14fff00, WALEnd: 0x1500200})
			if err != nil || got.Phantoms != test.want {
				t.Errorf("%s: lost %v, want %v: %v", name, got.Phantoms, test.want, err)
			}
		}
	})
}

// Brokers that are away for minutes end no session, in which a checkpoint was on its way to them.
func TestAnOutageOfKafkaEndsNoSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		r.commit(event(0))
		sleep(5 * time.Second)
		r.commit(event(1))
		sleep(20 * time.Millisecond) // it is acknowledged, the checkpoint of it not written
		release := r.holdProduce()
		last := r.commit(walsender.Insert(otherRelation, pgoutput.Text("7")))
		sleep(5 * time.Minute)
		if s := r.bridge.Status(); s.State != Streaming || s.Sessions != 1 {
			t.Errorf("%s in session %d", s.State, s.Sessions)
		}
		release()
		sleep(time.Minute)
		if got := r.pg.Confirmed(); got < last.EndLSN {
			t.Errorf("confirmed %s, want %s", got, last.EndLSN)
		}
		r.finishAfter(time.Second)
		if got := r.delivered(); !slices.Equal(got, ids(0, 1)) || r.bridge.Status().Sessions != 1 {
			t.Errorf("delivered %v in %d sessions", got, r.bridge.Status().Sessions)
		}
	})
}

// A lost watch connection may be a shutdown, for which checkpoints hurry; another one says that it is none.
func TestTheHurryEndsWithItsReason(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, 10*time.Second)
		r.start()
		sleep(time.Second)
		for _, session := range r.pg.Sessions() {
			if session != r.pg.Holder() {
				session.Terminate()
			}
		}
		sleep(20 * time.Second)
		r.commit(event(0))
		sleep(2 * time.Second) // there was none for long: this checkpoint is written at once
		c := r.commit(event(1))
		sleep(3 * time.Second)
		if got := r.pg.Confirmed(); got >= c.EndLSN {
			t.Errorf("confirmed %s within three seconds, of ten", got)
		}
		_ = r.finish()
	})
}

// Between two looks the publication may have been changed and changed back.
func TestAPublicationChangedAndChangedBackWhileStreaming(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		r.start()
		r.commit(event(0))
		sleep(5 * time.Second)
		r.republished.Add(1)
		r.mustEnd(Gap, "put back")
	})
}

// The snapshot in a checkpoint sees only what commits before its position.
func TestTheSnapshotIsOlderThanThePosition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newCheckpointedRig(t, time.Second)
		var taken replication.LSN
		r.pg.Handle("slot", func(string) walsender.Result {
			at := r.pg.Confirmed()
			taken = r.pg.WALEnd()
			return walsender.Answer("pgoutput", "logical", "shop", r.pg.ActivePID() != "", r.pg.ActivePID(), at, at, "reserved", -1, "", false, taken, "at:"+taken.String(), taken, false)
		})
		r.start()
		for i := range 30 {
			r.commit(event(i))
			sleep(time.Second)
			c := r.checkpoint()
			text, ok := strings.CutPrefix(c.Snapshot, "at:")
			if !ok {
				continue
			}
			var at checkpoint.LSN
			if err := at.UnmarshalText([]byte(text)); err != nil || at.LSN > c.Pos.LSN {
				t.Errorf("snapshot of %s in the checkpoint of %s", text, c.Pos)
			}
		}
		if r.checkpoint().Snapshot == "" {
			t.Error("no snapshot in thirty seconds")
		}
		_ = r.finish()
	})
}
