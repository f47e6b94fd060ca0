package main

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Watches as clientv3 has them: what it makes of the server's stream, and how it goes on after its connection broke.
var watchCases = []testCase{
	{"watch_of_keys_prefixes_ranges_and_all", alone, watchShapes},
	{"watch_from_the_past_the_present_and_the_future", alone, watchStarts},
	{"watch_of_hundreds_on_one_stream", alone, watchHundreds},
	{"watch_that_starts_among_writes_misses_none", alone, watchAmongWrites},
	{"watch_on_many_streams_hears_the_same", alone, watchManyStreams},
	{"watch_tells_a_txn_in_one_response", alone, watchTxn},
	{"watch_tells_creation_change_deletion_and_expiry", alone, watchKinds},
	{"watch_with_what_was_there_before", alone, watchPrevKV},
	{"watch_with_filters", alone, watchFilters},
	{"watch_of_large_events_in_fragments", alone, watchFragments},
	{"watch_of_a_compacted_start", alone, watchCompacted},
	{"watch_that_keeps_up_outlives_compaction", alone, watchOutlivesCompaction},
	{"watch_that_was_away_during_compaction", alone, watchCompactedAway},
	{"watch_with_periodic_progress", alone, watchPeriodicProgress},
	{"watch_with_progress_on_request", alone, watchRequestedProgress},
	{"watch_is_created_once", alone, watchCreatedOnce},
	{"watch_cancelled_before_at_once_and_later", alone, watchCancel},
	{"watch_cancelled_leaves_the_others", alone, watchCancelOne},
	{"watch_cancelled_is_forgotten_by_the_server", alone, watchCancelFrees},
	{"watch_cancelled_while_disconnected", alone, watchCancelDisconnected},
	{"watch_ends_with_its_client", alone, watchClose},
	{"watch_after_the_client_was_closed", alone, watchAfterClose},
	{"watch_cancelled_while_the_client_closes", alone, watchCancelAndClose},
	{"watch_goes_on_when_its_connection_breaks", alone, watchReconnect},
	{"watch_without_events_goes_on_from_its_start", alone, watchReconnectFromStart},
	{"watch_resumed_and_closed_under_stress", alone, watchStress},
	{"watch_in_overlapping_contexts", alone, func(t *T) { watchOverlap(t, false) }},
	{"watch_in_overlapping_contexts_while_connections_break", alone, func(t *T) { watchOverlap(t, true) }},
}

func watchShapes(t *T) {
	c := t.client()
	shapes := []struct {
		key     string
		options []clientv3.OpOption
		hears   string // the keys it hears of
	}{
		{"a", nil, "a"},
		{"a", []clientv3.OpOption{clientv3.WithPrefix()}, "a aa"},
		{"aa", []clientv3.OpOption{clientv3.WithRange(t.key("c"))}, "aa b"},
		{"b", []clientv3.OpOption{clientv3.WithFromKey()}, "b c"},
		{"", []clientv3.OpOption{clientv3.WithPrefix()}, "a aa b c"},
		{"nothing", nil, ""},
	}
	keys := []string{"a", "aa", "b", "c"}
	var channels []clientv3.WatchChan
	for _, shape := range shapes {
		channels = append(channels, t.watch(c, t.key(shape.key), shape.options...))
	}
	everything := t.watch(c, "", clientv3.WithPrefix())
	for round := 0; round < 3; round++ {
		for _, key := range keys {
			if round == 1 {
				t.delete(c, t.key(key))
			} else {
				t.put(c, t.key(key), fmt.Sprint(round))
			}
		}
	}
	expected := func(heard string) (all []string) {
		for round := 0; round < 3; round++ {
			for _, key := range strings.Fields(heard) {
				if round == 1 {
					all = append(all, "delete "+key)
				} else {
					all = append(all, fmt.Sprintf("put %s=%d", key, round))
				}
			}
		}
		return all
	}
	for i, shape := range shapes {
		if shape.hears != "" {
			t.hears(fmt.Sprint("shape ", i), channels[i], expected(shape.hears)...)
		}
	}
	t.hears("everything", everything, expected("a aa b c")...)
	t.put(c, t.key("nothing"), "end")
	t.hears("a key nobody wrote", channels[5], "put nothing=end")
}

func watchStarts(t *T) {
	c, key := t.client(), t.key("k")
	first := t.put(c, key, "1")
	t.put(c, key, "2")
	last := t.put(c, key, "3")
	past, middle := t.watch(c, key, clientv3.WithRev(first)), t.watch(c, key, clientv3.WithRev(first+1))
	now, next := t.watch(c, key), t.watch(c, key, clientv3.WithRev(last+1))
	future := t.watch(c, key, clientv3.WithRev(last+3))
	for i := 4; i <= 7; i++ {
		t.put(c, key, fmt.Sprint(i))
	}
	from := func(i int) (all []string) {
		for ; i <= 7; i++ {
			all = append(all, fmt.Sprint("put k=", i))
		}
		return all
	}
	t.hears("from the first", past, from(1)...)
	t.hears("from the second", middle, from(2)...)
	t.hears("from now", now, from(4)...)
	t.hears("from the next", next, from(4)...)
	t.hears("from the third to come", future, from(6)...)
}

func watchHundreds(t *T) {
	const watchers, writers, writes = 200, 4, 25
	c := t.client()
	var channels []clientv3.WatchChan
	for i := 0; i < watchers; i++ {
		// Half of them hear one of the writers, half of them all.
		if i%2 == 0 {
			channels = append(channels, t.watch(c, t.key(fmt.Sprint(i/2%writers))))
		} else {
			channels = append(channels, t.watch(c, t.key(""), clientv3.WithPrefix()))
		}
	}
	var tasks []task
	for w := 0; w < writers; w++ {
		key := t.key(fmt.Sprint(w))
		tasks = append(tasks, t.start(func() error {
			for i := 0; i < writes; i++ {
				if _, err := c.Put(t.ctx, key, fmt.Sprint(i)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	whole := t.told(t.events(channels[1], writers*writes))
	for i, channel := range channels {
		switch {
		case i == 1:
		case i%2 == 1:
			t.equal("the events of all keys", t.told(t.events(channel, writers*writes)), whole)
		default:
			for n, event := range t.events(channel, writes) {
				t.equal("the events of one key", string(event.Kv.Value), n)
			}
		}
	}
	t.join(tasks...)
}

func watchAmongWrites(t *T) {
	const writes, watchers = 200, 40
	c, key := t.client(), t.key("k")
	begun := t.put(c, key, "begin")
	writer := t.start(func() error {
		for i := 0; i < writes; i++ {
			if _, err := c.Put(t.ctx, key, fmt.Sprint(i)); err != nil {
				return err
			}
		}
		_, err := c.Delete(t.ctx, key)
		return err
	})
	last := begun + writes + 1
	var tasks []task
	for i := 0; i < watchers; i++ {
		channel := c.Watch(t.ctx, key, clientv3.WithCreatedNotify())
		created := t.response(channel)
		tasks = append(tasks, t.start(func() error {
			// Only this case writes, so every revision is an event, from the one after that of the creation.
			next := created.Header.Revision + 1
			for next <= last {
				select {
				case response, open := <-channel:
					if !open {
						return fmt.Errorf("closed at %d", next)
					}
					for _, event := range response.Events {
						if event.Kv.ModRevision != next {
							return fmt.Errorf("created at %d, then %d instead of %d", created.Header.Revision, event.Kv.ModRevision, next)
						}
						next++
					}
				case <-t.ctx.Done():
					return t.ctx.Err()
				}
			}
			return nil
		}))
	}
	t.join(append(tasks, writer)...)
}

func watchManyStreams(t *T) {
	c := t.client()
	start := t.put(c, t.key("k"), "0")
	var live, late []clientv3.WatchChan
	for i := 0; i < 30; i++ {
		// The client has a stream for each set of metadata.
		ctx := metadata.AppendToOutgoingContext(t.ctx, "stream", fmt.Sprint(i))
		live = append(live, t.watchIn(ctx, c, t.key(""), clientv3.WithPrefix()))
	}
	for i := 1; i <= 10; i++ {
		t.put(c, t.key(fmt.Sprint("k", i%3)), fmt.Sprint(i))
	}
	for i := 0; i < 30; i++ {
		ctx := metadata.AppendToOutgoingContext(t.ctx, "late", fmt.Sprint(i))
		late = append(late, t.watchIn(ctx, c, t.key(""), clientv3.WithPrefix(), clientv3.WithRev(start+1)))
	}
	wanted := t.told(t.events(live[0], 10))
	for _, channel := range append(live[1:], late...) {
		t.equal("a stream", t.told(t.events(channel, 10)), wanted)
	}
}

func watchTxn(t *T) {
	c := t.client()
	t.put(c, t.key("old"), "1")
	live := t.watch(c, t.key(""), clientv3.WithPrefix())
	one := t.watch(c, t.key("b"))
	answer, err := c.Txn(t.ctx).Then(
		clientv3.OpPut(t.key("b"), "1"), clientv3.OpPut(t.key("a"), "2"),
		clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(t.key("c"), "3")}, nil),
		clientv3.OpDelete(t.key("old")), clientv3.OpDelete(t.key("none"))).Commit()
	t.must(err)
	failed, err := c.Txn(t.ctx).If(clientv3.Compare(clientv3.Version(t.key("none")), ">", 0)).
		Then(clientv3.OpPut(t.key("x"), "1")).Else(clientv3.OpGet(t.key("x"))).Commit()
	t.must(err)
	t.equal("the revision after a txn that writes nothing", failed.Header.Revision, answer.Header.Revision)
	late := t.watch(c, t.key(""), clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision))
	t.hears("one key", one, "put b=1")
	for _, channel := range []clientv3.WatchChan{live, late} {
		response := t.response(channel)
		t.equal("one response", t.told(response.Events), "put b=1, put a=2, put c=3, delete old")
		for _, event := range response.Events {
			t.equal("revision", event.Kv.ModRevision, answer.Header.Revision)
		}
	}
	// Puts of the past in several revisions come in their order, too.
	first := t.put(c, t.key("a"), "4")
	t.put(c, t.key("b"), "5")
	t.put(c, t.key("a"), "6")
	t.hears("puts of the past", t.watch(c, t.key(""), clientv3.WithPrefix(), clientv3.WithRev(first)), "put a=4", "put b=5", "put a=6")
}

func watchKinds(t *T) {
	c, key := t.client(), t.key("k")
	channel := t.watch(c, key)
	lease, err := c.Grant(t.ctx, 1)
	t.must(err)
	created := t.put(c, key, "1")
	changed := t.put(c, key, "2")
	deleted := t.delete(c, key)
	leased := t.put(c, key, "3", clientv3.WithLease(lease.ID))
	kinds := func(event *clientv3.Event) string {
		return fmt.Sprint(event.Type, " created ", event.IsCreate(), " changed ", event.IsModify())
	}
	all := t.events(channel, 5)
	t.equal("creation", kinds(all[0]), "PUT created true changed false")
	t.equal("change", kinds(all[1]), "PUT created false changed true")
	t.equal("deletion", kinds(all[2]), "DELETE created false changed false")
	t.equal("creation with a lease", kinds(all[3]), "PUT created true changed false")
	t.equal("expiry", kinds(all[4]), "DELETE created false changed false")
	for i, revision := range []int64{created, changed, deleted, leased} {
		t.equal("revision", all[i].Kv.ModRevision, revision)
	}
	t.equal("versions", fmt.Sprint(all[0].Kv.Version, all[1].Kv.Version, all[2].Kv.Version, all[3].Kv.Version), "1 2 0 1")
	t.equal("lease", all[3].Kv.Lease, int64(lease.ID))
	t.check(all[4].Kv.ModRevision > leased, "expiry at %d after a put at %d", all[4].Kv.ModRevision, leased)
}

func watchPrevKV(t *T) {
	c, key := t.client(), t.key("k")
	with, without := t.watch(c, key, clientv3.WithPrevKV()), t.watch(c, key)
	first := t.put(c, key, "1")
	t.put(c, key, "2")
	t.delete(c, key)
	t.put(c, key, "3")
	wanted := []string{"put k=1", "put k=2 was 1", "delete k was 2", "put k=3"}
	t.hears("live", with, wanted...)
	t.hears("from the past", t.watch(c, key, clientv3.WithPrevKV(), clientv3.WithRev(first)), wanted...)
	t.hears("without", without, "put k=1", "put k=2", "delete k", "put k=3")
}

func watchFilters(t *T) {
	c, key := t.client(), t.key("k")
	noPuts, noDeletes := t.watch(c, key, clientv3.WithFilterPut()), t.watch(c, key, clientv3.WithFilterDelete())
	first := t.put(c, key, "1")
	t.delete(c, key)
	t.put(c, key, "2")
	t.delete(c, key)
	both := t.watch(c, key, clientv3.WithRev(first), clientv3.WithFilterPut(), clientv3.WithFilterDelete())
	t.hears("no puts", noPuts, "delete k", "delete k")
	t.hears("no deletes", noDeletes, "put k=1", "put k=2")
	t.hears("no puts of the past", t.watch(c, key, clientv3.WithRev(first), clientv3.WithFilterPut()), "delete k", "delete k")
	t.hears("no deletes of the past", t.watch(c, key, clientv3.WithRev(first), clientv3.WithFilterDelete()), "put k=1", "put k=2")
	t.must(c.RequestProgress(t.ctx))
	t.check(len(t.response(both).Events) == 0, "an event in spite of both filters")
}

func watchFragments(t *T) {
	const size, count = 1 << 20, 10
	c := t.client()
	first := t.put(c, t.key("0"), strings.Repeat("0", size))
	for i := 1; i < count; i++ {
		t.put(c, t.key(fmt.Sprint(i)), strings.Repeat(fmt.Sprint(i), size))
	}
	whole := func(what string, c *clientv3.Client, options ...clientv3.OpOption) {
		options = append(options, clientv3.WithPrefix(), clientv3.WithRev(first))
		for i, event := range t.events(t.watch(c, t.key(""), options...), count) {
			t.check(len(event.Kv.Value) == size && string(event.Kv.Value[size-1]) == fmt.Sprint(i), "%s: event %d is not whole", what, i)
		}
	}
	whole("without fragments", c)
	whole("in fragments", c, clientv3.WithFragment())
	small := t.client(func(config *clientv3.Config) { config.MaxCallRecvMsgSize = 3 << 20 })
	whole("in fragments, with a client that takes 3 MiB at once", small, clientv3.WithFragment())
	// Several keys of one revision may come in several responses; the client puts them together.
	live := t.watch(small, t.key(""), clientv3.WithPrefix(), clientv3.WithFragment())
	t.delete(c, t.key(""), clientv3.WithPrefix())
	response := t.response(live)
	t.equal("deletions in one response", len(response.Events), count)
}

func watchCompacted(t *T) {
	c, key := t.client(), t.key("k")
	first := t.put(c, key, "1")
	var last int64
	for i := 2; i <= 6; i++ {
		last = t.put(c, key, fmt.Sprint(i))
	}
	_, err := c.Compact(t.ctx, last-1)
	t.must(err)
	for _, start := range []int64{first, last - 2} {
		channel := c.Watch(t.ctx, key, clientv3.WithRev(start))
		response := t.response(channel)
		t.wantErr("a compacted start", response.Err(), rpctypes.ErrCompacted)
		t.equal("the compacted revision", response.CompactRevision, last-1)
		t.check(response.Canceled, "not cancelled")
		t.wantErr("at the end", t.closed(channel), nil)
	}
	t.hears("from the compacted revision", t.watch(c, key, clientv3.WithRev(last-1)), "put k=5", "put k=6")
}

func watchOutlivesCompaction(t *T) {
	c, key := t.client(), t.key("k")
	channel := t.watch(c, key)
	for i := 0; i < 20; i++ {
		revision := t.put(c, key, fmt.Sprint(i))
		_, err := c.Compact(t.ctx, revision)
		t.must(err)
		t.hears("after a compaction", channel, fmt.Sprint("put k=", i))
	}
}

func watchCompactedAway(t *T) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c, key := t.client(at(g.endpoint())), t.key("k")
	channel := t.watch(c, key)
	t.put(direct, key, "heard")
	t.hears("before", channel, "put k=heard")
	g.refuse()
	var last int64
	for i := 0; i < 5; i++ {
		last = t.put(direct, key, "missed")
	}
	_, err := direct.Compact(t.ctx, last)
	t.must(err)
	g.admit()
	response := t.response(channel)
	t.wantErr("after it came back", response.Err(), rpctypes.ErrCompacted)
	t.equal("the compacted revision", response.CompactRevision, last)
	t.closed(channel)
}

func watchPeriodicProgress(t *T) {
	c, key := t.client(), t.key("k")
	channel, without := t.watch(c, key, clientv3.WithProgressNotify()), t.watch(c, key)
	for i := 0; i < 2; i++ {
		revision := t.put(c, t.key("other"), "1")
		response := t.response(channel)
		t.check(response.IsProgressNotify(), "no progress, but %+v", response)
		// The tick may have been before the put.
		for response.Header.Revision < revision {
			response = t.response(channel)
			t.check(response.IsProgressNotify(), "no progress, but %+v", response)
		}
		revision = t.put(c, key, fmt.Sprint(i))
		for response = t.response(channel); response.IsProgressNotify(); response = t.response(channel) {
			t.check(response.Header.Revision < revision, "progress to %d before its event", revision)
		}
		t.equal("the event", t.told(response.Events), fmt.Sprint("put k=", i))
	}
	t.equal("without progress", t.told(t.response(without).Events), "put k=0")
	t.equal("without progress", t.told(t.response(without).Events), "put k=1")
}

func watchRequestedProgress(t *T) {
	c := t.client()
	first, second := t.watch(c, t.key("1")), t.watch(c, t.key("2"), clientv3.WithPrefix())
	other := metadata.AppendToOutgoingContext(t.ctx, "stream", "other")
	third := t.watchIn(other, c, t.key("3"))
	var last int64
	for i := 0; i < 10; i++ {
		last = t.put(c, t.key("elsewhere"), fmt.Sprint(i))
		t.must(c.RequestProgress(t.ctx))
		for _, channel := range []clientv3.WatchChan{first, second} {
			response := t.response(channel)
			t.check(response.IsProgressNotify(), "no progress, but %+v", response)
			t.equal("progress", response.Header.Revision, last)
		}
	}
	t.must(c.RequestProgress(other))
	response := t.response(third)
	t.check(response.IsProgressNotify() && response.Header.Revision == last, "another stream: %+v", response)
	t.put(c, t.key("1"), "1")
	t.hears("an event after progress", first, "put 1=1")
}

func watchCreatedOnce(t *T) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c, key := t.client(at(g.endpoint())), t.key("k")
	channel := t.watch(c, key)
	for i := 0; i < 3; i++ {
		g.cut()
		t.put(direct, key, fmt.Sprint(i))
		response := t.response(channel)
		t.check(!response.Created, "created again")
		t.equal("after the cut", t.told(response.Events), fmt.Sprint("put k=", i))
	}
}

func watchCancel(t *T) {
	c, key := t.client(), t.key("k")
	before, cancel := context.WithCancel(t.ctx)
	cancel()
	t.wantErr("cancelled before", t.closed(c.Watch(before, key)), nil)

	atOnce, cancel := context.WithCancel(t.ctx)
	channel := t.watchIn(atOnce, c, key)
	cancel()
	t.wantErr("cancelled without an event", t.closed(channel), nil)

	later, cancel := context.WithCancel(t.ctx)
	channel = t.watchIn(later, c, key)
	t.put(c, key, "1")
	t.hears("before it is cancelled", channel, "put k=1")
	cancel()
	t.wantErr("cancelled after an event", t.closed(channel), nil)

	past, cancel := context.WithCancel(t.ctx)
	channel = c.Watch(past, key, clientv3.WithRev(1))
	cancel()
	t.closed(channel)
	t.put(c, key, "2")
	timed, cancel := context.WithTimeout(t.ctx, 50*time.Millisecond)
	defer cancel()
	t.wantErr("whose time is over", t.closed(t.watchIn(timed, c, key)), nil)
}

func watchCancelOne(t *T) {
	c, key := t.client(), t.key("k")
	ctx, cancel := context.WithCancel(t.ctx)
	kept, ended := t.watch(c, key), t.watchIn(ctx, c, key)
	reached := make(chan struct{})
	writer := t.start(func() error {
		for i := 0; i < 200; i++ {
			if i == 50 {
				close(reached)
			}
			if _, err := c.Put(t.ctx, key, fmt.Sprint(i)); err != nil {
				return err
			}
		}
		return nil
	})
	<-reached
	cancel()
	t.closed(ended)
	for i, event := range t.events(kept, 200) {
		t.equal("the one that stays", string(event.Kv.Value), i)
	}
	t.join(writer)
	again := t.watch(c, key)
	t.put(c, key, "end")
	t.hears("a new one", again, "put k=end")
}

const watchersMetric = "etcd_debugging_mvcc_watcher_total"

func watchCancelFrees(t *T) {
	c, m := t.client(), t.cluster.members[0]
	t.until("the watchers of earlier cases are gone", func() bool { return m.metric(t, watchersMetric) == "0" })
	var cancels []context.CancelFunc
	var channels []clientv3.WatchChan
	for i := 0; i < 10; i++ {
		ctx, cancel := context.WithCancel(t.ctx)
		channels, cancels = append(channels, t.watchIn(ctx, c, t.key("k"))), append(cancels, cancel)
	}
	t.until("ten watchers", func() bool { return m.metric(t, watchersMetric) == "10" })
	for _, cancel := range cancels[:9] {
		cancel()
	}
	t.until("one watcher", func() bool { return m.metric(t, watchersMetric) == "1" })
	t.put(c, t.key("k"), "1")
	t.hears("the last one", channels[9], "put k=1")
	cancels[9]()
	t.until("no watcher", func() bool { return m.metric(t, watchersMetric) == "0" })
}

func watchCancelDisconnected(t *T) {
	g := t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()))
	ctx, cancel := context.WithCancel(t.ctx)
	channel := t.watchIn(ctx, c, t.key("k"))
	g.refuse()
	unborn := make(chan clientv3.WatchChan, 1)
	go func() { unborn <- c.Watch(ctx, t.key("other")) }()
	cancel()
	t.closed(channel)
	select {
	case channel = <-unborn:
		t.closed(channel)
	case <-t.ctx.Done():
		t.fail("Watch did not return")
	}
}

func watchClose(t *T) {
	c := t.client()
	watcher := clientv3.NewWatcher(c)
	var channels []clientv3.WatchChan
	for i := 0; i < 10; i++ {
		channels = append(channels, t.watch(watcher, t.key("k")))
	}
	t.must(watcher.Close())
	for _, channel := range channels {
		t.closed(channel)
	}
	// Closing a watcher leaves the client's own.
	own := t.watch(c, t.key("k"))
	t.put(c, t.key("k"), "1")
	t.hears("the client's own", own, "put k=1")
	t.must(c.Close())
	err := t.closed(own)
	t.check(err == nil || clientv3.IsConnCanceled(err) || err == context.Canceled, "ended with %v", err)
}

func watchAfterClose(t *T) {
	c := t.client()
	t.must(c.Close())
	err := t.closed(c.Watch(t.ctx, t.key("k")))
	t.check(err == nil || err == context.Canceled || clientv3.IsConnCanceled(err), "ended with %v", err)
	err = c.Watcher.Close()
	t.check(err == nil || err == context.Canceled, "closed again with %v", err)
}

func watchCancelAndClose(t *T) {
	for i := 0; i < 20; i++ {
		c := t.client()
		ctx, cancel := context.WithCancel(t.ctx)
		channel := c.Watch(ctx, t.key("k"))
		closing := t.start(func() error {
			if err := c.Close(); err != nil && err != context.Canceled {
				return err
			}
			return nil
		})
		cancel()
		t.closed(channel)
		t.join(closing)
	}
}

func watchReconnect(t *T) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()))
	var channels []clientv3.WatchChan
	for i := 0; i < 5; i++ {
		channels = append(channels, t.watch(c, t.key("k")))
	}
	const writes = 300
	writer := t.start(func() error {
		for i := 0; i < writes; i++ {
			if i%30 == 29 {
				g.cut()
			}
			if _, err := direct.Put(t.ctx, t.key("k"), fmt.Sprint(i)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, channel := range channels {
		for i, event := range t.events(channel, writes) {
			t.equal("the next event", string(event.Kv.Value), i)
		}
	}
	t.join(writer)
	// A watch that is asked for while nobody answers is there when somebody does.
	g.refuse()
	asked := make(chan clientv3.WatchChan, 1)
	go func() { asked <- c.Watch(t.ctx, t.key("k"), clientv3.WithCreatedNotify()) }()
	g.admit()
	select {
	case channel := <-asked:
		t.check(t.response(channel).Created, "not created")
		t.put(direct, t.key("k"), "end")
		t.hears("asked for while cut off", channel, "put k=end")
	case <-t.ctx.Done():
		t.fail("Watch did not return")
	}
}

func watchReconnectFromStart(t *T) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()))
	// Neither has heard anything when the connection breaks. One resumes at the revision it was created at, one at its start.
	now := t.watch(c, t.key("k"))
	revision := t.put(direct, t.key("elsewhere"), "1")
	future := t.watch(c, t.key("k"), clientv3.WithRev(revision+2))
	g.refuse()
	for _, value := range []string{"1", "2", "3"} {
		t.put(direct, t.key("k"), value)
	}
	g.admit()
	t.hears("from now", now, "put k=1", "put k=2", "put k=3")
	t.hears("from a future revision", future, "put k=2", "put k=3")
}

func watchStress(t *T) {
	g := t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()))
	ctx, cancel := context.WithCancel(t.ctx)
	var channels []clientv3.WatchChan
	for i := 0; i < 500; i++ {
		channels = append(channels, c.Watch(ctx, t.key("k")))
	}
	g.cut()
	cancel()
	t.must(c.Close())
	for _, channel := range channels {
		t.closed(channel)
	}
}

func watchOverlap(t *T, cutting bool) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()), func(config *clientv3.Config) { config.DialOptions = append(config.DialOptions, grpc.WithBlock()) })
	var contexts []context.Context
	for i := 0; i < 5; i++ {
		contexts = append(contexts, metadata.AppendToOutgoingContext(t.ctx, "stream", fmt.Sprint(i)))
	}
	t.put(direct, t.key("k"), "1")
	draw := rand.New(rand.NewSource(7))
	var tasks []task
	for i := 0; i < 100; i++ {
		ctx := contexts[draw.Intn(len(contexts))]
		early := draw.Intn(2) == 0
		revision := t.get(direct, t.key("k")).Kvs[0].ModRevision
		tasks = append(tasks, t.start(func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			channel := c.Watch(ctx, t.key("k"), clientv3.WithRev(revision))
			if early {
				cancel()
			}
			heard := false
			for {
				select {
				case response, open := <-channel:
					if !open && !early && !heard {
						return fmt.Errorf("closed without an event: %v", response.Err())
					}
					if !open {
						return nil
					}
					heard = heard || len(response.Events) > 0
					if heard {
						cancel()
					}
				case <-t.ctx.Done():
					return t.ctx.Err()
				}
			}
		}))
		if cutting && i%10 == 9 {
			g.cut()
		}
	}
	t.join(tasks...)
	channel := t.watch(c, t.key("k"))
	t.put(direct, t.key("k"), "end")
	t.hears("afterwards", channel, "put k=end")
}
