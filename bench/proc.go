package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is CPU time in seconds.
type cpuTime struct{ user, sys float64 }

func (t cpuTime) total() float64 { return t.user + t.sys }

// processCPU returns what a running process has used so far, its ended children not included.
func processCPU(pid int) (cpuTime, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return cpuTime{}, err
	}
	return parseStat(stat)
}

// ticks are how many of /proc's units of time make a second: USER_HZ, the same on every Linux that Go runs on.
const ticks = 100

// parseStat reads utime and stime out of /proc/PID/stat (proc_pid_stat(5)).
func parseStat(stat []byte) (cpuTime, error) {
	// "pid (name) state …", where the name can contain spaces and parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return cpuTime{}, fmt.Errorf("/proc/PID/stat has %d fields behind the name, want 13 or more", len(fields))
	}
	user, userErr := strconv.ParseFloat(fields[11], 64)
	sys, sysErr := strconv.ParseFloat(fields[12], 64)
	return cpuTime{user / ticks, sys / ticks}, errors.Join(userErr, sysErr)
}

// machineCPU returns what all processes together have used since the machine was started.
func machineCPU() (cpuTime, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, err
	}
	return parseMachineStat(stat)
}

// busyCores sets cores to how many all processes together kept busy while f ran.
func busyCores(cores *float64, f func() error) error {
	began := time.Now()
	before, beforeErr := machineCPU()
	err := f()
	after, afterErr := machineCPU()
	*cores = (after.total() - before.total()) / time.Since(began).Seconds()
	return errors.Join(err, beforeErr, afterErr)
}

// parseMachineStat reads the first line of /proc/stat (proc_stat(5)): "cpu", user, nice, system, and times in which no
// process ran, those of interrupts among them.
func parseMachineStat(stat []byte) (cpuTime, error) {
	var user, nice, sys float64
	if _, err := fmt.Sscanf(string(stat), "cpu %f %f %f", &user, &nice, &sys); err != nil {
		return cpuTime{}, fmt.Errorf("read /proc/stat: %w", err)
	}
	return cpuTime{(user + nice) / ticks, sys / ticks}, nil
}

// statusBytes reads a size, such as VmHWM, out of /proc/PID/status or /proc/meminfo. It is not ok when the size is
// not there: a process that has ended has none.
func statusBytes(status []byte, name string) (size int64, ok bool) {
	for line := range bytes.Lines(status) {
		rest, found := bytes.CutPrefix(line, []byte(name+":"))
		if !found {
			continue
		}
		kib, unit := bytes.CutSuffix(bytes.TrimSpace(rest), []byte(" kB"))
		n, err := strconv.ParseInt(string(kib), 10, 64)
		return n << 10, unit && err == nil
	}
	return 0, false
}

// load1 returns the load average of the last minute, 0 where it is unknown.
func load1() float64 {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(content), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}
