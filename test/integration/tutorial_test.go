package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge"
)

// The tutorial of docs/replay.md does what it says, block by block.
func TestTutorialOfReplay(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "replay.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, tutorial, ok := strings.Cut(string(text), "## A slot is lost and healed")
	if !ok {
		t.Fatal("the tutorial is not there")
	}
	w := bareWorld(t, newest(t), "", nil)
	file, report := w.configFile(""), filepath.Join(t.TempDir(), "resent.ndjson")
	blocks := regexp.MustCompile("(?s)```(sh|sql)\n(.*?)```").FindAllStringSubmatch(tutorial, -1)
	for i, block := range blocks {
		for line := range strings.Lines(block[2]) {
			if line = strings.TrimSpace(line); block[1] == "sql" {
				w.exec(strings.ReplaceAll(line, "slot('walferry')", "slot('"+w.prefix+"')"))
				continue
			}
			command, comment, _ := strings.Cut(line, "#")
			args := strings.Fields(strings.ReplaceAll(command, "resent.ndjson", report))[1:]
			c := walferry(t, append(args, "--config", file)...)
			switch {
			case args[0] != "run":
				stdout, _ := c.exit(0)
				t.Logf("%s\n%s", line, stdout)
			case strings.Contains(comment, "exit code 67"):
				c.exit(bridge.Gap.ExitCode())
			default:
				c.awaitStreaming()
				w.awaitCaughtUp()
				if i < len(blocks)-2 { // reconcile comes while it runs
					c.terminate()
					w.awaitNoWalsender()
				}
			}
		}
	}
	sent, err := os.ReadFile(report)
	if n := bytes.Count(sent, []byte("\n")); err != nil || n != 2 {
		t.Errorf("%d rows were sent again, %v, want 2: %s", n, err, sent)
	}
	var values []string
	for _, r := range w.records() {
		values = append(values, string(r.Value))
	}
	if got, want := strings.Join(values, " "), `{"order": 1} {"order": 2} {"order": 3} {"order": 4}`; got != want {
		t.Errorf("the topic has %s, want %s", got, want)
	}
}
