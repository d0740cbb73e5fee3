package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

func healthcheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "healthcheck",
		Short:   "Ask a running walferry whether it is alive; for container health checks",
		Example: "  walferry healthcheck --config walferry.yaml\n  walferry healthcheck --url http://127.0.0.1:9400/readyz",
		Args:    noArgs,
	}
	path := configFlag(cmd)
	url := cmd.Flags().String("url", "", "`URL` to ask; default /healthz on the configured admin.listen")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		target := *url
		if target == "" {
			cfg, err := loadConfig(*path)
			if err != nil {
				return err
			}
			if target, err = adminURL(cfg.Admin.Listen, "/healthz"); err != nil {
				return err
			}
		}
		_, err := get(cmd.Context(), target)
		return err
	}
	return cmd
}

// adminURL returns the URL of a path on an admin address, of which an empty or unspecified
// host means this machine.
func adminURL(listen, path string) (string, error) {
	if listen == "" {
		return "", errors.New("admin.listen is empty: there is nobody to ask")
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("admin.listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + path, nil
}

// get returns the body of a URL that answers 200.
func get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // it is read to its end
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, response.Status, body)
	}
	return body, err
}
