package replication

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
)

// far is a server that has sent all it has to send, perSegment bytes a segment.
type far struct {
	net.Conn
	perSegment      uint64
	bytes, segments uint64
}

func (f *far) Read(b []byte) (int, error) {
	n := min(len(b), 100<<10)
	f.bytes += uint64(n)
	f.segments += uint64(n)/f.perSegment + 1
	return n, nil
}

func (f *far) received() (bytes, segments uint64) { return f.bytes, f.segments }

// read returns what one Read takes.
func read(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	b := make([]byte, ReadBuffer)
	start := time.Now()
	if _, err := c.Read(b); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		patience := time.Hour
		f := &far{perSegment: 300}
		c := newPaced(f, ReadBuffer, func() time.Duration { return patience }, f.received)
		var last time.Duration
		for i := range 40 {
			took := read(t, c)
			if took < last {
				t.Errorf("read %d waits for %s, the one before for %s, and segments are small", i, took, last)
			}
			last = took
		}
		if last != pauseMax {
			t.Errorf("waits for %s with small segments, want %s", last, pauseMax)
		}

		f.perSegment = 60 << 10
		for range 300 {
			last = read(t, c)
		}
		if last > time.Millisecond {
			t.Errorf("waits for %s although segments are large", last)
		}

		f.perSegment = 300
		for range 40 {
			read(t, c)
		}
		for _, patience = range []time.Duration{time.Second, 2 * time.Millisecond, time.Microsecond, 0} {
			if took := read(t, c); took != min(pauseMax, patience) {
				t.Errorf("waits for %s with a patience of %s", took, patience)
			}
		}
	})
}

// Where the kernel does not count segments nothing is known, and nothing waits.
func TestPaceWithoutCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPaced(&far{perSegment: 300}, ReadBuffer, func() time.Duration { return time.Hour }, func() (uint64, uint64) { return 0, 0 })
		for range 10 {
			if took := read(t, c); took != 0 {
				t.Errorf("waits for %s", took)
			}
		}
	})
}

// A transaction that is sent in time is received in time, whatever came before: a backlog makes the pauses
// long, and the first transaction that is not late is without.
func TestNoCommitIsDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		var segments uint64
		s := &Stream{}
		s.frames = newFrames(newPaced(client, ReadBuffer, s.Patience, func() (uint64, uint64) { segments++; return 300 * segments, segments }), ReadBuffer)
		// receive sends a message of a transaction, late after its commit, and returns how long it is under way.
		receive := func(late time.Duration) time.Duration {
			sent := time.Now()
			go func() { _, _ = server.Write(xLogData(sent)) }() // in memory
			if _, err := s.Receive(); err != nil {
				t.Fatal(err)
			}
			s.Begin(sent.Add(-late))
			return time.Since(sent)
		}
		for range 100 {
			receive(time.Hour)
		}
		if took := receive(time.Millisecond); took != pauseMax {
			t.Errorf("in a backlog with small segments a Read takes %s", took)
		}
		for range 10 { // caught up
			if took := receive(time.Millisecond); took != 0 {
				t.Errorf("a commit is delayed by %s", took)
			}
			<-time.After(time.Second)
		}
		_ = server.Close()                                      // in memory
		if _, err := s.Receive(); err == nil || err == io.EOF { //nolint:errorlint // it must not be bare
			t.Errorf("end of the connection: %v", err)
		}
	})
}

func xLogData(sent time.Time) []byte {
	b := append([]byte{'d', 0, 0, 0, 30, pglogrepl.XLogDataByteID}, make([]byte, 16)...)
	b = binary.BigEndian.AppendUint64(b, uint64(sent.UnixMicro()-pgEpoch))
	return append(b, 'B')
}

func TestPatience(t *testing.T) {
	commit := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for behind, want := range map[time.Duration]time.Duration{
		-time.Hour: 0, 0: 0, time.Millisecond: 0, 9999 * time.Microsecond: 0,
		10 * time.Millisecond: 1250 * time.Microsecond, 160 * time.Millisecond: 20 * time.Millisecond, 8 * time.Hour: time.Hour,
	} {
		s := &Stream{frames: &frames{}}
		s.Begin(commit)
		if _, err := s.parse(xLogData(commit.Add(behind))[5:]); err != nil {
			t.Fatal(err)
		}
		if got := s.Patience(); got != want {
			t.Errorf("%s after its commit: patience %s, want %s", behind, got, want)
		}
	}
}
