package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/clientv3util"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/leasing"
	"go.etcd.io/etcd/clientv3/mirror"
	"go.etcd.io/etcd/clientv3/namespace"
	"go.etcd.io/etcd/clientv3/naming/endpoints"
	"go.etcd.io/etcd/clientv3/naming/resolver"
	"go.etcd.io/etcd/clientv3/ordering"
	recipe "go.etcd.io/etcd/contrib/recipes"
	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"
	"google.golang.org/grpc"
)

// The packages beside clientv3, which are made of its keys, txns, leases and watches.
var recipeCases = []testCase{
	{"session_ends_with_its_lease", alone, sessionEnds},
	{"mutex_is_held_by_one_at_a_time", alone, mutexOne},
	{"mutex_that_is_no_longer_waited_for", alone, mutexGivenUp},
	{"mutex_is_free_when_its_session_ends", alone, mutexFreed},
	{"election_campaign_observe_proclaim_resign", alone, electionRun},
	{"election_goes_on_after_a_restart_of_its_leader", alone, electionResume},
	{"stm_moves_money_and_loses_none", alone, stmTransfers},
	{"stm_gives_up_and_deletes", alone, stmAborts},
	{"recipes_queue_barriers_and_locks", alone, otherRecipes},
	{"namespace_has_keys_watches_and_leases_of_its_own", alone, namespaced},
	{"mirror_copies_a_prefix_and_follows_it", alone, mirrored},
	{"leasing_caches_and_is_told_of_changes", alone, leased},
	{"leasing_txns_and_deletions", alone, leasedTxns},
	{"naming_endpoints_and_a_connection_by_name", alone, named},
	{"ordering_never_goes_back", three, ordered},
}

func (t *T) session(c *clientv3.Client, options ...concurrency.SessionOption) *concurrency.Session {
	s, err := concurrency.NewSession(c, append([]concurrency.SessionOption{concurrency.WithTTL(10)}, options...)...)
	t.must(err)
	t.later(func() { s.Close() })
	return s
}

func (t *T) done(what string, channel <-chan struct{}) {
	select {
	case <-channel:
	case <-t.ctx.Done():
		t.fail("not in time: %s", what)
	}
}

func sessionEnds(t *T) {
	c := t.client()
	closed := t.session(c)
	t.put(c, t.key("closed"), "1", clientv3.WithLease(closed.Lease()))
	t.must(closed.Close())
	t.done("the end of a closed session", closed.Done())
	t.equal("key of a closed session", t.value(c, t.key("closed")), "-")

	revoked := t.session(c)
	t.revoke(c, revoked.Lease())
	t.done("the end of a session whose lease was revoked", revoked.Done())

	gone := t.watch(c, t.key("orphan"), clientv3.WithFilterPut())
	orphan := t.session(c, concurrency.WithTTL(1))
	t.put(c, t.key("orphan"), "1", clientv3.WithLease(orphan.Lease()))
	orphan.Orphan()
	t.done("the end of an orphan", orphan.Done())
	t.hears("key of an orphan", gone, "delete orphan")

	ctx, cancel := context.WithCancel(t.ctx)
	given := t.session(c, concurrency.WithLease(t.grant(c, 20)), concurrency.WithContext(ctx))
	status, err := c.TimeToLive(t.ctx, given.Lease())
	t.must(err)
	t.equal("time of the lease it was given", status.GrantedTTL, 20)
	cancel()
	t.done("the end of a session whose context ended", given.Done())
	t.revoke(c, given.Lease())
}

func mutexOne(t *T) {
	const clients, rounds = 5, 5
	var inside, entered int32
	var tasks []task
	for i := 0; i < clients; i++ {
		session := t.session(t.client())
		tasks = append(tasks, t.start(func() error {
			for round := 0; round < rounds; round++ {
				m := concurrency.NewMutex(session, t.key("lock"))
				if err := m.Lock(t.ctx); err != nil {
					return err
				}
				if n := atomic.AddInt32(&inside, 1); n != 1 {
					return fmt.Errorf("%d hold the lock", n)
				}
				atomic.AddInt32(&entered, 1)
				// Writing only while the lock is held is what its owner can ask for.
				answer, err := session.Client().Txn(t.ctx).If(m.IsOwner()).Then(clientv3.OpPut(t.key("owner"), m.Key())).Commit()
				if err != nil || !answer.Succeeded {
					return fmt.Errorf("not the owner: %v", err)
				}
				atomic.AddInt32(&inside, -1)
				if err := m.Unlock(t.ctx); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	t.join(tasks...)
	t.equal("entered", entered, clients*rounds)
	t.equal("keys left", t.get(t.client(), t.key("lock"), clientv3.WithPrefix()).Count, 0)
	locker := concurrency.NewLocker(t.session(t.client()), t.key("locker"))
	locker.Lock()
	locker.Unlock()
}

func mutexGivenUp(t *T) {
	c, m := t.client(), t.cluster.members[0]
	t.until("the watchers of earlier cases are gone", func() bool { return m.metric(t, watchersMetric) == "0" })
	first := concurrency.NewMutex(t.session(c), t.key("lock"))
	t.must(first.Lock(t.ctx))
	ctx, cancel := context.WithCancel(t.ctx)
	waiting := t.watch(c, t.key("lock"), clientv3.WithPrefix())
	second := concurrency.NewMutex(t.session(c), t.key("lock"))
	lock := make(chan error, 1)
	go func() { lock <- second.Lock(ctx) }()
	t.events(waiting, 1)
	// Who gives up before he has heard that his key is there leaves it there.
	t.until("the second waits", func() bool { return m.metric(t, watchersMetric) == "2" })
	cancel()
	t.wantErr("given up", <-lock, context.Canceled)
	t.check(t.events(waiting, 1)[0].Type == clientv3.EventTypeDelete, "the key of the one who gave up is still there")
	t.must(first.Unlock(t.ctx))
	third := concurrency.NewMutex(t.session(c), t.key("lock"))
	t.must(third.Lock(t.ctx))
	t.must(third.Unlock(t.ctx))
}

func mutexFreed(t *T) {
	c := t.client()
	session := t.session(c, concurrency.WithTTL(1))
	t.must(concurrency.NewMutex(session, t.key("lock")).Lock(t.ctx))
	second := concurrency.NewMutex(t.session(t.client()), t.key("lock"))
	locked := t.start(func() error { return second.Lock(t.ctx) })
	// As if its process had died: nobody keeps the lease alive, and nobody revokes it.
	session.Orphan()
	t.join(locked)
	t.must(second.Unlock(t.ctx))
}

func electionRun(t *T) {
	c := t.client()
	observed := concurrency.NewElection(t.session(c), t.key("chair")).Observe(t.ctx)
	saw := func(what, want string) {
		select {
		case response, open := <-observed:
			t.check(open && len(response.Kvs) == 1, "%s: nothing observed", what)
			t.equal(what, string(response.Kvs[0].Value), want)
		case <-t.ctx.Done():
			t.fail("%s: not observed in time", what)
		}
	}
	first := concurrency.NewElection(t.session(c), t.key("chair"))
	_, err := first.Leader(t.ctx)
	t.wantErr("nobody yet", err, concurrency.ErrElectionNoLeader)
	t.wantErr("proclaim without", first.Proclaim(t.ctx, "x"), concurrency.ErrElectionNotLeader)
	t.must(first.Campaign(t.ctx, "a"))
	saw("elected", "a")
	t.must(first.Proclaim(t.ctx, "b"))
	saw("proclaimed", "b")
	second := concurrency.NewElection(t.session(t.client()), t.key("chair"))
	waiting := t.start(func() error { return second.Campaign(t.ctx, "c") })
	t.until("two candidates", func() bool {
		return t.get(c, t.key("chair"), clientv3.WithPrefix(), clientv3.WithCountOnly()).Count == 2
	})
	leader, err := second.Leader(t.ctx)
	t.must(err)
	t.equal("the leader", string(leader.Kvs[0].Value), "b")
	t.must(first.Resign(t.ctx))
	t.join(waiting)
	saw("the next", "c")
	t.must(second.Resign(t.ctx))
}

func electionResume(t *T) {
	c := t.client()
	session := t.session(c)
	before := concurrency.NewElection(session, t.key("chair"))
	t.must(before.Campaign(t.ctx, "a"))
	after := concurrency.ResumeElection(session, t.key("chair"), before.Key(), before.Rev())
	t.must(after.Proclaim(t.ctx, "b"))
	leader, err := after.Leader(t.ctx)
	t.must(err)
	t.equal("still the leader", string(leader.Kvs[0].Value), "b")
	t.must(after.Resign(t.ctx))
	_, err = before.Leader(t.ctx)
	t.wantErr("after it resigned", err, concurrency.ErrElectionNoLeader)
}

func stmTransfers(t *T) {
	const accounts, clients, transfers = 4, 4, 15
	levels := []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	}
	for _, level := range levels {
		c := t.client()
		account := func(i int) string { return t.key(fmt.Sprint(level, "/", i%accounts)) }
		for i := 0; i < accounts; i++ {
			t.put(c, account(i), "100")
		}
		var tasks []task
		for n := 0; n < clients; n++ {
			n := n
			own := t.client()
			tasks = append(tasks, t.start(func() error {
				for i := 0; i < transfers; i++ {
					from, to := account(n+i), account(n+2*i+1)
					if from == to {
						continue
					}
					_, err := concurrency.NewSTM(own, func(s concurrency.STM) error {
						var has, gets int
						fmt.Sscan(s.Get(from), &has)
						fmt.Sscan(s.Get(to), &gets)
						s.Put(from, fmt.Sprint(has-7))
						s.Put(to, fmt.Sprint(gets+7))
						return nil
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(t.ctx), concurrency.WithPrefetch(from, to))
					if err != nil {
						return err
					}
				}
				return nil
			}))
		}
		t.join(tasks...)
		sum := 0
		for i := 0; i < accounts; i++ {
			var has int
			fmt.Sscan(t.value(c, account(i)), &has)
			sum += has
		}
		t.equal(fmt.Sprint("sum at level ", level), sum, accounts*100)
	}
}

func stmAborts(t *T) {
	c := t.client()
	t.put(c, t.key("a"), "1")
	why := errors.New("thought better of it")
	_, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
		s.Put(t.key("a"), "2")
		t.equal("its own put", s.Get(t.key("a")), "2")
		return why
	})
	t.wantErr("given up", err, why)
	t.equal("after giving up", t.value(c, t.key("a")), "1")
	_, err = concurrency.NewSTM(c, func(s concurrency.STM) error {
		s.Put(t.key("b"), s.Get(t.key("a")))
		s.Del(t.key("a"))
		t.equal("of none", s.Rev(t.key("none")), 0)
		return nil
	})
	t.must(err)
	t.equal("moved", t.pairs(t.get(c, t.key(""), clientv3.WithPrefix())), "b=1")
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	_, err = concurrency.NewSTM(c, func(s concurrency.STM) error {
		s.Get(t.key("b"))
		return nil
	}, concurrency.WithAbortContext(ctx))
	t.wantErr("cancelled", err, context.Canceled)
}

func otherRecipes(t *T) {
	c := t.client()
	queue := recipe.NewQueue(c, t.key("queue"))
	got := make(chan string, 3)
	waiting := t.start(func() error {
		// Who is earlier than what he waits for is told by a watch.
		for i := 0; i < 3; i++ {
			value, err := recipe.NewQueue(c, t.key("queue")).Dequeue()
			if err != nil {
				return err
			}
			got <- value
		}
		return nil
	})
	for i := 0; i < 3; i++ {
		t.must(queue.Enqueue(fmt.Sprint(i)))
	}
	t.join(waiting)
	t.equal("in turn", <-got+<-got+<-got, "012")

	urgent := recipe.NewPriorityQueue(c, t.key("urgent"))
	for _, n := range []uint16{3, 1, 2} {
		t.must(urgent.Enqueue(fmt.Sprint(n), n))
	}
	for n := 1; n <= 3; n++ {
		value, err := urgent.Dequeue()
		t.must(err)
		t.equal("by priority", value, n)
	}

	barrier := recipe.NewBarrier(c, t.key("barrier"))
	t.must(barrier.Hold())
	t.wantErr("held twice", recipe.NewBarrier(c, t.key("barrier")).Hold(), recipe.ErrKeyExists)
	held := t.start(func() error { return recipe.NewBarrier(c, t.key("barrier")).Wait() })
	t.must(barrier.Release())
	t.join(held)

	var tasks []task
	for i := 0; i < 3; i++ {
		double := recipe.NewDoubleBarrier(t.session(t.client()), t.key("double"), 3)
		tasks = append(tasks, t.start(func() error {
			if err := double.Enter(); err != nil {
				return err
			}
			return double.Leave()
		}))
	}
	t.join(tasks...)

	first, second := recipe.NewRWMutex(t.session(c), t.key("rw")), recipe.NewRWMutex(t.session(c), t.key("rw"))
	t.must(first.RLock())
	t.must(second.RLock())
	writer := recipe.NewRWMutex(t.session(c), t.key("rw"))
	written := t.start(writer.Lock)
	t.must(first.RUnlock())
	t.must(second.RUnlock())
	t.join(written)
	t.must(writer.Unlock())
}

func namespaced(t *T) {
	c := t.client()
	kv, watcher, leases := namespace.NewKV(c.KV, t.key("")), namespace.NewWatcher(c.Watcher, t.key("")), namespace.NewLease(c.Lease, t.key(""))
	channel := t.watch(watcher, "", clientv3.WithPrefix())
	t.put(kv, "a", "1")
	t.equal("outside", t.value(c, t.key("a")), "1")
	t.put(c, t.key("b"), "2")
	t.put(c, "outside", "x")
	t.equal("inside", t.value(kv, "b"), "2")
	t.equal("outside of it", t.value(kv, "outside"), "-")
	answer, err := kv.Txn(t.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(
		clientv3.OpPut("c", "3"), clientv3.OpTxn([]clientv3.Cmp{clientv3util.KeyExists("b")}, []clientv3.Op{clientv3.OpGet("b")}, nil),
		clientv3.OpDelete("a", clientv3.WithPrevKV())).Commit()
	t.must(err)
	t.equal("a key in the answer", string(answer.Responses[1].GetResponseTxn().Responses[0].GetResponseRange().Kvs[0].Key), "b")
	t.equal("a key of what was deleted", string(answer.Responses[2].GetResponseDeleteRange().PrevKvs[0].Key), "a")
	all := t.get(kv, "\x00", clientv3.WithFromKey())
	t.equal("all there is", t.pairs(all), "b=2 c=3")
	t.hears("watched", channel, "put a=1", "put b=2", "put c=3", "delete a")
	id := t.grant(leases, 100)
	t.put(kv, "leased", "1", clientv3.WithLease(id))
	status, err := leases.TimeToLive(t.ctx, id, clientv3.WithAttachedKeys())
	t.must(err)
	t.equal("keys of a lease", fmt.Sprintf("%s", status.Keys), "[leased]")
	t.revoke(leases, id)
	t.hears("watched", channel, "put leased=1", "delete leased")
	t.delete(c, "outside")
}

func mirrored(t *T) {
	// More than the mirror asks for at once.
	const count = 2500
	c := t.client()
	for i := 0; i < count; i += 100 {
		var ops []clientv3.Op
		for n := i; n < i+100; n++ {
			ops = append(ops, clientv3.OpPut(t.key(fmt.Sprintf("%04d", n)), fmt.Sprint(n)))
		}
		_, err := c.Txn(t.ctx).Then(ops...).Commit()
		t.must(err)
	}
	for _, prefix := range []string{t.key(""), ""} {
		syncer := mirror.NewSyncer(c, prefix, 0)
		pages, failed := syncer.SyncBase(t.ctx)
		t.put(c, t.key("late"), "1")
		copied := 0
		for page := range pages {
			for _, kv := range page.Kvs {
				if strings.HasPrefix(string(kv.Key), t.key("0")) || strings.HasPrefix(string(kv.Key), t.key("1")) || strings.HasPrefix(string(kv.Key), t.key("2")) {
					t.equal("in order", string(kv.Key), t.key(fmt.Sprintf("%04d", copied)))
					copied++
				}
			}
		}
		t.must(<-failed)
		t.equal("copied", copied, count)
		updates := syncer.SyncUpdates(t.ctx)
		t.put(c, t.key("0001"), "changed")
		t.delete(c, t.key("late"))
		t.hears("followed", updates, "put late=1", "put 0001=changed", "delete late")
	}
}

func leased(t *T) {
	first, second := t.client(), t.client()
	one, closeOne, err := leasing.NewKV(first, t.key("leases/"))
	t.must(err)
	t.later(closeOne)
	two, closeTwo, err := leasing.NewKV(second, t.key("leases/"))
	t.must(err)
	t.later(closeTwo)
	t.put(first, t.key("a"), "1")
	for i := 0; i < 3; i++ {
		t.equal("the owner's", t.value(one, t.key("a")), "1")
	}
	t.equal("another one's", t.value(two, t.key("a")), "1")
	// Whoever writes a key that somebody else caches has it given back first.
	for i := 0; i < 10; i++ {
		writer, reader := one, two
		if i%2 == 0 {
			writer, reader = two, one
		}
		t.equal("before", t.value(reader, t.key("a")), t.value(first, t.key("a")))
		t.put(writer, t.key("a"), fmt.Sprint("v", i))
		t.equal("after", t.value(reader, t.key("a")), fmt.Sprint("v", i))
		t.equal("without a cache", t.value(first, t.key("a")), fmt.Sprint("v", i))
	}
	none := t.get(one, t.key("none"))
	t.equal("none", len(none.Kvs), 0)
	t.put(two, t.key("none"), "1")
	t.equal("that is there now", t.value(one, t.key("none")), "1")
	ranged := t.get(one, t.key("a"), clientv3.WithRange(t.key("b")), clientv3.WithRev(t.get(first, t.key("a")).Kvs[0].ModRevision))
	t.equal("a range of the past", t.pairs(ranged), "a=v9")
}

func leasedTxns(t *T) {
	first := t.client()
	one, closeOne, err := leasing.NewKV(first, t.key("leases/"))
	t.must(err)
	t.later(closeOne)
	two, closeTwo, err := leasing.NewKV(t.client(), t.key("leases/"))
	t.must(err)
	t.later(closeTwo)
	for i := 0; i < 6; i++ {
		t.put(first, t.key(fmt.Sprint("k/", i)), "1")
		t.equal("cached", t.value(one, t.key(fmt.Sprint("k/", i))), "1")
	}
	answer, err := two.Txn(t.ctx).If(clientv3.Compare(clientv3.Value(t.key("k/0")), "=", "1")).
		Then(clientv3.OpPut(t.key("k/0"), "2"), clientv3.OpGet(t.key("k/1")), clientv3.OpDelete(t.key("k/2"))).
		Else(clientv3.OpPut(t.key("k/0"), "wrong")).Commit()
	t.must(err)
	t.equal("held", answer.Succeeded, true)
	t.equal("read", string(answer.Responses[1].GetResponseRange().Kvs[0].Value), "1")
	t.equal("written", t.value(one, t.key("k/0")), "2")
	t.equal("deleted", t.value(one, t.key("k/2")), "-")
	cached, err := one.Txn(t.ctx).If(clientv3.Compare(clientv3.Value(t.key("k/0")), "=", "2")).Then(clientv3.OpGet(t.key("k/0"))).Commit()
	t.must(err)
	t.equal("of the cache", cached.Succeeded, true)
	gone, err := two.Delete(t.ctx, t.key("k/"), clientv3.WithPrefix())
	t.must(err)
	t.equal("deleted", gone.Deleted, 5)
	for i := 0; i < 6; i++ {
		t.equal("after the deletion", t.value(one, t.key(fmt.Sprint("k/", i))), "-")
	}
	result, err := one.Do(t.ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(t.key("k/7"), "7"), clientv3.OpGet(t.key("k/7"))}, nil))
	t.must(err)
	t.equal("read of a put of the same txn", string(result.Txn().Responses[1].GetResponseRange().Kvs[0].Value), "7")
}

func named(t *T) {
	c := t.client()
	// The client takes the name for the host that it asks for, so it has no slash.
	target := t.name
	manager, err := endpoints.NewManager(c, target)
	t.must(err)
	changes, err := manager.NewWatchChannel(t.ctx)
	t.must(err)
	here := t.cluster.members[0].endpoint()
	t.must(manager.AddEndpoint(t.ctx, target+"/b", endpoints.Endpoint{Addr: here, Metadata: "meta"}))
	t.must(manager.Update(t.ctx, []*endpoints.UpdateWithOpts{
		endpoints.NewAddUpdateOpts(target+"/c", endpoints.Endpoint{Addr: "127.0.0.1:1"}),
		endpoints.NewAddUpdateOpts(target+"/d", endpoints.Endpoint{Addr: "127.0.0.1:2"}),
	}))
	all, err := manager.List(t.ctx)
	t.must(err)
	var keys []string
	for key, endpoint := range all {
		keys = append(keys, strings.TrimPrefix(key, target)+" "+endpoint.Addr)
	}
	sort.Strings(keys)
	t.equal("listed", strings.Join(keys, ", "), "/b "+here+", /c 127.0.0.1:1, /d 127.0.0.1:2")
	t.must(manager.DeleteEndpoint(t.ctx, target+"/c"))
	t.must(manager.DeleteEndpoint(t.ctx, target+"/d"))
	var told []string
	for len(told) < 5 {
		select {
		case updates := <-changes:
			for _, update := range updates {
				told = append(told, fmt.Sprint(update.Op, strings.TrimPrefix(update.Key, target)))
			}
		case <-t.ctx.Done():
			t.fail("told in time: %v", told)
		}
	}
	t.equal("told", told, "[0/b 0/c 0/d 1/c 1/d]")
	// The server itself is the service that is found by name.
	builder, err := resolver.NewBuilder(c)
	t.must(err)
	connection, err := grpc.DialContext(t.ctx, "etcd:///"+target, grpc.WithInsecure(), grpc.WithBlock(), grpc.WithResolvers(builder))
	t.must(err)
	defer connection.Close()
	answer, err := pb.NewKVClient(connection).Range(t.ctx, &pb.RangeRequest{Key: []byte(target + "/b")})
	t.must(err)
	t.equal("found by name", answer.Count, 1)
}

func ordered(t *T) {
	writer, reader := t.client(), t.client()
	// A violation is a reply from a member behind the one that answered before: the reader asks the next member.
	kv := ordering.NewKV(reader.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return t.ctx.Err() })
	var last int64
	for i := 0; i < 100; i++ {
		t.put(writer, t.key("k"), fmt.Sprint(i))
		answer := t.get(kv, t.key("k"), clientv3.WithSerializable())
		t.check(answer.Header.Revision >= last, "revision %d after %d", answer.Header.Revision, last)
		last = answer.Header.Revision
		txn, err := kv.Txn(t.ctx).Then(clientv3.OpGet(t.key("k"), clientv3.WithSerializable())).Commit()
		t.must(err)
		t.check(txn.Header.Revision >= last, "txn at revision %d after %d", txn.Header.Revision, last)
		last = txn.Header.Revision
	}
}
