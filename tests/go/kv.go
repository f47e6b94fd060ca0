package main

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/clientv3util"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
)

var kvCases = []testCase{
	{"kv_put_with_its_options", alone, kvPut},
	{"kv_get_ranges_and_revisions", alone, kvGet},
	{"kv_get_sorted", alone, kvSort},
	{"kv_get_between_revisions", alone, kvBounds},
	{"kv_get_page_by_page", alone, kvPages},
	{"kv_get_the_first_and_the_last", alone, kvEnds},
	{"kv_delete_ranges", alone, kvDelete},
	{"kv_compact", alone, kvCompact},
	{"kv_do_takes_any_operation", alone, kvDo},
	{"kv_too_large_and_too_many", alone, kvLimits},
	{"kv_cancelled_and_closed", alone, kvCancelled},
	{"kv_goes_on_when_connections_break", alone, kvReconnect},
	{"txn_branches_and_comparisons", alone, txnCompare},
	{"txn_comparisons_of_ranges", alone, txnRanges},
	{"txn_nested", alone, txnNested},
	{"txn_refusals", alone, txnRefusals},
	{"txn_of_many_clients_counts_right", alone, txnCount},
}

func kvPut(t *T) {
	c, key := t.client(), t.key("k")
	_, err := c.Put(t.ctx, "", "v")
	t.wantErr("no key", err, rpctypes.ErrEmptyKey)
	_, err = c.Put(t.ctx, key, "v", clientv3.WithLease(12345))
	t.wantErr("no such lease", err, rpctypes.ErrLeaseNotFound)
	_, err = c.Put(t.ctx, key, "", clientv3.WithIgnoreValue())
	t.wantErr("no value to keep", err, rpctypes.ErrKeyNotFound)
	lease, err := c.Grant(t.ctx, 100)
	t.must(err)
	first := t.put(c, key, "1", clientv3.WithLease(lease.ID))
	_, err = c.Put(t.ctx, key, "x", clientv3.WithIgnoreValue())
	t.wantErr("a value besides", err, rpctypes.ErrValueProvided)
	_, err = c.Put(t.ctx, key, "x", clientv3.WithIgnoreLease(), clientv3.WithLease(lease.ID))
	t.wantErr("a lease besides", err, rpctypes.ErrLeaseProvided)
	answer, err := c.Put(t.ctx, key, "2", clientv3.WithIgnoreLease(), clientv3.WithPrevKV())
	t.must(err)
	t.equal("before", string(answer.PrevKv.Value), 1)
	t.put(c, key, "", clientv3.WithIgnoreValue())
	kv := t.get(c, key).Kvs[0]
	t.equal("key", fmt.Sprint(string(kv.Value), kv.Lease, kv.Version, kv.CreateRevision, kv.ModRevision), fmt.Sprint("2", 0, 3, first, first+2))
	_, err = c.Revoke(t.ctx, lease.ID)
	t.must(err)
	t.equal("after the lease", t.value(c, key), "2")
}

func kvGet(t *T) {
	c := t.client()
	start := t.get(c, t.key("a")).Header.Revision
	for _, key := range []string{"a", "b", "c", "c", "c", "foo", "foo/abc", "fop"} {
		t.put(c, t.key(key), "v")
	}
	for _, step := range []struct {
		key, want string
		options   []clientv3.OpOption
	}{
		{"a", "a=v", nil},
		{"none", "", nil},
		{"a", "a=v b=v", []clientv3.OpOption{clientv3.WithRange(t.key("c"))}},
		{"a", "a=v b=v c=v", []clientv3.OpOption{clientv3.WithRange(t.key("d")), clientv3.WithSerializable()}},
		{"c", "", []clientv3.OpOption{clientv3.WithRange(t.key("a"))}},
		{"a", "a=v b=v", []clientv3.OpOption{clientv3.WithRange(t.key("z")), clientv3.WithRev(start + 2)}},
		{"foo", "foo=v foo/abc=v", []clientv3.OpOption{clientv3.WithPrefix()}},
		{"", "a=v b=v c=v foo=v foo/abc=v fop=v", []clientv3.OpOption{clientv3.WithPrefix()}},
		{"", "a=v b=v", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(2)}},
		{"", "a= b= c=", []clientv3.OpOption{clientv3.WithRange(t.key("d")), clientv3.WithKeysOnly()}},
		{"", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}},
	} {
		t.equal(step.key, t.pairs(t.get(c, t.key(step.key), step.options...)), step.want)
	}
	t.equal("count", t.get(c, t.key(""), clientv3.WithPrefix(), clientv3.WithCountOnly()).Count, 6)
	t.equal("version", t.get(c, t.key("c")).Kvs[0].Version, 3)
	everything := t.get(c, "", clientv3.WithPrefix(), clientv3.WithCountOnly()).Count
	t.equal("from the empty key", t.get(c, "", clientv3.WithFromKey(), clientv3.WithCountOnly()).Count, everything)
	t.check(everything >= 6, "only %d keys", everything)
	_, err := c.Get(t.ctx, t.key("a"), clientv3.WithRev(start+10000))
	t.wantErr("a revision to come", err, rpctypes.ErrFutureRev)
	_, err = c.Get(t.ctx, "")
	t.wantErr("no key", err, rpctypes.ErrEmptyKey)
	page := t.get(c, t.key(""), clientv3.WithPrefix(), clientv3.WithLimit(4))
	t.equal("more", fmt.Sprint(page.More, page.Count, len(page.Kvs)), "true 6 4")
}

func kvSort(t *T) {
	c := t.client()
	for _, pair := range []string{"b=3", "a=2", "c=1", "a=2", "b=3", "a=2"} {
		half := strings.Split(pair, "=")
		t.put(c, t.key(half[0]), half[1])
	}
	for _, step := range []struct {
		target clientv3.SortTarget
		order  clientv3.SortOrder
		want   string
	}{
		{clientv3.SortByKey, clientv3.SortNone, "a b c"},
		{clientv3.SortByKey, clientv3.SortAscend, "a b c"},
		{clientv3.SortByKey, clientv3.SortDescend, "c b a"},
		{clientv3.SortByVersion, clientv3.SortAscend, "c b a"},
		{clientv3.SortByVersion, clientv3.SortDescend, "a b c"},
		{clientv3.SortByCreateRevision, clientv3.SortNone, "b a c"},
		{clientv3.SortByCreateRevision, clientv3.SortDescend, "c a b"},
		{clientv3.SortByModRevision, clientv3.SortAscend, "c b a"},
		{clientv3.SortByModRevision, clientv3.SortDescend, "a b c"},
		{clientv3.SortByValue, clientv3.SortAscend, "c a b"},
		{clientv3.SortByValue, clientv3.SortDescend, "b a c"},
	} {
		for limit := 0; limit <= 2; limit++ {
			answer := t.get(c, t.key(""), clientv3.WithPrefix(), clientv3.WithSort(step.target, step.order), clientv3.WithLimit(int64(limit)))
			var keys []string
			for _, kv := range answer.Kvs {
				keys = append(keys, strings.TrimPrefix(string(kv.Key), t.key("")))
			}
			want := strings.Fields(step.want)
			if limit > 0 {
				want = want[:limit]
			}
			t.equal(fmt.Sprint("target ", step.target, " order ", step.order, " limit ", limit), keys, want)
		}
	}
}

func kvBounds(t *T) {
	c := t.client()
	first := t.put(c, t.key("a"), "1")
	t.put(c, t.key("b"), "1")
	t.put(c, t.key("a"), "2")
	t.put(c, t.key("c"), "1")
	// a was created at the first revision and changed at the third, b is of the second, c of the fourth.
	for _, step := range []struct {
		want    string
		options []clientv3.OpOption
	}{
		{"a=2 c=1", []clientv3.OpOption{clientv3.WithMinModRev(first + 2)}},
		{"a=2 b=1", []clientv3.OpOption{clientv3.WithMaxModRev(first + 2)}},
		{"b=1 c=1", []clientv3.OpOption{clientv3.WithMinCreateRev(first + 1)}},
		{"a=2 b=1", []clientv3.OpOption{clientv3.WithMaxCreateRev(first + 1)}},
		{"b=1", []clientv3.OpOption{clientv3.WithMinCreateRev(first + 1), clientv3.WithMaxModRev(first + 2)}},
	} {
		answer := t.get(c, t.key(""), append(step.options, clientv3.WithPrefix())...)
		t.equal("between", t.pairs(answer), step.want)
		t.equal("count of the range, whatever is left out", answer.Count, 3)
	}
}

func kvPages(t *T) {
	const count = 25
	c := t.client()
	for i := 0; i < count; i++ {
		t.put(c, t.key(fmt.Sprintf("%02d", i)), fmt.Sprint(i))
	}
	at := t.get(c, t.key("")).Header.Revision
	end, from, seen := clientv3.GetPrefixRangeEnd(t.key("")), t.key(""), 0
	for more := true; more; {
		page := t.get(c, from, clientv3.WithRange(end), clientv3.WithLimit(4), clientv3.WithRev(at))
		t.equal("left", page.Count, count-seen)
		for _, kv := range page.Kvs {
			t.equal("value", string(kv.Value), seen)
			seen++
		}
		from, more = string(page.Kvs[len(page.Kvs)-1].Key)+"\x00", page.More
		// What is written meanwhile is not in later pages, whose revision is that of the first.
		t.put(c, t.key(fmt.Sprint("x", seen)), "late")
	}
	t.equal("seen", seen, count)
}

func kvEnds(t *T) {
	c := t.client()
	for _, key := range []string{"b", "c", "a", "b"} {
		t.put(c, t.key(key), "v")
	}
	for _, step := range []struct {
		want    string
		options []clientv3.OpOption
	}{
		{"a", clientv3.WithFirstKey()}, {"c", clientv3.WithLastKey()},
		{"b", clientv3.WithFirstCreate()}, {"a", clientv3.WithLastCreate()},
		{"c", clientv3.WithFirstRev()}, {"b", clientv3.WithLastRev()},
	} {
		t.equal("one key", t.pairs(t.get(c, t.key(""), step.options...)), step.want+"=v")
	}
}

func kvDelete(t *T) {
	c := t.client()
	for _, step := range []struct {
		key, gone string
		options   []clientv3.OpOption
	}{
		{"a", "a", nil},
		{"a", "a b", []clientv3.OpOption{clientv3.WithRange(t.key("c"))}},
		{"c", "c ca d", []clientv3.OpOption{clientv3.WithFromKey()}},
		{"c", "c ca", []clientv3.OpOption{clientv3.WithPrefix()}},
		{"", "a b c ca d", []clientv3.OpOption{clientv3.WithPrefix()}},
		{"none", "", nil},
		{"d", "", []clientv3.OpOption{clientv3.WithRange(t.key("a"))}},
	} {
		t.delete(c, t.key(""), clientv3.WithPrefix())
		// "From key" goes to the end of the whole store; the world's other keys are of cases that are over.
		var before int64
		for _, key := range []string{"a", "b", "c", "ca", "d"} {
			before = t.put(c, t.key(key), "v")
		}
		answer, err := c.Delete(t.ctx, t.key(step.key), append(step.options, clientv3.WithPrevKV())...)
		t.must(err)
		var gone []string
		for _, kv := range answer.PrevKvs {
			if strings.HasPrefix(string(kv.Key), t.key("")) {
				gone = append(gone, strings.TrimPrefix(string(kv.Key), t.key("")))
			}
		}
		t.equal("deleted", strings.Join(gone, " "), step.gone)
		t.equal("count", answer.Deleted, len(answer.PrevKvs))
		if answer.Deleted > 0 {
			before++
		}
		t.equal("revision", answer.Header.Revision, before)
		t.equal("left", t.get(c, t.key(""), clientv3.WithPrefix()).Count, 5-len(gone))
		t.equal("before the deletion", t.get(c, t.key(""), clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision-1)).Count >= 4, true)
	}
}

func kvCompact(t *T) {
	c, key := t.client(), t.key("k")
	first := t.put(c, key, "1")
	for i := 2; i <= 5; i++ {
		t.put(c, key, fmt.Sprint(i))
	}
	_, err := c.Compact(t.ctx, first+2)
	t.must(err)
	_, err = c.Compact(t.ctx, first+2)
	t.wantErr("again", err, rpctypes.ErrCompacted)
	_, err = c.Compact(t.ctx, first+1)
	t.wantErr("before", err, rpctypes.ErrCompacted)
	_, err = c.Compact(t.ctx, first+1000)
	t.wantErr("the future", err, rpctypes.ErrFutureRev)
	_, err = c.Get(t.ctx, key, clientv3.WithRev(first+1))
	t.wantErr("a compacted revision", err, rpctypes.ErrCompacted)
	t.equal("at the compaction", t.value(c, key, clientv3.WithRev(first+2)), "3")
	_, err = c.Compact(t.ctx, first+3, clientv3.WithCompactPhysical())
	t.must(err)
	t.equal("now", t.value(c, key), "5")
}

func kvDo(t *T) {
	c, key := t.client(), t.key("k")
	ops := []clientv3.Op{
		clientv3.OpPut(key, "1"), clientv3.OpGet(key), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(key, "2")}, nil), clientv3.OpDelete(key),
	}
	var kinds []string
	for _, op := range ops {
		answer, err := c.Do(t.ctx, op)
		t.must(err)
		kinds = append(kinds, fmt.Sprint(answer.Put() != nil, answer.Get() != nil, answer.Txn() != nil, answer.Del() != nil))
	}
	t.equal("answers", kinds, "[true false false false false true false false false false true false false false false true]")
}

func kvLimits(t *T) {
	c := t.client()
	_, err := c.Put(t.ctx, t.key("k"), strings.Repeat("x", 3<<19+1))
	t.wantErr("more than the server takes", err, rpctypes.ErrRequestTooLarge)
	_, err = c.Put(t.ctx, t.key("k"), strings.Repeat("x", 3<<20))
	t.check(err != nil && strings.Contains(err.Error(), "larger than max"), "more than the client sends: %v", err)
	t.put(c, t.key("k"), strings.Repeat("x", 1<<20))
	t.equal("a mebibyte", len(t.value(c, t.key("k"))), 1<<20)
	tight := t.client(func(config *clientv3.Config) { config.MaxCallRecvMsgSize = 1 << 19 })
	_, err = tight.Get(t.ctx, t.key("k"))
	t.check(err != nil && strings.Contains(err.Error(), "larger than max"), "more than the client takes: %v", err)
}

func kvCancelled(t *T) {
	c := t.client()
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	_, err := c.Get(ctx, t.key("k"))
	t.wantErr("cancelled", err, context.Canceled)
	t.put(c, t.key("k"), "1")
	t.must(c.Close())
	_, err = c.Get(t.ctx, t.key("k"))
	t.check(clientv3.IsConnCanceled(err), "get after closing: %v", err)
	_, err = c.Put(t.ctx, t.key("k"), "2")
	t.check(clientv3.IsConnCanceled(err), "put after closing: %v", err)
}

func kvReconnect(t *T) {
	direct, g := t.client(), t.gate(t.cluster.members[0])
	c := t.client(at(g.endpoint()))
	for i := 0; i < 20; i++ {
		t.put(direct, t.key("k"), fmt.Sprint(i))
		g.cut()
		// Reads are tried again by the client until they are answered.
		t.equal("read", t.value(c, t.key("k")), i)
	}
	// A put may have been carried out when its answer is lost, so the client does not repeat it; at most once each.
	failed := 0
	for i := 0; i < 50; i++ {
		cut := t.start(func() error { g.cut(); return nil })
		if _, err := c.Put(t.ctx, t.key("counted"), fmt.Sprint(i)); err != nil {
			failed++
		}
		t.join(cut)
	}
	version := int64(0)
	if answer := t.get(direct, t.key("counted")); len(answer.Kvs) > 0 {
		version = answer.Kvs[0].Version
	}
	t.check(version <= 50 && version >= int64(50-failed), "50 puts, %d of which failed, are %d versions", failed, version)
}

func txnCompare(t *T) {
	c, key := t.client(), t.key("k")
	lease, err := c.Grant(t.ctx, 100)
	t.must(err)
	first := t.put(c, key, "b")
	last := t.put(c, key, "m", clientv3.WithLease(lease.ID))
	for _, step := range []struct {
		holds bool
		what  clientv3.Cmp
	}{
		{true, clientv3.Compare(clientv3.Value(key), "=", "m")},
		{false, clientv3.Compare(clientv3.Value(key), "!=", "m")},
		{true, clientv3.Compare(clientv3.Value(key), ">", "b")},
		{false, clientv3.Compare(clientv3.Value(key), "<", "b")},
		{true, clientv3.Compare(clientv3.Version(key), "=", 2)},
		{false, clientv3.Compare(clientv3.Version(key), ">", 2)},
		{true, clientv3.Compare(clientv3.CreateRevision(key), "=", first)},
		{true, clientv3.Compare(clientv3.ModRevision(key), "=", last)},
		{true, clientv3.Compare(clientv3.ModRevision(key), ">", first)},
		{false, clientv3.Compare(clientv3.ModRevision(key), "<", last)},
		{true, clientv3.Compare(clientv3.LeaseValue(key), "=", lease.ID)},
		{false, clientv3.Compare(clientv3.LeaseValue(key), "=", 0)},
		{true, clientv3.Compare(clientv3.Version(t.key("none")), "=", 0)},
		{false, clientv3.Compare(clientv3.Value(t.key("none")), "=", "")},
		{true, clientv3util.KeyExists(key)},
		{false, clientv3util.KeyMissing(key)},
		{true, clientv3util.KeyMissing(t.key("none"))},
	} {
		answer, err := c.Txn(t.ctx).If(step.what).Then(clientv3.OpGet(key)).Else(clientv3.OpPut(t.key("else"), "1"), clientv3.OpGet(key)).Commit()
		t.must(err)
		t.equal(fmt.Sprint(step.what), answer.Succeeded, step.holds)
		want := 2
		if step.holds {
			want = 1
		}
		t.equal("answers", len(answer.Responses), want)
	}
	both, err := c.Txn(t.ctx).If(clientv3.Compare(clientv3.Value(key), "=", "m"), clientv3.Compare(clientv3.Version(key), "=", 9)).Commit()
	t.must(err)
	t.equal("one of two holds", both.Succeeded, false)
	_, err = c.Revoke(t.ctx, lease.ID)
	t.must(err)
}

func txnRanges(t *T) {
	c := t.client()
	lowest := t.put(c, t.key("a"), "1")
	t.put(c, t.key("b"), "1")
	for _, step := range []struct {
		holds bool
		what  clientv3.Cmp
	}{
		{true, clientv3.Compare(clientv3.Value(t.key("")), "=", "1").WithPrefix()},
		{true, clientv3.Compare(clientv3.ModRevision(t.key("a")), ">", lowest-1).WithRange(t.key("c"))},
		{false, clientv3.Compare(clientv3.ModRevision(t.key("a")), ">", lowest).WithRange(t.key("c"))},
		{true, clientv3.Compare(clientv3.ModRevision(t.key("b")), ">", lowest).WithRange(t.key("c"))},
		{true, clientv3.Compare(clientv3.CreateRevision(t.key("x")), "=", 0).WithPrefix()},
	} {
		answer, err := c.Txn(t.ctx).If(step.what).Commit()
		t.must(err)
		t.equal(fmt.Sprint(step.what), answer.Succeeded, step.holds)
	}
}

func txnNested(t *T) {
	c := t.client()
	first := t.put(c, t.key("a"), "1")
	is := func(key, value string) []clientv3.Cmp {
		return []clientv3.Cmp{clientv3.Compare(clientv3.Value(t.key(key)), "=", value)}
	}
	answer, err := c.Txn(t.ctx).If(is("a", "1")...).Then(
		clientv3.OpPut(t.key("b"), "then"),
		clientv3.OpTxn(is("a", "2"), []clientv3.Op{clientv3.OpPut(t.key("c"), "wrong")}, []clientv3.Op{
			clientv3.OpPut(t.key("c"), "else"),
			clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(t.key("d"), "deep"), clientv3.OpGet(t.key("b"))}, nil),
		}),
		clientv3.OpGet(t.key("c")),
	).Commit()
	t.must(err)
	t.equal("one revision", answer.Header.Revision, first+1)
	nested := answer.Responses[1].GetResponseTxn()
	t.equal("nested comparison", nested.Succeeded, false)
	deep := nested.Responses[1].GetResponseTxn()
	t.equal("read of a put of the same txn", string(deep.Responses[1].GetResponseRange().Kvs[0].Value), "then")
	t.equal("read behind the nested one", string(answer.Responses[2].GetResponseRange().Kvs[0].Value), "else")
	t.equal("all", t.pairs(t.get(c, t.key(""), clientv3.WithPrefix())), "a=1 b=then c=else d=deep")
}

func txnRefusals(t *T) {
	c := t.client()
	var many []clientv3.Op
	for i := 0; i < 129; i++ {
		many = append(many, clientv3.OpPut(t.key(fmt.Sprint(i)), ""))
	}
	try := func(ops ...clientv3.Op) error {
		_, err := c.Txn(t.ctx).Then(ops...).Commit()
		return err
	}
	t.wantErr("too many", try(many...), rpctypes.ErrTooManyOps)
	t.must(try(many[:128]...))
	before := t.get(c, "x").Header.Revision
	a := clientv3.OpPut(t.key("a"), "1")
	t.wantErr("twice", try(a, a), rpctypes.ErrDuplicateKey)
	t.wantErr("twice, one nested", try(a, clientv3.OpTxn(nil, []clientv3.Op{a}, nil)), rpctypes.ErrDuplicateKey)
	t.wantErr("put and deleted", try(a, clientv3.OpDelete(t.key(""), clientv3.WithPrefix())), rpctypes.ErrDuplicateKey)
	t.must(try(clientv3.OpTxn([]clientv3.Cmp{clientv3util.KeyExists(t.key("z"))}, []clientv3.Op{a}, []clientv3.Op{a})))
	t.wantErr("no key", try(clientv3.OpPut("", "1")), rpctypes.ErrEmptyKey)
	t.wantErr("no lease", try(clientv3.OpPut(t.key("b"), "1"), clientv3.OpPut(t.key("c"), "1", clientv3.WithLease(12345))), rpctypes.ErrLeaseNotFound)
	t.wantErr("the future", try(clientv3.OpPut(t.key("b"), "1"), clientv3.OpGet(t.key("c"), clientv3.WithRev(before+1000))), rpctypes.ErrFutureRev)
	answer := t.get(c, t.key("b"))
	t.equal("nothing of what was refused", fmt.Sprint(answer.Header.Revision, len(answer.Kvs)), fmt.Sprint(before+1, 0))
}

func txnCount(t *T) {
	const clients, each = 4, 25
	var tasks []task
	main := t.client()
	t.put(main, t.key("n"), "0")
	for i := 0; i < clients; i++ {
		c := t.client()
		tasks = append(tasks, t.start(func() error {
			for done := 0; done < each; {
				found, err := c.Get(t.ctx, t.key("n"))
				if err != nil {
					return err
				}
				var n int
				fmt.Sscan(string(found.Kvs[0].Value), &n)
				answer, err := c.Txn(t.ctx).If(clientv3.Compare(clientv3.ModRevision(t.key("n")), "=", found.Kvs[0].ModRevision)).
					Then(clientv3.OpPut(t.key("n"), fmt.Sprint(n+1))).Commit()
				if err != nil {
					return err
				}
				if answer.Succeeded {
					done++
				}
			}
			return nil
		}))
	}
	t.join(tasks...)
	t.equal("the count", t.value(main, t.key("n")), clients*each)
}
