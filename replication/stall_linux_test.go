package replication

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What is written while nobody reads arrives all the same: status updates, while Kafka is away. With a receive buffer of a fixed size, of
// the streams of a server that has a little to send now and then each second or third falls silent. The same holds when it
// is given free too late, on a busy machine, and its size stays.
func TestStatusUpdatesArriveWhileNobodyReads(t *testing.T) {
	for name, late := range map[string]time.Duration{"at once": 0, "late": time.Second} {
		t.Run(name, func(t *testing.T) { t.Parallel(); updatesArrive(t, late) })
	}
}

func updatesArrive(t *testing.T, late time.Duration) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	backlog := func() time.Duration { return time.Hour }
	dial := Paced((&net.Dialer{}).DialContext, ReadBuffer, backlog)
	var streams sync.WaitGroup
	for k := range 12 {
		conn, err := dial(context.Background(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		streams.Go(func() {
			defer conn.Close()
			defer server.Close()
			heard := &atomic.Int64{}
			go hear(server, heard)
			go send(server, rand.New(rand.NewPCG(uint64(k), 0)), time.Duration(k+1)*500*time.Microsecond)
			if longest := silence(conn, heard, late); longest > 2*time.Second {
				t.Errorf("stream %d: the server heard nothing for %s", k, longest)
			}
		})
	}
	streams.Wait()
}

// send writes as a walsender does, each message by itself, with pauses between them.
func send(conn net.Conn, random *rand.Rand, pause time.Duration) {
	for message := make([]byte, 400); ; {
		if _, err := conn.Write(message[:60+random.IntN(300)]); err != nil {
			return
		}
		if random.IntN(8) == 0 {
			<-time.After(time.Duration(random.Int64N(int64(pause))))
		}
	}
}

const updateSize = 39

// hear counts status updates.
func hear(conn net.Conn, heard *atomic.Int64) {
	for update := make([]byte, updateSize); ; {
		if _, err := io.ReadFull(conn, update); err != nil {
			return
		}
		heard.Add(1)
	}
}

// silence reads for a while, and then only writes, as Feedback does, which notices late that nobody reads. It returns the longest time in
// which the server heard nothing, from when it should be heard.
func silence(conn net.Conn, heard *atomic.Int64, late time.Duration) (longest time.Duration) {
	buffer := make([]byte, ReadBuffer)
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		if _, err := conn.Read(buffer); err != nil {
			return time.Hour
		}
	}
	tick := time.NewTicker(feedbackInterval)
	defer tick.Stop()
	due := time.Now().Add(3 * late) // what is lost is sent again after twice the time each time
	last, lastHeard := heard.Load(), time.Now()
	for k := range 60 {
		<-tick.C
		if time.Duration(k)*feedbackInterval >= late {
			conn.(*paced).look(false)
		}
		if _, err := conn.Write(make([]byte, updateSize)); err != nil {
			return time.Hour
		}
		if n := heard.Load(); n != last || time.Now().Before(due) {
			last, lastHeard = n, time.Now()
		}
		longest = max(longest, time.Since(lastHeard))
	}
	return longest
}
