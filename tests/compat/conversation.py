"""The scripted conversation: what is said to both servers, section by section.

Every function is one section; `t` is a Talk. Revisions are absolute: both sides start from an empty store, so every
revision a client can see must be the same on both. Nothing sleeps: what has to arrive is waited for.
"""

import itertools

from stubs import authpb, electionpb, lockpb, pb

KV, WATCH, LEASE = "/etcdserverpb.KV/", "/etcdserverpb.Watch/", "/etcdserverpb.Lease/"
CLUSTER, MAINTENANCE, AUTH = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/", "/etcdserverpb.Auth/"
ALL = (b"\0", b"\0")


def prefix(key):
    """The range of all keys that start with key."""
    return key, key[:-1] + bytes([key[-1] + 1])


def op_range(key, end=b"", **fields):
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=end, **fields))


def op_put(key, value=b"", **fields):
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, **fields))


def op_delete(key, end=b"", **fields):
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end, **fields))


def op_txn(compare=(), success=(), failure=()):
    return pb.RequestOp(request_txn=pb.TxnRequest(compare=compare, success=success, failure=failure))


def compare(key, target, result, end=b"", **union):
    return pb.Compare(key=key, target=target, result=result, range_end=end, **union)


def empty_store(t):
    t.range(*ALL)
    t.range(b"a")
    t.range(b"a", revision=1)
    t.range(b"a", revision=2)
    t.delete(b"a")
    t.delete(*ALL)
    t.hash_kv()
    t.hash_kv(1)
    t.hash_kv(2)
    t.compact(1)
    t.compact(1)
    t.range(b"a", revision=1)
    t.hash_kv()
    t.leases_list()
    t.txn()


def put(t):
    t.put(b"put/a", b"1")
    t.put(b"put/a", b"2", prev_kv=True)
    t.put(b"put/b", b"", prev_kv=True)
    t.put(b"put/a", b"", ignore_value=True)
    t.put(b"put/a", b"x", ignore_value=True)
    t.put(b"put/none", b"", ignore_value=True)
    t.put(b"put/none", b"1", ignore_lease=True)
    t.put(b"put/a", b"3", ignore_lease=True, prev_kv=True)
    t.put(b"put/a", b"3", lease=77)
    t.put(b"put/a", b"3", lease=77, ignore_lease=True)
    t.put(b"", b"1")
    t.put(b"", b"", ignore_value=True)
    t.put(b"\0", b"zero byte")
    t.put(b"\xff\xff", b"high bytes")
    t.put(b"put/\x00\x01\xfe", bytes(range(256)))
    t.range(b"put/\x00\x01\xfe")
    t.put(b"put/a", b"", ignore_value=True, ignore_lease=True, prev_kv=True)
    t.put(b"put/none", b"", ignore_value=True, ignore_lease=True)
    t.put(b"put/a", b"x", lease=-1)
    t.range(b"put/a")
    t.delete(b"\0")
    t.delete(b"\xff\xff", prev_kv=True)
    t.delete(*prefix(b"put/"), prev_kv=True)


def range_fill(t):
    """Keys whose version, creation, modification and value orders all differ."""
    for key, value in ((b"r/c", b"5"), (b"r/a", b"9"), (b"r/b", b"1"), (b"r/e", b"3"), (b"r/d", b"3"), (b"r/a", b"4"),
                       (b"r/c", b"2"), (b"r/c", b"7"), (b"r/ab", b""), (b"r", b"root"), (b"s", b"next")):
        t.put(key, value)
    t.delete(b"r/e")
    t.put(b"r/e", b"6")


def range_shapes(t):
    for key, end in ((b"r/a", b""), (b"r/zz", b""), (b"r/", b"r0"), (b"r/b", b"r/d"), (b"r/d", b"r/b"), (b"r/b", b"r/b"),
                     (b"r/c", b"\0"), (b"\0", b"\0"), (b"", b""), (b"", b"\0"), (b"", b"r/b"), (b"r/a\0", b"r/b"),
                     (b"\xff", b"\0"), (b"r", b"r\0"), (b"r/b", b"\xff")):
        t.range(key, end)
    for key, end in ((b"r/a", b""), (b"r/", b"r0"), (b"r/d", b"r/b")):
        t.range(key, end, serializable=True)


def range_options(t):
    for target, order in itertools.product(range(5), range(3)):
        t.range(b"r/", b"r0", sort_target=target, sort_order=order)
        t.range(b"r/", b"r0", sort_target=target, sort_order=order, limit=2)
    for limit in (-1, 0, 1, 5, 6, 7, 1 << 40):
        t.range(b"r/", b"r0", limit=limit)
    t.range(b"r/a", limit=1)
    for fields in ({"keys_only": True}, {"count_only": True}, {"keys_only": True, "count_only": True}):
        t.range(b"r/", b"r0", **fields)
        t.range(b"r/", b"r0", limit=2, **fields)
        t.range(b"r/a", **fields)
        t.range(b"r/zz", **fields)
        t.range(b"r/", b"r0", sort_target=pb.RangeRequest.VALUE, sort_order=pb.RangeRequest.DESCEND, **fields)
    first = t.range(b"r/", b"r0", sort_target=pb.RangeRequest.MOD, sort_order=pb.RangeRequest.ASCEND).kvs
    low, high = first[1].mod_revision, first[-2].mod_revision
    for fields in ({"min_mod_revision": low}, {"max_mod_revision": high}, {"min_mod_revision": low, "max_mod_revision": high},
                   {"min_mod_revision": high, "max_mod_revision": low}, {"min_create_revision": low},
                   {"max_create_revision": high}, {"min_create_revision": low, "max_create_revision": high},
                   {"min_mod_revision": -5}, {"max_mod_revision": -5}, {"min_create_revision": 1 << 50}):
        t.range(b"r/", b"r0", **fields)
        t.range(b"r/", b"r0", limit=2, **fields)
        t.range(b"r/", b"r0", limit=2, sort_order=pb.RangeRequest.DESCEND, **fields)
        t.range(b"r/", b"r0", count_only=True, **fields)
    for fields in ({"sort_order": 7}, {"sort_order": 3}, {"sort_order": -1}):
        t.range(b"r/", b"r0", **fields)
    for revision in range(low - 3, t.revision + 1):
        t.range(b"r/", b"r0", revision=revision)
    t.range(b"r/", b"r0", revision=t.revision + 1)
    t.range(b"r/", b"r0", revision=1 << 62)
    t.range(b"r/", b"r0", revision=-1)
    t.range(b"r/", b"r0", revision=low, serializable=True, limit=1)
    t.range(b"r/", b"r0", revision=low + 3, count_only=True)
    t.range(b"r/", b"r0", revision=t.revision + 1, serializable=True)
    t.range(b"r/", b"r0", revision=low + 3, sort_target=pb.RangeRequest.VALUE, sort_order=pb.RangeRequest.DESCEND, limit=3)


def delete(t):
    for key in (b"d/1", b"d/2", b"d/3", b"d/4", b"e"):
        t.put(key, key[-1:])
    t.delete(b"d/1")
    t.delete(b"d/1")
    t.delete(b"d/2", prev_kv=True)
    t.delete(b"d/none", prev_kv=True)
    t.delete(b"d/9", b"d/0")
    t.delete(b"d/3", b"d/3")
    t.delete(b"d/", b"d0", prev_kv=True)
    t.delete(b"")
    t.delete(b"", b"\0")
    t.put(b"d/1", b"again")
    t.range(b"d/1")
    t.delete(b"d/", b"\0")
    t.range(*ALL, count_only=True)


def txn_compares(t):
    """Every target with every operator, on a present key, a missing key, a range, and an empty range."""
    t.put(b"c/a", b"m")
    t.put(b"c/b", b"n")
    kv = t.put(b"c/a", b"m", prev_kv=True).prev_kv
    unions = {pb.Compare.VERSION: ("version", (1, 2, 3)),
              pb.Compare.CREATE: ("create_revision", (kv.create_revision,)),
              pb.Compare.MOD: ("mod_revision", (t.revision,)),
              pb.Compare.VALUE: ("value", (b"m",)),
              pb.Compare.LEASE: ("lease", (0,))}
    places = ((b"c/a", b""), (b"c/none", b""), (b"c/", b"c0"), (b"cc", b"cd"))
    for target, (field, values) in unions.items():
        for result, (key, end), value in itertools.product(range(4), places, values[:1]):
            t.txn([compare(key, target, result, end, **{field: value})], [op_range(b"c/a", count_only=True)])
        for value in values[1:]:
            t.txn([compare(b"c/a", target, pb.Compare.EQUAL, **{field: value})])
        t.txn([compare(b"c/a", target, pb.Compare.EQUAL)])
        t.txn([compare(b"c/none", target, pb.Compare.EQUAL)])
        t.txn([compare(b"c/none", target, pb.Compare.GREATER)])
    t.txn([compare(b"c/a", pb.Compare.VERSION, pb.Compare.EQUAL, value=b"m")])
    t.txn([compare(b"c/a", pb.Compare.VALUE, pb.Compare.EQUAL, version=2)])
    t.txn([compare(b"c/a", pb.Compare.VALUE, pb.Compare.GREATER, value=b"")])
    t.txn([compare(b"", pb.Compare.VERSION, pb.Compare.EQUAL, version=0)])
    t.txn([compare(b"", pb.Compare.VERSION, pb.Compare.EQUAL, b"\0", version=0)])
    t.txn([compare(b"c/a", 9, pb.Compare.EQUAL, version=2)])
    t.txn([compare(b"c/a", pb.Compare.VERSION, 9, version=2)])
    t.txn([compare(b"c/a", pb.Compare.VERSION, pb.Compare.EQUAL, b"c/a", version=0)])
    t.txn([compare(b"c/a", pb.Compare.VERSION, pb.Compare.EQUAL, version=2),
           compare(b"c/b", pb.Compare.VERSION, pb.Compare.EQUAL, version=2)], failure=[op_range(b"c/b")])


def txn_ops(t):
    t.txn(success=[op_put(b"t/a", b"1"), op_put(b"t/b", b"2"), op_range(b"t/", b"t0"), op_delete(b"t/none")])
    t.txn(success=[op_range(b"t/a"), op_put(b"t/a", b"3", prev_kv=True), op_range(b"t/a"), op_delete(b"t/b", prev_kv=True),
                   op_range(b"t/", b"t0")])
    t.txn(success=[op_delete(b"t/none")])
    t.txn(success=[op_range(b"t/", b"t0"), op_range(b"t/a", serializable=True)])
    t.txn(success=[op_range(b"t/", b"t0", limit=1, sort_order=pb.RangeRequest.DESCEND)])
    t.txn([compare(b"t/a", pb.Compare.VALUE, pb.Compare.EQUAL, value=b"no")], [op_put(b"t/x", b"1")], [op_put(b"t/y", b"1")])
    t.txn([compare(b"t/a", pb.Compare.VALUE, pb.Compare.EQUAL, value=b"no")], [op_put(b"t/x", b"1")])
    t.txn(success=[op_put(b"t/n", b"1"), op_txn(success=[op_put(b"t/m", b"2"), op_range(b"t/n")]), op_put(b"t/o", b"3")])
    t.txn(success=[op_txn([compare(b"t/n", pb.Compare.VERSION, pb.Compare.GREATER, version=5)],
                          [op_range(b"t/n")], [op_range(b"t/m"), op_txn(success=[op_range(b"t/o")])])])
    t.txn(success=[op_put(b"t/p", b"1"), op_txn([compare(b"t/p", pb.Compare.CREATE, pb.Compare.EQUAL, create_revision=0)],
                                               [op_range(b"t/p")], [op_delete(b"t/p")])])
    t.txn(success=[op_delete(b"t/n"), op_delete(b"t/", b"t0"), op_delete(b"t/", b"t0")])
    t.txn(success=[op_put(b"t/q", b"1"), op_delete(b"t/z", b"t/zz")])
    t.txn(success=[op_delete(b"t/q"), op_range(b"t/q"), op_range(b"t/", b"t0", count_only=True)])
    t.txn(success=[op_put(b"t/a", b"1"), op_range(b"t/a", revision=t.revision)])
    t.txn(success=[op_txn()])
    t.txn(success=[op_txn(success=[op_txn(success=[op_txn(success=[op_put(b"t/deep", b"1")])])])])


def txn_errors(t):
    t.put(b"te/a", b"1")
    t.txn(success=[op_put(b"te/a", b"1"), op_put(b"te/a", b"2")])
    t.txn(success=[op_put(b"te/a", b"1"), op_delete(b"te/a")])
    t.txn(success=[op_delete(b"te/", b"te0"), op_put(b"te/a", b"1")])
    t.txn(success=[op_put(b"te/a", b"1"), op_txn(success=[op_put(b"te/a", b"2")])])
    t.txn(success=[op_txn(success=[op_put(b"te/a", b"1")]), op_put(b"te/a", b"2")])
    t.txn(success=[op_txn(success=[op_put(b"te/a", b"1")], failure=[op_put(b"te/a", b"2")])])
    t.txn(success=[op_txn(success=[op_delete(b"te/", b"te0")]), op_put(b"te/a", b"2")])
    t.txn(success=[op_txn(success=[op_put(b"te/a", b"1")]), op_delete(b"te/", b"te0")])
    # Never carried out, so that the stores stay equal: whether it is refused is the question.
    t.txn([compare(b"te/a", pb.Compare.VERSION, pb.Compare.EQUAL, version=0)],
          [op_put(b"te/a", b"1"), op_delete(b"te/", b"\0")])
    t.txn(success=[op_put(b"te/b", b"1")], failure=[op_put(b"te/b", b"1"), op_put(b"te/b", b"2")])
    t.txn(success=[op_put(b"te/b", b"1")], failure=[op_put(b"te/b", b"2")])
    t.txn(success=[op_put(b"te/b", b"1"), op_range(b"te/b")])
    t.txn(success=[op_delete(b"te/b"), op_delete(b"te/b")])
    t.txn(success=[op_put(b"", b"1")])
    t.txn(failure=[op_put(b"", b"1")])
    t.txn(success=[op_range(b"")])
    t.txn(success=[op_delete(b"")])
    t.txn(success=[op_txn(success=[op_put(b"", b"")])])
    t.txn(success=[op_txn([compare(b"", 0, 0)])])
    t.txn(success=[op_put(b"te/a", b"x", ignore_value=True)])
    t.txn(success=[op_put(b"te/a", b"x", ignore_lease=True, lease=5)])
    t.txn(success=[op_put(b"te/none", ignore_value=True)])
    t.txn(success=[op_put(b"te/none", b"1", ignore_lease=True)])
    t.txn(success=[op_put(b"te/none", b"1"), op_txn(success=[op_put(b"te/none2", ignore_value=True)])])
    t.txn(failure=[op_put(b"te/none", ignore_value=True)])
    t.txn(success=[op_put(b"te/c", b"1", lease=12345)])
    t.txn(failure=[op_put(b"te/c", b"1", lease=12345)])
    t.txn(success=[op_put(b"te/c", b"1"), op_put(b"te/d", b"1", lease=12345)])
    t.range(b"te/c")
    t.txn(success=[op_range(b"te/a", revision=t.revision + 1)])
    t.txn(success=[op_put(b"te/a", b"1"), op_range(b"te/a", revision=t.revision + 1)])
    t.txn(success=[op_put(b"te/a", b"1"), op_range(b"te/a", revision=t.revision + 9)])
    t.txn(failure=[op_range(b"te/a", revision=t.revision + 9)])
    t.txn(success=[op_range(b"te/a", sort_order=8)])
    t.txn(success=[pb.RequestOp()])
    t.txn(failure=[pb.RequestOp()])
    t.txn(success=[op_put(b"te/a", b"1"), pb.RequestOp()])
    many = [op_put(b"te/many%03d" % i, b"1") for i in range(129)]
    t.txn(success=many)
    t.txn(success=many[:128])
    t.txn(failure=many)
    t.txn([compare(b"te/a", 0, 0)] * 129)
    t.txn([compare(b"te/none", 0, 0)] * 128)
    t.txn(success=[*many[:100], op_txn(success=many[100:128])])
    t.txn(success=[*many[:100], op_txn(success=many[100:129])])
    t.txn(success=[*many[:90], op_txn(success=many[90:127])])
    t.txn(success=[*many[:127], op_txn(success=many[127:128])])
    t.txn(success=[op_txn(success=many)])
    t.delete(*prefix(b"te/"))


def lease(t):
    t.grant(100, 11)
    t.grant(100, 11)
    t.grant(50)
    t.grant(0, 12)
    t.grant(-7, 13)
    t.grant(1, 14)
    t.grant(9_000_000_000, 15)
    t.grant(9_000_000_001, 16)
    t.grant(1 << 62, 16)
    t.grant(100, -5)
    t.grant(100, (1 << 63) - 1)
    for each in (11, 404, 0, -5):
        t.ttl(each)
        t.ttl(each, keys=True)
    t.put(b"l/a", b"1", lease=11)
    t.put(b"l/c", b"1", lease=11)
    t.put(b"l/b", b"1", lease=11, prev_kv=True)
    t.ttl(11, keys=True)
    t.put(b"l/a", b"2")
    t.ttl(11, keys=True)
    t.put(b"l/b", b"2", ignore_lease=True)
    t.put(b"l/b", b"3", lease=15, prev_kv=True)
    t.ttl(11, keys=True)
    t.ttl(15, keys=True)
    t.range(*prefix(b"l/"))
    t.put(b"l/a", b"", ignore_value=True, lease=11)
    t.delete(b"l/a", prev_kv=True)
    t.ttl(11, keys=True)
    t.txn(success=[op_put(b"l/t", b"1", lease=11), op_put(b"l/u", b"1", lease=15)])
    t.txn([compare(b"l/t", pb.Compare.LEASE, pb.Compare.EQUAL, lease=11)], [op_put(b"l/t", b"2", ignore_lease=True)])
    t.txn([compare(b"l/", pb.Compare.LEASE, pb.Compare.GREATER, b"l0", lease=10)])
    t.ttl(11, keys=True)
    t.keep_alive(11)
    t.keep_alive(404)
    t.keep_alive(11, 404, 15, 0, -1)
    t.keep_alive()
    t.revoke(404)
    t.revoke(0)
    t.revoke(14)
    t.revoke(11)
    t.revoke(11)
    t.range(*prefix(b"l/"))
    t.put(b"l/a", b"1", lease=11)
    t.ttl(11)
    for each in (12, 13, 15, -5, (1 << 63) - 1):
        t.revoke(each)
    t.delete(*prefix(b"l/"))


def lease_expiry(t):
    """What a watcher and the store see when a lease runs out. The shortest lease there is."""
    w = t.watch("expiry")
    w.create(*prefix(b"x/"), prev_kv=True)
    t.grant(1, 21)
    t.put(b"x/b", b"1", lease=21)
    t.put(b"x/a", b"1", lease=21)
    t.put(b"x/c", b"1", lease=21)
    t.put(b"x/c", b"2")
    w.until_events(0, 6)
    t.range(*prefix(b"x/"))
    t.ttl(21, keys=True)
    t.keep_alive(21)
    t.revoke(21)
    t.put(b"x/a", b"2", lease=21)
    w.settle()
    w.report()
    w.close()
    for each in list(t.leases):
        t.revoke(each)
    t.leases_list()


def watch_create(t):
    w = t.watch("ids")
    w.empty_request()
    w.create(b"w/a")
    w.create(b"w/a")
    w.create(b"w/b", watch_id=7)
    w.create(b"w/b", watch_id=7)
    w.create(b"w/c", watch_id=2)
    w.create(b"w/d")
    w.create(b"w/d", watch_id=-5)
    w.create(b"w/b", b"w/a")
    w.create(b"w/b", b"w/b")
    w.create(b"w/e")
    w.cancel(0)
    w.cancel(0, wait=False)
    w.cancel(99, wait=False)
    w.create(b"w/f")
    w.cancel(7)
    w.create(b"w/g", watch_id=7)
    t.put(b"w/a", b"1")
    t.put(b"w/b", b"1")
    t.put(b"w/g", b"1")
    t.put(b"w/d", b"1")
    w.settle()
    w.progress()
    w.report()
    w.close()
    w = t.watch("pipelined")
    for i in range(20):
        w.create(b"w/p%02d" % (i % 5), wait=False)
    w.until(lambda: w.count(lambda r: r.created) == 20, "20 created")
    for i in range(5):
        t.put(b"w/p%02d" % i, b"1")
    w.cancel(3, wait=False)
    w.cancel(4, wait=False)
    w.until(lambda: w.count(lambda r: r.canceled) == 2, "2 canceled")
    t.put(b"w/p03", b"2")
    w.settle()
    w.report()
    w.close()


def watch_ranges(t):
    w = t.watch("ranges")
    for key, end in ((b"", b""), (b"", b"\0"), (b"wr/m", b"\0"), (b"wr/", b"wr0"), (b"wr/a", b"wr/c"), (b"\0", b""), (b"\xff", b"\0"),
                     (b"wr/a", b"")):
        w.create(key, end)
    for key in (b"\0", b"wr/a", b"wr/b", b"wr/c", b"wr/m", b"wr0", b"\xff\x00", b"\xfe", b"wr/", b"wr"):
        t.put(key, b"1")
        t.delete(key)
    t.txn(success=[op_put(b"wr/z", b"1"), op_put(b"wr/a", b"1"), op_put(b"wr/m", b"1")])
    t.delete(b"wr/", b"wr0")
    w.settle()
    w.report()
    w.close()


def watch_starts(t):
    t.put(b"ws/a", b"1")
    first = t.revision
    t.put(b"ws/a", b"2")
    t.put(b"ws/b", b"1")
    t.delete(b"ws/a")
    t.txn(success=[op_put(b"ws/c", b"1"), op_put(b"ws/a", b"3"), op_delete(b"ws/b")])
    last = t.revision
    w = t.watch("starts")
    for start in (1, first, first + 1, last, last + 1, last + 3):
        w.create(*prefix(b"ws/"), start_revision=start)
    w.create(b"ws/a", start_revision=first, prev_kv=True)
    w.create(*prefix(b"ws/"), start_revision=first, filters=[0], prev_kv=True)
    w.create(*prefix(b"ws/"), start_revision=first, filters=[1])
    w.create(*prefix(b"ws/"), start_revision=(1 << 63) - 3)
    for i in range(6):
        t.put(b"ws/n", str(i).encode())
    w.until_events(0, 13)
    w.until_events(1, 13)
    w.until_events(6, 4)
    w.until_events(7, 2)
    w.until_events(8, 11)
    w.settle()
    w.report()
    w.close()
    w = t.watch("negative start")
    w.create(b"ws/a", start_revision=-1)
    w.create(b"ws/a")
    w.report()
    w.close()


def watch_events(t):
    w = t.watch("events")
    everything = prefix(b"we/")
    for fields in ({}, {"prev_kv": True}, {"filters": [0]}, {"filters": [1]}, {"filters": [0, 1]}, {"filters": [9]},
                   {"filters": [1, 0, 9], "prev_kv": True}, {"prev_kv": True, "filters": [1]}, {"fragment": True},
                   {"progress_notify": True}):
        w.create(*everything, **fields)
    t.grant(500, 31)
    t.put(b"we/a", b"1")
    t.put(b"we/a", b"1")
    t.put(b"we/a", b"")
    t.put(b"we/a", ignore_value=True)
    t.put(b"we/b", b"1", lease=31)
    t.put(b"we/b", b"2", ignore_lease=True)
    t.delete(b"we/none")
    t.delete(b"we/a")
    t.put(b"we/a", b"new")
    t.txn(success=[op_put(b"we/c", b"1"), op_put(b"we/a", b"2"), op_delete(b"we/b")])
    t.txn(success=[op_put(b"we/e", b"1"), op_txn(success=[op_put(b"we/d", b"1")]), op_put(b"we/b", b"3", lease=31)])
    t.txn(success=[op_put(b"we/0", b"1"), op_delete(b"we/a", b"we/z"), op_put(b"we/zz", b"1")])
    t.txn(success=[op_delete(b"we/none"), op_range(b"we/a")])
    t.txn([compare(b"we/0", 0, 0, version=9)], [op_put(b"we/f", b"1")], [op_put(b"we/g", b"1")])
    t.put(b"we/m", b"1", lease=31)
    t.put(b"we/l", b"1", lease=31)
    t.put(b"we/k", b"1", lease=31)
    t.revoke(31)
    t.txn(success=[op_put(b"we/many%03d" % i, b"1") for i in range(128)])
    t.delete(*everything)
    t.put(b"we/big", bytes(1000) * 1000)
    w.settle()
    w.progress()
    w.report()
    w.close()
    w = t.watch("half closed")
    w.create(b"we/h")
    w.settle()
    w.half_close()
    t.put(b"we/h", b"1")
    w.until_events(0, 1)
    w.report()
    w.close()


def watch_progress(t):
    w = t.watch("progress")
    w.create(b"wp/a")
    w.create(b"wp/b", b"wp/c", progress_notify=True)
    w.progress()
    t.put(b"other", b"1")
    t.put(b"wp/a", b"1")
    w.until_events(0, 1)
    w.progress()
    w.cancel(0)
    w.progress()
    t.record("progress revisions", sorted(set(w.progress_revisions())))
    w.report()
    w.close()


def watch_fragment(t):
    """A history larger than one fragment: the joined events are what counts."""
    for i in range(5):
        t.put(b"wf/%d" % i, bytes([i]) * 1_000_000)
    w = t.watch("fragment")
    w.create(*prefix(b"wf/"), start_revision=1 if t.compacted < 1 else t.compacted, fragment=True)
    w.create(*prefix(b"wf/"), start_revision=1 if t.compacted < 1 else t.compacted)
    w.until_events(0, 5)
    w.until_events(1, 5)
    marked = [r for r in w.received if r.watch_id == 1 and r.fragment]
    t.record("fragments where none were asked for", len(marked))
    w.report()
    w.close()
    t.delete(*prefix(b"wf/"))


def compaction(t):
    base = t.revision
    for i in range(5):
        t.put(b"k/a", str(i).encode())
    t.put(b"k/b", b"1")
    t.delete(b"k/b")
    t.put(b"k/c", b"1")
    keep = t.revision
    t.put(b"k/a", b"last")
    w = t.watch("compaction")
    w.create(b"k/a")
    t.compact(t.revision + 1)
    t.compact(1 << 60)
    t.compact(keep)
    t.compact(keep)
    t.compact(keep - 1)
    t.compact(0)
    t.compact(-1)
    t.compact(t.revision + 1, physical=False)
    for revision in (keep - 1, keep, keep + 1, base, 1):
        t.range(*prefix(b"k/"), revision=revision)
    t.range(b"k/b", revision=keep - 2)
    t.txn(success=[op_range(b"k/a", revision=keep - 1)])
    t.txn(success=[op_put(b"k/z", b"1"), op_range(b"k/a", revision=keep - 1)])
    t.txn(failure=[op_range(b"k/a", revision=keep - 1)])
    t.range(b"k/z")
    for start in (1, keep - 1, keep, keep + 1, 0):
        w.create(*prefix(b"k/"), start_revision=start)
    w.until(lambda: w.count(lambda r: r.compact_revision) >= 2, "two compaction cancels")
    w.until_events(3, 2)
    w.until_events(4, 1)
    w.create(*prefix(b"k/"), start_revision=keep, prev_kv=True)
    w.until_events(6, 2)
    t.put(b"k/a", b"after")
    w.settle()
    w.report()
    w.close()
    t.hash_kv()
    t.hash_kv(keep)
    t.hash_kv(keep - 1)
    t.hash_kv(t.revision + 1)
    t.hash_kv(-1)
    t.put(b"k/t", b"1")
    t.delete(b"k/t")
    t.put(b"k/u", b"1")
    t.compact(t.revision - 1, physical=False)
    w = t.watch("just compacted")
    w.create(b"k/t", start_revision=t.revision - 2)
    w.until(lambda: w.count(lambda r: r.compact_revision) >= 1, "compaction cancel")
    w.report()
    w.close()
    t.range(b"k/t", revision=t.revision - 2)
    t.range(b"k/t", revision=t.revision - 1)
    t.compact(t.revision)
    t.range(b"k/u", revision=t.revision)
    t.compacted = t.revision
    t.hash_kv()


def tombstone_at_compaction(t):
    t.put(b"kt/a", b"1")
    t.put(b"kt/a", b"2")
    t.delete(b"kt/a")
    gone = t.revision
    t.put(b"kt/a", b"3")
    t.compact(gone)
    t.range(b"kt/a", revision=gone)
    w = t.watch("tombstone")
    w.create(b"kt/a", start_revision=gone)
    w.until_events(0, 1)
    w.settle()
    w.report()
    w.close()
    t.compact(t.revision)
    t.compacted = t.revision
    t.hash_kv()


def alarms(t):
    def alarm(**fields):
        t.call(MAINTENANCE + "Alarm", pb.AlarmRequest(**fields))

    alarm()
    alarm(action=0, alarm=1)
    alarm(action=1, alarm=0)
    alarm(action=2)
    alarm(action=1, alarm=1, memberID=t.member_id)
    alarm(action=1, alarm=1, memberID=t.member_id)
    alarm()
    alarm(action=0, alarm=1)
    alarm(action=0, alarm=2)
    t.put(b"al/a", b"1")
    t.txn(success=[op_put(b"al/a", b"1")])
    t.txn([compare(b"al/none", 0, 0, version=3)], [op_put(b"al/a", b"1")], [op_range(b"al/a")])
    t.txn(success=[op_range(b"al/a")])
    t.txn(success=[op_delete(b"al/a")])
    t.grant(100, 41)
    t.delete(b"al/a")
    t.range(b"al/a")
    t.revoke(41)
    t.put(b"", b"1")
    t.call(MAINTENANCE + "Status", pb.StatusRequest(), only=("header", "errors"))
    alarm(action=2, alarm=2, memberID=t.member_id)
    alarm(action=2, alarm=0, memberID=t.member_id)
    alarm(action=2, alarm=1, memberID=12345)
    alarm(action=2, alarm=1, memberID=t.member_id)
    alarm(action=2, alarm=1, memberID=t.member_id)
    t.put(b"al/a", b"1")
    alarm(action=1, alarm=2, memberID=77)
    alarm()
    t.put(b"al/a", b"2")
    t.delete(b"al/a")
    t.range(b"al/a")
    t.txn(success=[op_range(b"al/a")])
    t.txn(success=[op_put(b"al/a", b"1")])
    t.grant(100, 42)
    t.revoke(42)
    t.compact(t.revision)
    alarm(action=2, alarm=2, memberID=77)
    alarm()
    alarm(action=2, alarm=9, memberID=t.member_id)
    alarm()
    t.put(b"al/a", b"3")


def cluster_and_maintenance(t):
    urls = ("peerURLs", "clientURLs")
    response = t.raw(CLUSTER + "MemberList", pb.MemberListRequest())
    t.record("MemberList shape", [(bool(m.ID), m.name, [bool(getattr(m, f)) for f in urls], m.isLearner) for m in response.members])
    t.call(CLUSTER + "MemberList", pb.MemberListRequest(), only=("header",))
    t.call(CLUSTER + "MemberList", pb.MemberListRequest(linearizable=True), only=("header",))
    t.call(MAINTENANCE + "Status", pb.StatusRequest(), only=("header", "leader", "raftTerm", "errors", "isLearner"))
    status = t.raw(MAINTENANCE + "Status", pb.StatusRequest())
    t.record("Status numbers", {"sizes": 0 < status.dbSizeInUse <= status.dbSize, "indexes":
                                0 < status.raftAppliedIndex <= status.raftIndex, "version": status.version.count(".")})
    t.call(MAINTENANCE + "Hash", pb.HashRequest(), drop=("hash",))
    t.call(MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=12345))
    t.call(MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=t.member_id))


def auth_off(t):
    """Auth is off on both sides: what its calls say then."""
    t.call(AUTH + "Authenticate", pb.AuthenticateRequest(name="root", password="x"))
    t.call(AUTH + "Authenticate", pb.AuthenticateRequest())
    t.put(b"auth/a", b"1")
    t.call(KV + "Range", pb.RangeRequest(key=b"auth/a"), metadata=(("token", "nonsense"),))
    t.call(KV + "Put", pb.PutRequest(key=b"auth/a", value=b"2"), metadata=(("token", "nonsense"),))
    t.call(KV + "Range", pb.RangeRequest(key=b"auth/a"), metadata=(("hasleader", "true"),))
    t.call(KV + "Range", pb.RangeRequest(key=b"auth/a"), metadata=(("hasleader", "false"),))
    t.call(KV + "Range", pb.RangeRequest(key=b"auth/a"), metadata=(("client-api-version", "3.5"),))
    w = t.watch("has leader", metadata=(("hasleader", "true"),))
    w.create(b"auth/a")
    t.put(b"auth/a", b"3")
    w.settle()
    w.report()
    w.close()


def malformed(t):
    """Bytes that are no message, or one only just. A decoder's own words are not compared, the code is."""
    for method in (KV + "Range", KV + "Put", KV + "Txn", LEASE + "LeaseGrant", MAINTENANCE + "Alarm", CLUSTER + "MemberList"):
        t.send_bytes(method, b"\xff\xff\xff\xff")
        t.send_bytes(method, b"\x0a\x05ab")
        t.send_bytes(method, b"\x07")
    t.send_bytes(KV + "Range", b"\x08\x01")  # a number where bytes belong
    t.send_bytes(KV + "Range", b"\x0a\xff\xff\xff\xff\x0f")  # a length of 4 GiB
    t.send_bytes(KV + "Range", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    t.send_bytes(KV + "Range", b"\x00\x00")  # field number zero
    t.send_bytes(KV + "Range", b"\x0a\x01m\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # number of eleven bytes
    t.send_bytes(KV + "Range", b"\x0a\x01m\x1b\x1c")  # an empty group
    t.send_bytes(KV + "Range", b"\x0a\x01m\x1b")  # a group without an end
    t.send_bytes(KV + "Range", b"\x0a\x01m\x1c")  # an end without a group
    t.send_bytes(KV + "Range", b"\x0a\x01m\xd2\x0f\x03xyz\xd8\x0f\x05\xe1\x0f12345678\xe5\x0f1234")  # unknown fields
    t.send_bytes(KV + "Range", b"\x0a\x01m\x0a\x01n")  # the last one counts
    t.send_bytes(KV + "Range", b"\x0a\x01m\x28\xff\xff\xff\xff\x0f")  # sort order of 2^32-1, which is -1
    t.send_bytes(KV + "Range", b"\x0a\x01m\x28\x81\x80\x80\x80\x10")  # sort order of 2^32+1, which is 1
    t.send_bytes(KV + "Range", b"\x0a\x01m\x38\x02")  # a bool of 2
    t.send_bytes(KV + "Txn", b"\x12\x00", code_only=False)
    t.send_bytes(KV + "Txn", b"\x12\x05\x12\x03\x0a\x01m\x12\x07\x0a\x05\x0a\x01m\x40\x01", code_only=False)
    t.send_bytes(KV + "Txn", b"\x12\x02\x2a\x00", code_only=False)  # an operation of a kind nobody knows
    t.send_bytes(KV + "Txn", b"\x12\x0c" + b"\x12\x05\x0a\x01m\x12\x00" + b"\x0a\x03\x0a\x01m", code_only=False)
    for depth in (20, 60):  # transactions inside one another
        deep = b""
        for _ in range(depth):
            inner = b"\x22" + length(deep) + deep
            deep = b"\x12" + length(inner) + inner
        t.send_bytes(KV + "Txn", deep)
    t.send_bytes(AUTH + "Authenticate", b"\x0a\x02\xff\xfe", code_only=False)  # a name that is no UTF-8
    for method in (WATCH + "Watch", LEASE + "LeaseKeepAlive"):
        t.send_bytes(method, b"\xff\xff\xff\xff", stream=True)
    t.send_bytes(WATCH + "Watch", b"\x0a\x07\x0a\x01m\x2a\x02\x00\x01", stream=True)
    t.send_bytes(WATCH + "Watch", b"\x0a\x07\x0a\x01m\x28\x00\x28\x01", stream=True)
    t.send_bytes(KV + "Nothing", b"")
    t.send_bytes("/etcdserverpb.Nothing/Range", b"")
    t.send_bytes("/nothing", b"")


def length(data):
    """A protobuf length prefix."""
    n, out = len(data), b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def oversize(t):
    mib = 1 << 20
    t.put(b"big/a", bytes(mib))
    t.put(b"big/a", bytes(mib + mib // 2 - 64))
    t.put(b"big/a", bytes(mib + mib // 2))
    t.put(b"big/a", bytes(mib + mib // 2 + 1))
    t.put(bytes(mib) + b"k", b"1")
    t.range(b"big/a", count_only=True)
    t.txn(success=[op_put(b"big/%d" % i, bytes(mib // 2)) for i in range(4)])
    t.txn(success=[op_put(b"big/%d" % i, bytes(mib // 2)) for i in range(3)])
    t.put(b"big/a", bytes(2 * mib - 12))
    t.put(b"big/a", bytes(2 * mib))
    t.put(b"big/a", bytes(5 * mib))
    t.txn(success=[op_put(b"big/%d" % i, bytes(mib)) for i in range(3)])
    t.range(bytes(2 * mib))
    t.put(b"big/after", b"1")
    t.delete(*prefix(b"big/"))
    t.delete(bytes(mib) + b"k")


def lock_and_election(t):
    t.grant(300, 51)
    t.call("/v3lockpb.Lock/Lock", lockpb.LockRequest(name=b"lock", lease=51))
    t.call("/v3lockpb.Lock/Unlock", lockpb.UnlockRequest(key=b"lock/33"))
    t.call("/v3lockpb.Lock/Unlock", lockpb.UnlockRequest(key=b"lock/none"))
    t.call("/v3electionpb.Election/Campaign", electionpb.CampaignRequest(name=b"vote", lease=51, value=b"me"))
    t.call("/v3electionpb.Election/Leader", electionpb.LeaderRequest(name=b"vote"))
    t.call("/v3electionpb.Election/Leader", electionpb.LeaderRequest(name=b"none"))
    t.call("/v3electionpb.Election/Proclaim", electionpb.ProclaimRequest(value=b"x"))
    t.call("/v3electionpb.Election/Resign", electionpb.ResignRequest())
    t.revoke(51)


def the_end(t):
    t.range(*ALL, count_only=True)
    t.leases_list()
    t.compact(t.revision)
    t.range(*ALL)
    t.hash_kv()


def fatal_to_etcd(t):
    """Requests that end an etcd 3.5.1 process. Only Everwatch hears them; intended.py says what it must answer."""
    for fields in ({"sort_target": 9}, {"sort_target": 5}, {"sort_target": -1}, {"sort_order": 1, "sort_target": 5}):
        t.range(b"r/", b"r0", **fields)
    t.txn(success=[op_range(b"te/a", sort_target=8)])
    t.call(MAINTENANCE + "Alarm", pb.AlarmRequest(action=7))
    t.call(MAINTENANCE + "Alarm", pb.AlarmRequest(action=1, alarm=9, memberID=t.member_id))


SECTIONS = (empty_store, put, range_fill, range_shapes, range_options, delete, txn_compares, txn_ops, txn_errors, lease,
            lease_expiry, watch_create, watch_ranges, watch_starts, watch_events, watch_progress, watch_fragment, compaction,
            tombstone_at_compaction, alarms, cluster_and_maintenance, auth_off, malformed, oversize, the_end)
LATER_SECTIONS = (lock_and_election,)  # services that are not there yet


def speak(t, sections=SECTIONS):
    """Says everything."""
    t.compacted = 1
    for section in sections:
        t.section(section.__name__)
        section(t)
