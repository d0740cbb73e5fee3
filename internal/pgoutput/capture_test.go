package pgoutput

import (
	"bytes"
	"testing"
)

func TestCapture(t *testing.T) {
	want := [][]byte{[]byte("BEGIN"), {}, bytes.Repeat([]byte{7}, 300), []byte("COMMIT")}
	var capture []byte
	for _, m := range want {
		capture = AppendCaptured(capture, m)
	}
	equal := func(got, want [][]byte) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%d messages, want %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("message %d is %q, want %q", i, got[i], want[i])
			}
		}
	}
	equal(SplitCapture(capture), want)
	equal(SplitCapture(append(capture, 0, 0, 0)), want)
	equal(SplitCapture(capture[:len(capture)-1]), append(want[:3:3], []byte("COMMI")))
	equal(SplitCapture([]byte("\xff\xff\xff\xffrest")), [][]byte{[]byte("rest")})
}
