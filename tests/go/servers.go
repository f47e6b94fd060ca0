package main

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
)

// A world is the cluster that a case wants.
type world int

const (
	alone   world = iota // one member, which tells of progress every second
	guarded              // one member, whose cases enable users and disable them again
	three                // three members, which cases stop and kill; the next one finds them running again
)

func (w world) size() int {
	if w == three {
		return 3
	}
	return 1
}

// Elections are short, so that cases that wait for them are.
var flags = []string{"--heartbeat-interval=50", "--election-timeout=500", "--experimental-watch-progress-notify-interval=1s"}

// How long a member may take until it serves.
const readyTime = 20 * time.Second

type member struct {
	command      []string
	name, base   string
	client, peer int
	cluster      string
	process      *exec.Cmd
	ended        chan struct{}
}

type cluster struct {
	members []*member
	base    string
}

var (
	runningLock sync.Mutex
	running     = map[*cluster]bool{}
)

// endAll kills what is still running; each cluster ends its own processes.
func endAll() {
	runningLock.Lock()
	var all []*cluster
	for c := range running {
		all = append(all, c)
	}
	runningLock.Unlock()
	for _, c := range all {
		c.close()
	}
}

// Ports nobody listens on, below those that the system gives to outgoing connections: a client of somebody else's cannot take
// one before the server does.
func freePort() int {
	for {
		port := 15000 + rand.Intn(17000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			listener.Close()
			return port
		}
	}
}

func startCluster(command string, w world) (*cluster, string) {
	base, err := os.MkdirTemp("", "everwatch-go-")
	if err != nil {
		return nil, err.Error()
	}
	c := &cluster{base: base}
	var urls []string
	for i := 0; i < w.size(); i++ {
		m := &member{command: strings.Fields(command), name: fmt.Sprint("m", i), base: base, client: freePort(), peer: freePort()}
		c.members = append(c.members, m)
		urls = append(urls, fmt.Sprintf("%s=http://127.0.0.1:%d", m.name, m.peer))
	}
	runningLock.Lock()
	running[c] = true
	runningLock.Unlock()
	for _, m := range c.members {
		m.cluster = strings.Join(urls, ",")
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTime)
	defer cancel()
	if err := c.heal(ctx); err != nil {
		return c, err.Error()
	}
	return c, ""
}

func (c *cluster) close() {
	for _, m := range c.members {
		m.kill()
	}
	os.RemoveAll(c.base)
	runningLock.Lock()
	delete(running, c)
	runningLock.Unlock()
}

func (c *cluster) endpoints() []string {
	var all []string
	for _, m := range c.members {
		all = append(all, m.endpoint())
	}
	return all
}

// heal starts what does not run and waits until every member serves.
func (c *cluster) heal(ctx context.Context) error {
	for _, m := range c.members {
		if m.process == nil {
			if err := m.spawn(); err != nil {
				return err
			}
		}
	}
	for _, m := range c.members {
		if err := m.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serving is the member whose id a response's header has.
func (c *cluster) serving(t *T, id uint64) *member {
	for _, m := range c.members {
		if m.id(t) == id {
			return m
		}
	}
	t.fail("no member has the id %x", id)
	panic("not reached")
}

// leader is the member that the first that runs takes for the leader.
func (c *cluster) leader(t *T) *member {
	var found *member
	t.until("a leader", func() bool {
		for _, m := range c.members {
			if status := m.status(t); status != nil && status.Leader != 0 {
				found = c.serving(t, status.Leader)
				return true
			}
		}
		return false
	})
	return found
}

func (m *member) endpoint() string {
	return fmt.Sprintf("127.0.0.1:%d", m.client)
}

func (m *member) spawn() error {
	client, peer := fmt.Sprint("http://127.0.0.1:", m.client), fmt.Sprint("http://127.0.0.1:", m.peer)
	arguments := append(append([]string{}, m.command[1:]...),
		"--name", m.name, "--data-dir", filepath.Join(m.base, m.name),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", m.cluster)
	log, err := os.OpenFile(m.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	process := exec.Command(m.command[0], append(arguments, flags...)...)
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		return err
	}
	m.process, m.ended = process, make(chan struct{})
	go func(ended chan struct{}) {
		process.Wait()
		close(ended)
	}(m.ended)
	return nil
}

func (m *member) log() string {
	return filepath.Join(m.base, m.name+".log")
}

// wait returns when the member says that it is well, which it is not without a leader.
func (m *member) wait(ctx context.Context) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !strings.Contains(m.page(ctx, "/health"), "true") {
		select {
		case <-ticker.C:
		case <-m.ended:
			return m.trouble("ended")
		case <-ctx.Done():
			return m.trouble("does not serve")
		}
	}
	return nil
}

func (m *member) trouble(what string) error {
	text, _ := os.ReadFile(m.log())
	if len(text) > 1000 {
		text = text[len(text)-1000:]
	}
	return fmt.Errorf("%s %s; end of its log: %s", m.name, what, text)
}

// page is the body of an HTTP answer, or nothing.
func (m *member) page(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+m.endpoint()+path, nil)
	if err != nil {
		return ""
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return string(body)
}

// metric is the value of a metric without labels, as text.
func (m *member) metric(t *T, name string) string {
	for _, line := range strings.Split(m.page(t.ctx, "/metrics"), "\n") {
		if strings.HasPrefix(line, name+" ") {
			return line[len(name)+1:]
		}
	}
	return ""
}

// kill is for a member that may be paused, too.
func (m *member) kill() { m.end(syscall.SIGKILL) }

// stop asks a member to end, as an operator does.
func (m *member) stop() { m.end(syscall.SIGTERM) }

func (m *member) end(signal syscall.Signal) {
	if m.process == nil {
		return
	}
	m.process.Process.Signal(signal)
	select {
	case <-m.ended:
	case <-time.After(readyTime):
		m.process.Process.Kill()
		<-m.ended
	}
	m.process = nil
}

func (m *member) signal(t *T, signal syscall.Signal) {
	t.must(m.process.Process.Signal(signal))
}

func (m *member) start(t *T) {
	t.must(m.spawn())
	t.must(m.wait(t.ctx))
}

// status is nothing if the member does not answer.
func (m *member) status(t *T) *clientv3.StatusResponse {
	if m.process == nil {
		return nil
	}
	c := t.client(at(m.endpoint()))
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
	defer cancel()
	status, err := c.Status(ctx, m.endpoint())
	if err != nil {
		return nil
	}
	return status
}

var (
	idsLock sync.Mutex
	ids     = map[*member]uint64{}
)

// id is remembered: a member that was stopped cannot be asked.
func (m *member) id(t *T) uint64 {
	idsLock.Lock()
	defer idsLock.Unlock()
	if ids[m] == 0 {
		if status := m.status(t); status != nil {
			ids[m] = status.Header.MemberId
		}
	}
	return ids[m]
}

// A gate is a port in front of a member whose connections a case can cut, refuse and hold up, as a network does.
type gate struct {
	listener net.Listener
	target   string
	lock     sync.Mutex
	moved    *sync.Cond
	open     map[net.Conn]bool
	refusing bool
	stalled  bool
	gone     bool
}

func (t *T) gate(m *member) *gate {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	t.must(err)
	g := &gate{listener: listener, target: m.endpoint(), open: map[net.Conn]bool{}}
	g.moved = sync.NewCond(&g.lock)
	go g.accept()
	t.later(func() {
		listener.Close()
		g.lock.Lock()
		g.gone, g.stalled = true, false
		g.moved.Broadcast()
		g.lock.Unlock()
		g.cut()
	})
	return g
}

func (g *gate) endpoint() string {
	return g.listener.Addr().String()
}

func (g *gate) accept() {
	for {
		near, err := g.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", g.target)
		g.lock.Lock()
		if err != nil || g.refusing || g.gone {
			near.Close()
			if err == nil {
				far.Close()
			}
		} else {
			g.open[near], g.open[far] = true, true
			go g.carry(near, far)
			go g.carry(far, near)
		}
		g.lock.Unlock()
	}
}

func (g *gate) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		g.lock.Lock()
		for g.stalled {
			g.moved.Wait()
		}
		g.lock.Unlock()
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections; new ones are welcome.
func (g *gate) cut() {
	g.lock.Lock()
	defer g.lock.Unlock()
	for connection := range g.open {
		connection.Close()
		delete(g.open, connection)
	}
}

// refuse ends all connections and takes no more until admit.
func (g *gate) refuse() {
	g.lock.Lock()
	g.refusing = true
	g.lock.Unlock()
	g.cut()
}

func (g *gate) admit() {
	g.lock.Lock()
	g.refusing = false
	g.lock.Unlock()
}

// stall lets connections stand and nothing through.
func (g *gate) stall() {
	g.lock.Lock()
	g.stalled = true
	g.lock.Unlock()
}
