package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A stage begins before anybody knows how much of it there is.
func TestTheBarLearnsItsTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &progress{out: &out, terminal: true}
		p.show("read", 0, 0)
		for n := range int64(2) {
			<-time.After(time.Second)
			p.show("read", 25*(n+1), 100)
		}
		for _, want := range []string{"read  50% |", "(50/100, 25 it/s) [2s:2s]"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the bar does not say %q: %q", want, &out)
			}
		}
		p.show("read", 100, 100)
		if !strings.Contains(out.String(), "read 100% |") {
			t.Errorf("at its end the bar is %q", &out)
		}
		p.show("compare", 0, 0)
		p.end()
		out.Reset()
		<-time.After(time.Second)
		if out.Len() > 0 {
			t.Errorf("after the end it draws %q", &out)
		}
	})
}
