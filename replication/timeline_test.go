package replication

import "testing"

func TestTimelinesOf(t *testing.T) {
	tl, err := ParseTimelines(3, "1\t0/5000000\tno recovery target specified\n\n# a comment\n2\t0/7000028\tbefore 2026-01-01 00:00:00+00\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		lsn  LSN
		want uint32
	}{
		{0, 1}, {0x4FFFFFF, 1}, {0x5000000, 2}, {0x7000027, 2}, {0x7000028, 3}, {1 << 40, 3},
	} {
		if got := tl.Of(c.lsn); got != c.want {
			t.Errorf("timeline of %s: %d, want %d", c.lsn, got, c.want)
		}
	}
	if got := (Timelines{current: 1}).Of(42); got != 1 {
		t.Errorf("without history: timeline %d, want 1", got)
	}
}

func TestParseTimelinesRefusesNonsense(t *testing.T) {
	for _, history := range []string{"1", "x\t0/1\t", "1\tnot-an-lsn\t", "-1\t0/1\t"} {
		if _, err := ParseTimelines(2, history); err == nil {
			t.Errorf("%q was accepted", history)
		}
	}
}
