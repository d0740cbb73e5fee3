// Package deploy_test checks what no engine checks before it is too late: that
// the compose file, the images and the manifests agree with the repository.
package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/walferry/walferry/bridge/config"
)

const root = ".."

// compose loads docker-compose.yml as `docker compose` does. Loading checks the
// schema, and that every service named by another one exists.
func compose(t *testing.T) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: types.ToConfigFiles([]string{filepath.Join(dir, "docker-compose.yml")}),
		Environment: types.Mapping{},
	})
	if err != nil {
		t.Fatalf("load docker-compose.yml: %v", err)
	}
	return project
}

func TestComposeHasItsServices(t *testing.T) {
	want := []string{"demo-consumer", "demo-service", "init", "kafka", "postgres", "walferry"}
	if got := slices.Sorted(slices.Values(compose(t).ServiceNames())); !slices.Equal(got, want) {
		t.Errorf("services: got %v, want %v", got, want)
	}
}

func TestComposeImagesArePinned(t *testing.T) {
	for name, service := range compose(t).Services {
		if !pinned(service.Image) {
			t.Errorf("service %s: image %q has no tag, or one that moves", name, service.Image)
		}
	}
}

// TestComposeServersAreTheTestedOnes keeps the compose file at the versions that
// the integration tests run, see test/servers/pom.xml.
func TestComposeServersAreTheTestedOnes(t *testing.T) {
	services, pom := compose(t).Services, filepath.Join(root, "test", "servers", "pom.xml")
	for name, want := range map[string]string{
		"postgres": "postgres:" + find(t, pom, `<version>(18\.\d+)\.\d+</version>`)[0],
		"kafka":    "apache/kafka:" + find(t, pom, `<kafka.version>([0-9.]+)</kafka.version>`)[0],
	} {
		if got := services[name].Image; got != want {
			t.Errorf("service %s: image %q, the tests run %q", name, got, want)
		}
	}
}

// pinned reports whether an image reference has a tag, and not latest.
func pinned(image string) bool {
	_, tag, tagged := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	return tagged && tag != "" && tag != "latest"
}

func TestComposeBuildsExist(t *testing.T) {
	for name, service := range compose(t).Services {
		if service.Build == nil {
			continue
		}
		path := filepath.Join(service.Build.Context, service.Build.Dockerfile)
		if stages := dockerfile(t, path).stages; !slices.Contains(stages, service.Build.Target) {
			t.Errorf("service %s: %s has no stage %q, only %v", name, path, service.Build.Target, stages)
		}
	}
}

func TestComposeMountsExist(t *testing.T) {
	for name, service := range compose(t).Services {
		for _, volume := range service.Volumes {
			info, err := os.Stat(volume.Source)
			if err != nil {
				// Docker would make a directory in its place.
				t.Errorf("service %s: mount %s: %v", name, volume.Target, err)
				continue
			}
			if !info.Mode().IsRegular() || !volume.ReadOnly {
				t.Errorf("service %s: mount %s: want a regular file, read-only", name, volume.Source)
			}
		}
	}
}

func TestComposeWaitsOnlyForWhatCanHappen(t *testing.T) {
	project := compose(t)
	for name, service := range project.Services {
		for target, dependency := range service.DependsOn {
			other := project.Services[target]
			switch dependency.Condition {
			case types.ServiceConditionHealthy:
				if other.HealthCheck == nil || len(other.HealthCheck.Test) == 0 {
					t.Errorf("%s waits until %s is healthy, which has no healthcheck", name, target)
				}
			case types.ServiceConditionCompletedSuccessfully:
				if other.Restart != "" && other.Restart != types.RestartPolicyNo {
					t.Errorf("%s waits until %s has completed, which restarts: %q", name, target, other.Restart)
				}
			default:
				t.Errorf("%s only waits until %s has started (%q)", name, target, dependency.Condition)
			}
		}
	}
	for _, name := range []string{"postgres", "kafka", "walferry"} {
		if check := project.Services[name].HealthCheck; check == nil || len(check.Test) == 0 {
			t.Errorf("service %s has no healthcheck", name)
		}
	}
}

func TestComposePublishesOnLoopbackOnly(t *testing.T) {
	for name, service := range compose(t).Services {
		for _, port := range service.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("service %s publishes port %s on %q, want 127.0.0.1", name, port.Published, port.HostIP)
			}
		}
	}
}

func TestComposeConfigLoads(t *testing.T) {
	services := compose(t).Services
	for _, name := range []string{"init", "walferry"} {
		service := services[name]
		env := func(key string) (string, bool) {
			value := service.Environment[key]
			if value == nil {
				return "", false
			}
			return *value, true
		}
		for _, volume := range service.Volumes {
			data, err := os.ReadFile(volume.Source)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := config.Parse(volume.Source, data, env); err != nil {
				t.Errorf("service %s: %v", name, err)
			}
			if !slices.Contains(service.Command, volume.Target) {
				t.Errorf("service %s: command %v does not name the mounted %s", name, service.Command, volume.Target)
			}
		}
	}
}
