package replay

import (
	"errors"
	"fmt"

	"github.com/walferry/walferry/bridge"
)

// OutsideError is a range that is not in the window.
type OutsideError struct {
	What   string // the bound that is not, as it was given
	Window Window
}

func (e *OutsideError) Error() string {
	return fmt.Sprintf("%s lies outside of what can be replayed: %s", e.What, &e.Window)
}

// NoRetentionError is a database of which no WAL is kept.
type NoRetentionError struct{ Database string }

func (e *NoRetentionError) Error() string {
	return fmt.Sprintf("no WAL is kept for replays of database %q", e.Database)
}

// Hint says what to do.
func (*NoRetentionError) Hint() string {
	return "set retain.max_bytes, retain.max_age or both, and run `walferry init`: from then on it is; what is still in the outbox table: --from-table"
}

// UnknownNameError is a name under which no checkpoint is saved.
type UnknownNameError struct{ Name string }

func (e *UnknownNameError) Error() string {
	return fmt.Sprintf("no checkpoint is saved as %q; `walferry checkpoint list` shows them", e.Name)
}

// InterruptedError is a replay that was stopped before its end.
type InterruptedError struct {
	ID    string // to resume, "" if it cannot be
	Cause error
}

func (e *InterruptedError) Error() string { return fmt.Sprintf("the replay was stopped: %v", e.Cause) }

func (e *InterruptedError) Unwrap() error { return e.Cause }

// Hint says what to do.
func (e *InterruptedError) Hint() string {
	if e.ID == "" {
		return "start it again"
	}
	return resumes(e.ID)
}

func resumes(id string) string { return "`walferry replay --resume " + id + "` goes on where it was" }

// hinted is an error that says what to do.
type hinted interface {
	error
	Hint() string
}

// explain gives an error the class and the hint that a bridge would give it, or its own.
func explain(o bridge.Options, err error) error {
	if e, ok := errors.AsType[hinted](err); ok {
		return &bridge.Error{Database: o.Database.Name, Class: bridge.Fatal, Hint: e.Hint(), Err: err}
	}
	if _, ok := errors.AsType[*OutsideError](err); ok {
		return &bridge.Error{Database: o.Database.Name, Class: bridge.Fatal, Hint: "choose a range in it; what is still in the outbox table: --from-table; raise retain.max_bytes and retain.max_age for the next time", Err: err}
	}
	if _, ok := errors.AsType[*UnknownNameError](err); ok {
		return &bridge.Error{Database: o.Database.Name, Class: bridge.Fatal, Err: err}
	}
	return bridge.Explain(o.Database.Name, err)
}
