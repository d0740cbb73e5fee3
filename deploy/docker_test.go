package deploy_test

import (
	"go/version"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

type dockerImages struct {
	bases  []string // of the FROM lines that name no earlier stage
	stages []string
}

// dockerfile returns the images and stages that the Dockerfile at path has.
func dockerfile(t *testing.T, path string) dockerImages {
	t.Helper()
	var found dockerImages
	from := regexp.MustCompile(`(?m)^FROM (?:--platform=\S+ )?(\S+) AS (\S+)$`)
	for _, match := range from.FindAllStringSubmatch(read(t, path), -1) {
		if !slices.Contains(found.stages, match[1]) {
			found.bases = append(found.bases, match[1])
		}
		found.stages = append(found.stages, match[2])
	}
	if len(found.bases) == 0 {
		t.Fatalf("%s: no line FROM ... AS ...", path)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDockerfileImagesArePinned(t *testing.T) {
	for _, image := range dockerfile(t, "Dockerfile").bases {
		if !pinned(image) {
			t.Errorf("image %q has no tag, or one that moves", image)
		}
	}
}

// TestGoVersions makes sure that the image and the workflow build with the Go
// that go.mod asks for.
func TestGoVersions(t *testing.T) {
	want := version.Lang("go" + find(t, filepath.Join(root, "go.mod"), `(?m)^go (\S+)$`)[0])
	for path, pattern := range map[string]string{
		"Dockerfile": `(?m)^FROM .*\bgolang:([0-9.]+)`,
		filepath.Join(root, ".github", "workflows", "ci.yml"): `go-version: '([0-9.]+)'`,
	} {
		for _, got := range find(t, path, pattern) {
			if version.Lang("go"+got) != want {
				t.Errorf("%s uses Go %s, go.mod asks for %s", path, got, want)
			}
		}
	}
}

// find returns what the pattern's group matches in the file, at least once.
func find(t *testing.T, path, pattern string) []string {
	t.Helper()
	var found []string
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, path), -1) {
		found = append(found, match[1])
	}
	if len(found) == 0 {
		t.Fatalf("%s: nothing matches %s", path, pattern)
	}
	return found
}
