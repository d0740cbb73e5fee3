package servers

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The end of the thread that started a process is not the end of the process.
func TestProcessOutlivesThread(t *testing.T) {
	cat := exec.Command("cat")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	cat.Stdout = &output
	var p *process
	onThreadThatEnds(t, func() { p, err = startProcess(cat, nil, syscall.SIGKILL) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte("alive")); err != nil {
		t.Fatal(err)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if p.err != nil || output.String() != "alive" {
		t.Errorf("got output %q and end %v, want %q and success", &output, p.err, "alive")
	}
}

// onThreadThatEnds calls f on a thread and returns when the thread has ended.
func onThreadThatEnds(t *testing.T, f func()) {
	t.Helper()
	thread := make(chan int)
	var run func()
	run = func() {
		runtime.LockOSThread() // and never unlock: the runtime ends the thread with the goroutine
		if id := syscall.Gettid(); id != syscall.Getpid() {
			f()
			thread <- id
			return
		}
		// The main thread never ends. As long as it is locked here, another goroutine runs on another one.
		done := make(chan struct{})
		go func() { defer close(done); run() }()
		<-done
		runtime.UnlockOSThread()
	}
	go run()
	task := "/proc/self/task/" + strconv.Itoa(<-thread)
	err := until(t.Context(), func() error {
		if _, err := os.Stat(task); err == nil {
			return fmt.Errorf("%s still exists", task)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
