//go:build faults

package integration

import (
	"fmt"
	"syscall"
	"time"

	"github.com/walferry/walferry/bridge/config"
)

// instances are two processes of one world: one has the slot, the other waits for it.
type instances struct {
	f               *faultRun
	leader, standby *command
}

// What a process logs as it becomes one or the other.
const (
	leading = "streaming"
	waiting = "the slot is active elsewhere, waiting for it"
)

// startBoth starts two processes together and waits until they have come to terms.
func (f *faultRun) startBoth(w *world) *instances {
	f.Helper()
	p := &instances{f, w.daemon(""), w.daemon("")}
	await(f.T, "a leader and a standby", func() error {
		if len(p.leader.logLines(leading)) == 0 {
			p.swap()
		}
		if n, m := len(p.leader.logLines(leading)), len(p.standby.logLines(waiting)); n != 1 || m != 1 {
			return fmt.Errorf("%d stream, %d wait", n, m)
		}
		return nil
	})
	return p
}

func (p *instances) swap() { p.leader, p.standby = p.standby, p.leader }

// logsAgain returns a function that waits until a process has logged a message once more than now.
func (f *faultRun) logsAgain(c *command, message string) (await func()) {
	before := len(c.logLines(message))
	return func() {
		f.Helper()
		awaitWithin(f.T, patience, fmt.Sprintf("the process to log %q", message), func() error {
			if len(c.logLines(message)) == before {
				return fmt.Errorf("its log is\n%s", &c.stderr)
			}
			return nil
		})
	}
}

// twoBridges starts two processes together, lets them be for a while, and kills the one that has the slot, again and again.
func twoBridges(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	l := f.load(w)
	p := f.startBoth(w)
	l.more(1000)
	if n, m := len(p.leader.logLines(leading)), len(p.standby.logLines(leading)); n != 1 || m != 0 || len(p.standby.logLines(waiting)) != 1 {
		f.Errorf("%d and %d sessions, want 1 and 0: they take the slot from each other", n, m)
	}
	longest := time.Duration(0)
	for range 10 {
		l.more(f.random.IntN(100))
		streams := f.logsAgain(p.standby, leading)
		p.leader.kill()
		killed := time.Now()
		streams()
		longest = max(longest, time.Since(killed))
		f.recovered(w, killed, w.insertLSN())
		p.leader, p.standby = p.standby, w.daemon("")
		await(f.T, "the new process to wait", func() error {
			if len(p.standby.logLines(waiting)) == 0 {
				return fmt.Errorf("its log is\n%s", &p.standby.stderr)
			}
			return nil
		})
	}
	f.note("10 takeovers, the longest after %s", short(longest))
	f.within("a takeover after kill -9", longest, 3*time.Second)
	f.verify(l)
}

// freezeLeader freezes the process that has the slot until the other has taken over and published, and thaws it, ten times.
func freezeLeader(f *faultRun) {
	const timeout = 4 * time.Second // wal_sender_timeout
	w := newWorld(f.T, newest(f.T), func(cfg *config.Config) { senderTimeout(cfg, timeout) })
	l := f.load(w)
	l.interleaved = true
	p := f.startBoth(w)
	longest := time.Duration(0)
	for range 10 {
		l.more(f.random.IntN(100))
		streams := f.logsAgain(p.standby, leading)
		p.leader.signal(syscall.SIGSTOP)
		frozen := time.Now()
		streams()
		longest = max(longest, time.Since(frozen))
		f.recovered(w, frozen, w.insertLSN())
		l.more(f.random.IntN(100))
		resigns := f.logsAgain(p.leader, waiting)
		p.leader.signal(syscall.SIGCONT)
		resigns()
		p.swap()
	}
	f.note("10 frozen and thawed, the longest takeover after %s", short(longest))
	f.within("a takeover from a frozen process", longest, timeout+2*time.Second)
	f.verify(l)
}

func (c *command) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}
