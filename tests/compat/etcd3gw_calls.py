"""Every call of a Python client of the JSON gateway that is not ours (PyPI etcd3gw 2.7), against etcd and Everwatch: see `calls.py`.

    etcd3gw_calls.py --left etcd --right target/debug/everwatch
"""

import contextlib
import os
import tempfile
import threading

import etcd3gw
import requests
from etcd3gw import exceptions
from etcd3gw.lease import Lease
from etcd3gw.lock import Lock
from etcd3gw.utils import _encode

from calls import Calls, admit, dismiss, eventually, post, refused, run
from server import Certificates, Server

CALLS = Calls(etcd3gw.Etcd3Client, Lease, Lock)


def connect(member, **more):
    return contextlib.nullcontext(etcd3gw.client(host="127.0.0.1", port=member.client, timeout=10, **more))


def keys(pairs):
    return [about["key"] for _, about in pairs]


def first_of(client, key):
    [(_, about)] = client.get(key, metadata=True)
    return int(about["create_revision"])


def the_server_is_known(client, members):
    assert client.api_path == "/v3/" and client.base_url.endswith(f":{members[0].client}")
    assert client.get_url("kv/range") == f"{client.base_url}/v3/kv/range"
    status = client.status()
    assert status["version"].startswith("3.") and int(status["dbSize"]) > 0
    assert {member["name"] for member in client.members()} == {"m0", "m1", "m2"}
    assert status["leader"] in {member["ID"] for member in client.members()}


def keys_are_put_and_read(client, members):
    assert client.put("kv/a", "1") and client.put(b"kv/a", b"2")
    assert client.get("kv/a") == [b"2"] and client.get("kv/none") == []
    [(value, about)] = client.get("kv/a", metadata=True)
    assert (value, about["key"], about["version"]) == (b"2", b"kv/a", "2")
    assert int(about["mod_revision"]) == int(about["create_revision"]) + 1
    assert client.get("kv/a", revision=int(about["create_revision"])) == [b"1"]
    assert client.get("kv/a", serializable=True) == [b"2"]
    client.put("kv/empty", "")
    assert client.get("kv/empty") == [b""]
    binary = bytes(range(256))
    assert client.put(b"kv/\xff", binary) and client.get(b"kv/\xff") == [binary]


def ranges_are_read_in_every_order(client, members):
    for key, value in (("r/b", "1"), ("r/a", "3"), ("r/c", "2"), ("r/a", "0")):
        client.put(key, value)
    assert keys(client.get_prefix("r/")) == [b"r/a", b"r/b", b"r/c"]
    for target, letters in {"key": b"abc", "create": b"bac", "mod": b"bca", "value": b"abc"}.items():
        for order, expected in (("ascend", letters), ("descend", letters[::-1])):
            found = [key[-1] for key in keys(client.get_prefix("r/", sort_order=order, sort_target=target))]
            assert found == list(expected), (target, order, found)
    assert client.get_prefix("r/", sort_order="descend", sort_target="version")[0][1]["key"] == b"r/a"
    assert client.get("r/a", range_end="r/c") == [b"0", b"1"] and client.get("r/a", range_end="r/c", limit=1) == [b"0"]
    assert client.get("r/", range_end="r0", keys_only=True) == [b"", b"", b""]
    assert client.get("r/", range_end="r0", count_only=True) == []
    second = first_of(client, "r/a")
    assert keys(client.get("r/", metadata=True, range_end="r0", min_create_revision=second)) == [b"r/a", b"r/c"]
    assert keys(client.get("r/", metadata=True, range_end="r0", max_create_revision=second)) == [b"r/a", b"r/b"]
    assert keys(client.get("r/", metadata=True, range_end="r0", min_mod_revision=second + 2)) == [b"r/a"]
    assert keys(client.get("r/", metadata=True, range_end="r0", max_mod_revision=second + 1)) == [b"r/b", b"r/c"]
    every = keys(client.get_all(sort_order="ascend"))
    assert every == sorted(every) and {b"r/a", b"r/b", b"r/c"} <= set(every)


def keys_are_deleted(client, members):
    for n in range(5):
        client.put(f"d/{n}", str(n))
    assert client.delete("d/0") and not client.delete("d/0")
    assert client.delete("d/1", prev_kv=True)
    assert client.delete("d/1", range_end="d/3") and keys(client.get_prefix("d/")) == [b"d/3", b"d/4"]
    assert client.delete_prefix("d/") and not client.delete_prefix("d/") and client.get_prefix("d/") == []


def values_are_compared_and_swapped(client, members):
    assert client.create("cas", "1") and not client.create("cas", "2")
    assert client.replace("cas", "1", "3") and not client.replace("cas", "1", "4")
    lease = client.lease(ttl=60)
    assert client.create("cas/leased", "1", lease=lease) and lease.keys() == [b"cas/leased"]


def transactions(client, members):
    client.put("t/a", "1")
    answer = client.transaction({
        "compare": [{"key": _encode("t/a"), "result": "EQUAL", "target": "VALUE", "value": _encode("1")},
                    {"key": _encode("t/a"), "result": "GREATER", "target": "VERSION", "version": 0}],
        "success": [{"request_range": {"key": _encode("t/a")}}, {"request_put": {"key": _encode("t/b"), "value": _encode("2")}},
                    {"request_delete_range": {"key": _encode("t/a"), "prev_kv": True}}], "failure": []})
    read, put, deleted = answer["responses"]
    assert answer["succeeded"] and read["response_range"]["count"] == "1"
    assert put["response_put"]["header"]["revision"] == answer["header"]["revision"]
    assert deleted["response_delete_range"]["deleted"] == "1"
    answer = client.transaction({
        "compare": [{"key": _encode("t/none"), "result": "GREATER", "target": "CREATE", "create_revision": 0}],
        "failure": [{"request_range": {"key": _encode("t/b")}}]})
    assert "succeeded" not in answer and answer["responses"][0]["response_range"]["kvs"][0]["value"] == _encode("2")
    put = {"request_put": {"key": _encode("t/a"), "value": _encode("1")}}
    twice = refused(exceptions.Etcd3Exception, client.transaction, {"success": [put, put]})
    assert "duplicate key given in txn request" in twice.detail_text


def leases_hold_keys(client, members):
    lease = client.lease(ttl=60)
    assert client.put("l/a", "1", lease=lease) and client.put("l/b", "2", lease=lease)
    assert 0 < lease.ttl() <= 60 and lease.refresh() == 60
    assert sorted(lease.keys()) == [b"l/a", b"l/b"]
    [(_, about)] = client.get("l/a", metadata=True)
    assert about["lease"] == str(lease.id)
    assert lease.revoke() and client.get("l/a") == [] and lease.ttl() == -1 and lease.refresh() == -1
    assert "requested lease not found" in refused(exceptions.Etcd3Exception, lease.revoke).detail_text
    assert "requested lease not found" in refused(exceptions.Etcd3Exception, client.put, "l/a", "1", lease=lease).detail_text


def locks_exclude(client, members):
    with client.lock("excluded", ttl=30) as lock:
        assert lock.is_acquired() and lock.refresh() == 30 and len(lock.uuid) == 36
        other = client.lock("excluded", ttl=30)
        assert not other.acquire() and not other.is_acquired()
    assert not lock.is_acquired()
    assert other.acquire() and other.release() and not other.release()


def watches(client, members):
    events, cancel = client.watch_prefix("w/")
    writer = threading.Thread(target=lambda: [client.put("w/1", "x"), client.delete("w/1")])
    writer.start()
    first, second = next(events), next(events)
    writer.join()
    assert (first["kv"]["key"], first["kv"]["value"]) == (b"w/1", b"x"), first
    assert (second["type"], second["kv"]["key"]) == ("DELETE", b"w/1"), second
    cancel()
    refused(exceptions.WatchTimedOut, client.watch_once, "w/none", timeout=0.5)


def watches_of_the_past(client, members):
    client.put("p/a", "1")
    first = first_of(client, "p/a")
    client.put("p/a", "2")
    client.delete("p/a")

    def seen(count, **more):
        events, cancel = client.watch("p/a", start_revision=first, progress_notify=True, **more)
        heard = [next(events) for _ in range(count)]
        cancel()
        return heard

    assert [event["kv"].get("value") for event in seen(3)] == [b"1", b"2", None]
    assert [event["type"] for event in seen(1, filters=["NOPUT"])] == ["DELETE"]
    assert [event.get("type", "PUT") for event in seen(2, filters=["NODELETE"])] == ["PUT", "PUT"]
    assert [event["prev_kv"]["value"] for event in seen(3, prev_kv=True)[1:]] == [_encode("1"), _encode("2")]
    assert client.watch_once("p/a", timeout=10, start_revision=first + 1)["kv"]["value"] == b"2"


def the_first_event_of_a_prefix(client, members):
    client.put("once/a", "1")
    assert client.watch_prefix_once("once/", timeout=0.5, start_revision=first_of(client, "once/a"))["kv"]["value"] == b"1"


def errors_have_etcds_text(client, members):
    future = refused(exceptions.Etcd3Exception, client.get, "e", revision=1 << 60)
    assert "required revision is a future revision" in future.detail_text
    assert "key is not provided" in refused(exceptions.Etcd3Exception, client.put, "", "1").detail_text
    answer = client.post(client.get_url("/kv/range"), json={"key": _encode("e/none")})
    assert list(answer) == ["header"]
    refused(exceptions.Etcd3Exception, client.post, client.get_url("/kv/nothing"), json={})


def users_are_asked(client, members):
    admit(members[0])
    try:
        assert "user name is empty" in refused(exceptions.Etcd3Exception, client.get, "open").detail_text
        token = post(members[0], "auth/authenticate", {"name": "jane", "password": "jane's own"})["token"]
        session = requests.Session()
        session.headers["Authorization"] = token
        with connect(members[0], session=session) as jane:
            assert jane.put("jane/a", "1") and jane.get("jane/a") == [b"1"]
            assert "permission denied" in refused(exceptions.Etcd3Exception, jane.get, "open").detail_text
    finally:
        dismiss(members[0])
    # By whichever member, a moment later.
    eventually(lambda: client.get("jane/a") == [b"1"])


def certificates(client, members):
    with tempfile.TemporaryDirectory() as directory:
        signed = Certificates(directory).sign("server", "server", "IP:127.0.0.1").sign("client", "client")
        who = {"ca_cert": signed.path("ca.pem"), "cert_cert": signed.path("client.pem"), "cert_key": signed.path("client.key")}
        with Server(members[0].command, certificates=signed) as member:
            with connect(member, protocol="https", **who) as known:
                assert known.put("a", "1") and known.get("a") == [b"1"]
            with connect(member, protocol="https", ca_cert=signed.path("ca.pem")) as unknown:
                refused(exceptions.ConnectionFailedError, unknown.get, "a")


CASES = [the_server_is_known, keys_are_put_and_read, ranges_are_read_in_every_order, keys_are_deleted, values_are_compared_and_swapped,
         transactions, leases_hold_keys, locks_exclude, watches, watches_of_the_past, the_first_event_of_a_prefix,
         errors_have_etcds_text, users_are_asked, certificates]

if __name__ == "__main__":
    # These would go before the authority that a session is given.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    run("etcd3gw", CALLS, connect, CASES)
