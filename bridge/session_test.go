package bridge

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/walsender"
)

// bubble runs a test in a synctest bubble.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

func ids(from, to int) (ids []string) {
	for n := from; n <= to; n++ {
		ids = append(ids, "id-"+strconv.Itoa(n))
	}
	return ids
}

func TestEventsArriveAndTheirCommitIsConfirmed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, func(c *walsender.Config, _ *config.Config) { c.KeepaliveAfterCommit = true })
		r.start()
		var last walsender.Committed
		for n := range 30 {
			last = r.commit(event(3*n), walsender.Insert(otherRelation, pgoutput.Text("7")), event(3*n+1), event(3*n+2))
		}
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := r.delivered(); !slices.Equal(got, ids(0, 89)) {
			t.Errorf("delivered %v", got)
		}
	})
}

// I1, I2: nothing is confirmed before Kafka has acknowledged, not even by the keepalive
// that follows a commit at once.
func TestNothingIsConfirmedBeforeKafkaAcknowledges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, func(c *walsender.Config, _ *config.Config) { c.KeepaliveAfterCommit = true })
		release := r.holdProduce()
		r.start()
		start := r.pg.Confirmed()
		var last walsender.Committed
		for n := range 5 {
			last = r.commit(event(n))
		}
		r.pg.AdvanceWAL(1000)
		r.seen.add(r.pg.WALEnd())
		sleep(45 * time.Second)
		if got := r.pg.Confirmed(); got != start {
			t.Errorf("confirmed %s while Kafka holds everything back, want %s", got, start)
		}
		release()
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// Transactions whose commit record begins where the one before ends: an LSN with anything
// added to it would skip the next (reliability of supabase/etl#731).
func TestAdjacentCommitsSurviveACrashAfterEachConfirmation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		var want []string
		for round := range 10 {
			n := 3 * round
			for _, c := range r.pg.GroupCommit(walsender.Tx{event(n)}, walsender.Tx{event(n + 1)}, walsender.Tx{event(n + 2)}) {
				r.seen.add(c.EndLSN)
			}
			r.pg.Hold(6) // relation, BEGIN, row, COMMIT of the first, and a bit
			want = append(want, ids(n, n+2)...)
			sleep(time.Second)
			r.pg.Crash()
			sleep(100 * time.Millisecond)
			r.pg.Release()
			r.pg.Start(0)
			sleep(40 * time.Second)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := firstCopies(r.delivered()); !slices.Equal(got, want) {
			t.Errorf("delivered %v, want %v", got, want)
		}
	})
}

func firstCopies(all []string) (first []string) {
	for _, id := range all {
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	return first
}

// I2, I7: after a failed event nothing behind it is confirmed, and everything comes again.
func TestAFailedBatchEndsTheSessionAndLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.failProduce(3, kerr.OutOfOrderSequenceNumber)
		r.start()
		var last walsender.Committed
		for n := range 50 {
			last = r.commit(event(n))
			sleep(20 * time.Millisecond)
		}
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if s := r.bridge.Status(); s.Sessions < 2 {
			t.Errorf("%d sessions: the failure did not end one", s.Sessions)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := firstCopies(r.delivered()); !slices.Equal(got, ids(0, 49)) {
			t.Errorf("first copies: %v", got)
		}
	})
}

// I2: what the brokers refuse for good stops the bridge before it; nothing behind it is
// ever confirmed.
func TestARefusedRecordStopsTheBridge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.failProduce(1, kerr.MessageTooLarge)
		r.start()
		first := r.commit(event(0))
		if err := r.pg.WaitConfirmed(t.Context(), first.EndLSN); err != nil {
			t.Fatal(err)
		}
		for n := 1; n < 20; n++ {
			r.commit(event(n))
		}
		err := <-r.ended
		r.ended <- err
		if class := classOf(err); class != Poison || !strings.Contains(err.Error(), "7000/1/") || !strings.Contains(err.Error(), "max.message.bytes") {
			t.Errorf("ended with %v (%s), want poison with position and hint", err, class)
		}
		if s := r.bridge.Status(); s.State != Failed || s.Ready {
			t.Errorf("state %s, ready %t", s.State, s.Ready)
		}
		sleep(time.Minute)
		if got := r.pg.Confirmed(); got != first.EndLSN {
			t.Errorf("confirmed %s, want what precedes the refused event: %s", got, first.EndLSN)
		}
		_ = r.finish()
	})
}

func classOf(err error) Class {
	if e, ok := err.(*Error); ok { //nolint:errorlint // Run returns it unwrapped
		return e.Class
	}
	return ""
}

// A poisonous event that we find ourselves: what precedes it is published and confirmed.
func TestPoisonHaltsBehindEverythingBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		before := r.commit(event(0), event(1))
		r.commit(walsender.Insert(outboxRelation, pgoutput.Text("id-x"), pgoutput.Text("no topic/"+secretPayload),
			pgoutput.Text("k"), pgoutput.Text("T"), pgoutput.Text("{}")))
		r.commit(event(2))
		err := <-r.ended
		r.ended <- err
		if classOf(err) != Poison || classOf(err).ExitCode() != 65 {
			t.Errorf("ended with %v", err)
		}
		if got := r.pg.Confirmed(); got != before.EndLSN {
			t.Errorf("confirmed %s, want %s", got, before.EndLSN)
		}
		_ = r.finish()
		if got := r.delivered(); !slices.Equal(got, ids(0, 1)) {
			t.Errorf("delivered %v", got)
		}
	})
}

// I1: on a quiet outbox the slot follows the WAL of other tables.
func TestIdleSlotFollowsForeignWAL(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		for range 10 {
			end := r.pg.AdvanceWAL(1 << 20)
			r.seen.add(end)
			sleep(11 * time.Second)
			if got := r.pg.Confirmed(); got != end {
				t.Errorf("confirmed %s, WAL ends at %s", got, end)
			}
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// I11: Postgres hears from us although Kafka is stuck and nothing is read.
func TestFeedbackIsIndependentOfKafka(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const timeout = 6 * time.Second
		r := newRig(t, timeout, func(_ *walsender.Config, c *config.Config) {
			c.Kafka.MaxRecord, c.Kafka.MaxBuffered = 4<<10, 16<<10
		})
		release := r.holdProduce()
		r.start()
		var last walsender.Committed
		for n := range 2000 { // more than Kafka's buffer and the socket's: Publish blocks
			last = r.commit(event(n))
		}
		sleep(2 * time.Minute)
		updates := r.pg.Updates()
		for i := 1; i < len(updates); i++ {
			if gap := updates[i].At.Sub(updates[i-1].At); gap > timeout/3+feedbackTick {
				t.Errorf("%s of silence before update %d", gap, i)
			}
		}
		if s := r.bridge.Status(); s.Sessions != 1 || s.Ready || !strings.Contains(s.Reason, "Kafka does not acknowledge") {
			t.Errorf("sessions %d, ready %t: %q", s.Sessions, s.Ready, s.Reason)
		}
		// I12: what is in flight is bounded, whatever the backlog.
		if s := r.bridge.Status(); s.Inflight > 1000 {
			t.Errorf("I12: %d events in flight", s.Inflight)
		}
		release()
		if err := r.pg.WaitConfirmed(t.Context(), last.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

const feedbackTick = 100 * time.Millisecond

// I11: a server that asks without end, as in a shutdown, gets ten answers a second.
func TestRepliesAreThrottled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		before := len(r.pg.Updates())
		holder := r.pg.Holder()
		for range 500 {
			holder.SendKeepalive(r.pg.Confirmed(), true)
			sleep(2 * time.Millisecond)
		}
		if got := len(r.pg.Updates()) - before; got < 5 || got > 11 {
			t.Errorf("%d updates within a second of asking", got)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// I13: Kafka is stuck, so that we cannot confirm what Postgres waits for.
func TestAShutdownOfPostgresIsNotHeldUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		release := r.holdProduce()
		defer release()
		r.start()
		r.commit(event(0))
		sleep(time.Second)
		began := time.Now()
		r.pg.Shutdown()
		for r.pg.Holder() != nil {
			sleep(50 * time.Millisecond)
			if time.Since(began) > time.Minute {
				t.Fatal("the walsender is still held a minute after the shutdown began")
			}
		}
		if took := time.Since(began); took > 5*time.Second+time.Second {
			t.Errorf("the shutdown was delayed by %s, shutdown_grace is 5s", took)
		}
		release()
		r.pg.Start(0)
		r.finishAfter(40 * time.Second)
		if got := firstCopies(r.delivered()); !slices.Equal(got, ids(0, 0)) {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestAShutdownOfPostgresIsQuickWhenAllIsWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		r.commit(event(0))
		sleep(time.Second)
		r.seen.add(r.pg.AdvanceWAL(100)) // behind the last commit: only a keepalive tells
		began := time.Now()
		r.pg.Shutdown()
		for r.pg.Holder() != nil {
			sleep(10 * time.Millisecond)
			if time.Since(began) > 2*time.Second {
				t.Fatal("the walsender does not end")
			}
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// I10: whatever we do not understand stops us; nothing behind it is confirmed.
func TestWhatIsNotUnderstoodStopsTheBridge(t *testing.T) {
	for name, send := range map[string]func(*rig){
		"unknown message": func(r *rig) { r.commit(walsender.Raw([]byte("Z?"))) },
		"truncated row":   func(r *rig) { r.commit(walsender.Raw([]byte("I\x00\x00"))) },
		"unchanged TOAST": func(r *rig) {
			r.commit(walsender.Insert(outboxRelation, pgoutput.Text("i"), pgoutput.Text("order"), pgoutput.Text("k"),
				pgoutput.Text("T"), pgoutput.UnchangedToast()))
		},
		"no WAL data": func(r *rig) { r.pg.Holder().Send(&pgproto3.CopyData{Data: []byte("x")}) },
		"skipped publication": func(r *rig) {
			r.pg.Holder().Send(&pgproto3.NoticeResponse{Severity: "WARNING", Code: "55000", File: "pgoutput.c", Message: "skipped loading publication \"walferry\""})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, time.Minute, nil)
				r.start()
				start := r.pg.Confirmed()
				send(r)
				r.commit(event(1))
				err := <-r.ended
				r.ended <- err
				if classOf(err) != Fatal {
					t.Errorf("ended with %v, want a fatal error", err)
				}
				sleep(time.Minute)
				if got := r.pg.Confirmed(); got != start {
					t.Errorf("confirmed %s past it", got)
				}
				_ = r.finish()
			})
		})
	}
}

// A warning of the same SQLSTATE from elsewhere, such as one that waits for
// synchronized_standby_slots, is not the end.
func TestOtherWarningsAreNotTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		r.pg.Holder().Send(&pgproto3.NoticeResponse{Severity: "WARNING", Code: "55000", File: "slot.c", Message: "replication slot \"standby\" is inactive"})
		c := r.commit(event(0))
		if err := r.pg.WaitConfirmed(t.Context(), c.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestASilentServerEndsTheSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, 6*time.Second, func(c *walsender.Config, _ *config.Config) { c.SenderTimeout = 0 })
		r.start()
		sleep(30 * time.Second)
		if s := r.bridge.Status(); s.Sessions != 1 || s.State != Streaming {
			t.Fatalf("an idle session of a server that answers: %+v", s)
		}
		r.muted.Store(true)
		sleep(7 * time.Second)
		if s := r.bridge.Status(); !strings.Contains(s.LastError, "silent") {
			t.Errorf("state %s, last error %q", s.State, s.LastError)
		}
		r.muted.Store(false)
		c := r.commit(event(0))
		if err := r.pg.WaitConfirmed(t.Context(), c.EndLSN); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// A drain reads an open transaction to its COMMIT, and confirms it.
func TestDrainFinishesTheOpenTransaction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		r.pg.Hold(4) // BEGIN, relation, two of three rows
		c := r.commit(event(0), event(1), event(2))
		sleep(time.Second)
		r.stop()
		sleep(time.Second)
		r.pg.Release()
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if got := r.pg.Confirmed(); got != c.EndLSN {
			t.Errorf("confirmed %s, want the transaction's end %s", got, c.EndLSN)
		}
		if got := r.delivered(); !slices.Equal(got, ids(0, 2)) {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestDrainTimeoutReportsWhatMayComeAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		r.pg.Hold(3)
		c := r.commit(event(0), event(1), event(2))
		sleep(time.Second)
		began := time.Now()
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 15*time.Second {
			t.Errorf("the drain took %s, drain_timeout is 10s", took)
		}
		if got := r.pg.Confirmed(); got >= c.CommitLSN {
			t.Errorf("confirmed %s inside of the transaction that commits at %s", got, c.CommitLSN)
		}
		if !strings.Contains(r.log.String(), "may be delivered a second time") {
			t.Errorf("the log does not say what may be delivered twice:\n%s", r.log)
		}
	})
}

// Somebody else has the slot: we are the standby, ready, and take over.
func TestStandbyTakesOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.start()
		other := newRig(t, time.Minute, nil)
		other.pg.Close()
		other.pg = r.pg
		other.start()
		sleep(3 * time.Second)
		s := other.bridge.Status()
		if s.State != OnStandby || !s.Ready || s.Role != "standby" || !strings.Contains(s.Holder, "somebody") {
			t.Errorf("the second bridge: %+v", s)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		sleep(3 * time.Second)
		if s := other.bridge.Status(); s.State != Streaming {
			t.Errorf("three seconds after the first has gone the second is %s", s.State)
		}
		if err := other.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestUntilEndsTheRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		var last walsender.Committed
		for n := range 10 {
			last = r.commit(event(n))
		}
		r.bridge.until = last.EndLSN
		r.start()
		if err := <-r.ended; err != nil {
			t.Fatal(err)
		}
		if got := r.pg.Confirmed(); got != last.EndLSN {
			t.Errorf("confirmed %s, want %s", got, last.EndLSN)
		}
		r.ended <- nil
		_ = r.finish()
	})
}

// I13, and no broker answers at all.
func TestAShutdownOfPostgresIsNotHeldUpWhileKafkaIsUnreachable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		r.noKafka.Store(true)
		r.start()
		sleep(time.Second)
		if r.pg.Holder() == nil {
			t.Fatal("the slot is not held: this test shows nothing")
		}
		r.commit(event(0))
		began := time.Now()
		r.pg.Shutdown()
		for r.pg.Holder() != nil {
			sleep(50 * time.Millisecond)
			if time.Since(began) > 6*time.Second {
				t.Fatal("the walsender is still held 6 s after the shutdown began, shutdown_grace is 5s")
			}
		}
		if s := r.bridge.Status(); s.Ready {
			t.Errorf("ready without Kafka and Postgres: %+v", s)
		}
		_ = r.finish()
	})
}

// The poison is reported although what precedes it cannot be acknowledged in time.
func TestPoisonIsReportedAlthoughTheDrainTimesOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, nil)
		release := r.holdProduce()
		defer release()
		r.start()
		start := r.pg.Confirmed()
		r.commit(event(0))
		r.commit(walsender.Insert(outboxRelation, pgoutput.Text("id-x"), pgoutput.Null(), pgoutput.Text("k"), pgoutput.Text("T"), pgoutput.Text("{}")))
		err := <-r.ended
		r.ended <- err
		if classOf(err) != Poison {
			t.Errorf("ended with %v, want poison", err)
		}
		if got := r.pg.Confirmed(); got != start {
			t.Errorf("confirmed %s, want nothing past %s", got, start)
		}
		release()
		_ = r.finish()
	})
}

// What is in time is sent at once, whatever lingers in a backlog, and although a keepalive follows it; what is late
// waits for company.
func TestOnlyWhatIsLateLingers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, time.Minute, func(c *walsender.Config, _ *config.Config) { c.KeepaliveAfterCommit = true })
		r.start()
		r.commit(event(0))
		sleep(time.Second) // the client knows the topic now
		for n := 1; n <= 5; n++ {
			r.commit(event(n))
			synctest.Wait() // no time passes
			if got := r.bridge.acknowledged.Load(); got != uint64(n)+1 {
				t.Fatalf("%d events are acknowledged at once, want %d", got, n+1)
			}
		}
		r.pg.Hold(0)
		r.commit(event(6))
		sleep(time.Minute)
		r.pg.Release()
		synctest.Wait()
		if got := r.bridge.acknowledged.Load(); got != 6 {
			t.Errorf("%d events are acknowledged at once, the last one is late and should linger", got)
		}
		sleep(20 * time.Millisecond)
		if got := r.bridge.acknowledged.Load(); got != 7 {
			t.Errorf("%d events are acknowledged, want 7", got)
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
	})
}
