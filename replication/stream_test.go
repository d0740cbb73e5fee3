package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// The reference for the encoding is pgproto3 and the documented layout.
func TestStatusUpdate(t *testing.T) {
	now := time.Date(2026, 3, 8, 13, 0, 0, 123456000, time.UTC)
	for _, reply := range []bool{false, true} {
		b := statusUpdate(0x16B374D848, now, reply)
		backend := pgproto3.NewBackend(bytes.NewReader(b), nil)
		if err := backend.SetAuthType(0); err != nil {
			t.Fatal(err)
		}
		m, err := backend.Receive()
		if err != nil {
			t.Fatal(err)
		}
		data := m.(*pgproto3.CopyData).Data
		if len(data) != 34 || data[0] != 'r' || (data[33] == 1) != reply {
			t.Fatalf("status update % x", data)
		}
		for i, name := range []string{"write", "flush", "apply"} {
			if got := binary.BigEndian.Uint64(data[1+8*i:]); got != 0x16B374D848 {
				t.Errorf("%s is %s", name, LSN(got))
			}
		}
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(data[25:])) + 946684800_000_000)
		if !at.Equal(now) {
			t.Errorf("clock %s, want %s", at, now)
		}
	}
}

func TestParseMessages(t *testing.T) {
	s := Stream{frames: &frames{}}
	data := append([]byte{pglogrepl.XLogDataByteID}, make([]byte, 24)...)
	m, err := s.parse(append(data, "BEGIN"...))
	if err != nil || m.Keepalive() || string(m.Data) != "BEGIN" {
		t.Errorf("XLogData: %+v, %v", m, err)
	}
	keepalive := binary.BigEndian.AppendUint64([]byte{pglogrepl.PrimaryKeepaliveMessageByteID}, 0x1234)
	keepalive = append(keepalive, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	m, err = s.parse(keepalive)
	if err != nil || !m.Keepalive() || m.WALEnd != 0x1234 || !s.asked.Load() {
		t.Errorf("keepalive: %+v, asked %t, %v", m, s.asked.Load(), err)
	}
	for _, b := range [][]byte{nil, {}, data, keepalive[:17], append(keepalive, 0), []byte("x"), bytes.Repeat([]byte("x"), 100)} {
		if m, err := s.parse(b); err == nil {
			t.Errorf("% x was taken for %+v", b, m)
		}
	}
}

func TestWithheld(t *testing.T) {
	quoting := Withheld(&pgconn.PgError{Code: "22021", Message: "invalid byte 0xff in s3cret", Detail: "s3cret", Where: "s3cret"})
	if got := quoting.Error() + quoting.Detail + quoting.Where; bytes.Contains([]byte(got), []byte("s3cret")) {
		t.Errorf("the error quotes data: %s", got)
	}
	if plain := Withheld(&pgconn.PgError{Code: "57P01", Message: "terminating"}); plain.Message != "terminating" {
		t.Errorf("the message is gone: %v", plain)
	}
}

// A process that was frozen finds in its socket what the server sent before it gave up: that may be published by another.
func TestWhatComesBehindAPauseIsNotOurs(t *testing.T) {
	row := append([]byte{'d', 0, 0, 0, 34, pglogrepl.XLogDataByteID}, make([]byte, 29)...)
	for _, c := range []struct {
		name      string
		timeout   time.Duration
		lastHeard time.Duration
		want      error
	}{
		{"heard from in time", time.Minute, time.Second, nil},
		{"silent for too long", time.Minute, 0, ErrStoodStill},
		{"no timeout", 0, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := Stream{frames: newFrames(bytes.NewReader(row), ReadBuffer), Server: Server{SenderTimeout: c.timeout}, opened: time.Now()}
				<-time.After(c.lastHeard)
				s.updatedAt(time.Now())
				<-time.After(time.Minute + time.Millisecond - c.lastHeard)
				if _, err := s.Receive(); !errors.Is(err, c.want) {
					t.Fatalf("%v, want %v", err, c.want)
				}
				if c.want != nil { // nor is it ours again by a late status update
					if err := s.send(0, false, time.Second); !errors.Is(err, c.want) {
						t.Errorf("%v, want %v", err, c.want)
					}
				}
			})
		})
	}
}
