"""Every call of an asynchronous Python client that is not ours (PyPI aetcd 1.0), against etcd and Everwatch: see `calls.py`.

    aetcd_calls.py --left etcd --right target/debug/everwatch
"""

import asyncio
import hashlib
import io
import time

import aetcd
from aetcd import exceptions
from aetcd.leases import Lease
from aetcd.locks import Lock
from aetcd.members import Member
from aetcd.rtypes import EventKind

from calls import Calls, admit, dismiss, run

CALLS = Calls(aetcd.Client, Lease, Lock, Member)


def connect(member, **more):
    return aetcd.Client(host="127.0.0.1", port=member.client, timeout=10, **more)


def keys(found):
    return [kv.key for kv in found]


async def refused(error, answer):
    """The error that a call ends with, which is of this kind."""
    try:
        answer = await answer
    except error as refusal:
        return refusal
    raise AssertionError(f"not refused: {answer}")


async def heard(watch, count):
    """The next events."""
    events = aiter(watch)
    return [await asyncio.wait_for(anext(events), 10) for _ in range(count)]


async def a_client_connects_by_itself(client, members):
    other = connect(members[1])
    assert await other.get(b"none") is None
    await other.close()
    await other.connect()
    assert await other.get(b"none") is None
    await other.close()


async def keys_are_put_and_read(client, members):
    first = await client.put(b"kv/a", b"1")
    assert first.prev_kv is None
    assert (await client.put(b"kv/a", b"2", prev_kv=True)).prev_kv.value == b"1"
    found = await client.get(b"kv/a")
    assert (found.value, found.key, found.version, found.lease) == (b"2", b"kv/a", 2, 0)
    assert found.create_revision == first.header.revision == found.mod_revision - 1
    assert (await client.get(b"kv/a", serializable=True)).value == b"2" and await client.get(b"kv/none") is None


async def ranges_are_read_in_every_order(client, members):
    for key, value in ((b"r/b", b"1"), (b"r/a", b"3"), (b"r/c", b"2"), (b"r/a", b"0")):
        await client.put(key, value)
    found = await client.get_prefix(b"r/")
    assert found and found.count == len(found) == 3 and keys(found) == [b"r/a", b"r/b", b"r/c"] and found[0].value == b"0"
    for target, letters in {"key": b"abc", "create": b"bac", "mod": b"bca", "value": b"abc"}.items():
        for order, expected in (("ascend", letters), ("descend", letters[::-1])):
            found = keys(await client.get_prefix(b"r/", sort_order=order, sort_target=target))
            assert [key[-1] for key in found] == list(expected), (target, order, found)
    assert [kv.value for kv in await client.get_range(b"r/a", b"r/c")] == [b"0", b"1"]
    assert [kv.value for kv in await client.get_prefix(b"r/", keys_only=True)] == [b"", b"", b""]
    every = keys(await client.get_all(sort_order="ascend"))
    assert every == sorted(every) and {b"r/a", b"r/b", b"r/c"} <= set(every)


async def keys_are_deleted(client, members):
    for n in range(6):
        await client.put(b"d/%d" % n, b"%d" % n)
    assert (await client.delete(b"d/0", prev_kv=True)).prev_kv.value == b"0"
    assert not await client.delete(b"d/0")
    gone = await client.delete_range(b"d/1", b"d/3", prev_kv=True)
    assert gone.deleted == 2 and keys(gone) == [b"d/1", b"d/2"]
    assert (await client.delete_prefix(b"d/")).deleted == 3 and not await client.get_prefix(b"d/")


async def values_are_swapped(client, members):
    await client.put(b"cas", b"1")
    assert await client.replace(b"cas", b"1", b"2") and not await client.replace(b"cas", b"1", b"3")
    assert (await client.get(b"cas")).value == b"2"


async def transactions_of_everything(client, members):
    t = client.transactions
    await client.put(b"t/a", b"1")
    about = await client.get(b"t/a")
    for compare in (t.value(b"t/a") == b"1", t.value(b"t/a") != b"2", t.value(b"t/a") < b"2", t.value(b"t/a") > b"0",
                    t.version(b"t/a") == 1, t.create(b"t/a") == about.create_revision, t.mod(b"t/a") > about.mod_revision - 1,
                    t.create(b"t/none") == 0, t.version(b"t/", b"t0") > 0):
        assert (await client.transaction([compare], [], []))[0], compare
    done, answers = await client.transaction(
        compare=[t.version(b"t/a") > 0],
        success=[t.put(b"t/b", b"2", prev_kv=True), t.get(b"t/a"), t.delete(b"t/a", prev_kv=True),
                 t.txn([t.value(b"t/a") == b"1"], [t.put(b"t/c", b"3")], [t.put(b"t/d", b"4")])],
        failure=[t.put(b"t/e", b"5")])
    assert done and answers[1][0][0] == b"1" and answers[3].response_txn.succeeded
    assert answers[2].response_delete_range.prev_kvs[0].value == b"1"
    assert keys(await client.get_prefix(b"t/")) == [b"t/b", b"t/c"]
    twice = await refused(exceptions.InvalidArgumentError, client.transaction([], [t.put(b"t/b", b"1"), t.put(b"t/b", b"2")], []))
    assert "duplicate key given in txn request" in str(twice)


async def leases_hold_keys(client, members):
    lease = await client.lease(60, lease_id=4712)
    assert (lease.id, lease.ttl) == (4712, 60)
    await client.put(b"l/a", b"1", lease)
    await client.put(b"l/b", b"2", lease=4712)
    assert await lease.granted_ttl() == 60 and 0 < await lease.remaining_ttl() <= 60
    assert sorted(await lease.keys()) == [b"l/a", b"l/b"]
    assert not (await client.get_lease_info(4712, keys=False)).keys and (await client.get(b"l/a")).lease == 4712
    await refused(exceptions.DuplicateLeaseError, client.lease(60, lease_id=4712))
    assert (await lease.refresh()).TTL == 60 and (await client.refresh_lease(4712)).TTL == 60
    await lease.revoke()
    assert await client.get(b"l/a") is None and (await client.get_lease_info(4712)).TTL == -1
    assert (await lease.refresh()).TTL == 0
    assert "requested lease not found" in str(await refused(exceptions.ClientError, client.revoke_lease(4712)))


async def locks_exclude(client, members):
    async with client.lock(b"excluded", ttl=30) as lock:
        assert await lock.is_acquired() and (await lock.refresh()).TTL == 30
        other = client.lock(b"excluded", ttl=30)
        assert not await other.acquire(timeout=0.5) and not await other.is_acquired()
        waiting = asyncio.create_task(other.acquire(timeout=10))
        await asyncio.sleep(0)
    assert await waiting and await other.is_acquired()
    assert await other.release() and not await other.release()


async def watches_from_now_on(client, members):
    watch = await client.watch_prefix(b"w/", prev_kv=True)
    one = await client.watch(b"w/a", kind=EventKind.DELETE)
    await client.put(b"w/a", b"1")
    await client.put(b"w/b", b"2")
    await client.delete(b"w/a")
    seen = await heard(watch, 3)
    assert [(event.kind, event.kv.key, event.kv.value) for event in seen] == [
        ("PUT", b"w/a", b"1"), ("PUT", b"w/b", b"2"), ("DELETE", b"w/a", b"")]
    [deleted] = await heard(one, 1)
    assert deleted.kind == "DELETE" and deleted.kv.mod_revision == seen[2].kv.mod_revision
    await watch.cancel()
    await one.cancel()
    await client.put(b"w/a", b"3")
    [again] = await heard(await client.watch(b"w/", range_end=b"w0", start_revision=deleted.kv.mod_revision + 1), 1)
    assert again.kv.value == b"3"


async def watches_of_the_past(client, members):
    first = (await client.put(b"p/a", b"1")).header.revision
    await client.put(b"p/a", b"2")
    watch = await client.watch(b"p/a", start_revision=first, progress_notify=True, fragment=True)
    assert [event.kv.value for event in await heard(watch, 2)] == [b"1", b"2"]
    await watch.cancel()
    assert (await client.watch_once(b"p/a", timeout=10, start_revision=first + 1)).kv.value == b"2"
    assert (await client.watch_prefix_once(b"p/", timeout=10, start_revision=first)).kv.value == b"1"
    await refused(exceptions.WatchTimeoutError, client.watch_once(b"p/none", timeout=0.2))


async def a_watch_of_what_was_compacted_says_so(client, members):
    first = (await client.put(b"x/a", b"1")).header.revision
    for value in (b"2", b"3"):
        last = (await client.put(b"x/a", value)).header.revision
    await client.compact(last, physical=True)
    watch = await client.watch(b"x/a", start_revision=first)
    assert (await refused(exceptions.RevisionCompactedError, heard(watch, 1))).compacted_revision == last


async def maintenance(client, members):
    status = await client.status()
    assert status.version.startswith("3.") and status.db_size > 0 and status.raft_term > 0
    assert status.leader.id in [member.id async for member in client.members()]
    await client.defragment()
    assert await client.hash() > 0
    file = io.BytesIO()
    await client.snapshot(file)
    file = file.getvalue()
    assert hashlib.sha256(file[:-32]).digest() == file[-32:]


async def alarms(client, members):
    member = [member async for member in client.members()][0]
    assert [alarm.member_id for alarm in await client.create_alarm(member.id)] == [member.id]
    try:
        assert [alarm.member_id async for alarm in client.list_alarms()] == [member.id]
        full = await refused(exceptions.ClientError, client.put(b"alarm", b"1"))
        assert "mvcc: database space exceeded" in str(full), full
    finally:
        assert [alarm.member_id for alarm in await client.disarm_alarm(member.id)] == [member.id]
    await client.put(b"alarm", b"1")


async def alarms_of_a_member(client, members):
    member = [member async for member in client.members()][0]
    assert [alarm async for alarm in await member.active_alarms()] == []


async def users_are_asked(client, members):
    await client.put(b"open", b"1")
    admit(members[0])
    try:
        assert "user name is empty" in str(await refused(exceptions.InvalidArgumentError, client.get(b"open")))
        async with connect(members[0], username="jane", password="jane's own") as jane:
            put = await jane.put(b"jane/a", b"1")
            [event] = await heard(await jane.watch(b"jane/a", start_revision=put.header.revision), 1)
            assert event.kv.value == b"1"
            for denied in (jane.get(b"open"), jane.delete_prefix(b"o"), jane.add_member(["http://127.0.0.1:1"])):
                assert "permission denied" in str(await refused(exceptions.ClientError, denied))
        async with connect(members[0], username="root", password="root's own") as root:
            assert (await root.get(b"open")).value == b"1"
        wrong = connect(members[0], username="jane", password="another's")
        assert "authentication failed" in str(await refused(exceptions.InvalidArgumentError, wrong.connect()))
        await wrong.close()
    finally:
        dismiss(members[0])
    assert (await client.get(b"jane/a")).value == b"1"


async def members_come_and_go(client, members):
    async def ids():
        return {member.id async for member in client.members()}

    before, deadline = await ids(), time.monotonic() + 15
    while True:
        try:
            added = await client.add_member(["http://127.0.0.1:1"])
            break
        except exceptions.ConnectionFailedError as unhealthy:
            # Until its members have been connected for some seconds.
            assert time.monotonic() < deadline, unhealthy
            await asyncio.sleep(0.2)
    assert added.peer_urls == ["http://127.0.0.1:1"] and added.id not in before
    await added.update(["http://127.0.0.1:2"])
    assert [member.peer_urls async for member in client.members() if member.id == added.id] == [["http://127.0.0.1:2"]]
    await client.update_member(added.id, ["http://127.0.0.1:3"])
    await added.remove()
    assert await ids() == before
    assert "member not found" in str(await refused(exceptions.ClientError, client.remove_member(added.id)))


CASES = [a_client_connects_by_itself, keys_are_put_and_read, ranges_are_read_in_every_order, keys_are_deleted, values_are_swapped,
         transactions_of_everything, leases_hold_keys, locks_exclude, watches_from_now_on, watches_of_the_past,
         a_watch_of_what_was_compacted_says_so, maintenance, alarms, alarms_of_a_member, users_are_asked, members_come_and_go]

if __name__ == "__main__":
    run("aetcd", CALLS, connect, CASES)
