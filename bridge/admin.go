package bridge

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminHandler serves /metrics, /healthz, /readyz and /status, all read-only.
func AdminHandler(bridges []*Bridge, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, bridges) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		statuses := make([]Status, 0, len(bridges))
		for _, b := range bridges {
			statuses = append(statuses, b.Status())
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(statuses) // the caller is gone
	})
	return mux
}

// ready answers 200 when every bridge is ready, else 503, and a line for each.
func ready(w http.ResponseWriter, bridges []*Bridge) {
	code, body := http.StatusOK, ""
	for _, b := range bridges {
		s := b.Status()
		if s.Ready {
			body += fmt.Sprintf("%s ready role=%s\n", s.Database, s.Role)
			continue
		}
		code = http.StatusServiceUnavailable
		body += fmt.Sprintf("%s not ready: %s\n", s.Database, strings.Join(strings.Fields(s.Reason), " "))
	}
	w.WriteHeader(code)
	fmt.Fprint(w, body)
}
