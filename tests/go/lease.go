package main

import (
	"context"
	"fmt"
	"sort"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
)

var leaseCases = []testCase{
	{"lease_granted_listed_and_revoked", alone, leaseBasics},
	{"lease_tells_its_time_and_keys", alone, leaseTimeToLive},
	{"lease_kept_alive_once", alone, leaseOnce},
	{"lease_kept_alive_outlives_its_time", alone, leaseKept},
	{"lease_kept_alive_until_it_is_revoked", alone, leaseKeptRevoked},
	{"lease_kept_alive_when_connections_break", alone, leaseReconnect},
	{"lease_runs_out_for_all_its_keys_at_once", alone, leaseExpires},
	{"lease_requests_after_the_client_was_closed", alone, leaseClosed},
}

func (t *T) grant(c clientv3.Lease, seconds int64) clientv3.LeaseID {
	lease, err := c.Grant(t.ctx, seconds)
	t.must(err)
	return lease.ID
}

func (t *T) revoke(c clientv3.Lease, id clientv3.LeaseID) {
	_, err := c.Revoke(t.ctx, id)
	t.must(err)
}

func (t *T) kept(c clientv3.Lease, id clientv3.LeaseID) <-chan *clientv3.LeaseKeepAliveResponse {
	channel, err := c.KeepAlive(t.ctx, id)
	t.must(err)
	return channel
}

// alive is the next answer to keeping a lease alive, or nothing when that is over.
func (t *T) alive(channel <-chan *clientv3.LeaseKeepAliveResponse) *clientv3.LeaseKeepAliveResponse {
	select {
	case answer := <-channel:
		return answer
	case <-t.ctx.Done():
		t.fail("a lease was not kept alive in time")
		panic("not reached")
	}
}

func leaseBasics(t *T) {
	c := t.client()
	_, err := c.Grant(t.ctx, 9_000_000_001)
	t.wantErr("too long", err, rpctypes.ErrLeaseTTLTooLarge)
	var mine []int
	for i := 0; i < 5; i++ {
		mine = append(mine, int(t.grant(c, 100)))
	}
	all, err := c.Leases(t.ctx)
	t.must(err)
	listed := map[int]bool{}
	for _, lease := range all.Leases {
		listed[int(lease.ID)] = true
	}
	sort.Ints(mine)
	for _, id := range mine {
		t.check(listed[id], "%x is not listed", id)
	}
	t.put(c, t.key("k"), "1", clientv3.WithLease(clientv3.LeaseID(mine[0])))
	for _, id := range mine {
		t.revoke(c, clientv3.LeaseID(id))
	}
	t.equal("its key", t.value(c, t.key("k")), "-")
	_, err = c.Revoke(t.ctx, clientv3.LeaseID(mine[0]))
	t.wantErr("revoked again", err, rpctypes.ErrLeaseNotFound)
	_, err = c.Put(t.ctx, t.key("k"), "1", clientv3.WithLease(clientv3.LeaseID(mine[0])))
	t.wantErr("put with it", err, rpctypes.ErrLeaseNotFound)
}

func leaseTimeToLive(t *T) {
	c := t.client()
	id := t.grant(c, 50)
	for _, key := range []string{"b", "a"} {
		t.put(c, t.key(key), "1", clientv3.WithLease(id))
	}
	short, err := c.TimeToLive(t.ctx, id)
	t.must(err)
	t.check(short.GrantedTTL == 50 && short.TTL > 40 && short.TTL <= 50 && len(short.Keys) == 0, "%+v", short)
	long, err := c.TimeToLive(t.ctx, id, clientv3.WithAttachedKeys())
	t.must(err)
	var keys []string
	for _, key := range long.Keys {
		keys = append(keys, string(key))
	}
	sort.Strings(keys)
	t.equal("keys", keys, []string{t.key("a"), t.key("b")})
	other := t.grant(c, 50)
	t.put(c, t.key("a"), "2", clientv3.WithLease(other))
	long, err = c.TimeToLive(t.ctx, id, clientv3.WithAttachedKeys())
	t.must(err)
	t.equal("keys after one went to another", fmt.Sprintf("%s", long.Keys), fmt.Sprintf("[%s]", t.key("b")))
	t.revoke(c, id)
	t.equal("the one that went", t.value(c, t.key("a")), "2")
	gone, err := c.TimeToLive(t.ctx, id)
	t.must(err)
	t.equal("of none", gone.TTL, -1)
	t.revoke(c, other)
}

func leaseOnce(t *T) {
	c := t.client()
	id := t.grant(c, 30)
	answer, err := c.KeepAliveOnce(t.ctx, id)
	t.must(err)
	t.check(answer.ID == id && answer.TTL == 30, "%+v", answer)
	t.revoke(c, id)
	_, err = c.KeepAliveOnce(t.ctx, id)
	t.wantErr("revoked", err, rpctypes.ErrLeaseNotFound)
}

func leaseKept(t *T) {
	c := t.client()
	kept, left := t.grant(c, 2), t.grant(c, 2)
	ctx, cancel := context.WithCancel(t.ctx)
	channel, err := c.KeepAlive(ctx, kept)
	t.must(err)
	twice := t.kept(c, kept)
	deleted := t.watch(c, t.key("left"), clientv3.WithFilterPut())
	t.put(c, t.key("kept"), "1", clientv3.WithLease(kept))
	t.put(c, t.key("left"), "1", clientv3.WithLease(left))
	// That the other one ran out tells that this one would have.
	t.hears("the one that is left alone", deleted, "delete left")
	t.equal("the one that is kept", t.value(c, t.key("kept")), "1")
	for _, answers := range []<-chan *clientv3.LeaseKeepAliveResponse{channel, twice} {
		answer := t.alive(answers)
		t.check(answer != nil && answer.ID == kept && answer.TTL == 2, "%+v", answer)
	}
	cancel()
	t.until("the cancelled one ends", func() bool { return t.alive(channel) == nil })
	t.check(t.alive(twice) != nil, "the other one ended, too")
	t.revoke(c, kept)
}

func leaseKeptRevoked(t *T) {
	c := t.client()
	id := t.grant(c, 2)
	channel := t.kept(c, id)
	t.check(t.alive(channel) != nil, "never kept alive")
	t.revoke(c, id)
	t.until("the channel ends", func() bool { return t.alive(channel) == nil })
	t.check(t.alive(t.kept(c, 12345)) == nil, "a lease that does not exist was kept alive")
}

func leaseReconnect(t *T) {
	g := t.gate(t.cluster.members[0])
	c, direct := t.client(at(g.endpoint())), t.client()
	id := t.grant(c, 2)
	channel := t.kept(c, id)
	for i := 0; i < 3; i++ {
		t.check(t.alive(channel) != nil, "ended")
		g.cut()
	}
	t.check(t.alive(channel) != nil, "ended after the cut")
	t.put(direct, t.key("k"), "1", clientv3.WithLease(id))
	t.revoke(direct, id)
}

func leaseExpires(t *T) {
	c := t.client()
	id := t.grant(c, 1)
	channel := t.watch(c, t.key(""), clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithFilterPut())
	for _, key := range []string{"b", "a", "c"} {
		t.put(c, t.key(key), key, clientv3.WithLease(id))
	}
	response := t.response(channel)
	t.equal("one response", t.told(response.Events), "delete a was a, delete b was b, delete c was c")
	for _, event := range response.Events {
		t.equal("lease", event.PrevKv.Lease, int64(id))
		t.equal("revision", event.Kv.ModRevision, response.Events[0].Kv.ModRevision)
	}
}

func leaseClosed(t *T) {
	c := t.client()
	id := t.grant(c, 100)
	channel := t.kept(c, id)
	t.check(t.alive(channel) != nil, "never kept alive")
	t.must(c.Close())
	t.until("the channel ends", func() bool { return t.alive(channel) == nil })
	_, err := c.Grant(t.ctx, 100)
	t.check(clientv3.IsConnCanceled(err), "grant: %v", err)
	_, err = c.Revoke(t.ctx, id)
	t.check(clientv3.IsConnCanceled(err), "revoke: %v", err)
	t.revoke(t.client(), id)
}
