//go:build !linux

package servers

import (
	"errors"
	"syscall"
)

// The servers that test/servers/fetch.sh fetches run on Linux only. Elsewhere this package still compiles, so that
// tests can use running servers.

func setParentDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

func childrenOf(int) ([]int, error) { return nil, errors.ErrUnsupported }

func alive(int) bool { return false }
