package deploy_test

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/walferry/walferry/bridge"
)

type alert struct {
	Alert, Expr string
	Labels      map[string]string
	Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	path := filepath.Join("prometheus", "alerts.yml")
	if err := yaml.Unmarshal([]byte(read(t, path)), &file); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var found []alert
	for _, group := range file.Groups {
		found = append(found, group.Rules...)
	}
	if len(found) == 0 {
		t.Fatalf("%s has no rules", path)
	}
	return found
}

func TestAlertsSayWhatToDo(t *testing.T) {
	for _, a := range alerts(t) {
		if a.Alert == "" || a.Expr == "" || a.Labels["severity"] == "" {
			t.Errorf("alert %q: want a name, an expression and a severity", a.Alert)
		}
		for _, key := range []string{"summary", "description", "runbook"} {
			if a.Annotations[key] == "" {
				t.Errorf("alert %q has no %s", a.Alert, key)
			}
		}
	}
}

// TestAlertsUseExistingMetrics: an alert on a metric that nobody reports never fires.
func TestAlertsUseExistingMetrics(t *testing.T) {
	known := make(metricNames)
	bridge.NewMetrics(known, "", "")
	used := regexp.MustCompile(`walferry_\w+`)
	for _, a := range alerts(t) {
		text := a.Expr + a.Annotations["description"] + a.Annotations["runbook"]
		for _, name := range used.FindAllString(text, -1) {
			if !known[strings.TrimSuffix(name, "_bucket")] {
				t.Errorf("alert %s uses %s, which is none of %v", a.Alert, name, slices.Sorted(maps.Keys(known)))
			}
		}
	}
}

// metricNames is a prometheus.Registerer that notes names. A registry would not
// show metrics that have no value yet.
type metricNames map[string]bool

func (m metricNames) Register(c prometheus.Collector) error {
	m.MustRegister(c)
	return nil
}

func (m metricNames) MustRegister(collectors ...prometheus.Collector) {
	name := regexp.MustCompile(`fqName: "(\w+)"`)
	for _, c := range collectors {
		descs := make(chan *prometheus.Desc, 1)
		c.Describe(descs) // of a vector: one
		m[name.FindStringSubmatch((<-descs).String())[1]] = true
	}
}

func (metricNames) Unregister(prometheus.Collector) bool { return false }
