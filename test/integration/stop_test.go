package integration

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/bridge"
)

// mustStop runs a bridge that must stop by itself, with an error of the class, a hint and
// a message that has all the parts.
func (w *world) mustStop(class bridge.Class, parts ...string) *running {
	w.t.Helper()
	r := w.run("")
	r.mustStop(class, parts...)
	return r
}

func (r *running) mustStop(class bridge.Class, parts ...string) {
	r.t.Helper()
	mustSay(r.t, asError(r.t, r.wait()), class, parts...)
	state := bridge.Failed
	switch class {
	case bridge.Lost:
		state = bridge.SlotLost
	case bridge.Gap:
		state = bridge.InGap
	}
	if s := r.bridge.Status(); s.State != state || s.Ready || s.LastError == "" || !strings.Contains(s.Reason, s.LastError) {
		r.t.Errorf("status %+v, want state %s and the error", s, state)
	}
	if n := strings.Count(r.log.String(), `"level":"error"`); n != 1 {
		r.t.Errorf("%d errors in the log, want 1", n)
	}
}

func asError(t *testing.T, err error) *bridge.Error {
	t.Helper()
	e, ok := errors.AsType[*bridge.Error](err)
	if !ok {
		t.Fatalf("got %v, want an error with a class", err)
	}
	return e
}

// mustSay checks what an error tells people.
func mustSay(t *testing.T, e *bridge.Error, class bridge.Class, parts ...string) {
	t.Helper()
	if e.Class != class || e.Database != "shop" || e.Hint == "" {
		t.Errorf("error of class %q in database %q with hint %q, want class %s, database shop and a hint: %v", e.Class, e.Database, e.Hint, class, e)
	}
	for _, part := range parts {
		if !strings.Contains(e.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, e)
		}
	}
}

// mustStopBefore waits until a bridge stops for an event of a transaction that was written
// behind an LSN, and makes sure that the transaction is not confirmed.
func (r *running) mustStopBefore(w *world, written pglogrepl.LSN, parts ...string) {
	r.t.Helper()
	r.mustStop(bridge.Poison, parts...)
	w.mustNotConfirm(written, r.err.Error())
}

// mustNotConfirm checks that the transaction of an event that a text names, and that was
// written behind an LSN, is not confirmed.
func (w *world) mustNotConfirm(written pglogrepl.LSN, text string) {
	w.t.Helper()
	match := regexp.MustCompile(`event \d+/1/([0-9A-F]+/[0-9A-F]+)/\d+ `).FindStringSubmatch(text)
	if match == nil {
		w.t.Fatalf("the error does not name the event: %s", text)
	}
	commit, err := pglogrepl.ParseLSN(match[1])
	if err != nil {
		w.t.Fatal(err)
	}
	// What begins at its commit record or before is sent again.
	if confirmed := w.confirmed(); commit < written || confirmed > commit {
		w.t.Errorf("%s is confirmed, the transaction at %s, which was written behind %s, must not be", confirmed, commit, written)
	}
}

// mustNotReach checks that what ends before an LSN is not confirmed. WAL that others write meanwhile may be: an LSN from
// before the event would not do.
func (w *world) mustNotReach(written pglogrepl.LSN) {
	w.t.Helper()
	if confirmed := w.confirmed(); confirmed >= written {
		w.t.Errorf("%s is confirmed, the event before %s must not be", confirmed, written)
	}
}

// A cancelled statement ends the session, not the bridge.
func TestCancelledSession(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	r := w.run("")
	r.awaitState(bridge.Streaming)
	w.exec("SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", w.prefix)
	want := w.order("k", "1")
	w.awaitCaughtUp()
	if s := r.bridge.Status(); s.Sessions != 2 {
		t.Errorf("%d sessions, want 2", s.Sessions)
	}
	r.drain()
	w.mustPublish("order", want)
}
