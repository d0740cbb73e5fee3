package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walferry/walferry/internal/servers"
)

// binary is the path of walferry's binary as users get it: static, without the race
// detector. It is built when the first test needs it.
var binary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(shared.dir, "walferry")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", path, "github.com/walferry/walferry/cmd/walferry")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build walferry: %w\n%s", err, output)
	}
	return path, nil
})

// command is a process of the binary.
type command struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout syncBuffer
	stderr syncBuffer
	done   chan struct{}
}

// walferry starts the binary; it is killed at the end of the test.
func walferry(t *testing.T, args ...string) *command {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	c := &command{t: t, cmd: exec.Command(path, args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	// No PG* variable of the tests' environment may change where it connects to.
	c.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // ProcessState has it
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
		if t.Failed() {
			t.Logf("walferry %s: %s\n%s%s", strings.Join(args, " "), c.cmd.ProcessState, &c.stdout, &c.stderr)
		}
	})
	return c
}

// exit waits for the end of the process with an exit code, and returns what it wrote.
func (c *command) exit(code int) (stdout, stderr string) {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatalf("still running after %s", patience)
	}
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		c.t.Errorf("exit code %d, want %d", got, code)
	}
	return c.stdout.String(), c.stderr.String()
}

// terminate drains the process with SIGTERM.
func (c *command) terminate() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	c.exit(0)
}

// peakRSS waits for the end of the process and returns its peak resident memory in
// bytes. The kernel's rusage would not do: it counts what the child of a fork shares
// with the test before it becomes walferry.
func (c *command) peakRSS() int64 {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * patience)
	peak := int64(0)
	for {
		if n := highWater(c.cmd.Process.Pid); n > 0 {
			peak = n
		}
		select {
		case <-c.done:
			return peak
		case <-deadline:
			c.t.Fatalf("still running after %s", 2*patience)
		case <-tick.C:
		}
	}
}

// highWater returns VmHWM of a process in bytes, 0 when it has ended.
func highWater(pid int) int64 {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// configFile writes the world's configuration for the binary. The admin address is its
// own, so that tests can run side by side.
func (w *world) configFile(admin string) string {
	w.t.Helper()
	db, kafka := w.cfg.Databases[0], w.cfg.Kafka
	var b strings.Builder
	fmt.Fprintf(&b, "databases:\n  - name: %s\n    dsn: %q\n    slot: %s\n    publication: %q\n    outbox:\n",
		db.Name, string(db.DSN), db.Slot, db.Publication)
	for _, o := range db.Outbox {
		fmt.Fprintf(&b, "      - {table: %q, topic: %q}\n", o.Table, o.Topic)
	}
	if db.RetentionSlot() != "" {
		fmt.Fprintf(&b, "    retain: {max_bytes: %s, max_age: %s}\n", db.Retain.MaxBytes, db.Retain.MaxAge)
	}
	fmt.Fprintf(&b, "    messages: {prefix: %q, topic: %q}\n", db.Messages.Prefix, db.Messages.Topic)
	fmt.Fprintf(&b, "kafka: {brokers: %q, topics: {create: %t}, max_record: %s}\n",
		strings.Join(kafka.Brokers, ","), kafka.Topics.Create, kafka.MaxRecord)
	fmt.Fprintf(&b, "delivery: %s\ncheckpoint: {topic: %q}\nadmin: {listen: %q}\nlog: {format: json}\n", w.cfg.Delivery, w.cfg.Checkpoint.Topic, admin)
	return writeFile(w.t, b.String())
}

// writeFile writes a configuration file.
func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "walferry.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr(t *testing.T) string { t.Helper(); return servers.FreeAddr(t) }

// get returns status and body of a URL of the admin address, 0 while nobody answers.
func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(b)
}

// awaitAnswer polls a URL until it answers with a status, and returns the body.
func awaitAnswer(t *testing.T, url string, want int) string {
	t.Helper()
	var body string
	await(t, fmt.Sprintf("%s to answer %d", url, want), func() error {
		var status int
		if status, body = get(t, url); status != want {
			return fmt.Errorf("it answers %d: %s", status, body)
		}
		return nil
	})
	return body
}

// logLines returns the JSON log lines with a message.
func (c *command) logLines(message string) []map[string]any {
	c.t.Helper()
	var found []map[string]any
	for line := range strings.Lines(c.stderr.String()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["message"] == message {
			found = append(found, fields)
		}
	}
	return found
}
