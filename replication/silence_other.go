//go:build !linux

package replication

import (
	"net"
	"time"
)

// endUnanswered does nothing: the system's own patience with a connection holds.
func endUnanswered(net.Conn, time.Duration) {}
