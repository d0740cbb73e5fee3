package decode

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// readJSON returns the values, by role, of the JSON object in a logical message, whose
// members are DefaultColumns. Of two members of one name the last counts, as in jsonb, but
// each has to be fit.
// A string is its unescaped text; of the payload anything else is its raw bytes.
func (d *Decoder) readJSON(content []byte) (values [roleCount][]byte, err error) {
	source := len(d.cfg.Tables)
	if !utf8.Valid(content) {
		return values, d.contract(source, "", "the content is not valid UTF-8")
	}
	if !json.Valid(content) {
		return values, d.contract(source, "", "the content is not valid JSON")
	}
	s := scanner{b: content}
	if s.space(); s.b[s.i] != '{' {
		return values, d.contract(source, "", "the content is not a JSON object")
	}
	d.scratch = d.scratch[:0]
	for s.i++; s.advance(); {
		name, ok := d.unescape(s.value())
		if !ok {
			return values, d.contract(source, "", "a member's name holds half of a surrogate pair")
		}
		s.advance() // over the colon
		raw := s.value()
		is := DefaultColumns.role(name)
		switch {
		case is == roleNone:
		case raw[0] == '"':
			if values[is], ok = d.unescape(raw); !ok {
				return values, d.contract(source, DefaultColumns.name(is), "holds half of a surrogate pair, which UTF-8 cannot express")
			}
		case is == rolePayload:
			values[is] = raw
		case raw[0] == 'n':
			values[is] = nil
		case raw[0] == '{', raw[0] == '[':
			return values, d.contract(source, DefaultColumns.name(is), "is an object or array where text is needed")
		default:
			values[is] = raw
		}
	}
	if values[rolePayload] == nil {
		return values, d.contract(source, DefaultColumns.Payload, "is missing")
	}
	return values, nil
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
		default: // a number, true, false or null
			s.i += bytes.IndexAny(s.b[s.i:], " \t\n\r,:}]")
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
		if raw[i] == 'u' {
			u, n := unicodeEscape(raw[i-1:])
			if u < 0 {
				return nil, false
			}
			out = utf8.AppendRune(out, u)
			i += n - 2
			continue
		}
		// The others, " \ and /, stand for themselves.
		out = append(out, raw[i])
		if control := strings.IndexByte("bfnrt", raw[i]); control >= 0 {
			out[len(out)-1] = "\b\f\n\r\t"[control]
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

// hex4 reads four hexadecimal digits, which json.Valid has seen to be some.
func hex4(b []byte) rune {
	u, _ := strconv.ParseUint(string(b[:4]), 16, 16)
	return rune(u)
}
