package decode_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
)

// FuzzMessageBody takes any bytes for the content of a logical message: the decoder must make
// an event of exactly those in which encoding/json sees one, with the same values.
func FuzzMessageBody(f *testing.F) {
	for _, body := range []string{
		``, ` `, `{}`, `[]`, `null`, `"{}"`, `{"id":1}`, `{"id":1,"aggregatetype":true,"aggregateid":-1.5e3,"payload":[1, 2]}`,
		`{"id":"i","aggregatetype":"o","aggregateid":"k","type":"T","payload":{"a": [1, "}"] }}`,
		"\t{ \"id\" : \"i\" ,\n\"aggregatetype\":\"\",\"aggregateid\":\"\",\r\"type\":null,\"payload\":null } ",
		`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"\ud83d\ude00\"\\\/\b\f\n\r\t\u00e9\u0000"}`,
		`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"\ud83d"}`,
		`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"\ude00\ud83d"}`,
		`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":{"nested":"\ud83d"}}`,
		`{"id":"\\ud83d","aggregatetype":"o","aggregateid":"k","payload":""}`,
		`{"\ud83d":1,"id":"i","aggregatetype":"o","aggregateid":"k","payload":""}`,
		`{"id":"a","\u0069d":"b","id":null,"id":"c","ID":"d","aggregatetype":"o","aggregateid":"k","payload":1,"payload":2}`,
		`{"id":{"id":1},"aggregatetype":["o"],"aggregateid":"k","payload":""}`,
		`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":""}}`,
		"{\"id\":\"i\xff\",\"aggregatetype\":\"o\",\"aggregateid\":\"k\",\"payload\":\"\"}",
		"\ufeff{\"id\":\"i\",\"aggregatetype\":\"o\",\"aggregateid\":\"k\",\"payload\":\"\"}",
	} {
		f.Add([]byte(body))
	}
	for _, capture := range captures(f) {
		for _, m := range capture.messages {
			if content, ok := bodyOf(m); ok {
				f.Add(content)
			}
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		d := begun(t)
		c, err := d.Decode(pgoutput.AppendMessage(nil, true, 1, "outbox", content))
		want, refuse := readBody(content)
		if err != nil {
			if _, ok := errors.AsType[*decode.ContractError](err); !ok || refuse == nil {
				t.Fatalf("refused (%v), encoding/json says %v", err, refuse)
			}
			return
		}
		if refuse != nil {
			t.Fatalf("accepted, encoding/json says %v", refuse)
		}
		if c.Kind != decode.Message || c.Event.PayloadHex || c.Event.Source != 2 {
			t.Fatalf("kind %d, source %d, hex %t", c.Kind, c.Event.Source, c.Event.PayloadHex)
		}
		if got := valuesOf(&c.Event); !got.equal(want) {
			t.Errorf("event %s, encoding/json reads %s", got, want)
		}
	})
}

// values are those of an event: id, aggregate type, aggregate id, type, payload. nil is NULL.
type values [5][]byte

func valuesOf(ev *decode.Event) values {
	return values{ev.ID, ev.AggregateType, ev.AggregateID, ev.Type, ev.Payload}
}

func (v values) equal(w values) bool {
	for i := range v {
		if !bytes.Equal(v[i], w[i]) || (v[i] == nil) != (w[i] == nil) {
			return false
		}
	}
	return true
}

func (v values) String() string { return fmt.Sprintf("%.200q", [5][]byte(v)) }

var members = [5]string{"id", "aggregatetype", "aggregateid", "type", "payload"}

// readBody reads a logical message's content by means of encoding/json alone, or says why it
// is no event.
func readBody(content []byte) (v values, refuse error) {
	var last map[string]json.RawMessage
	switch err := json.Unmarshal(content, &last); {
	case err != nil:
		return v, err
	case !utf8.Valid(content):
		return v, errors.New("not UTF-8")
	case last == nil:
		return v, errors.New("no object")
	}
	if err := checkMembers(content); err != nil {
		return v, err
	}
	for i, name := range members {
		raw, ok := last[name]
		switch {
		case !ok, name != "payload" && string(raw) == "null":
		case raw[0] == '"':
			var text string
			if err := json.Unmarshal(raw, &text); err != nil {
				return v, err
			}
			v[i] = []byte(text)
		default:
			v[i] = raw
		}
		if v[i] == nil && name != "type" {
			return v, fmt.Errorf("%s is missing or null", name)
		}
	}
	return v, nil
}

// checkMembers looks at each member in its raw form, those that a later one overrides included.
func checkMembers(content []byte) error {
	d := json.NewDecoder(bytes.NewReader(content))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		start := d.InputOffset()
		name, err := d.Token()
		if err != nil {
			return err
		}
		if halfSurrogate(content[start:d.InputOffset()]) {
			return errors.New("half a surrogate pair in a name")
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		switch name {
		case "id", "aggregatetype", "aggregateid", "type":
			if raw[0] == '{' || raw[0] == '[' {
				return fmt.Errorf("%s is not text", name)
			}
		case "payload":
		default:
			continue
		}
		if raw[0] == '"' && halfSurrogate(raw) {
			return fmt.Errorf("half a surrogate pair in %s", name)
		}
	}
	return nil
}

var (
	escape        = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.`)
	loneSurrogate = regexp.MustCompile(`^\\u[dD][89a-fA-F][0-9a-fA-F]{2}$`)
)

// halfSurrogate reports whether a JSON string has an escape that stands for half of a pair.
func halfSurrogate(raw []byte) bool {
	for _, e := range escape.FindAll(raw, -1) {
		if loneSurrogate.Match(e) {
			return true
		}
	}
	return false
}
