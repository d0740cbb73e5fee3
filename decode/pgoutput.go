package decode

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// MalformedError is a message that breaks the pgoutput protocol. Nothing after
// it can be trusted: the session must end.
type MalformedError struct {
	Message byte // the message's type byte, 0 when the message was empty
	Size    int  // bytes of the whole message
	Reason  string
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("malformed pgoutput message %q of %d bytes: %s", e.Message, e.Size, e.Reason)
}

// reader is a cursor over one message. A read past the end sets short and
// yields zeros, so that a parser checks once, at its end, not at every field.
type reader struct {
	b     []byte
	off   int
	short bool
}

// next returns the next n bytes, aliasing the message.
func (r *reader) next(n int) []byte {
	if n < 0 || n > len(r.b)-r.off {
		r.short = true
		r.off = len(r.b)
		return nil
	}
	s := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return s
}

// fixed returns the next n bytes, of which there are at most 8, or zeros.
func (r *reader) fixed(n int) []byte {
	if s := r.next(n); s != nil {
		return s
	}
	return zeros[:n]
}

var zeros [8]byte

func (r *reader) uint8() byte    { return r.fixed(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.fixed(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.fixed(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.fixed(8)) }

// cstring returns the bytes up to the next NUL and steps over it.
func (r *reader) cstring() []byte {
	i := bytes.IndexByte(r.b[r.off:], 0)
	if i < 0 {
		r.short = true
		r.off = len(r.b)
		return nil
	}
	s := r.b[r.off : r.off+i : r.off+i]
	r.off += i + 1
	return s
}

// end reports whether the message was read to its last byte and not beyond.
func (r *reader) end() error {
	switch {
	case r.short:
		return r.malformed("it ends too early")
	case r.off != len(r.b):
		return r.malformed(fmt.Sprintf("%d bytes are left over", len(r.b)-r.off))
	}
	return nil
}

func (r *reader) malformed(reason string) error {
	e := &MalformedError{Size: len(r.b), Reason: reason}
	if len(r.b) > 0 {
		e.Message = r.b[0]
	}
	return e
}

// Type bytes of the messages that protocol version 1 can send.
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgRelation = 'R'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgMessage  = 'M'
	msgOrigin   = 'O'
	msgType     = 'Y'
)

// Kinds of a column's value in a tuple.
const (
	valueNull      = 'n'
	valueUnchanged = 'u'
	valueText      = 't'
)

// message is the body of a logical decoding message (pg_logical_emit_message).
type message struct {
	transactional bool
	prefix        []byte
	content       []byte
}

func readMessage(r *reader) (message, error) {
	flags := r.uint8()
	r.uint64() // LSN of the message, not an identity: the commit LSN is
	m := message{transactional: flags == 1, prefix: r.cstring()}
	m.content = r.next(int(int32(r.uint32())))
	if err := r.end(); err != nil {
		return m, err
	}
	if flags > 1 {
		return m, r.malformed(fmt.Sprintf("unknown flags %#x", flags))
	}
	return m, nil
}
