package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
)

// Three members that are stopped, killed and paused under the client.
var clusterCases = []testCase{
	{"watch_goes_on_when_its_member_is_killed", three, func(t *T) { watchMemberGone(t, (*member).kill) }},
	{"watch_goes_on_when_its_member_is_stopped", three, func(t *T) { watchMemberGone(t, (*member).stop) }},
	{"watch_waits_for_its_only_member", three, watchOnlyMember},
	{"watch_through_a_rolling_restart", three, watchRolling},
	{"watch_on_a_member_that_pauses", three, watchPaused},
	{"watch_that_requires_a_leader", three, watchRequiresLeader},
	{"watch_on_every_member_hears_the_same", three, watchEveryMember},
	{"kv_goes_on_when_members_go", three, kvMembersGo},
	{"kv_without_a_majority", three, kvNoMajority},
	{"lease_kept_alive_when_the_leader_is_killed", three, leaseLeaderKilled},
	{"lease_that_requires_a_leader", three, leaseRequiresLeader},
	{"mutex_and_election_outlive_members", three, mutexMembersGo},
	{"connection_that_answers_nothing_is_given_up", guarded, blackHole},
}

// writing puts numbers from 0 on until it is told to stop, each behind the one before it and nowhere else: what it does not know to
// have arrived it may send again, and no matter how late the first one is carried out, a watcher hears each number once.
type writing struct {
	stop    chan struct{}
	reached chan int
	ended   task
	count   int
}

func (t *T) writing(key string, endpoints ...string) *writing {
	c := t.client(at(endpoints...))
	w := &writing{stop: make(chan struct{}), reached: make(chan int)}
	w.ended = t.start(func() error {
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				w.count = i
				return nil
			default:
			}
			for {
				ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
				before := clientv3.Compare(clientv3.Value(key), "=", fmt.Sprint(i-1))
				if i == 0 {
					before = clientv3.Compare(clientv3.Version(key), "=", 0)
				}
				_, err := c.Txn(ctx).If(before).Then(clientv3.OpPut(key, fmt.Sprint(i))).Commit()
				cancel()
				if err == nil {
					break
				}
				if t.ctx.Err() != nil {
					return err
				}
			}
			select {
			case w.reached <- i:
			default:
			}
		}
	})
	return w
}

// progress waits until as many more puts were acknowledged.
func (w *writing) progress(t *T, more int) {
	first := -1
	for {
		select {
		case i := <-w.reached:
			if first < 0 {
				first = i
			}
			if i >= first+more {
				return
			}
		case <-t.ctx.Done():
			t.fail("no puts in time")
		}
	}
}

func (w *writing) end(t *T) int {
	close(w.stop)
	t.join(w.ended)
	return w.count
}

// numbers checks that a watcher hears 0 to count-1 in order, each once.
func (t *T) numbers(channel clientv3.WatchChan, count int) {
	last := int64(0)
	for next := 0; next < count; {
		response := t.response(channel)
		t.must(response.Err())
		for _, event := range response.Events {
			t.check(string(event.Kv.Value) == fmt.Sprint(next) && event.Kv.ModRevision > last, "heard %s of revision %d instead of %d, after revision %d",
				event.Kv.Value, event.Kv.ModRevision, next, last)
			next, last = next+1, event.Kv.ModRevision
		}
	}
}

// putInTime puts again what was lost with a member: the client does not repeat a put that may have been carried out.
func (t *T) putInTime(c *clientv3.Client, key, value string) {
	t.until("a put", func() bool {
		ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
		defer cancel()
		_, err := c.Put(ctx, key, value)
		return err == nil
	})
}

// served is a watch of which it is known which member serves it.
func (t *T) served(c *clientv3.Client, key string, options ...clientv3.OpOption) (clientv3.WatchChan, *member) {
	channel := c.Watch(t.ctx, key, append(options, clientv3.WithCreatedNotify())...)
	return channel, t.cluster.serving(t, t.response(channel).Header.MemberId)
}

func watchMemberGone(t *T, gone func(*member)) {
	for _, m := range t.cluster.members {
		m.id(t)
	}
	c := t.client()
	channel, m := t.served(c, t.key("k"))
	second, _ := t.served(c, t.key("k"), clientv3.WithPrefix())
	w := t.writing(t.key("k"), t.cluster.endpoints()...)
	w.progress(t, 20)
	gone(m)
	w.progress(t, 20)
	count := w.end(t)
	t.numbers(channel, count)
	t.numbers(second, count)
}

func watchOnlyMember(t *T) {
	only := t.cluster.members[0]
	c, others := t.client(at(only.endpoint())), t.client(at(t.cluster.endpoints()[1:]...))
	channel := t.watch(c, t.key("k"))
	for i := 0; i < 2; i++ {
		if i == 0 {
			only.stop()
		} else {
			only.kill()
		}
		t.until("a put", func() bool {
			ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
			defer cancel()
			answer, err := others.Txn(ctx).If(clientv3.Compare(clientv3.Value(t.key("k")), "=", fmt.Sprint(i))).
				Else(clientv3.OpPut(t.key("k"), fmt.Sprint(i))).Commit()
			return err == nil && answer != nil
		})
		only.start(t)
		t.hears("while it was away", channel, fmt.Sprint("put k=", i))
	}
}

func watchRolling(t *T) {
	c := t.client()
	channel := t.watch(c, t.key("k"))
	var single []clientv3.WatchChan
	for _, endpoint := range t.cluster.endpoints() {
		single = append(single, t.watch(t.client(at(endpoint)), t.key("k")))
	}
	w := t.writing(t.key("k"), t.cluster.endpoints()...)
	for _, m := range t.cluster.members {
		w.progress(t, 10)
		m.stop()
		m.start(t)
	}
	w.progress(t, 10)
	count := w.end(t)
	for _, one := range append(single, channel) {
		t.numbers(one, count)
	}
}

func watchPaused(t *T) {
	leader := t.cluster.leader(t)
	paused := t.cluster.members[0]
	if paused == leader {
		paused = t.cluster.members[1]
	}
	channel := t.watch(t.client(at(paused.endpoint())), t.key("k"))
	w := t.writing(t.key("k"), leader.endpoint())
	w.progress(t, 10)
	paused.signal(t, syscall.SIGSTOP)
	resume := func() {
		if paused.process != nil {
			paused.process.Process.Signal(syscall.SIGCONT)
		}
	}
	t.later(resume)
	w.progress(t, 100)
	resume()
	w.progress(t, 10)
	t.numbers(channel, w.end(t))
}

func watchRequiresLeader(t *T) {
	left := t.cluster.members[0]
	c := t.client(at(left.endpoint()))
	required := t.watchIn(clientv3.WithRequireLeader(t.ctx), c, t.key("k"))
	plain := t.watch(c, t.key("k"))
	t.put(c, t.key("k"), "1")
	t.hears("with a leader", required, "put k=1")
	t.hears("with a leader", plain, "put k=1")
	t.cluster.members[1].kill()
	t.cluster.members[2].kill()
	t.wantErr("without a leader", t.closed(required), rpctypes.ErrNoLeader)
	t.wantErr("asked for without a leader", t.closed(c.Watch(clientv3.WithRequireLeader(t.ctx), t.key("k"))), rpctypes.ErrNoLeader)
	t.must(t.cluster.heal(t.ctx))
	t.put(c, t.key("k"), "2")
	t.hears("the one that did not ask", plain, "put k=2")
	again := t.watchIn(clientv3.WithRequireLeader(t.ctx), c, t.key("k"))
	t.put(c, t.key("k"), "3")
	t.hears("with a leader again", again, "put k=3")
}

func watchEveryMember(t *T) {
	var channels []clientv3.WatchChan
	for _, endpoint := range t.cluster.endpoints() {
		channels = append(channels, t.watch(t.client(at(endpoint)), t.key(""), clientv3.WithPrefix(), clientv3.WithPrevKV()))
	}
	for i := 0; i < 60; i++ {
		// A put on one member, a watch from its revision on another, which may not have it yet.
		c := t.client(at(t.cluster.endpoints()[i%3]))
		revision := t.put(c, t.key(fmt.Sprint("k", i%7)), fmt.Sprint(i))
		other := t.client(at(t.cluster.endpoints()[(i+1)%3]))
		event := t.events(t.watch(other, t.key(""), clientv3.WithPrefix(), clientv3.WithRev(revision)), 1)[0]
		t.equal("on another member", event.Kv.ModRevision, revision)
		c.Close()
		other.Close()
	}
	wanted := t.told(t.events(channels[0], 60))
	for _, channel := range channels[1:] {
		t.equal("on another member", t.told(t.events(channel, 60)), wanted)
	}
}

func kvMembersGo(t *T) {
	c := t.client()
	t.put(c, t.key("k"), "0")
	for i, m := range t.cluster.members {
		m.kill()
		t.putInTime(c, t.key("k"), fmt.Sprint(i))
		t.equal("a read", t.value(c, t.key("k")), i)
		t.equal("a serializable read", len(t.get(c, t.key("k"), clientv3.WithSerializable()).Kvs), 1)
		_, err := c.Txn(t.ctx).Then(clientv3.OpGet(t.key("k"))).Commit()
		t.must(err)
		m.start(t)
	}
}

func kvNoMajority(t *T) {
	left := t.cluster.members[0]
	c := t.client(at(left.endpoint()))
	t.put(c, t.key("k"), "1")
	t.cluster.members[1].kill()
	t.cluster.members[2].kill()
	t.equal("a serializable read", t.value(c, t.key("k"), clientv3.WithSerializable()), "1")
	ctx, cancel := context.WithTimeout(t.ctx, 700*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, t.key("k"), "2")
	t.check(err != nil, "a put without a majority")
	_, err = c.Get(ctx, t.key("k"))
	t.check(err != nil, "a read without a majority")
	t.must(t.cluster.heal(t.ctx))
	t.put(c, t.key("k"), "3")
	t.equal("afterwards", t.value(c, t.key("k")), "3")
}

func leaseLeaderKilled(t *T) {
	c := t.client()
	kept, left := t.grant(c, 4), t.grant(c, 4)
	channel := t.kept(c, kept)
	gone := t.watch(c, t.key("left"), clientv3.WithFilterPut())
	t.put(c, t.key("kept"), "1", clientv3.WithLease(kept))
	t.put(c, t.key("left"), "1", clientv3.WithLease(left))
	t.check(t.alive(channel) != nil, "never kept alive")
	t.cluster.leader(t).kill()
	t.hears("the one that is left alone", gone, "delete left")
	t.equal("the one that is kept", t.value(c, t.key("kept")), "1")
	t.check(t.alive(channel) != nil, "no longer kept alive")
	t.revoke(c, kept)
}

func leaseRequiresLeader(t *T) {
	left := t.cluster.members[0]
	c := t.client(at(left.endpoint()))
	// Far more than the time until the stream is let go: it is not the leases that end it.
	first, second := t.grant(c, 60), t.grant(c, 60)
	required, err := c.KeepAlive(clientv3.WithRequireLeader(t.ctx), first)
	t.must(err)
	plain := t.kept(c, second)
	t.check(t.alive(required) != nil && t.alive(plain) != nil, "never kept alive")
	t.cluster.members[1].kill()
	t.cluster.members[2].kill()
	began := time.Now()
	t.until("the one that requires a leader ends", func() bool { return t.alive(required) == nil })
	t.check(time.Since(began) < 10*time.Second, "it ended after %v", time.Since(began))
	select {
	case answer, open := <-plain:
		t.check(open, "the other one ended, too: %v", answer)
	default:
	}
	t.must(t.cluster.heal(t.ctx))
	t.revoke(c, first)
	t.revoke(c, second)
}

func mutexMembersGo(t *T) {
	c := t.client()
	session := t.session(c)
	held := concurrency.NewMutex(session, t.key("lock"))
	t.must(held.Lock(t.ctx))
	leading := concurrency.NewElection(session, t.key("chair"))
	t.must(leading.Campaign(t.ctx, "a"))
	observed := leading.Observe(t.ctx)
	saw := func(want string) {
		select {
		case response, open := <-observed:
			t.check(open, "observing ended")
			t.equal("observed", string(response.Kvs[0].Value), want)
		case <-t.ctx.Done():
			t.fail("%s was not observed in time", want)
		}
	}
	saw("a")
	other := t.session(t.client())
	second := concurrency.NewMutex(other, t.key("lock"))
	locked := make(task, 1)
	go func() { locked <- second.Lock(t.ctx) }()
	t.until("one waits", func() bool {
		return t.get(c, t.key("lock"), clientv3.WithPrefix(), clientv3.WithCountOnly()).Count == 2
	})
	t.cluster.leader(t).kill()
	select {
	case err := <-locked:
		t.fail("two hold the lock (%v)", err)
	case <-session.Done():
		t.fail("the session ended")
	default:
	}
	t.until("proclaimed", func() bool {
		ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
		defer cancel()
		return leading.Proclaim(ctx, "b") == nil
	})
	saw("b")
	t.until("unlocked", func() bool {
		ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
		defer cancel()
		return held.Unlock(ctx) == nil
	})
	t.join(locked)
	t.must(second.Unlock(t.ctx))
	t.must(leading.Resign(t.ctx))
}

func blackHole(t *T) {
	near, far := t.gate(t.cluster.members[0]), t.gate(t.cluster.members[0])
	c := t.client(at(near.endpoint()), func(config *clientv3.Config) {
		// gRPC asks no sooner than after ten seconds.
		config.DialKeepAliveTime, config.DialKeepAliveTimeout = time.Second, time.Second
	})
	channel := t.watch(c, t.key("k"))
	c.SetEndpoints(near.endpoint(), far.endpoint())
	direct := t.client()
	t.put(direct, t.key("k"), "1")
	t.hears("before", channel, "put k=1")
	near.stall()
	t.put(direct, t.key("k"), "2")
	t.hears("by the other way", channel, "put k=2")
}
