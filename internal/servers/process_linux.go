package servers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

func setParentDeathSignal(attr *syscall.SysProcAttr, signal syscall.Signal) { attr.Pdeathsig = signal }

// childrenOf waits until the process is stopped, so that it starts no more children, and returns those it has.
func childrenOf(parent int) ([]int, error) {
	ctx, cancel := shutdownContext()
	defer cancel()
	err := until(ctx, func() error {
		if state, _, ok := stat(parent); ok && state != 'T' && state != 'Z' {
			return fmt.Errorf("process %d does not stop, state %c", parent, state)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if _, ppid, ok := stat(pid); ok && ppid == parent {
			children = append(children, pid)
		}
	}
	return children, nil
}

// alive tells whether the process runs. A zombie does not: it waits for a parent that may never look.
func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != 'Z' && state != 'X'
}

// stat returns the state letter of the process and its parent's pid. It is not ok when there is no such process.
func stat(pid int) (state byte, ppid int, ok bool) {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, false
	}
	// "pid (name) state ppid ...", where the name can contain spaces and parentheses.
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	ppid, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], ppid, err == nil
}
