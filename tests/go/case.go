package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.uber.org/zap"
)

// failure is what a case panics with; it ends the case, and nothing else.
type failure string

// T is what a case has: a cluster, keys of its own, and a context that ends with its time.
type T struct {
	ctx     context.Context
	cluster *cluster
	name    string
	closers []func()
}

func newT(name string, c *cluster) (*T, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), caseTime)
	t := &T{ctx: ctx, cluster: c, name: name}
	return t, func() {
		cancel()
		for i := len(t.closers) - 1; i >= 0; i-- {
			t.closers[i]()
		}
	}
}

func (t *T) fail(format string, arguments ...interface{}) {
	panic(failure(fmt.Sprintf(format, arguments...)))
}

func (t *T) must(err error) {
	if err != nil {
		t.fail("unexpected error: %v", err)
	}
}

func (t *T) wantErr(what string, got, want error) {
	if got != want {
		t.fail("%s: got error %v, wanted %v", what, got, want)
	}
}

// equal compares what two values look like as text, which is all that a case says about them.
func (t *T) equal(what string, got, want interface{}) {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.fail("%s: got %.600s, wanted %.600s", what, g, w)
	}
}

func (t *T) check(fine bool, format string, arguments ...interface{}) {
	if !fine {
		t.fail(format, arguments...)
	}
}

// key is one of this case's own keys.
func (t *T) key(rest string) string {
	return t.name + "/" + rest
}

func (t *T) later(do func()) {
	t.closers = append(t.closers, do)
}

// client reaches all members, unless an option says otherwise.
func (t *T) client(options ...func(*clientv3.Config)) *clientv3.Client {
	c, err := t.tryClient(options...)
	t.must(err)
	return c
}

func (t *T) config() clientv3.Config {
	// The client tells of each retry, and what it tells is expected where members are killed.
	quiet := zap.NewProductionConfig()
	quiet.OutputPaths, quiet.ErrorOutputPaths = []string{"/dev/null"}, []string{"/dev/null"}
	return clientv3.Config{Endpoints: t.cluster.endpoints(), DialTimeout: 5 * time.Second, LogConfig: &quiet}
}

func (t *T) tryClient(options ...func(*clientv3.Config)) (*clientv3.Client, error) {
	config := t.config()
	for _, option := range options {
		option(&config)
	}
	c, err := clientv3.New(config)
	if err == nil {
		t.later(func() { c.Close() })
	}
	return c, err
}

func at(endpoints ...string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Endpoints = endpoints }
}

func as(user, password string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Username, config.Password = user, password }
}

// put returns the revision of the put.
func (t *T) put(c clientv3.KV, key, value string, options ...clientv3.OpOption) int64 {
	answer, err := c.Put(t.ctx, key, value, options...)
	t.must(err)
	return answer.Header.Revision
}

func (t *T) get(c clientv3.KV, key string, options ...clientv3.OpOption) *clientv3.GetResponse {
	answer, err := c.Get(t.ctx, key, options...)
	t.must(err)
	return answer
}

func (t *T) delete(c clientv3.KV, key string, options ...clientv3.OpOption) int64 {
	answer, err := c.Delete(t.ctx, key, options...)
	t.must(err)
	return answer.Header.Revision
}

// value is what a key has, or "-" if there is no such key.
func (t *T) value(c clientv3.KV, key string, options ...clientv3.OpOption) string {
	answer := t.get(c, key, options...)
	if len(answer.Kvs) == 0 {
		return "-"
	}
	return string(answer.Kvs[0].Value)
}

// pairs is what a range holds, as text without the keys' common beginning.
func (t *T) pairs(answer *clientv3.GetResponse) string {
	var all []string
	for _, kv := range answer.Kvs {
		all = append(all, strings.TrimPrefix(string(kv.Key), t.key(""))+"="+string(kv.Value))
	}
	return strings.Join(all, " ")
}

// watch returns when the server has the watcher: what is written from then on is heard.
func (t *T) watch(c clientv3.Watcher, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	return t.watchIn(t.ctx, c, key, options...)
}

func (t *T) watchIn(ctx context.Context, c clientv3.Watcher, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	channel := c.Watch(ctx, key, append(options, clientv3.WithCreatedNotify())...)
	first := t.response(channel)
	t.check(first.Created && !first.Canceled, "not created first, but %+v", first)
	return channel
}

// response is the next one of a channel that is still open.
func (t *T) response(channel clientv3.WatchChan) clientv3.WatchResponse {
	select {
	case response, open := <-channel:
		t.check(open, "the channel of a watch was closed")
		return response
	case <-t.ctx.Done():
		t.fail("no response in time")
		panic("not reached")
	}
}

// events waits for as many events, which may come in any number of responses, in the order of revisions.
func (t *T) events(channel clientv3.WatchChan, count int) []*clientv3.Event {
	var all []*clientv3.Event
	for len(all) < count {
		select {
		case response, open := <-channel:
			if !open {
				t.fail("a watch was closed after %d of %d events", len(all), count)
			}
			t.must(response.Err())
			for _, event := range response.Events {
				if n := len(all); n > 0 && event.Kv.ModRevision < all[n-1].Kv.ModRevision {
					t.fail("event of revision %d after that of %d", event.Kv.ModRevision, all[n-1].Kv.ModRevision)
				}
				t.check(event.Kv.ModRevision <= response.Header.Revision, "an event of %d in a response of revision %d",
					event.Kv.ModRevision, response.Header.Revision)
				all = append(all, event)
			}
		case <-t.ctx.Done():
			t.fail("%d of %d events in time: %v", len(all), count, t.told(all))
		}
	}
	if len(all) > count {
		t.fail("%d events instead of %d: %v", len(all), count, t.told(all))
	}
	return all
}

// told is a list of events as text: `put a=1`, `delete a`, and what was there before if the watcher asked for that.
func (t *T) told(events []*clientv3.Event) string {
	var all []string
	for _, event := range events {
		key := strings.TrimPrefix(string(event.Kv.Key), t.key(""))
		text := "put " + key + "=" + string(event.Kv.Value)
		if event.Type == clientv3.EventTypeDelete {
			text = "delete " + key
		}
		if event.PrevKv != nil {
			text += " was " + string(event.PrevKv.Value)
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func (t *T) hears(what string, channel clientv3.WatchChan, want ...string) {
	t.equal(what, t.told(t.events(channel, len(want))), strings.Join(want, ", "))
}

// closed waits for the end of a channel and returns the error its last response had.
func (t *T) closed(channel clientv3.WatchChan) error {
	var last error
	for {
		select {
		case response, open := <-channel:
			if !open {
				return last
			}
			last = response.Err()
		case <-t.ctx.Done():
			t.fail("a watch was not closed in time")
		}
	}
}

// until waits for a state that nothing tells of, by asking for it.
func (t *T) until(what string, holds func() bool) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			t.fail("not in time: %s", what)
		}
	}
}

// A task is something that goes on beside the case, which gets its error from the channel.
type task chan error

func (t *T) start(do func() error) task {
	ended := make(task, 1)
	go func() { ended <- do() }()
	return ended
}

func (t *T) join(tasks ...task) {
	for _, one := range tasks {
		select {
		case err := <-one:
			t.must(err)
		case <-t.ctx.Done():
			t.fail("a task did not end in time")
		}
	}
}
