package config

import (
	"errors"
	"fmt"
	"strings"
)

// expand replaces each ${NAME} by the variable's value, which is not expanded again, and each $${ by ${.
// Its errors show nothing of the text but the name.
func expand(text string, env func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		if !found {
			out.WriteString(text)
			return out.String(), nil
		}
		if before, escaped := strings.CutSuffix(before, "$"); escaped {
			out.WriteString(before + "${")
			text = rest
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed || !isVariable(name) {
			return "", errors.New("has a malformed reference: write ${NAME} for an environment variable, $${ for a literal ${")
		}
		value, ok := env(name)
		if !ok {
			return "", fmt.Errorf("needs the environment variable %s, which is not set", name)
		}
		out.WriteString(before + value)
		text = after
	}
}

func isVariable(name string) bool {
	return name != "" && (name[0] < '0' || name[0] > '9') && consistsOf(name, upper+lower+digits+"_")
}
