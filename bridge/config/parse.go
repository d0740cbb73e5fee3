package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Load reads the file at path and parses it with the environment of the process. See [Parse].
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, data, os.LookupEnv)
}

// Parse checks data and returns the complete configuration. name stands for the file in errors and warnings; env looks
// up the variables that data refers to. Files that data names are opened to check them. The error is an [Errors] with
// every problem found.
func Parse(name string, data []byte, env func(string) (string, bool)) (*Config, error) {
	d := &document{file: name, env: env, nodes: map[string]node{"": {line: 1, column: 1}}, failed: make(map[string]bool)}
	config := new(Config)
	if root := d.parse(data); root != nil {
		setDefaults(reflect.ValueOf(config).Elem())
		d.bind(root, "", reflect.ValueOf(config).Elem(), "")
		d.validate(config)
	}
	if len(d.errs) > 0 {
		slices.SortStableFunc(d.errs, func(a, b *Error) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return nil, d.errs
	}
	config.warnings = d.warnings
	return config, nil
}

// document is one configuration file on its way into a Config. It goes on after a problem, so that one run shows all.
type document struct {
	file     string
	env      func(string) (string, bool)
	nodes    map[string]node // by YAML path, such as databases[0].slot
	failed   map[string]bool // YAML paths that have an error already
	errs     Errors
	warnings []string
}

// node is where a value stands. text is a scalar as it was written, variables not expanded; secrets have none.
type node struct {
	line, column int
	text         string
}

// parse returns the root of the only YAML document in data, or nil after an error.
func (d *document) parse(data []byte) ast.Node {
	if line := invalidLine(data); line > 0 {
		d.errorAt(node{line: line, column: 1}, "not UTF-8: save the file as UTF-8")
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // the scanner miscounts lines with CRLF
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntaxError(err)
		return nil
	}
	var root ast.Node = &ast.NullNode{}
	for i, doc := range file.Docs {
		switch {
		case i > 0 && doc.Body != nil:
			d.errorAt(position(doc.Body), "only one YAML document may be in the file")
			return nil
		case doc.Body != nil:
			root = doc.Body
		}
	}
	return root
}

// syntaxError reports the parser's message without the source around it and without what it quotes from it: both may
// hold a secret.
func (d *document) syntaxError(err error) {
	at, message := node{line: 1, column: 1}, "the parser gave up"
	if syntax, ok := errors.AsType[*yaml.SyntaxError](err); ok {
		message, _, _ = strings.Cut(syntax.Message, "\"")
		at = positionOf(syntax.Token)
	}
	d.errorAt(at, "not valid YAML: %s", strings.TrimRight(message, " :"))
}

func invalidLine(data []byte) int {
	for i, line := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(line) {
			return i + 1
		}
	}
	return 0
}

// errorf reports a problem of the value at path, in words that continue the path. Only the first problem of a value and
// of what is in it counts: the others follow from it.
func (d *document) errorf(path, format string, args ...any) {
	for p := path; ; p = parent(p) {
		if d.failed[p] {
			return
		}
		if p == "" {
			break
		}
	}
	d.failed[path] = true
	if path == "" {
		path = "the file"
	}
	d.errorAt(d.at(path), path+" "+format, args...)
}

func (d *document) errorAt(at node, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: at.line, Column: at.column, Message: fmt.Sprintf(format, args...)})
}

func (d *document) warnf(path, format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf("%s: %s %s", d.place(path), path, fmt.Sprintf(format, args...)))
}

// at finds the value at path or, when the file does not have it, the nearest parent.
func (d *document) at(path string) node {
	for {
		if at, ok := d.nodes[path]; ok {
			return at
		}
		path = parent(path)
	}
}

func (d *document) place(path string) string {
	at := d.at(path)
	return fmt.Sprintf("%s:%d:%d", d.file, at.line, at.column)
}

// quote shows the value at path as it was written.
func (d *document) quote(path string) string { return show(d.nodes[path].text) }

// show quotes text unless it looks like a URL with a password, written in the wrong place.
func show(text string) string {
	if strings.Contains(text, "@") {
		return "the one given"
	}
	return fmt.Sprintf("%.60q", text)
}

func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}
