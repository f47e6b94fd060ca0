"""Every call of a Python client that is not ours (PyPI etcd3 0.12), against etcd and Everwatch: see `calls.py`. Case W-05 of
`tests/watch_cases.txt`: callbacks, starts in the past and starts that were compacted.

    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python etcd3_calls.py --left etcd --right target/debug/everwatch
"""

import hashlib
import io
import queue
import tempfile
import threading

import etcd3
import grpc
from etcd3 import exceptions
from etcd3.events import DeleteEvent, PutEvent

from calls import Calls, admit, eventually, once_healthy, refused, run
from server import Certificates, Server

CALLS = Calls(etcd3.Etcd3Client, etcd3.Lease, etcd3.Lock, etcd3.Member)


def connect(member, **more):
    return etcd3.client(host="127.0.0.1", port=member.client, timeout=10, **more)


def values(pairs):
    return [value for value, _ in pairs]


def keys(pairs):
    return [about.key for _, about in pairs]


def keys_are_put_and_read(client, members):
    first = client.put("kv/a", "1")
    assert not first.HasField("prev_kv")
    assert client.put("kv/a", b"2", prev_kv=True).prev_kv.value == b"1"
    value, about = client.get("kv/a")
    assert (value, about.key, about.version, about.lease_id) == (b"2", b"kv/a", 2, 0)
    assert about.create_revision == first.header.revision == about.mod_revision - 1
    assert client.get("kv/a", serializable=True)[0] == b"2"
    assert client.get("kv/none") == (None, None)
    answer = client.get_response("kv/a")
    assert (answer.count, answer.header.cluster_id) == (1, first.header.cluster_id)
    client.put("kv/empty", "")
    assert client.get("kv/empty")[0] == b""
    assert client.put("kv/\xe4", "\u20ac") and client.get("kv/\xe4")[0].decode() == "\u20ac"


def ranges_are_read_in_every_order(client, members):
    for key, value in (("r/b", "1"), ("r/a", "3"), ("r/c", "2"), ("r/a", "0")):
        client.put(key, value)
    assert keys(client.get_prefix("r/")) == [b"r/a", b"r/b", b"r/c"]
    orders = {"key": b"abc", "version": b"bca", "create": b"bac", "mod": b"bca", "value": b"abc"}
    for target, letters in orders.items():
        for order, expected in (("ascend", letters), ("descend", letters[::-1])):
            found = [key[-1] for key in keys(client.get_prefix("r/", sort_order=order, sort_target=target))]
            # Those of one version may come either way.
            assert target == "version" or found == list(expected), (target, order, found)
    assert values(client.get_range("r/a", "r/c")) == [b"0", b"1"]
    assert client.get_range_response("r/b", "\0").count >= 2
    assert client.get_prefix_response("r/").count == 3
    assert values(client.get_prefix("r/", keys_only=True)) == [b"", b"", b""]
    every = keys(client.get_all(sort_order="ascend"))
    assert every == sorted(every) and client.get_all_response().count == len(every)


def keys_are_deleted(client, members):
    for n in range(4):
        client.put(f"d/{n}", str(n))
    assert client.delete("d/0") and not client.delete("d/0")
    answer = client.delete("d/1", prev_kv=True, return_response=True)
    assert (answer.deleted, answer.prev_kvs[0].value) == (1, b"1")
    assert client.delete_prefix("d/").deleted == 2
    assert client.get_prefix_response("d/").count == 0


def values_are_compared_and_swapped(client, members):
    assert client.put_if_not_exists("cas", "1") and not client.put_if_not_exists("cas", "2")
    assert client.replace("cas", "1", "3") and not client.replace("cas", "1", "4")
    assert client.get("cas")[0] == b"3"


def transactions_of_everything(client, members):
    t = client.transactions
    client.put("t/a", "1")
    about = client.get("t/a")[1]
    for compare in (t.value("t/a") == "1", t.value("t/a") != "2", t.value("t/a") < "2", t.value("t/a") > "0",
                    t.version("t/a") == 1, t.version("t/a") > 0, t.create("t/a") == about.create_revision,
                    t.mod("t/a") < about.mod_revision + 1, t.create("t/none") == 0):
        assert client.transaction([compare], [], [])[0], compare
    done, answers = client.transaction(
        compare=[t.version("t/a") > 0],
        success=[t.put("t/b", "2", prev_kv=True), t.get("t/a"), t.delete("t/a", prev_kv=True),
                 t.txn([t.value("t/a") == "1"], [t.put("t/c", "3")], [t.put("t/d", "4")])],
        failure=[t.put("t/e", "5")])
    assert done and values(answers[1]) == [b"1"]
    assert answers[2].response_delete_range.prev_kvs[0].value == b"1"
    assert answers[3].response_txn.succeeded
    assert keys(client.get_prefix("t/")) == [b"t/b", b"t/c"]
    done, answers = client.transaction([t.value("t/b") == "9"], [], [t.get("t/", range_end="t0")])
    assert not done and len(answers[0]) == 2
    twice = refused(grpc.RpcError, client.transaction, [], [t.put("t/b", "1"), t.put("t/b", "2")], [])
    assert "duplicate key given in txn request" in twice.details()


def leases_hold_keys(client, members):
    lease = client.lease(60, lease_id=4711)
    assert (lease.id, lease.ttl) == (4711, 60)
    client.put("l/a", "1", lease)
    client.put("l/b", "2", lease=4711)
    assert (lease.granted_ttl, sorted(lease.keys)) == (60, [b"l/a", b"l/b"]) and 0 < lease.remaining_ttl <= 60
    assert client.get("l/a")[1].lease_id == 4711 and client.get_lease_info(4711).TTL > 0
    refused(exceptions.PreconditionFailedError, client.lease, 60, lease_id=4711)
    assert lease.refresh()[0].TTL == 60 and next(client.refresh_lease(4711)).TTL == 60
    lease.revoke()
    assert client.get("l/a") == (None, None) and client.get_lease_info(4711).TTL == -1
    assert lease.refresh()[0].TTL == 0
    other = client.lease(60)
    client.revoke_lease(other.id)
    assert "requested lease not found" in refused(grpc.RpcError, client.put, "l/c", "3", other.id).details()


def keys_go_with_a_lease_that_ends(client, members):
    client.put("ends", "1", client.lease(1))
    eventually(lambda: client.get("ends") == (None, None))


def locks_exclude(client, members):
    with client.lock("excluded", ttl=30) as lock:
        assert lock.is_acquired() and lock.refresh()[0].TTL == 30
        other = client.lock("excluded", ttl=30)
        assert not other.is_acquired()
    assert not lock.is_acquired()
    assert other.acquire(timeout=5) and other.release() and not other.release()


def a_lock_that_is_taken_is_waited_for(client, members):
    with client.lock("waited for", ttl=30):
        assert not client.lock("waited for", ttl=30).acquire(timeout=1)


def watches_from_now_on(client, members):
    events, cancel = client.watch_prefix("w/")
    client.put("w/a", "1")
    client.delete("w/a")
    first, second = next(events), next(events)
    assert isinstance(first, PutEvent) and (first.key, first.value) == (b"w/a", b"1")
    assert isinstance(second, DeleteEvent) and second.mod_revision == first.mod_revision + 1
    cancel()
    responses, cancel = client.watch_prefix_response("w/")
    done, _ = client.transaction([], [client.transactions.put(f"w/{n}", str(n)) for n in range(3)], [])
    assert done and [event.value for event in next(responses).events] == [b"0", b"1", b"2"]
    cancel()


def watches_call_back(client, members):
    heard = queue.Queue()
    one = client.add_watch_callback("c/a", lambda response: [heard.put(event) for event in response.events], prev_kv=True)
    many = client.add_watch_prefix_callback("c/", lambda response: [heard.put(event) for event in response.events])
    client.put("c/a", "1")
    assert [heard.get(timeout=10).value for _ in range(2)] == [b"1", b"1"]
    client.cancel_watch(one)
    client.put("c/a", "2")
    assert heard.get(timeout=10).value == b"2"
    client.cancel_watch(many)
    client.put("c/a", "3")
    events, cancel = client.watch("c/a", start_revision=client.get("c/a")[1].mod_revision)
    assert next(events).value == b"3" and heard.empty()
    cancel()


def watches_of_the_past(client, members):
    first = client.put("p/a", "1").header.revision
    client.put("p/a", "2")
    events, cancel = client.watch("p/a", start_revision=first, prev_kv=True, progress_notify=True)
    one, two = next(events), next(events)
    assert (one.value, two.value, two.prev_value) == (b"1", b"2", b"1")
    cancel()
    responses, cancel = client.watch_response("p/a", start_revision=first)
    assert [event.value for event in next(responses).events][0] == b"1"
    cancel()
    assert client.watch_once("p/a", timeout=10, start_revision=first).value == b"1"
    assert client.watch_once_response("p/a", timeout=10, start_revision=first + 1).events[0].value == b"2"
    assert client.watch_prefix_once("p/", timeout=10, start_revision=first).value == b"1"
    assert client.watch_prefix_once_response("p/", timeout=10, start_revision=first).events[0].value == b"1"
    refused(exceptions.WatchTimedOut, client.watch_once, "p/none", timeout=0.2)


def a_watch_of_what_was_compacted_says_so(client, members):
    first = client.put("x/a", "1").header.revision
    for value in ("2", "3"):
        last = client.put("x/a", value).header.revision
    client.compact(last, physical=True)
    events, cancel = client.watch("x/a", start_revision=first)
    assert refused(exceptions.RevisionCompactedError, next, events).compacted_revision == last
    cancel()
    assert "required revision has been compacted" in refused(grpc.RpcError, client.compact, last).details()


def maintenance(client, members):
    status = client.status()
    assert status.version.startswith("3.") and status.db_size > 0 and status.raft_term > 0 and status.raft_index > 0
    assert status.leader.id in {member.id for member in client.members}
    client.defragment()
    assert client.hash() > 0
    file = io.BytesIO()
    client.snapshot(file)
    file = file.getvalue()
    assert hashlib.sha256(file[:-32]).digest() == file[-32:]


def alarms(client, members):
    [member, *_] = client.members
    assert [(alarm.alarm_type, alarm.member_id) for alarm in client.create_alarm(member.id)] == [(1, member.id)]
    assert [alarm.member_id for alarm in client.list_alarms()] == [member.id] == [alarm.member_id for alarm in member.active_alarms]
    full = refused(grpc.RpcError, client.put, "alarm", "1")
    assert "mvcc: database space exceeded" in full.details(), full
    assert [alarm.member_id for alarm in client.disarm_alarm(member.id)] == [member.id]
    assert not list(client.list_alarms(member_id=member.id, alarm_type="no space"))
    client.put("alarm", "1")


def certificates_and_users(client, members):
    with tempfile.TemporaryDirectory() as directory:
        signed = Certificates(directory).sign("server", "server", "IP:127.0.0.1").sign("client", "client")
        who = {"ca_cert": signed.path("ca.pem"), "cert_cert": signed.path("client.pem"), "cert_key": signed.path("client.key")}
        with Server(members[0].command, flags=["--bcrypt-cost=4"], certificates=signed) as member:
            with connect(member, **who) as plain:
                plain.put("open", "1")
            admit(member)
            with connect(member, user="jane", password="jane's own", **who) as jane:
                jane.put("jane/a", "1")
                assert jane.get("jane/a")[0] == b"1"
                events, cancel = jane.watch("jane/a", start_revision=jane.get("jane/a")[1].mod_revision)
                assert next(events).value == b"1"
                cancel()
                assert "permission denied" in refused(grpc.RpcError, jane.get, "open").details()
                assert "permission denied" in refused(grpc.RpcError, jane.add_member, ["http://127.0.0.1:1"]).details()
            with connect(member, user="root", password="root's own", **who) as root:
                assert root.get("open")[0] == b"1"
            wrong = refused(grpc.RpcError, connect, member, user="jane", password="another's", **who)
            assert "authentication failed, invalid user ID or password" in wrong.details()


def members_come_and_go(client, members):
    before = {member.id for member in client.members}
    assert {member.name for member in client.members} == {"m0", "m1", "m2"}
    added = once_healthy(lambda: client.add_member(["http://127.0.0.1:1"]), exceptions.ConnectionFailedError)
    assert added.peer_urls == ["http://127.0.0.1:1"] and added.id not in before
    added.update(["http://127.0.0.1:2"])
    assert [member.peer_urls for member in client.members if member.id == added.id] == [["http://127.0.0.1:2"]]
    client.update_member(added.id, ["http://127.0.0.1:3"])
    added.remove()
    assert {member.id for member in client.members} == before
    assert "member not found" in refused(grpc.RpcError, client.remove_member, added.id).details()


CASES = [keys_are_put_and_read, ranges_are_read_in_every_order, keys_are_deleted, values_are_compared_and_swapped,
         transactions_of_everything, leases_hold_keys, keys_go_with_a_lease_that_ends, locks_exclude,
         a_lock_that_is_taken_is_waited_for, watches_from_now_on, watches_call_back, watches_of_the_past,
         a_watch_of_what_was_compacted_says_so, maintenance, alarms, certificates_and_users, members_come_and_go]

if __name__ == "__main__":
    # Its watch threads outlive their channel, and end by that.
    threading.excepthook = lambda _: None
    run("etcd3", CALLS, connect, CASES)
