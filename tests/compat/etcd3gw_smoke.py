"""A Python client of the JSON gateway that is not ours (PyPI etcd3gw 2.7) puts, gets, deletes, leases, locks, watches and runs
a transaction.

    etcd3gw_smoke.py <server command>
"""

import sys
import threading

import etcd3gw
from etcd3gw import exceptions
from etcd3gw.utils import _encode

from server import Server


def main():
    with Server(sys.argv[1]) as server:
        client = etcd3gw.client(host="127.0.0.1", port=server.client, timeout=20)
        assert client.status()["version"]
        assert len(client.members()) == 1
        assert client.put("gw/a", "1")
        assert client.get("gw/a") == [b"1"]
        assert client.get("gw/none") == []
        [(value, meta)] = client.get("gw/a", metadata=True)
        assert value == b"1" and meta["version"] == "1", meta

        lease = client.lease(ttl=60)
        assert client.put("gw/b", "2", lease=lease)
        assert 0 < lease.ttl() <= 60 and lease.refresh() == 60
        assert lease.keys() == [b"gw/b"], lease.keys()
        assert [value for value, _ in client.get_prefix("gw/")] == [b"1", b"2"]
        assert lease.revoke() and client.get("gw/b") == []

        assert client.create("gw/c", "1") and not client.create("gw/c", "2")
        assert client.replace("gw/c", "1", "3") and not client.replace("gw/c", "1", "4")
        answer = client.transaction({
            "compare": [{"key": _encode("gw/c"), "result": "EQUAL", "target": "VALUE", "value": _encode("3")}],
            "success": [{"request_range": {"key": _encode("gw/c")}}], "failure": []})
        assert answer["succeeded"] and answer["responses"][0]["response_range"]["count"] == "1", answer
        assert client.delete("gw/c") and not client.delete("gw/c")

        with client.lock("gw", ttl=30) as lock:
            assert lock.is_acquired()
            assert not client.lock("gw", ttl=30).acquire()
        assert client.lock("gw", ttl=30).acquire()

        events, cancel = client.watch_prefix("gw/w/")
        writer = threading.Thread(target=lambda: [client.put("gw/w/1", "x"), client.delete("gw/w/1")])
        writer.start()
        first, second = next(events), next(events)
        writer.join()
        assert (first["kv"]["key"], first["kv"]["value"]) == (b"gw/w/1", b"x"), first
        assert (second["type"], second["kv"]["key"]) == ("DELETE", b"gw/w/1"), second
        cancel()
        try:
            client.watch_once("gw/w/none", timeout=1)
            raise AssertionError("nobody wrote that")
        except exceptions.WatchTimedOut:
            pass
    print("etcd3gw 2.7 client: status, members, put, get, delete, lease, lock, transaction, watch work")


if __name__ == "__main__":
    main()
