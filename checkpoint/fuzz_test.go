package checkpoint

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/walferry/walferry/replication"
)

// FuzzParse takes any bytes for a checkpoint: what is accepted has all that a session needs to
// resume, and is the same after it was written and read again.
func FuzzParse(f *testing.F) {
	full := written(3, 0x16_B374D848, 0x16_B374D900, 7)
	full.Snapshot = "730:733:731"
	value, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{
		string(value), "", "null", "[]", "{}", `{"version":2}`,
		`{"version":1,"system_id":"7000","timeline":1,"pos":"0/1"}`,
		`{"version":1,"system_id":"7000","timeline":1,"pos":"0/0"}`,
		`{"version":1,"system_id":"7000","timeline":1,"pos":"0/1","membership":{},"time":"0000-01-01T00:00:00+23:59","more":1}`,
		`{"version":1,"system_id":"7000","pos":"0/1"}`, `{"version":1,"timeline":1,"pos":"0/1"}`, `{"system_id":"7000","timeline":1,"pos":"0/1"}`,
		`{"version":1,"system_id":"7000","timeline":-1,"pos":"0/1"}`,
		`{"version":1,"system_id":"7000","timeline":1,"pos":1}`,
		`{"version":1,"system_id":"7000","timeline":1,"pos":"123456789/1FFFFFFFFx","open_index":18446744073709551615}`,
		`{"Version":1,"SYSTEM_ID":"\ud800","timeline":4294967295,"pos":"f/f","pos":"ffffffff/ffffffff","open_commit_lsn":"0/0","membership":{"\u2028":"<"}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		c, err := Parse(value)
		if err != nil {
			if _, ok := errors.AsType[*CorruptError](err); !ok || c != nil {
				t.Fatalf("checkpoint %+v, error %T", c, err)
			}
			return
		}
		if c.Version != version || c.SystemID == "" || c.Timeline == 0 || c.Pos.LSN == 0 {
			t.Errorf("accepted without what a session needs: %+v", c)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatalf("it cannot be written again: %v", err)
		}
		again, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if !again.Time.Equal(c.Time) {
			t.Errorf("time %s, was %s", again.Time, c.Time)
		}
		again.Time = c.Time // two equal times need not be of one zone
		if !reflect.DeepEqual(again, c) {
			t.Errorf("read again %+v, was %+v", again, c)
		}
		checkResume(t, c)
	})
}

// checkResume resumes from a checkpoint that nobody has written: it must not skip what is not
// known to be published.
func checkResume(t *testing.T, c *Checkpoint) {
	t.Helper()
	f := found(t, 0x1800)
	r, err := c.Resume(f)
	if gap, ok := errors.AsType[*replication.GapError](err); err != nil && (!ok || gap.Slot != f.Slot) {
		t.Errorf("error %T %v", err, err)
	}
	if from := r.From; from.Flushed != f.Start && (from.Flushed > c.Pos.LSN || from.Commit > c.OpenCommit.LSN) {
		t.Errorf("resumes at %+v, the checkpoint has %+v", from, c)
	}
}
