package main

import (
	"encoding/binary"
	"net"
	"testing"
)

// frame returns a frame of the Postgres protocol.
func frame(kind byte, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body)))
	return append(b, body...)
}

// walData returns a frame with a plugin's message.
func walData(message ...byte) []byte {
	return frame('d', append(append([]byte{'w'}, make([]byte, 24)...), message...)...)
}

func commitFrame(endLSN uint64) []byte {
	message := append([]byte{'C'}, make([]byte, 25)...)
	binary.BigEndian.PutUint64(message[10:], endLSN)
	return walData(message...)
}

func keepaliveFrame(walEnd uint64) []byte {
	body := append([]byte{'k'}, make([]byte, 17)...)
	binary.BigEndian.PutUint64(body[1:], walEnd)
	return frame('d', body...)
}

func messageFrame(prefix string) []byte {
	message := append([]byte{'M', 1}, make([]byte, 8)...)
	message = append(message, prefix...)
	return walData(append(message, 0, 0, 0, 0, 2, '{', '}')...)
}

// aStream is one of three events up to LSN 300, with everything else that a walsender may send.
func aStream() []byte {
	var b []byte
	for _, f := range [][]byte{
		frame('W', 0, 0, 0), frame('N', 'x'), keepaliveFrame(299),
		walData('B', 1, 2, 3), walData('R', 0), walData('I', 'a', 'b'), messageFrame("outbox"), messageFrame("outbox2"), messageFrame("bench"),
		commitFrame(200), walData('B'), walData('I'), commitFrame(300),
	} {
		b = append(b, f...)
	}
	return b
}

func TestCounter(t *testing.T) {
	stream := aStream()
	after := walData('I')
	// Wherever a Read ends, the rest of the frame comes with the next one.
	for split := range len(stream) + 1 {
		c := counter{until: 300}
		first, err := c.feed(stream[:split])
		if err != nil {
			t.Fatal(err)
		}
		if c.done != (split == len(stream)) {
			t.Fatalf("after %d bytes of %d: done is %t", split, len(stream), c.done)
		}
		second, err := c.feed(append(append([]byte{}, stream[first:]...), after...))
		if err != nil {
			t.Fatal(err)
		}
		if split < len(stream) && first+second != len(stream) {
			t.Fatalf("split at %d: took %d and %d bytes, want %d", split, first, second, len(stream))
		}
		if !c.done || c.events != 3 {
			t.Fatalf("split at %d: done %t with %d events, want 3", split, c.done, c.events)
		}
	}
}

func TestCounterStops(t *testing.T) {
	tests := []struct {
		name  string
		frame []byte
		done  bool
	}{
		{"commit before", commitFrame(299), false},
		{"commit at", commitFrame(300), true},
		{"commit behind", commitFrame(301), true},
		{"keepalive before", keepaliveFrame(299), false},
		{"keepalive at", keepaliveFrame(300), true},
	}
	for _, test := range tests {
		c := counter{until: 300}
		if n, err := c.feed(test.frame); err != nil || n != len(test.frame) || c.done != test.done {
			t.Errorf("%s: took %d bytes, done %t, error %v; want done %t", test.name, n, c.done, err, test.done)
		}
	}
}

func TestCounterRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"an error":            frame('E', 'S', 'F', 'A', 'T', 'A', 'L'),
		"the end of the copy": frame('c'),
		"a short length":      {'d', 0, 0, 0, 3},
		"a short keepalive":   frame('d', 'k', 1, 2),
		"a short commit":      walData('C', 1),
	} {
		if _, err := (&counter{until: 1}).feed(b); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func TestDrainInto(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	sent := make(chan error, 1)
	go func() {
		var err error
		for _, b := range aStream() { // the worst of splits
			if _, err = server.Write([]byte{b}); err != nil {
				break
			}
		}
		sent <- err
	}()
	c := counter{until: 300}
	if err := drainInto(client, &c); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if c.events != 3 {
		t.Errorf("got %d events, want 3", c.events)
	}
	server.Close()
	if err := drainInto(client, &counter{until: 301}); err == nil {
		t.Error("a stream that ends early: want an error")
	}
}
