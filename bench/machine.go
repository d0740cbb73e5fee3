package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/walferry/walferry/replication"
)

// machine says what everything is measured on.
func (h *harness) machine(ctx context.Context) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Partitions: partitions}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	m.CPU = cpuModel(cpuinfo)
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	m.Memory, _ = statusBytes(meminfo, "MemTotal")
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(release))
	limit, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return m, err
	}
	if m.RmemMax, err = strconv.Atoi(strings.TrimSpace(string(limit))); err != nil {
		return m, err
	}
	if m.ReceiveBuffer, err = effectiveReceiveBuffer(ctx, h.bed.kafka.Addr()); err != nil {
		return m, err
	}
	if err := h.watch.QueryRow(ctx, "SHOW server_version").Scan(&m.Postgres); err != nil {
		return m, err
	}
	versions, err := kadm.NewClient(h.client).ApiVersions(ctx)
	if err != nil {
		return m, err
	}
	for _, v := range versions {
		m.Kafka = strings.TrimPrefix(v.VersionGuess(), "v")
	}
	return m, nil
}

func cpuModel(cpuinfo []byte) string {
	for line := range bytes.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// effectiveReceiveBuffer returns what a connection gets that asks for walferry's receive buffer. The kernel shows twice
// of what it grants (socket(7)).
func effectiveReceiveBuffer(ctx context.Context, addr string) (size int, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	tcp := conn.(*net.TCPConn)
	if err := tcp.SetReadBuffer(replication.ReceiveBuffer); err != nil {
		return 0, err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		size, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
	})
	return size / 2, errors.Join(err, controlErr)
}

// describeMachine is a line about it.
func describeMachine(m Machine) string {
	return fmt.Sprintf("%s, %d cores, %.0f GB, Linux %s; Postgres %s, Kafka %s, %s; net.core.rmem_max %d KiB: a reader that asks for a receive buffer of %d KiB gets %d KiB",
		m.CPU, m.Cores, float64(m.Memory)/1e9, m.Kernel, m.Postgres, m.Kafka, m.Go, m.RmemMax>>10, replication.ReceiveBuffer>>10, m.ReceiveBuffer>>10)
}

// commitOf returns the short hash of the working tree's commit, "-dirty" behind it if there are changes, "unknown" where
// git does not tell.
func commitOf(ctx context.Context) string {
	hash, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	commit := strings.TrimSpace(string(hash))
	changes, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ".", ":!bench/results").Output()
	if err != nil || len(changes) > 0 {
		commit += "-dirty"
	}
	return commit
}
