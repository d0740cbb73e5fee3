package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// module is a small module whose test notices one kind of bug in it.
var module = map[string]string{
	"go.mod":     "module example.com/sum\n\ngo 1.26\n",
	"sum/sum.go": "package sum\n\nfunc Add(a, b int) int { return a + b }\n\nfunc Sub(a, b int) int { return a - b }\n",
	"sum/sum_test.go": `package sum

import "testing"

func TestAdd(t *testing.T) {
	if got := Add(1, 2); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
}

func TestRed(t *testing.T) { t.Error("red without a mutant") }
`,
}

// planted returns a mutant of Add that replaces old.
func planted(name, old, with string) mutant {
	return mutant{name: name, repeats: "a bug", edits: []edit{{"sum/sum.go", old, with}}, checker: checker{"./sum", "TestAdd"}, says: "got -1, want 3"}
}

func proveIn(t *testing.T, mutants ...mutant) (string, error) {
	t.Helper()
	t.Setenv("GOWORK", "off") // the module at root alone
	root := t.TempDir()
	for name, text := range module {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	l := &lab{root: root, temp: t.TempDir(), patience: 2 * time.Second, glance: time.Second, out: log.New(&out, "", 0)}
	err := l.prove(t.Context(), mutants)
	for name, text := range module {
		if b, readErr := os.ReadFile(filepath.Join(root, name)); readErr != nil || string(b) != text {
			t.Errorf("%s was changed (%v)", name, readErr)
		}
	}
	return out.String(), err
}

func TestOnlyAFailureForItsReasonKills(t *testing.T) {
	hang := planted("expected-hang", "return a + b", "for {\n\t}")
	hang.red, hang.says = hung, "panic: test timed out"
	tests := []struct {
		want verdict
		mutant
	}{
		{isKilled, planted("minus", "a + b", "a - b")},
		{isSurvivor, planted("commuted", "a + b", "b + a")},
		{isStale, planted("gone", "a * b", "a - b")},
		{isStale, planted("twice", "(a, b int)", "(b, a int)")},
		{isBroken, planted("type", "a + b", `"a"`)},
		{isUnclear, planted("other", "a + b", "a * b")}, // the test fails, but says something else
		{isUnclear, planted("panic", "return a + b", `done := make(chan bool); go func() { panic("got -1, want 3") }(); <-done; return a + b`)},
		{isUnclear, planted("hang", "return a + b", "for {\n\t}")},
		{isKilled, hang},
	}
	var mutants []mutant
	for _, test := range tests {
		mutants = append(mutants, test.mutant)
	}
	out, err := proveIn(t, mutants...)
	for _, test := range tests {
		if line := fmt.Sprintf("\n%-8s  %s ", test.want, test.name); !strings.Contains("\n"+out, line) {
			t.Errorf("%s is not reported as %s", test.name, test.want)
		}
	}
	if !strings.HasSuffix(out, "\nmutants: 2 killed, 1 survived\n") || err == nil {
		t.Errorf("printed %s, failed with %v", out, err)
	}
}

// A change of the code that a mutant replaces has to change the mutant as well.
func TestEveryMutantFindsItsPlace(t *testing.T) {
	l := &lab{root: filepath.Join("..", ".."), temp: t.TempDir()}
	for _, m := range slices.Concat(mutants, ofTransactions, ofRecovery, ofReconcile) {
		if _, err := l.overlay(m); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

func TestASuiteThatKillsThemAllIsProven(t *testing.T) {
	out, err := proveIn(t, planted("minus", "a + b", "a - b"))
	if !strings.HasSuffix(out, "\nmutants: 1 killed, 0 survived\n") || err != nil {
		t.Errorf("printed %s, failed with %v", out, err)
	}
}

func TestNothingIsPlantedUnlessTheTestPassesWithoutIt(t *testing.T) {
	for _, name := range []string{"TestRed", "TestAbsent"} {
		m := planted("minus", "a + b", "a - b")
		m.test = name
		if out, err := proveIn(t, m); err == nil || !strings.Contains(err.Error(), "must pass before") || out != "" {
			t.Errorf("%s: printed %q, failed with %v", name, out, err)
		}
	}
}
