package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

const aMapping = "a mapping"

// bind copies n, which stands at path, into v. tag is that of v's struct field.
func (d *document) bind(n ast.Node, path string, v reflect.Value, tag reflect.StructTag) {
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, path, v)
	case reflect.Slice:
		d.list(n, path, v)
	default:
		d.scalar(n, path, v, tag)
	}
}

func (d *document) mapping(n ast.Node, path string, v reflect.Value) {
	var entries []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.NullNode: // every key at its default
	default:
		d.errorf(path, "must be %s, not %s", wanted(v), kind(n))
		return
	}
	for _, entry := range entries {
		d.entry(entry, path, v)
	}
	for i := range v.NumField() {
		key, required := keyOf(v.Type().Field(i))
		if key == "" {
			continue
		}
		at := join(path, key)
		if _, present := d.nodes[at]; !present && v.Field(i).Kind() == reflect.Struct {
			d.mapping(&ast.NullNode{}, at, v.Field(i)) // its required keys are missing too
		}
		if required && v.Field(i).Len() == 0 {
			d.errorf(at, "is required")
		}
	}
}

// entry binds one key of the mapping at path, which goes to the struct v.
func (d *document) entry(entry *ast.MappingValueNode, path string, v reflect.Value) {
	name, where := keyText(entry.Key), path
	if where == "" {
		where = "the file"
	}
	var keys []string
	for i := range v.NumField() {
		key, _ := keyOf(v.Type().Field(i))
		if key != "" {
			keys = append(keys, key)
		}
		if key == "" || key != name {
			continue
		}
		at := join(path, key)
		if first, present := d.nodes[at]; present {
			d.errorAt(position(entry.Key), "duplicate key %q in %s: it is set already on line %d", key, where, first.line)
			return
		}
		d.nodes[at] = position(entry.Value)
		if _, null := entry.Value.(*ast.NullNode); null {
			d.nodes[at] = position(entry.Key)
		}
		d.bind(entry.Value, at, v.Field(i), v.Type().Field(i).Tag)
		return
	}
	hint := ""
	if key := nearest(name, keys); key != "" {
		hint = fmt.Sprintf("did you mean %q? ", key)
	}
	d.errorAt(position(entry.Key), "unknown key %s in %s: %svalid keys: %s", show(name), where, hint, strings.Join(keys, ", "))
}

func (d *document) list(n ast.Node, path string, v reflect.Value) {
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.SequenceNode:
		for i, item := range n.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.nodes[at] = position(item)
			element := reflect.New(v.Type().Elem()).Elem()
			if element.Kind() == reflect.Struct {
				setDefaults(element)
			}
			d.bind(item, at, element, "")
			v.Set(reflect.Append(v, element))
		}
	default:
		texts, ok := v.Addr().Interface().(*[]string)
		if _, scalar := scalarText(n); !ok || !scalar {
			d.errorf(path, "must be a list, not %s", kind(n))
			return
		}
		var text string // with commas, because an environment variable cannot hold a list
		d.scalar(n, path, reflect.ValueOf(&text).Elem(), "")
		for item := range strings.SplitSeq(text, ",") {
			d.nodes[fmt.Sprintf("%s[%d]", path, len(*texts))] = d.nodes[path]
			*texts = append(*texts, strings.TrimSpace(item))
		}
	}
}

func (d *document) scalar(n ast.Node, path string, v reflect.Value, tag reflect.StructTag) {
	if _, null := n.(*ast.NullNode); null {
		d.errorf(path, `has no value: give it one, or remove the key`)
		return
	}
	text, ok := scalarText(n)
	if !ok {
		hint := ""
		if kind(n) == aMapping { // the parser takes any colon inside {} for a key's
			hint = ": put quotes around a text that has a colon in it"
		}
		d.errorf(path, "must be %s, not %s%s", wanted(v), kind(n), hint)
		return
	}
	if v.Type() != reflect.TypeFor[Secret]() {
		at := d.nodes[path]
		at.text = text
		d.nodes[path] = at
	}
	expanded, err := expand(text, d.env)
	if err != nil {
		d.errorf(path, "%v", err)
		return
	}
	if values := tag.Get("enum"); values != "" && expanded != tag.Get("default") {
		if values := strings.Split(values, "|"); !slices.Contains(values, expanded) {
			d.errorf(path, "must be one of %s, not %s", strings.Join(values, ", "), d.quote(path))
			return
		}
	}
	if !setScalar(v, expanded) {
		d.errorf(path, "must be %s, not %s", wanted(v), d.quote(path))
	}
}

// setScalar reports whether text is a value of v's type.
func setScalar(v reflect.Value, text string) (ok bool) {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p, ok = text, true
	case *Secret:
		*p, ok = Secret(text), true
	case *bool:
		*p, ok = text == "true", text == "true" || text == "false"
	case *Size:
		*p, ok = parseSize(text)
	case *time.Duration:
		duration, err := time.ParseDuration(text)
		*p, ok = duration, err == nil && duration >= 0
	}
	return ok
}

func wanted(v reflect.Value) string {
	switch v.Addr().Interface().(type) {
	case *string, *Secret:
		return "a text"
	case *bool:
		return "true or false"
	case *Size:
		return "a size such as 64MiB, 1MB or 1000000"
	case *time.Duration:
		return "a duration of 0s or more such as 500ms, 10s or 2m"
	}
	return aMapping
}

// setDefaults fills in the default tags of the struct v and of the structs in it.
func setDefaults(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Type.Kind() == reflect.Struct {
			setDefaults(v.Field(i))
		} else if text, ok := field.Tag.Lookup("default"); ok && !setScalar(v.Field(i), text) {
			panic("config: bad default tag of " + field.Name)
		}
	}
}

func keyOf(field reflect.StructField) (key string, required bool) {
	key, option, _ := strings.Cut(field.Tag.Get("yaml"), ",")
	return key, option == "required"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// scalarText returns a scalar as it was written, so that a text may look like a number or a truth value.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func keyText(n ast.MapKeyNode) string {
	if text, ok := n.(*ast.StringNode); ok {
		return text.Value
	}
	return n.GetToken().Value
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return aMapping
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode, *ast.AnchorNode, *ast.TagNode:
		return "a YAML alias, anchor or tag: write the value itself"
	}
	return "a text"
}

func position(n ast.Node) node {
	if mapping, ok := n.(*ast.MappingNode); ok && !mapping.IsFlowStyle && len(mapping.Values) > 0 {
		n = mapping.Values[0].Key
	}
	return positionOf(n.GetToken())
}

// positionOf returns the start of the file for a token that the parser left out.
func positionOf(t *token.Token) node {
	if t == nil || t.Position == nil {
		return node{line: 1, column: 1}
	}
	return node{line: t.Position.Line, column: t.Position.Column}
}
