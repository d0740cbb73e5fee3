package config

import (
	"fmt"
	"strings"
)

// Error is one problem of a configuration and the place to repair it. A missing key is reported at its parent.
type Error struct {
	File         string
	Line, Column int // from 1; columns count characters
	Message      string
}

// Error returns file:line:column: message.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Errors are all problems of one configuration, in the order of the file.
type Errors []*Error

// Error returns one problem per line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, problem := range e {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}
