package decode

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// LSN is a byte position in the WAL. It is only ever received from the server
// and compared, never computed: an LSN with arithmetic on it confirms things
// nobody has seen.
type LSN uint64

// AppendText appends Postgres' own notation, two hexadecimal halves: 16/B374D848.
func (l LSN) AppendText(b []byte) []byte {
	b = appendUpperHex(b, uint32(l>>32))
	b = append(b, '/')
	return appendUpperHex(b, uint32(l))
}

func (l LSN) String() string { return string(l.AppendText(nil)) }

func appendUpperHex(b []byte, v uint32) []byte {
	for shift := max(bits.Len32(v)-1, 0) &^ 3; shift >= 0; shift -= 4 {
		b = append(b, "0123456789ABCDEF"[v>>shift&15])
	}
	return b
}

// Position identifies an event for good: it is the same after every restart,
// reconnect and planned promotion.
//
// Change LSNs cannot serve: rows of one COPY share one, and they are not
// monotonic over transactions. The commit LSN is unique on its timeline.
type Position struct {
	SystemID string // of the Postgres cluster, from IDENTIFY_SYSTEM
	// Timeline on which CommitLSN lies, not the one the server is on now: a
	// promotion must not rename the events that are sent again after it.
	Timeline  uint32
	CommitLSN LSN // start of the commit record
	// Index is the ordinal of the pgoutput change or transactional message
	// within its transaction, counted from 0 before any filtering, so that a
	// change of walferry's configuration does not renumber.
	Index uint64
}

// MaxPosition is the most bytes of a position's text: a system identifier and an index of 20 digits each, a
// timeline of 10, an LSN of 17, and three slashes.
const MaxPosition = 20 + 10 + 17 + 20 + 3

// AppendText appends sysid/timeline/commit LSN/index, for example
// 7312345678901234567/1/0/15A1DB3/0.
func (p Position) AppendText(b []byte) []byte {
	b = append(b, p.SystemID...)
	b = append(b, '/')
	b = strconv.AppendUint(b, uint64(p.Timeline), 10)
	b = append(b, '/')
	b = p.CommitLSN.AppendText(b)
	b = append(b, '/')
	return strconv.AppendUint(b, p.Index, 10)
}

func (p Position) String() string { return string(p.AppendText(nil)) }

// ParsePosition reads what Position.AppendText writes, in exactly that form.
func ParsePosition(text string) (Position, error) {
	parts := strings.Split(text, "/")
	if len(parts) == 5 {
		_, err0 := strconv.ParseUint(parts[0], 10, 64)
		timeline, err1 := strconv.ParseUint(parts[1], 10, 32)
		high, err2 := strconv.ParseUint(parts[2], 16, 32)
		low, err3 := strconv.ParseUint(parts[3], 16, 32)
		index, err4 := strconv.ParseUint(parts[4], 10, 64)
		p := Position{parts[0], uint32(timeline), LSN(high<<32 | low), index}
		if errors.Join(err0, err1, err2, err3, err4) == nil && p.String() == text {
			return p, nil
		}
	}
	return Position{}, fmt.Errorf("%q is not a position such as 7312345678901234567/1/0/15A1DB3/0", text)
}
