package deploy_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/walferry/walferry/bridge/config"
)

// manifest is what the tests look at in a Kubernetes object.
type manifest struct {
	Kind string
	Data map[string]string // of a ConfigMap
	Spec struct {          // of a Deployment
		Replicas int
		Strategy struct {
			Type          string
			RollingUpdate struct {
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		}
		Template struct {
			Spec struct {
				Containers []struct{ Image string }
			}
		}
	}
}

// manifests returns the objects of deploy/kubernetes/walferry.yaml by kind.
func manifests(t *testing.T) map[string]manifest {
	t.Helper()
	found := make(map[string]manifest)
	decoder := yaml.NewDecoder(strings.NewReader(read(t, filepath.Join("kubernetes", "walferry.yaml"))))
	for {
		var m manifest
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("kubernetes/walferry.yaml: %v", err)
		}
		found[m.Kind] = m
	}
}

func TestKubernetesConfigLoads(t *testing.T) {
	secrets := t.TempDir()
	if err := os.WriteFile(filepath.Join(secrets, "dsn"), []byte("postgres://walferry@postgres/shop"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := manifests(t)["ConfigMap"].Data["walferry.yaml"]
	if text == "" {
		t.Fatal("the ConfigMap has no walferry.yaml")
	}
	text = strings.ReplaceAll(text, "/run/secrets/walferry", secrets)
	none := func(string) (string, bool) { return "", false }
	if _, err := config.Parse("walferry.yaml", []byte(text), none); err != nil {
		t.Error(err)
	}
}

// TestKubernetesRunsTwo makes sure that one waits while the other publishes, also while they are replaced.
func TestKubernetesRunsTwo(t *testing.T) {
	deployment := manifests(t)["Deployment"].Spec
	if s := deployment.Strategy; deployment.Replicas != 2 || s.Type == "Recreate" || s.RollingUpdate.MaxUnavailable != 1 {
		t.Errorf("got %d replicas with strategy %+v, want 2 that are replaced one by one", deployment.Replicas, s)
	}
	if len(deployment.Template.Spec.Containers) != 1 {
		t.Fatalf("got %d containers, want 1", len(deployment.Template.Spec.Containers))
	}
	if image := deployment.Template.Spec.Containers[0].Image; !pinned(image) {
		t.Errorf("image %q has no tag, or one that moves", image)
	}
}
