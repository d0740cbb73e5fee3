package replication

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/walferry/walferry/internal/pgoutput"
)

// FuzzReplicationMessage takes any bytes for the content of a CopyData: the stream must read
// from them what pglogrepl reads, and refuse what it refuses.
func FuzzReplicationMessage(f *testing.F) {
	// What the walsenders of Postgres 14 to 18 have sent, see test/integration/capture_test.go.
	paths, err := filepath.Glob("testdata/walsender/*.wal")
	if err != nil || len(paths) != 5 {
		f.Fatalf("%d captures, want one of each Postgres (%v)", len(paths), err)
	}
	for _, path := range paths {
		capture, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, m := range pgoutput.SplitCapture(capture) {
			f.Add(m)
		}
	}
	keepalive := append([]byte{pglogrepl.PrimaryKeepaliveMessageByteID}, make([]byte, 17)...)
	asking := append(bytes.Clone(keepalive[:17]), 2)
	data := append([]byte{pglogrepl.XLogDataByteID}, make([]byte, 24)...)
	for _, m := range [][]byte{{}, {'k'}, {'w'}, keepalive, asking, keepalive[:17], append(keepalive, 0), data, data[:24], append(data, 0)} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		s := Stream{frames: &frames{}}
		m, err := s.parse(bytes.Clone(input))
		want, refuse := readMessage(input)
		if (err != nil) != refuse {
			t.Fatalf("error %v, pglogrepl refuses it: %t", err, refuse)
		}
		if refuse {
			if s.asked.Load() {
				t.Error("a refused message asks for a status update")
			}
			return
		}
		if m.Keepalive() != (want.data == nil) || !bytes.Equal(m.Data, want.data) || m.WALEnd != want.walEnd || s.asked.Load() != want.reply {
			t.Errorf("got %+v, reply %t, pglogrepl reads %+v", m, s.asked.Load(), want)
		}
	})
}

type referenceMessage struct {
	data   []byte // nil: a keepalive
	walEnd LSN
	reply  bool
}

// readMessage reads by means of pglogrepl, and refuses WAL data without any data, which no
// output plugin writes.
func readMessage(b []byte) (m referenceMessage, refuse bool) {
	if len(b) == 0 {
		return m, true
	}
	switch b[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(b[1:])
		return referenceMessage{data: x.WALData}, err != nil || len(x.WALData) == 0
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(b[1:])
		return referenceMessage{walEnd: k.ServerWALEnd, reply: k.ReplyRequested}, err != nil
	}
	return m, true
}

// FuzzTimelineHistory takes any text for a timeline history file, which must not make
// ParseTimelines panic, and any bytes for a well-formed history, on which every LSN must lie
// where a naive search finds it.
func FuzzTimelineHistory(f *testing.F) {
	for _, text := range []string{
		"", "\n", "# a comment\n", "1\t0/5000000\tno recovery target specified\n\n2\t0/7000028\tbefore 2026-01-01 00:00:00+00\n",
		"1\t0/5000000", "1", "x\t0/1\t", "1\tnot-an-lsn\t", "-1\t0/1\t", "4294967296\t0/1\t", "2\t0/2\n1\t0/1\n", "1\t0/0\r\n", "1\tFFFFFFFF/FFFFFFFF\t#",
		"1\t123456789/0\t", "1\t0/1x\t",
	} {
		f.Add(text, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6}, uint64(0x5000000))
	}
	f.Fuzz(func(t *testing.T, text string, entropy []byte, lsn uint64) {
		if _, err := ParseTimelines(9, text); err != nil && wellFormed(text) {
			t.Errorf("a well-formed history is refused: %v", err)
		}
		history, ids, ends := makeHistory(entropy)
		current := ids[len(ids)-1] + 1
		tl, err := ParseTimelines(current, history)
		if err != nil {
			t.Fatalf("%q: %v", history, err)
		}
		for _, probe := range append(neighbours(ends), LSN(lsn)) {
			checkTimeline(t, tl, probe, append(ids, current), ends)
		}
		if got, ok := tl.End(current + 1); ok {
			t.Errorf("timeline %d, which never was, ended at %s", current+1, got)
		}
		if tl.Current() != current {
			t.Errorf("current timeline %d, want %d", tl.Current(), current)
		}
	})
}

// checkTimeline looks for the one timeline i that begins at ends[i-1] and ends before ends[i].
func checkTimeline(t *testing.T, tl Timelines, lsn LSN, ids []uint32, ends []LSN) {
	t.Helper()
	want := ids[len(ids)-1]
	for i := len(ends) - 1; i >= 0 && lsn < ends[i]; i-- {
		want = ids[i]
	}
	got := tl.Of(lsn)
	if got != want {
		t.Errorf("%s lies on timeline %d, want %d of %v left at %v", lsn, got, want, ids, ends)
	}
	if end, ok := tl.End(got); !ok || lsn >= end && got != ids[len(ids)-1] {
		t.Errorf("%s lies on timeline %d, which ended at %s (%t)", lsn, got, end, ok)
	}
	for i, id := range ids[:len(ends)] {
		if end, ok := tl.End(id); !ok || end != ends[i] {
			t.Errorf("timeline %d ended at %s (%t), want %s", id, end, ok, ends[i])
		}
	}
}

// makeHistory makes a history of timelines whose numbers and LSNs rise, of eight bytes each.
func makeHistory(entropy []byte) (history string, ids []uint32, ends []LSN) {
	id, end := uint32(1), LSN(0)
	for len(ids) < 20 && (len(entropy) >= 8 || len(ids) == 0) {
		var b [8]byte
		entropy = entropy[copy(b[:], entropy):]
		end += LSN(binary.LittleEndian.Uint64(b[:])>>5) + 1 // twenty of them do not overflow
		ids, ends = append(ids, id), append(ends, end)
		history += strconv.FormatUint(uint64(id), 10) + "\t" + end.String() + "\tno recovery target specified\n"
		id += 1 + uint32(b[7])
	}
	return history, ids, ends
}

func neighbours(ends []LSN) (all []LSN) {
	for _, end := range ends {
		all = append(all, end-1, end, end+1)
	}
	return all
}

var historyLine = regexp.MustCompile(`^[ \t]*[0-9]{1,9}[ \t]+[0-9A-F]{1,8}/[0-9A-F]{1,8}([ \t][^\n]*)?$`)

// wellFormed reports whether Postgres writes such lines.
func wellFormed(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		if trimmed := strings.TrimSpace(line); trimmed != "" && trimmed[0] != '#' && !historyLine.MatchString(line) {
			return false
		}
	}
	return true
}
