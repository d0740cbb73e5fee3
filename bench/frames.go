package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// counter counts the events of a replication stream and looks at nothing else.
type counter struct {
	until  uint64 // LSN
	events int64
	done   bool // everything up to until was sent
}

// feed takes the whole frames at the beginning of b, up to the one that makes it done, and returns their size.
// Frames are those of "Message Formats" in the Postgres manual: a type byte and a length that includes itself.
func (c *counter) feed(b []byte) (int, error) {
	const header = 5
	at := 0
	for !c.done && len(b)-at >= header {
		length := 1 + int(binary.BigEndian.Uint32(b[at+1:]))
		if length < header {
			return at, fmt.Errorf("a frame of type %q says that it has %d bytes", b[at], length)
		}
		if len(b)-at < length {
			break
		}
		if err := c.frame(b[at], b[at+header:at+length]); err != nil {
			return at, err
		}
		at += length
	}
	return at, nil
}

func (c *counter) frame(kind byte, body []byte) error {
	switch kind {
	case 'd': // CopyData
		return c.data(body)
	case 'W', 'N', 'S': // CopyBothResponse, NoticeResponse, ParameterStatus
		return nil
	case 'E':
		return fmt.Errorf("the server answers: %q", body)
	default:
		return fmt.Errorf("unexpected frame of type %q in a replication stream", kind)
	}
}

// data reads one message of "Streaming Replication Protocol".
func (c *counter) data(b []byte) error {
	const keepalive, xLogData = 18, 25 // bytes of a keepalive, and of the header before a plugin's message
	switch {
	case len(b) == keepalive && b[0] == 'k':
		c.done = c.done || binary.BigEndian.Uint64(b[1:]) >= c.until
		return nil
	case len(b) > xLogData && b[0] == 'w':
		return c.message(b[xLogData:])
	}
	return fmt.Errorf("malformed replication message of %d bytes", len(b))
}

// message reads one message of "Logical Replication Message Formats".
func (c *counter) message(b []byte) error {
	switch b[0] {
	case 'I':
		c.events++
	case 'M': // flags, LSN, prefix: those with another prefix only mark places in the WAL
		if len(b) > 10 && bytes.HasPrefix(b[10:], []byte(messagePrefix+"\x00")) {
			c.events++
		}
	case 'C': // flags, commit LSN, end LSN, time
		if len(b) != 26 {
			return fmt.Errorf("malformed COMMIT of %d bytes", len(b))
		}
		c.done = binary.BigEndian.Uint64(b[10:]) >= c.until
	}
	return nil
}
