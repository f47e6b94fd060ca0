"""A Python client that is not ours (PyPI etcd3 0.12) puts, gets, watches, leases and runs a transaction. Case W-05 of
`tests/watch_cases.txt`: callbacks, starts in the past and starts that were compacted.

    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python etcd3_smoke.py <server command>
"""

import queue
import sys

import etcd3

from server import Server


def main():
    with Server(sys.argv[1]) as server:
        client = etcd3.client(host="127.0.0.1", port=server.client, timeout=10)
        client.put("smoke/a", "1")
        value, meta = client.get("smoke/a")
        assert value == b"1" and meta.version == 1, (value, meta)

        events, cancel = client.watch_prefix("smoke/")
        client.put("smoke/b", "2")
        event = next(events)
        assert (event.key, event.value) == (b"smoke/b", b"2"), event
        client.delete("smoke/b")
        assert isinstance(next(events), etcd3.events.DeleteEvent)
        cancel()

        lease = client.lease(60)
        client.put("smoke/c", "3", lease)
        assert lease.granted_ttl == 60 and lease.keys == [b"smoke/c"]
        lease.revoke()
        assert client.get("smoke/c") == (None, None)

        succeeded, _ = client.transaction(
            compare=[client.transactions.value("smoke/a") == "1"],
            success=[client.transactions.put("smoke/a", "4")], failure=[])
        assert succeeded and client.get("smoke/a")[0] == b"4"
        assert not client.replace("smoke/a", "1", "5")
        assert len(list(client.get_prefix("smoke/"))) == 1
        assert len(list(client.members)) == 1

        heard = queue.Queue()
        id = client.add_watch_callback("smoke/d", lambda response: [heard.put(event) for event in response.events])
        client.put("smoke/d", "5")
        assert heard.get(timeout=20).value == b"5"
        client.cancel_watch(id)
        first = client.get("smoke/a")[1].create_revision
        events, cancel = client.watch("smoke/a", start_revision=first)
        assert [next(events).value for _ in range(2)] == [b"1", b"4"]
        cancel()

        last = client.get("smoke/d")[1].mod_revision
        client.compact(last)
        events, cancel = client.watch("smoke/a", start_revision=first)
        try:
            raise AssertionError(next(events))
        except etcd3.exceptions.RevisionCompactedError as error:
            assert error.compacted_revision == last, error.compacted_revision
    print("etcd3 0.12 client: put, get, watch, delete, lease, transaction, members, compaction work")


if __name__ == "__main__":
    main()
