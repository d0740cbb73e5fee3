package decode

import (
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// readJSON fills ev from the JSON object in a logical message, whose members are
// DefaultColumns. Of two members of one name the last counts, as in jsonb.
// A string is its unescaped text; of the payload anything else is its raw bytes.
func (d *Decoder) readJSON(content []byte, ev *Event) error {
	if !utf8.Valid(content) {
		return d.contract(ev.Source, "", "the content is not valid UTF-8")
	}
	if !json.Valid(content) {
		return d.contract(ev.Source, "", "the content is not valid JSON")
	}
	s := scanner{b: content}
	if s.space(); s.b[s.i] != '{' {
		return d.contract(ev.Source, "", "the content is not a JSON object")
	}
	d.scratch = d.scratch[:0]
	for s.i++; s.advance(); {
		name, ok := d.unescape(s.value())
		if !ok {
			return d.contract(ev.Source, "", "a member's name holds half of a surrogate pair")
		}
		s.advance() // over the colon
		if err := d.member(ev, name, s.value()); err != nil {
			return err
		}
	}
	if ev.Payload == nil {
		return d.contract(ev.Source, DefaultColumns.Payload, "is missing")
	}
	return nil
}

func (d *Decoder) member(ev *Event, name, raw []byte) (err error) {
	role := DefaultColumns.role(name)
	if role == roleNone {
		return nil
	}
	value := raw
	switch {
	case raw[0] == '"':
		var ok bool
		if value, ok = d.unescape(raw); !ok {
			return d.contract(ev.Source, string(name), "holds half of a surrogate pair, which UTF-8 cannot express")
		}
	case role == rolePayload:
	case raw[0] == 'n':
		value = nil
	case raw[0] == '{' || raw[0] == '[':
		return d.contract(ev.Source, DefaultColumns.name(role), "is an object or array where text is needed")
	}
	switch role {
	case roleID:
		ev.ID = value
	case roleAggregateType:
		ev.AggregateType = value
	case roleAggregateID:
		ev.AggregateID = value
	case roleType:
		ev.Type = value
	case rolePayload:
		ev.Payload = value
	}
	return nil
}

// scanner walks the tokens of a text that json.Valid has accepted: that is what
// lets it look at nothing but structure.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) space() {
	for s.b[s.i] == ' ' || s.b[s.i] == '\t' || s.b[s.i] == '\n' || s.b[s.i] == '\r' {
		s.i++
	}
}

// advance steps over blanks and one comma or colon to the next value and reports
// false at the end of the object.
func (s *scanner) advance() bool {
	s.space()
	if s.b[s.i] == ',' || s.b[s.i] == ':' {
		s.i++
		s.space()
	}
	return s.b[s.i] != '}'
}

// value returns the raw bytes of the value at the cursor and steps over it.
func (s *scanner) value() []byte {
	start, depth := s.i, 0
	for {
		switch s.b[s.i] {
		case '"':
			s.str()
		case '{', '[':
			depth++
			s.i++
		case '}', ']':
			depth--
			s.i++
		case ' ', '\t', '\n', '\r', ',', ':':
			s.i++
			continue
		default:
			s.scalar()
		}
		if depth == 0 {
			return s.b[start:s.i:s.i]
		}
	}
}

func (s *scanner) str() {
	for s.i++; s.b[s.i] != '"'; s.i++ {
		if s.b[s.i] == '\\' {
			s.i++
		}
	}
	s.i++
}

// scalar steps over a number, true, false or null.
func (s *scanner) scalar() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r', ',', ':', '}', ']':
			return
		}
		s.i++
	}
}

// unescape returns the text of a JSON string, quotes included in raw. Text
// without escapes aliases raw, other text the scratch buffer. It reports false
// for half of a surrogate pair.
func (d *Decoder) unescape(raw []byte) ([]byte, bool) {
	raw = raw[1 : len(raw)-1]
	first := 0
	for first < len(raw) && raw[first] != '\\' {
		first++
	}
	if first == len(raw) {
		return raw[:len(raw):len(raw)], true
	}
	start := len(d.scratch)
	out := append(d.scratch, raw[:first]...)
	for i := first; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch c := raw[i]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			u, n := unicodeEscape(raw[i-1:])
			if u < 0 {
				return nil, false
			}
			out = utf8.AppendRune(out, u)
			i += n - 2
		default: // " \ /
			out = append(out, c)
		}
	}
	d.scratch = out
	return out[start:len(out):len(out)], true
}

// unicodeEscape reads \uXXXX, or the two of a surrogate pair, at the start of b.
// It returns the rune and the bytes it takes, or -1 for half of a pair.
func unicodeEscape(b []byte) (rune, int) {
	u := hex4(b[2:])
	if !utf16.IsSurrogate(u) {
		return u, 6
	}
	if len(b) >= 12 && b[6] == '\\' && b[7] == 'u' {
		if u := utf16.DecodeRune(u, hex4(b[8:])); u != utf8.RuneError {
			return u, 12
		}
	}
	return -1, 0
}

func hex4(b []byte) (v rune) {
	for _, c := range b[:4] {
		v <<= 4
		switch {
		case c <= '9':
			v |= rune(c - '0')
		default:
			v |= rune(c|0x20-'a') + 10
		}
	}
	return v
}
