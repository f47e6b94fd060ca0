"""Where Everwatch answers differently from etcd 3.5.1 on purpose, and why.

Keyed by the label of the step; `right` is Everwatch's whole outcome, matched exactly. An entry whose difference does not
occur fails the run.
"""

from typing import Any, NamedTuple


class Intended(NamedTuple):
    reason: str
    right: Any


HEADER = {"cluster_id": "CLUSTER", "member_id": "MEMBER", "raft_term": "TERM"}


def header(revision):
    return {**HEADER, "revision": revision}


def refused(code, message):
    return {"code": code, "message": message}


LIBRARY = "(text of the gRPC library)"

INTENDED: dict[str, Intended] = {
    "malformed: /nothing bytes ''": Intended(
        "a path without a method is an unknown method here; grpc-go calls it ResourceExhausted", refused("UNIMPLEMENTED", LIBRARY)),
    "watch_starts: stream negative start: watch -1": Intended(
        "a negative start revision is refused since etcd 3.5.24", None),  # filled in below
}

SORT = refused("INVALID_ARGUMENT", "etcdserver: invalid sort option")
INSTEAD_OF_A_CRASH: dict[str, Any] = {
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=9": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=5": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=-1": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_order=ASCEND sort_target=5": SORT,
    "fatal_to_etcd: Txn success={request_range={key='te/a' sort_target=8}}": SORT,
}
