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
    "txn_errors: Txn compare={key='te/a' version=0} success={request_put={key='te/a' value='1'}},"
    "{request_delete_range={key='te/' range_end='\\x00'}}": Intended(
        "an open-ended deletion over a put of the same branch is refused like a bounded one: a key changes once per revision",
        refused("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request")),
    "malformed: /etcdserverpb.KV/Txn bytes '\\x12\\xa5\\x02\"\\xa2\\x02\\x1...x02\"\\x00'(296 bytes)": Intended(
        "messages nested deeper than 100 are refused, as protobuf libraries do to save their stack", refused("INTERNAL", LIBRARY)),
    "malformed: /etcdserverpb.Auth/Authenticate bytes '\\n\\x02\\xff\\xfe'": Intended(
        "text that is not UTF-8 is malformed, as protobuf says; etcd lets it through",
        refused("INTERNAL", "failed to decode Protobuf message: AuthenticateRequest.name: invalid string value: "
                "data is not UTF-8 encoded")),
    "compaction: HashKV revision=159": Intended(
        "the compacted revision itself can be hashed, as in later etcd",
        {"header": header(162), "hash": 1693862593, "compact_revision": 159}),
    "malformed: /nothing bytes ''": Intended(
        "a path without a method is an unknown method here; grpc-go calls it ResourceExhausted", refused("UNIMPLEMENTED", LIBRARY)),
    "watch_starts: stream negative start": Intended(
        "a negative start revision is refused, as by etcd since 3.5.24", {
            "watch -1": [{"header": header(121), "watch_id": -1, "created": True, "canceled": True,
                          "cancel_reason": "etcdserver: mvcc: required revision has been compacted"}],
            "watch 0": [{"header": header(121), "created": True}], "rules broken": [], "ended": None}),
    "tombstone_at_compaction: stream tombstone": Intended(
        "a deletion exactly at the compacted revision can still be watched, as in etcd since 3.5.16", {
            "watch 0": [{"header": header(169), "created": True},
                        {"type": "DELETE", "kv": {"key": "'kt/a'", "mod_revision": 168}},
                        {"kv": {"key": "'kt/a'", "create_revision": 169, "mod_revision": 169, "version": 1, "value": "'3'"}}],
            "rules broken": [], "ended": None}),
    **{f"range_options: Range key='r/' range_end='r0' sort_order={order}": Intended(
        "an unknown sort order is refused, as by later etcd", refused("INVALID_ARGUMENT", "etcdserver: invalid sort option"))
       for order in (7, 3, -1)},
    "txn_errors: Txn success={request_range={key='te/a' sort_order=8}}": Intended(
        "an unknown sort order is refused, as by later etcd", refused("INVALID_ARGUMENT", "etcdserver: invalid sort option")),
    "malformed: /etcdserverpb.KV/Range bytes '\\n\\x01m(\\xff\\xff\\xff\\xff\\x0f'": Intended(
        "an unknown sort order is refused, as by later etcd", refused("INVALID_ARGUMENT", LIBRARY)),
}

NOBODY = refused("INVALID_ARGUMENT", "etcdserver: user name is empty")
BAD_TOKEN = refused("UNAUTHENTICATED", "etcdserver: invalid auth token")
DENIED = refused("PERMISSION_DENIED", "etcdserver: permission denied")
WHO = {"nobody": NOBODY, "bad": BAD_TOKEN, "alice": DENIED}


def not_watched(code, text, *revisions):
    """What a stream is told of as many watchers that it may not have."""
    reason = f"rpc error: code = {code} desc = etcdserver: {text}"
    refusals = [{"header": header(revision), "watch_id": -1, "created": True, "canceled": True, "cancel_reason": reason}
                for revision in revisions]
    return {"watch -1": refusals, "rules broken": [], "ended": None}


INTENDED_OF_AUTH: dict[str, Intended] = {
    **{f"maintenance_denied: [{who}] {method}": Intended("later etcd gives these the status that they have elsewhere", outcome)
       for who, outcome in WHO.items() for method in ("HashKV", "Hash", "Defragment")},
    "watches: [root] stream of alice, denied": Intended(
        "a refused watcher has the id -1, as in later etcd", not_watched(
            "PermissionDenied", "permission denied", 29, 29, 29, 29)),
    "watches: [root] stream of alice, revoked": Intended(
        "a refused watcher has the id -1, as in later etcd", not_watched("PermissionDenied", "permission denied", 32)),
    "watches: [nobody] stream of nobody": Intended(
        "the reason says what is wrong, as in later etcd", not_watched("InvalidArgument", "user name is empty", 33, 33)),
    "watches: [bad] stream of bad": Intended(
        "the reason says what is wrong, as in later etcd: clients log in again", not_watched(
            "Unauthenticated", "invalid auth token", 33, 33)),
    **{f"holes_of_etcd: [{who}] Txn {request}".strip(): Intended(
        "a txn needs what it does, nested txns, prev_kv and leases included (CVE-2026-33343, CVE-2026-44283)", WHO[who])
       for who, request in (
           ("alice", "success={request_txn={success={request_range={key='other'}}}}"),
           ("alice", "success={request_txn={failure={request_put={key='other' value='nested'}}}}"),
           ("alice", "compare={key='app/one' version=1099511627776} success={request_put={key='config' value='1' prev_kv=True}}"),
           ("nobody", "success={request_txn={success={request_range={key='app/one'}} failure={request_range={key='log/one'}}}}"),
           ("nobody", ""))},
    **{f"holes_of_etcd: [{who}] {request}": Intended(
        "what goes through the log, or tells of the cluster, is for users, and what changes it for root (CVE-2026-33413)", WHO[who])
       for who, request in (
           ("alice", "Compact revision=2 physical=True"), ("alice", "Alarm action=DEACTIVATE memberID=MEMBER alarm=NOSPACE"),
           ("nobody", "Alarm"), ("nobody", "Status"), ("nobody", "MemberList"), ("nobody", "MoveLeader targetID=1"),
           ("nobody", "Compact revision=1 physical=True"), ("bad", "Status"), ("bad", "MemberList"))},
    **{f"holes_of_etcd: [nobody] {request}": Intended(
        "leases are for users, and so are the names of their keys (CVE-2026-33413, CVE-2023-32082)", outcome)
       for request, outcome in (
           ("LeaseGrant TTL=300 ID=90", NOBODY), ("LeaseRevoke ID=90", NOBODY), ("LeaseKeepAlive ID=73", [NOBODY]),
           ("LeaseTimeToLive ID=73 keys=True", NOBODY), ("LeaseLeases", NOBODY))},
    "holes_of_etcd: [root] RoleGet role=root": Intended(
        "the role root is shown with what it allows, as by later etcd", {
            "header": header(33), "perm": [{"permType": "READWRITE", "range_end": "'\\x00'"}]}),
    **{f"holes_of_etcd: [root] RoleGrantPermission name=odd perm={{{where}}}": Intended(
        "a permission on no key is refused, as by later etcd",
        refused("INVALID_ARGUMENT", "etcdserver: invalid auth management"))
       for where in ("", "range_end='\\x00'", "key='b' range_end='a'", "key='b' range_end='b'", "range_end='b'")},
}

# With signed tokens, besides.
INTENDED_OF_JWT: dict[str, Intended] = {
    **INTENDED_OF_AUTH,
    "disabling: [root] Range key='other'": Intended(
        "while auth is off no token is too old, as in later etcd", {"header": header(34), "count": 1, "kvs": [
            {"key": "'other'", "create_revision": 31, "mod_revision": 34, "version": 2, "value": "'free'"}]}),
}

ANY_ANSWER = "any answer: there is nothing to compare with, but the server must still be there"
SORT = refused("INVALID_ARGUMENT", "etcdserver: invalid sort option")
INSTEAD_OF_A_CRASH: dict[str, Any] = {
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=9": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=5": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_target=-1": SORT,
    "fatal_to_etcd: Range key='r/' range_end='r0' sort_order=ASCEND sort_target=5": SORT,
    "fatal_to_etcd: Txn success={request_range={key='te/a' sort_target=8}}": SORT,
    "fatal_to_etcd: Alarm action=7": ANY_ANSWER,
    "fatal_to_etcd: Alarm action=ACTIVATE memberID=MEMBER alarm=9": ANY_ANSWER,
}
