package decode_test

import (
	"math"
	"strings"
	"testing"

	"github.com/walferry/walferry/decode"
)

func TestParsePosition(t *testing.T) {
	for _, want := range []decode.Position{
		{SystemID: "7312345678901234567", Timeline: 1, CommitLSN: 0x15A1DB3},
		{SystemID: "18446744073709551615", Timeline: math.MaxUint32, CommitLSN: math.MaxUint64, Index: math.MaxUint64},
		{SystemID: "0"},
	} {
		if got, err := decode.ParsePosition(want.String()); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", want, got, err)
		}
	}
	longest := decode.Position{SystemID: "18446744073709551615", Timeline: math.MaxUint32, CommitLSN: math.MaxUint64, Index: math.MaxUint64}
	if n := len(longest.String()); n != decode.MaxPosition {
		t.Errorf("the longest position has %d bytes, want %d", n, decode.MaxPosition)
	}
	const good = "7000/1/0/15A1DB3/2"
	for _, text := range []string{
		"", "/", "////", "0/15A1DB3", good + "/", "/" + good, good + "/0", strings.ToLower(good), " " + good, good + "\n",
		"x/1/0/15A1DB3/2", "-7/1/0/15A1DB3/2", "18446744073709551616/1/0/15A1DB3/2", "7000/4294967296/0/15A1DB3/2", "7000/01/0/15A1DB3/2",
		"7000/1/100000000/15A1DB3/2", "7000/1/0/115A1DB30/2", "7000/1/0/0015A1DB3/2", "7000/1/0/15A1DB3/+2", "7000/1/0/15A1DB3/18446744073709551616",
	} {
		if got, err := decode.ParsePosition(text); err == nil || got != (decode.Position{}) {
			t.Errorf("%q is read as %+v, %v", text, got, err)
		}
	}
}
