// Command mutants shows that the tests notice known bugs. It plants bugs that other bridges had,
// one at a time, and runs for each the test that must fail. The tree is never changed: the
// compiler gets a mutated file in the original's place, by the -overlay of the go command.
//
//	go run ./test/mutants [-run regexp] [-v]
//
// A mutant is killed when its test passes without it, and with it fails and says what the
// mutant's entry expects. A mutant that does not fit the code any more, does not compile, or
// makes its test fail for another reason is not killed: its entry must be corrected.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	run := flag.String("run", "", "plant only mutants with names that match this regular expression")
	verbose := flag.Bool("v", false, "show what the tests say")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) //nolint:forbidigo // a command owns the first context
	out := log.New(os.Stdout, "", 0)
	err := prove(ctx, out, *run, *verbose)
	stop()
	if err != nil {
		log.New(os.Stderr, "mutants: ", 0).Fatal(err)
	}
}

// prove plants the mutants of this module that run selects.
func prove(ctx context.Context, out *log.Logger, run string, verbose bool) error {
	names, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	var selected []mutant
	for _, m := range slices.Concat(mutants, ofTransactions, ofRecovery, ofReconcile) {
		if names.MatchString(m.name) {
			selected = append(selected, m)
		}
	}
	if len(selected) == 0 {
		return fmt.Errorf("no mutant has a name that matches %q", run)
	}
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	temp, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }() // it is temporary anyway
	l := &lab{
		root: filepath.Dir(strings.TrimSpace(string(module))), temp: temp,
		patience: time.Minute, glance: 10 * time.Second, out: out, verbose: verbose,
	}
	return l.prove(ctx, selected)
}

// lab plants mutants in the module at root.
type lab struct {
	root, temp string
	patience   time.Duration // with a test; most run in fake time and take less than a second
	glance     time.Duration // the same, with a test that is expected to hang
	out        *log.Logger
	verbose    bool
}

// prove plants one mutant after another and prints what became of each. It fails unless all
// were killed.
func (l *lab) prove(ctx context.Context, mutants []mutant) error {
	if err := l.baseline(ctx, mutants); err != nil {
		return err
	}
	killed, survived := 0, 0
	for _, m := range mutants {
		verdict, took, err := l.plant(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		line := fmt.Sprintf("%-8s  %-28s  by %s %s in %.1fs", verdict, m.name, m.pkg, m.test, took.Seconds())
		switch verdict {
		case isKilled:
			killed++
		case isSurvivor:
			survived++
			line = fmt.Sprintf("%-8s  %-28s  %s %s passes with it\n          %s", verdict, m.name, m.pkg, m.test, m.repeats)
		default:
			line = fmt.Sprintf("%-8s  %-28s  %v", verdict, m.name, err)
		}
		l.out.Print(line)
	}
	if unclear := len(mutants) - killed - survived; unclear > 0 {
		l.out.Printf("%d entries of test/mutants must be corrected", unclear)
	}
	l.out.Printf("mutants: %d killed, %d survived", killed, survived)
	if killed < len(mutants) {
		return fmt.Errorf("%d of %d mutants were not killed", len(mutants)-killed, len(mutants))
	}
	return nil
}

// baseline makes sure that each test passes without a mutant.
func (l *lab) baseline(ctx context.Context, mutants []mutant) error {
	binaries, seen := map[string]string{}, map[checker]bool{}
	for _, m := range mutants {
		if seen[m.checker] {
			continue
		}
		seen[m.checker] = true
		if binaries[m.pkg] == "" {
			binary, err := l.compile(ctx, m.pkg, "")
			if err != nil {
				return err
			}
			binaries[m.pkg] = binary
		}
		if r := l.run(ctx, binaries[m.pkg], m.checker, l.patience); r.outcome != passed {
			return fmt.Errorf("%s %s must pass before a mutant is planted:\n%s", m.pkg, m.test, r.output)
		}
	}
	return nil
}

// verdict is what became of a mutant.
type verdict string

const (
	isKilled   verdict = "killed"
	isSurvivor verdict = "SURVIVED"
	isStale    verdict = "STALE"   // it does not fit the code any more
	isBroken   verdict = "BROKEN"  // it does not compile
	isUnclear  verdict = "UNCLEAR" // its test fails, but not for its reason
)

// plant runs the mutant's test with the mutant in place. err explains the last three verdicts.
func (l *lab) plant(ctx context.Context, m mutant) (v verdict, took time.Duration, err error) {
	overlay, err := l.overlay(m)
	if err != nil {
		return isStale, 0, err
	}
	binary, err := l.compile(ctx, m.pkg, overlay)
	if err != nil {
		return isBroken, 0, err
	}
	patience := l.patience
	if m.red == hung {
		patience = l.glance
	}
	r := l.run(ctx, binary, m.checker, patience)
	if l.verbose {
		l.out.Printf("=== %s: %s\n%s", m.name, m.repeats, r.output)
	}
	switch {
	case r.outcome == passed:
		return isSurvivor, r.took, nil
	case r.outcome != failed && r.outcome != m.red:
		return isUnclear, r.took, fmt.Errorf("%s %s did not fail, it %s:\n%s", m.pkg, m.test, r.outcome, r.output)
	case !strings.Contains(r.output, m.says):
		return isUnclear, r.took, fmt.Errorf("%s %s failed without saying %q:\n%s", m.pkg, m.test, m.says, r.output)
	}
	return isKilled, r.took, nil
}
