package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

const redacted = "redacted"

// Secret is a text that no formatting, logging or encoding shows. Only [Secret.Reveal] does.
type Secret string

// Reveal returns the text.
func (s Secret) Reveal() string { return string(s) }

// String returns "redacted".
func (Secret) String() string { return redacted }

// GoString returns "redacted".
func (Secret) GoString() string { return redacted }

// MarshalText returns "redacted".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format writes "redacted" for every verb: without it %d and the like would show the text in their complaint.
func (Secret) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted) }

// fault is a problem that shows only when the configuration is used, in words that continue the key that has to change.
type fault struct {
	key string
	err error
}

// readSecret returns the content of the file that key names, without the line break at its end. A fault leaves the path
// out: a secret written in the place of a path is an easy mistake.
func readSecret(key, path string) (string, *fault) {
	data, err := os.ReadFile(path)
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathError.Err
	}
	if err != nil {
		return "", &fault{key, fmt.Errorf("names a file that cannot be read: %w", err)}
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", &fault{key, errors.New("names an empty file")}
	}
	return text, nil
}
