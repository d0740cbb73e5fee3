package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// mutant is a bug to plant.
type mutant struct {
	name    string
	repeats string // the bug, and who had it
	edits   []edit
	checker
	// red is what else than a failure the test may do: hang, or end by a panic of another goroutine.
	red  outcome
	says string // what the test says when it fails for the mutant's reason
}

// edit replaces the one occurrence of old in file, which is relative to the module.
type edit struct{ file, old, new string }

// checker is the test that must fail.
type checker struct{ pkg, test string }

// overlay writes the mutated files and the JSON that go's -overlay reads, and returns the
// latter's path.
func (l *lab) overlay(m mutant) (string, error) {
	text := map[string]string{}
	for _, e := range m.edits {
		if _, ok := text[e.file]; !ok {
			b, err := os.ReadFile(filepath.Join(l.root, e.file))
			if err != nil {
				return "", fmt.Errorf("update the mutant: %w", err)
			}
			text[e.file] = string(b)
		}
		if n := strings.Count(text[e.file], e.old); n != 1 {
			return "", fmt.Errorf("update the mutant: its text occurs %d times in %s, want once:\n%s", n, e.file, e.old)
		}
		text[e.file] = strings.Replace(text[e.file], e.old, e.new, 1)
	}
	replace := map[string]string{}
	for file, mutated := range text {
		path := filepath.Join(l.temp, m.name+"-"+filepath.Base(file))
		if err := os.WriteFile(path, []byte(mutated), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(l.root, file)] = path
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(l.temp, m.name+".json")
	return path, os.WriteFile(path, b, 0o600)
}

// compile builds a package's tests and returns the binary's path.
func (l *lab) compile(ctx context.Context, pkg, overlay string) (string, error) {
	binary := filepath.Join(l.temp, filepath.Base(pkg)+".test")
	args := []string{"test", "-c", "-ldflags=-s -w", "-o", binary}
	if overlay != "" {
		binary = strings.TrimSuffix(overlay, ".json") + ".test"
		args = []string{"test", "-c", "-ldflags=-s -w", "-o", binary, "-overlay", overlay}
	}
	build := exec.CommandContext(ctx, "go", append(args, pkg)...)
	build.Dir = l.root
	if b, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the tests of %s: %w\n%s", pkg, err, b)
	}
	return binary, nil
}

// outcome is what a test did.
type outcome string

const (
	failed   outcome = "failed"
	passed   outcome = "passed"
	hung     outcome = "hung"
	panicked outcome = "panicked"
	absent   outcome = "was not there"
)

// result is one run of a test.
type result struct {
	outcome outcome
	took    time.Duration
	output  string
}

// run runs one test of a binary, for as long as patience lasts.
func (l *lab) run(ctx context.Context, binary string, c checker, patience time.Duration) result {
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^"+regexp.QuoteMeta(c.test)+"$", "-test.v",
		"-test.timeout", patience.String())
	cmd.Dir = filepath.Join(l.root, c.pkg)
	cmd.Env = append(os.Environ(), "GOTRACEBACK=single")
	began := time.Now()
	b, err := cmd.CombinedOutput()
	r := result{took: time.Since(began), output: string(b)}
	ran := regexp.MustCompile(`(?m)^--- (PASS|FAIL): ` + regexp.QuoteMeta(c.test) + ` `).FindStringSubmatch(r.output)
	switch {
	case strings.Contains(r.output, "panic: test timed out"):
		r.outcome = hung
	case ran == nil && err == nil:
		r.outcome = absent
	case ran == nil:
		r.outcome = panicked
	case err != nil:
		r.outcome = failed
	default:
		r.outcome = passed
	}
	return r
}
