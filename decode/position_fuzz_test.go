package decode_test

import (
	"math"
	"regexp"
	"strconv"
	"testing"

	"github.com/walferry/walferry/decode"
)

// FuzzPosition takes any text for a position: what is accepted is written back as it was, and
// every position of a real cluster is accepted.
func FuzzPosition(f *testing.F) {
	for _, text := range []string{
		"7312345678901234567/1/0/15A1DB3/0", "", "////", "7000/1/0/0", "7000/01/0/0/0", "7000/1/0/a/0", "7000/1/0/0A/0", "-1/1/0/0/0", "+1/1/0/0/0",
		"7000/4294967296/0/0/0", "7000/1/100000000/0/0", "18446744073709551615/4294967295/FFFFFFFF/FFFFFFFF/18446744073709551615", "7000/1/0/0/0\n",
		"0x7/1/0/0/0", "1_0/1/0/0/0", "07000/1/0/0/0",
	} {
		f.Add(text, uint64(7000), uint32(1), uint64(0x15A1DB3), uint64(2))
	}
	f.Add("", uint64(math.MaxUint64), uint32(math.MaxUint32), uint64(math.MaxUint64), uint64(math.MaxUint64))
	f.Add("", uint64(0), uint32(0), uint64(1<<32), uint64(0))
	form := regexp.MustCompile(`^[0-9]{1,20}/(0|[1-9][0-9]{0,9})/(0|[1-9A-F][0-9A-F]{0,7})/(0|[1-9A-F][0-9A-F]{0,7})/(0|[1-9][0-9]{0,19})$`)
	f.Fuzz(func(t *testing.T, text string, system uint64, timeline uint32, lsn, index uint64) {
		p, err := decode.ParsePosition(text)
		switch {
		case err == nil && (p.String() != text || !form.MatchString(text)):
			t.Errorf("%q was read as %s", text, p)
		case err != nil && p != (decode.Position{}):
			t.Errorf("%v, and the position %s", err, p)
		}
		want := decode.Position{SystemID: strconv.FormatUint(system, 10), Timeline: timeline, CommitLSN: decode.LSN(lsn), Index: index}
		if got, err := decode.ParsePosition(want.String()); err != nil || got != want {
			t.Errorf("%s was read as %s, %v", want, got, err)
		}
	})
}
