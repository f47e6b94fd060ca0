"""Holds the WebSockets of two servers' JSON gateways against each other: the same conversations with each, frame by frame.

    websocket.py --left etcd --right target/debug/everwatch
    websocket.py --left etcd --right etcd --same       proves the comparison itself, and that it finds what is planted

Compared are the answer to the handshake, every frame that the server sends and how the connection ends, with what depends on the
cluster replaced as in `gateway.py`. A difference is fine only if it is listed below with its reason; an entry that matches nothing
fails the run. etcd never answers methods that take one request: there its answer to the same request by POST is what counts.
"""

import argparse
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading

import gateway
from gateway import ACCESS_FLAGS, PATIENCE_S, b64, end, outcome, parsed
from server import Server

#: After so long a server is called silent, where that is known of it.
SILENCE_S = 0.3
HEADERS = (*gateway.HEADERS, "Connection", "Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions",
           "Sec-WebSocket-Version", "Allow")
HANDSHAKE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN, RESERVED = 0x80, 0x40
MASK = b"\x5a\x01\xc3\x99"
#: What stands among frames.
ENDED, SILENCE, NOTHING = "the end", "silence", "nothing in time"

CREATED_ONLY = "101 created"
PARSER = gateway.PARSER
CLOSE_WORDS = "what was wrong is said in the words of our library"
CLOSE_REASON = "the reason of a close is given back with its code"
ONE_BYTE = "a close of one byte breaks the protocol"
HEARD = "a client whose requests are at their end is still heard"
NO_TEXT = "a text that is not UTF-8 breaks the protocol, and has a code of its own"
PROGRESS_WHEN = "a progress request is answered when the stream's watchers have come so far, as by later etcd"
HISTORY = "much history comes in several responses, each with the revision to which it goes"
BOUNDED = "a message is not read beyond the length that a request may have"
TOKEN = "while users are not asked for, tokens are not looked at"
PATHS = "paths are not cleaned"
NO_PAGE = "where it is moved is said in the header only"
EARLY = "what comes before the answer to the handshake is heard"
TIMEOUT = "a timeout in a header counts"
BEARER = "a token counts behind the word Bearer, too"
NAMED = "headers with a token count"
WHY = "a refused watcher has the id -1, and the reason says what is wrong, as in later etcd"
LEASES = "leases are for users"
#: For all methods that take one request.
ANSWERED = "methods that take one request are answered"

#: Label -> reason. Codes must be equal, the words may differ.
OTHER_WORDS = {
    **dict.fromkeys(("keepalive: first x", "message: first x", "message: a string in two", "message: no text, as binary",
                     'message: first {"create_request":{}]', "message: first {]", "unary: kv/range x"), PARSER),
    **{f"end: close {code}": CLOSE_WORDS for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)},
    **{f"end: breach: {label}": CLOSE_WORDS for label in (
        "not masked", "a reserved bit", "an unknown opcode", "an unknown opcode of control", "a fragment of nothing",
        "a message in a message", "a ping too long", "a ping in fragments")},
    **dict.fromkeys(("end: the client's close", "end: close 4000, with a reason"), CLOSE_REASON),
}
NOBODY = "101 cancelled rpc error: code = InvalidArgument desc = etcdserver: user name is empty, close 1000, the end"
ANOTHER = "101 cancelled rpc error: code = Unauthenticated desc = etcdserver: invalid auth token, close 1000, the end"
WATCHED = "101 created, close 1000, the end"
#: Label -> (reason, our outcome, as `short` puts it).
OTHERWISE = {
    "watch: progress of none": (PROGRESS_WHEN, "101 silence"),
    "watch: the future": (PROGRESS_WHEN, "101 created, posted, silence"),
    "watch: much history": (HISTORY, "101 created, 2 events to 32"),
    "message: more than is read": (BOUNDED, "101 close 1009 Message too long: 5592439 > 4194304, the end"),
    "message: then x and a ping": (HEARD, "101 created, pong"),
    "message: then x and a close": (HEARD, "101 created, close 1000, the end"),
    **{label: (NO_TEXT, "101 close 1007 invalid utf-8 sequence of 1 bytes from index 0, the end") for label in (
        "message: no text", "end: close, with no text")},
    "end: close, of one byte": (ONE_BYTE, "101 close 1002 Invalid close sequence, the end"),
    "end: breach: a length without end": (
        BOUNDED, "101 created, close 1009 Message too long: 18446744073709551615 > 4194304, the end"),
    **{f"handshake: Sec-WebSocket-Protocol: {value}": (TOKEN, CREATED_ONLY) for value in (
        "Bearer", "Bearer, tok", "Bearer,tok", "Bearertok", "Bearer, ", "bearer, tok", "x", "x, Bearer, tok")},
    "handshake: Cookie: token=nonsense": (TOKEN, CREATED_ONLY),
    "handshake: Grpc-Timeout: soon": (TIMEOUT, "101 error 3 invalid grpc-timeout: soon"),
    "handshake: a message at once": (EARLY, CREATED_ONLY),
    "path: /v3": (NO_PAGE, "301 ''"),
    "path: /v3/kv//range": (PATHS, "101 'Not Found', the end"),
    **{f"one request: {label}": (ANSWERED, outcome) for label, outcome in (
        ("snapshot", "101 answer"), ("observe", "101 posted, posted, answer"))},
    **{f"{kind} token: {label}": outcome for kind in ("simple", "signed") for label, outcome in (
        ("nobody", (WHY, NOBODY)), ("subprotocol", (BEARER, WATCHED)), ("subprotocol without a space", (BEARER, WATCHED)),
        ("subprotocol, only the token", (WHY, NOBODY)), ("subprotocol, without a comma", (WHY, NOBODY)),
        ("subprotocol, another's", (WHY, ANOTHER)), ("subprotocol, and a header", (BEARER, WATCHED)), ("header", (NAMED, WATCHED)),
        ("header, Bearer", (NAMED, WATCHED)), ("metadata", (NAMED, WATCHED)), ("cookie", (WHY, NOBODY)),
        ("keepalive of nobody", (LEASES, "101 stream's error 3 etcdserver: user name is empty")))},
}
#: Label -> (reason, our headers that are others).
OTHER_HEADERS = {
    "handshake: Connection: Upgrade, close": ("that it will end is said at once", {"Connection": "Upgrade, close"}),
    "path: /v3": (NO_PAGE, {"Content-Type": None}),
}


class Ended(Exception):
    """The server has closed the connection. Whether it was reset depends on what was still under way."""


class Socket:
    """A connection that asks to speak WebSocket, and does if it may."""

    def __init__(self, endpoint, path, method="GET", headers=(), early=b""):
        host, port = endpoint.split(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = {"Host": endpoint, **HANDSHAKE, **dict(headers)}
        head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None), "", ""]
        self.socket.sendall("\r\n".join(head).encode() + early)
        self.response = http.client.HTTPResponse(self.socket, method=method)
        self.response.begin()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError:
            pass  # Whoever reads next hears of it.

    def frame(self, patience_s=PATIENCE_S):
        """The next: its first byte and its payload. The patience is for its beginning."""
        self.socket.settimeout(patience_s)
        first, length = self.read(2)
        self.socket.settimeout(PATIENCE_S)
        if length >= 126:
            length = int.from_bytes(self.read(2 if length == 126 else 8), "big")
        return first, self.read(length)

    def read(self, count):
        try:
            data = self.response.fp.read(count)
        except ConnectionError as error:
            raise Ended from error
        if len(data) < count:
            raise Ended
        return data

    def close(self):
        self.response.close()
        self.socket.close()


def framed(first, payload, masked=True):
    if isinstance(payload, str):
        payload = payload.encode()
    length, flag = len(payload), 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, flag | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, flag | 126, length)
    else:
        head = struct.pack("!BBQ", first, flag | 127, length)
    if not masked:
        return head + payload
    pad = (MASK * (length // 4 + 1))[:length]
    return head + MASK + (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")


# What is done in a conversation, one after the other.

def say(text):
    return "send", framed(FIN | TEXT, text if isinstance(text, str) else json.dumps(text))


def frame(first, payload=b"", masked=True):
    return "send", framed(first, payload, masked)


def close(code=None, reason=b""):
    return frame(FIN | CLOSE, (code.to_bytes(2, "big") if code is not None else b"") + reason)


def hear(count=1, silent=None):
    """So many frames. `silent` is a side that is known to send none."""
    return "hear", count, silent


#: Frames until the connection has ended.
TO_THE_END = hear(1 << 30)
#: The client says nothing more, and reads.
HALF_CLOSE = ("half close",)
#: The server does, and may say why first: that is a matter of moments.
STOP = ("stop",)


def post(path, body):
    return "post", path, json.dumps(body)


def put(key, value="v", **more):
    return post("/v3/kv/put", {"key": b64(key), "value": b64(value), **more})


def create(key="w", **more):
    return {"create_request": {"key": b64(key), **more}}


def cancel(watch_id):
    return {"cancel_request": {"watch_id": watch_id}}


PROGRESS = {"progress_request": {}}
WATCH, KEEPALIVE = "/v3/watch", "/v3/lease/keepalive"
#: A request as text, and what is said of it when nothing is wrong.
CREATE = json.dumps(create())
CREATED = [say(CREATE), hear()]


def conversations():
    """(label, path, steps, more for `Socket`)"""
    yield from watches()
    yield from keepalives()
    yield from messages()
    yield from breaches()
    yield from handshakes()
    for path in ("/v3", "/v3/", "/v3/nope", "/v3/watch/", "/v3/watch?method=GET", "/v3/kv//range", "/v3beta/watch", "/v3beta/nope",
                 "/v3alpha/watch", "/v3x/watch", "/etcdserverpb.Watch/Watch", "/health", "/nope", "/"):
        finds = "watch" in path and not path.endswith("/")
        yield f"path: {path}", path, CREATED if finds else [TO_THE_END], {}
    yield "path: nowhere, and asked", "/v3/nope", [say("{}"), TO_THE_END], {}


def watches():
    def watch(label, *steps, path=WATCH):
        return f"watch: {label}", path, [*steps], {}

    yield watch("a put, another and a deletion", say(create()), hear(), put("w", "1"), hear(), put("w", "2"), hear(),
                post("/v3/kv/deleterange", {"key": b64("w")}), hear(), close(1000), TO_THE_END)
    yield watch("a prefix, with what was before", say(create("p/", range_end=end("p/"), prev_kv=True, watch_id="7")), hear(),
                put("p/a", "1"), hear(), put("p/a", "<&>\u00e9"), hear(), put("q"), put("p/b"), hear())
    yield watch("cancelled", say(create(watch_id=4)), hear(), say(cancel(4)), hear(), put("w"), say(create("w2")), hear(), put("w2"),
                hear())
    yield watch("several in one message", say(json.dumps(create(watch_id=3)) + json.dumps(create("w3")) + "\n" + json.dumps(create("w4"))),
                hear(3), put("w"), hear(), put("w4"), hear(), put("w3"), hear(), say(json.dumps(cancel(3)) + json.dumps(create("w5"))),
                hear(2), put("w"), put("w5"), hear())
    yield watch("several, quickly", *(say(create("w", watch_id=number)) for number in range(1, 9)), hear(8), say(cancel(5)), hear(),
                put("w4"), say(PROGRESS), hear())
    yield watch("ids that are taken, unknown and none", say(create(watch_id=3)), hear(), say(create("x", watch_id=3)), hear(),
                say(cancel(99)), say(cancel(3)), hear(), say(cancel(3)), say(create(watch_id="-5")), hear())
    yield watch("progress", say(CREATE), hear(), say(PROGRESS), hear(), put("w"), hear(), say(PROGRESS), hear(),
                say({"progressRequest": None}), say(PROGRESS), hear())
    yield watch("progress of none", say(PROGRESS), hear(silent="right"))
    yield watch("a txn is one message", say(create("t", range_end=end("t"))), hear(),
                post("/v3/kv/txn", {"success": [{"request_put": {"key": b64(f"t{n}"), "value": b64(str(n))}} for n in range(5)]}), hear())
    yield watch("no puts", say(create("n", filters=["NOPUT"])), hear(), put("n"), post("/v3/kv/deleterange", {"key": b64("n")}), hear())
    yield watch("no deletions", say(create("n", filters=["NODELETE"])), hear(), put("n"),
                hear(), post("/v3/kv/deleterange", {"key": b64("n")}), put("n"), hear())
    yield watch("a lease ends", post("/v3/lease/grant", {"ID": 71, "TTL": 600}), put("l", lease=71), say(create("l")), hear(),
                post("/v3/lease/revoke", {"ID": 71}), hear())
    yield watch("history", put("h", "1"), put("h", "2"), say(create("h", start_revision=2)), hear(2), put("h", "3"), hear())
    yield watch("what is compacted", post("/v3/kv/compaction", {"revision": 9}), say(create("h", start_revision="5")), hear(2),
                say(create("h", start_revision=9)), hear(2))
    yield watch("the future", say(create("h", start_revision=100_000)), hear(), put("h", "4"), say(PROGRESS), hear(silent="right"))
    yield watch("a range that is none", say(create("b", range_end=b64("a"))), hear())
    yield watch("no key", say(create("")), hear(), put("any"), say(PROGRESS), hear())
    yield watch("everything", say(create("\0", range_end="AA==")), hear(), put("any"), hear())
    # The second txn's event is too long for a response, with what was there before.
    big = [post("/v3/kv/txn", {"success": [{"request_put": {"key": b64(key), "value": b64(value * 700_000)}} for key in ("f1", "f2")]})
           for value in "abc"]
    yield watch("fragments", say(create("f", range_end=end("f"), prev_kv=True, fragment=True)), hear(), big[0], hear(), big[1], hear(2))
    yield watch("no fragments", say(create("f", range_end=end("f"), prev_kv=True)), hear(), big[2], hear())
    yield watch("much history", say(create("f", range_end=end("f"), start_revision=9)), hear(2))
    for nothing in ("{}", '{"create_request":null}', '{"nope":{"a":[1]}}'):
        yield watch(f"nothing, as {nothing}", say(nothing), *CREATED)
    yield watch("nothing, as null", say("null"), say(CREATE), hear())
    yield watch("an older name", *CREATED, path="/v3beta/watch")


def keepalives():
    def keepalive(label, *steps):
        return f"keepalive: {label}", KEEPALIVE, [*steps], {}

    yield keepalive("a lease", post("/v3/lease/grant", {"ID": 72, "TTL": 600}), say({"ID": 72}), hear(), say({"ID": "72"}), hear(),
                    say('{"ID":72}{"ID":73}\n{"ID":72}'), hear(3), post("/v3/lease/revoke", {"ID": 72}), say({"ID": 72}), hear(),
                    close(1000), TO_THE_END)
    yield keepalive("quickly", *[say({"ID": n}) for n in range(1, 6)], hear(5))
    yield keepalive("none", say("{}"), hear(), say({"ID": -1}), hear())
    for nonsense in ("x", '{"ID":true}', "[]", '"x"', '{"ID":"x"}', '{"ID":9223372036854775808}'):
        yield keepalive(f"first {nonsense}", say(nonsense), TO_THE_END)
    # To etcd's service that is the end of the requests: it answers what came before, and ends.
    yield keepalive("then x", say({"ID": 5}), hear(), say("x"), TO_THE_END)


def messages():
    """How what is said may be cut."""
    def message(label, *steps):
        return f"message: {label}", WATCH, [*steps], {}

    head, tail = CREATE[:19], CREATE[19:]
    yield message("binary", frame(FIN | BINARY, CREATE), hear())
    yield message("an object in two", say(head), say(tail), hear())
    yield message("one as text and one as binary", say(head), frame(FIN | BINARY, tail + CREATE), hear(2))
    yield message("a string in two", say(CREATE[:-5]), say(CREATE[-5:]), TO_THE_END)
    yield message("fragments", frame(TEXT, head), frame(MORE), frame(MORE, tail[:3]), frame(FIN | MORE, tail[3:]), hear())
    yield message("fragments cut in a string", frame(BINARY, CREATE[:-5]), frame(FIN | MORE, CREATE[-5:]), hear())
    yield message("a ping among fragments", frame(TEXT, head), frame(FIN | PING, "p"), hear(), frame(FIN | MORE, tail), hear())
    yield message("without anything", say(""), frame(FIN | BINARY), say(" \n\t"), *CREATED)
    yield message("two in a packet", ("send", framed(FIN | TEXT, CREATE) * 2), hear(2))
    yield message("byte by byte", *(("send", bytes([byte])) for byte in framed(FIN | TEXT, CREATE)), hear())
    yield message("a ping", frame(FIN | PING, "hello"), hear(), frame(FIN | PING), hear(), frame(FIN | PING, "x" * 125), hear(), *CREATED)
    yield message("a pong nobody asked for", frame(FIN | PONG, "x"), *CREATED)
    yield message("a mebibyte", say(create("k" * (1 << 20))), hear(), put("w"), say(PROGRESS), hear())
    yield message("more than a request may be", say(create("k" * 2_200_000)), TO_THE_END)
    yield message("more than is read", say(create("k" * (4 << 20))), TO_THE_END)
    for nonsense in ("x", "[]", '"x"', "5", "true", "{]", '{"create_request":5}', '{"create_request":{"key":5}}',
                     '{"create_request":{"key":"Z!"}}', '{"create_request":{"filters":["NEITHER"]}}', '{"create_request":{}]'):
        yield message(f"first {nonsense}", say(nonsense), TO_THE_END)
    # The requests are at their end then, and the answers are not.
    yield message("then x", *CREATED, say("x"), put("w"), hear())
    yield message("then x and a ping", *CREATED, say("x"), frame(FIN | PING, "p"), hear(silent="left"))
    yield message("then x and a close", *CREATED, say("x"), close(1000), hear(silent="left"), TO_THE_END)
    yield message("no text", frame(FIN | TEXT, b"\xff"), TO_THE_END)
    yield message("no text, as binary", frame(FIN | BINARY, b"\xff"), TO_THE_END)


def breaches():
    """The end, however it comes."""
    def ended(label, *steps, path=WATCH):
        return f"end: {label}", path, [*steps, TO_THE_END], {}

    yield ended("the client's close", *CREATED, close(1000, b"bye"))
    yield ended("a close at once", close(1000))
    yield ended("a close, and a message", close(1000), say(CREATE))
    for code in (None, 1000, 1001, 1002, 1003, 1007, 1008, 1011, 3000, 4000, 4999, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000):
        yield ended(f"close {code}", close(code))
    yield ended("close 4000, with a reason", close(4000, "weil's so ist \u00e9".encode()))
    yield ended("close, of one byte", frame(FIN | CLOSE, "x"))
    yield ended("close, with no text", close(1000, b"\xff"))
    yield ended("half a connection", *CREATED, HALF_CLOSE)
    yield ended("half a connection, at once", HALF_CLOSE)
    yield ended("half a message", frame(TEXT, CREATE[:19]), HALF_CLOSE)
    yield ended("half a frame", *CREATED, ("send", framed(FIN | TEXT, CREATE)[:9]), HALF_CLOSE)
    for label, *steps in (
            ("not masked", frame(FIN | TEXT, CREATE, False)), ("a reserved bit", frame(FIN | RESERVED | TEXT, CREATE)),
            ("an unknown opcode", frame(FIN | 3, CREATE)), ("an unknown opcode of control", frame(FIN | 11, CREATE)),
            ("a fragment of nothing", frame(FIN | MORE, CREATE)), ("a message in a message", frame(TEXT, "{"), frame(FIN | TEXT, "}")),
            ("a ping too long", frame(FIN | PING, "x" * 126)), ("a ping in fragments", frame(PING, "x")),
            ("a length without end", ("send", b"\x81\xff" + b"\xff" * 8 + MASK))):
        yield ended(f"breach: {label}", *CREATED, *steps)


def handshakes():
    def handshake(label, steps=CREATED, **more):
        return f"handshake: {label}", WATCH, steps, more

    for method in ("POST", "PUT", "HEAD", "OPTIONS"):
        yield handshake(method, method=method)
    for name, *values in (
            ("Sec-WebSocket-Version", None, "8", "12", "8, 13", "x"), ("Sec-WebSocket-Key", None, "", "x", "dGhlIHNhbXBsZSBub25jZQ="),
            ("Connection", None, "upgrade", "keep-alive, Upgrade", "close", "Upgrade, close"),
            ("Upgrade", None, "WebSocket", "h2c, websocket", "h2c", "websockets"),
            ("Sec-WebSocket-Protocol", "Bearer", "Bearer, tok", "Bearer,tok", "Bearertok", "Bearer, ", "bearer, tok", "x",
             "x, Bearer, tok"),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits", "x"),
            ("Origin", "http://elsewhere.example", ""), ("Host", "elsewhere.example", ""), ("Content-Length", "0"),
            ("Authorization", "nonsense"), ("Cookie", "token=nonsense"), ("Grpc-Metadata-hasleader", "true"), ("Grpc-Timeout", "soon")):
        for value in values:
            yield handshake(f"{name}: {value}", headers={name: value})
    # Before it is agreed to.
    yield handshake("a message at once", [hear()], early=framed(FIN | TEXT, CREATE))


def unary():
    """Methods that take one request. Last on their server, since only by POST they change anything of etcd's."""
    key = {"key": b64("u")}
    for path, body in (
            ("kv/range", key), ("kv/put", {**key, "value": b64("1")}), ("kv/put", {**key, "value": b64("2"), "prev_kv": True}),
            ("kv/range", key), ("kv/range", {}), ("kv/range", "x"), ("kv/range", "[]"), ("kv/range", {"limit": "x"}),
            ("kv/txn", {"compare": [{**key, "target": "VALUE", "value": b64("2")}], "success": [{"request_range": key}]}),
            ("kv/deleterange", key), ("kv/compaction", {"revision": 99}), ("lease/grant", {"ID": 5, "TTL": 60}),
            ("lease/timetolive", {"ID": 5}), ("lease/leases", {}), ("lease/revoke", {"ID": 5}), ("lease/revoke", {"ID": 5}),
            ("cluster/member/list", {}), ("maintenance/alarm", {}), ("auth/status", {}), ("auth/user/list", {}),
            ("lock/lock", {"lease": 99}), ("election/leader", {"name": b64("e")})):
        body = body if isinstance(body, str) else json.dumps(body)
        yield f"unary: {path} {body}", f"/v3/{path}", [("ask", body)], {}
    yield "one request: snapshot", "/v3/maintenance/snapshot", [say("{}"), hear(silent="left")], {}
    yield "one request: observe", "/v3/election/observe", [
        post("/v3/lease/grant", {"ID": 6, "TTL": 600}), post("/v3/election/campaign", {"name": b64("e"), "lease": 6, "value": b64("1")}),
        say({"name": b64("e")}), hear(silent="left")], {}


#: How root comes to be, users to be asked for, and root to its token.
USERS = [("/v3/auth/user/add", {"name": "root", "password": "p"}), ("/v3/auth/user/grant", {"user": "root", "role": "root"}),
         ("/v3/auth/enable", {}), ("/v3/auth/authenticate", {"name": "root", "password": "p"})]


def users(kind):
    """Who may watch, where users are asked for; TOKEN stands for root's."""
    for label, headers in (
            ("nobody", {}), ("subprotocol", {"Sec-WebSocket-Protocol": "Bearer, TOKEN"}),
            ("subprotocol without a space", {"Sec-WebSocket-Protocol": "Bearer,TOKEN"}),
            ("subprotocol, only the token", {"Sec-WebSocket-Protocol": "TOKEN"}),
            ("subprotocol, without a comma", {"Sec-WebSocket-Protocol": "Bearer TOKEN"}),
            ("subprotocol, another's", {"Sec-WebSocket-Protocol": "Bearer, nonsense"}),
            ("subprotocol, and a header", {"Sec-WebSocket-Protocol": "Bearer, TOKEN", "Authorization": "nonsense"}),
            ("header", {"Authorization": "TOKEN"}), ("header, Bearer", {"Authorization": "Bearer TOKEN"}),
            ("metadata", {"Grpc-Metadata-token": "TOKEN"}), ("cookie", {"Cookie": "token=TOKEN"})):
        yield f"{kind} token: {label}", WATCH, [say(create(watch_id=5)), hear(), close(1000), TO_THE_END], {"headers": headers}
    yield f"{kind} token: keepalive", KEEPALIVE, [say({"ID": 9}), hear()], {"headers": {"Sec-WebSocket-Protocol": "Bearer, TOKEN"}}
    yield f"{kind} token: keepalive of nobody", KEEPALIVE, [say({"ID": 9}), hear()], {}


def access():
    """Who may come, and who may read, with `ACCESS_FLAGS`."""
    for host in ("localhost", "localhost:2379", "evil.example", ""):
        yield f"access: at {host}", WATCH, CREATED, {"headers": {"Host": host}}
    for origin in ("http://a.example:80", "http://c.example:80", ""):
        yield f"access: from {origin}", WATCH, CREATED, {"headers": {"Origin": origin}}
    yield "stop: a watch", WATCH, [*CREATED, STOP], {}


def conversation(server, path, steps, more, silent, unanswered):
    """What the client sees: status, headers, and the body or frames. `silent` says as which side the server may be silent."""
    talk = Socket(server.endpoint, path, **more)
    response = talk.response
    seen = {"status": response.status, "headers": {name: response.getheader(name) for name in HEADERS if response.getheader(name)}}
    if response.status != 101:
        seen["body"] = parsed(response.read().decode())
        talk.close()
        return seen
    heard = seen["heard"] = []
    try:
        for verb, *what in steps:
            known = verb == "ask" and silent == "left"
            if verb == "send":
                talk.send(*what)
            elif verb == "post":
                heard.append(outcome(server.endpoint, "POST", *what, {}, None)[0])
            elif verb == "half close":
                talk.socket.shutdown(socket.SHUT_WR)
            elif verb == "stop":
                server.stop()
                while True:
                    heard += [last for last in [talk.frame()] if last[0] != FIN | TEXT]
            elif verb == "hear":
                count, known = what[0], what[1] == silent
                for _ in range(count):
                    heard.append(talk.frame(SILENCE_S if known else PATIENCE_S))
            elif verb == "ask":
                talk.send(framed(FIN | TEXT, *what))
                heard.append(talk.frame(SILENCE_S if known else PATIENCE_S))
                while True:
                    heard.append(talk.frame())
    except Ended:
        heard.append(ENDED)
    except TimeoutError:
        heard.append(SILENCE if known else NOTHING)
        if verb == "ask":
            heard.append(outcome(server.endpoint, "POST", path, *what, {}, None)[0])
        # Its end might yet be the end of a request, which would then be carried out.
        unanswered.append(talk)
        return seen
    talk.close()
    return seen


def transcript(command, silent, conversations, flags=(), with_users=False):
    """What came of the conversations with a server of their own. With users, TOKEN is root's."""
    steps, unanswered, token = [], [], ""
    with Server(command, flags=flags) as server:
        for path, body in USERS if with_users else ():
            _, text = outcome(server.endpoint, "POST", path, json.dumps(body), {}, None)
            token = json.loads(text).get("token", "")
        for label, path, doings, more in conversations:
            if "headers" in more:
                more = {**more, "headers": {name: value and value.replace("TOKEN", token) for name, value in more["headers"].items()}}
            try:
                seen = conversation(server, path, doings, more, silent, unanswered)
            except ConnectionError:
                seen = {"broke off": "without an answer"}
            except (OSError, http.client.HTTPException) as error:
                seen = {"broke off": repr(error)}
            steps.append((label, seen))
    for talk in unanswered:
        talk.close()
    return steps


def understood(thing):
    """What was heard, with what depends on the cluster replaced."""
    if not isinstance(thing, tuple):
        return thing
    first, payload = thing
    if first == FIN | TEXT:
        return {"text": parsed(payload.decode("utf-8", "backslashreplace"))}
    if first == FIN | CLOSE and len(payload) > 1:
        return {"close": int.from_bytes(payload[:2], "big"), "reason": payload[2:].decode("utf-8", "backslashreplace")}
    return {"first byte": first, "payload": payload.decode("latin-1")}


def clear(seen):
    return {**seen, "heard": [understood(thing) for thing in seen["heard"]]} if "heard" in seen else seen


def wordless(seen):
    """Without errors' words and close frames' reasons."""
    def bare(thing):
        if isinstance(thing, dict) and "close" in thing:
            return {**thing, "reason": ""}
        if isinstance(thing, dict) and isinstance(thing.get("text"), dict) and "error" in thing["text"]:
            text = thing["text"]
            error = {**text["error"], "message": ""} if isinstance(text["error"], dict) else ""
            return {"text": {**text, "error": error, "message": ""}}
        return thing
    return {**seen, "heard": [bare(thing) for thing in seen["heard"]]} if "heard" in seen else seen


def short(seen):
    """`status what, what, ...`."""
    if "heard" not in seen:
        return str(seen) if "status" not in seen else f"{seen['status']} {seen['body']!r}"
    return f"{seen['status']} {', '.join(map(word, seen['heard']))}"


def word(thing):
    if not isinstance(thing, dict):
        return thing
    if "close" in thing:
        return f"close {thing['close']} {thing['reason']}".strip()
    if "status" in thing:
        return "posted"
    if "text" not in thing:
        return {FIN | CLOSE: "close", FIN | PONG: "pong"}.get(thing["first byte"], f"frame {thing['first byte']}")
    said = thing["text"]
    if not isinstance(said, dict):
        return repr(said)
    if "error" in said:
        error = said["error"]
        if isinstance(error, dict):
            return f"stream's error {error['grpc_code']} {error['message']}"
        return f"error {said['code']} {said['message']}"
    result = said.get("result", said)
    if "events" in result:
        return f"{len(result['events'])} events to {result['header']['revision']}"
    if "canceled" in result:
        return f"cancelled {result.get('cancel_reason', '')}".strip()
    return "created" if "created" in result else "answer"


class Judge:
    """Compares what two servers did, and notes which of the listed differences there were."""

    def __init__(self, same):
        self.same, self.unused, self.intended = same, set(), 0
        if not same:
            self.unused = {*OTHER_WORDS, *OTHERWISE, *OTHER_HEADERS, ANSWERED}

    def equal(self, label, left, right):
        """Whether they are, listed differences apart."""
        left, right = clear(left), clear(right)
        if self.same or left == right:
            return left == right
        used = set()
        if label in OTHER_HEADERS and "headers" in left:
            left["headers"] = {name: value for name, value in {**left["headers"], **OTHER_HEADERS[label][1]}.items() if value is not None}
            used.add(label)
        if label.startswith("unary: ") and left.get("heard", [])[:1] == [SILENCE]:
            left["heard"] = [{"text": left["heard"][1]["body"]}, ENDED]
            used.add(ANSWERED)
        if left != right and label in OTHER_WORDS and wordless(left) == wordless(right):
            left = right
            used.add(label)
        # Of another status the headers are others, too.
        same_kind = left.get("status") != right.get("status") or left["headers"] == right["headers"]
        if label in OTHERWISE and same_kind and OTHERWISE[label][1] == short(right) != short(left):
            left = right
            used.add(label)
        if left == right:
            self.unused -= used
            self.intended += 1
        return left == right


def planted(seen):
    """(what, the same with a difference that has to be found)"""
    headers, heard = seen.get("headers", {}), seen.get("heard")
    if "status" in seen:
        yield "another status", {**seen, "status": seen["status"] + 1}
    for name in headers:
        yield f"no {name}", {**seen, "headers": {key: value for key, value in headers.items() if key != name}}
    if heard is None:
        return
    for at, thing in enumerate(heard):
        before, after = heard[:at], heard[at + 1:]
        yield "one less", {**seen, "heard": before + after}
        yield "one more", {**seen, "heard": [*before, thing, thing, *after]}
        if not isinstance(thing, tuple):
            continue
        first, payload = thing
        others = [("not the last of a message", (first ^ FIN, payload)), ("a reserved bit", (first ^ RESERVED, payload)),
                  ("another opcode", (first ^ TEXT ^ BINARY, payload))]
        if first == FIN | PONG:
            others.append(("another pong", (first, payload + b"!")))
        if first == FIN | CLOSE and payload:
            others.append(("another code", (first, payload[:1] + bytes([payload[1] ^ 1]) + payload[2:])))
            others.append(("another reason", (first, payload + b"!")))
        altered = re.sub(rb'"(revision|mod_revision|watch_id|ID|code)":("?)', rb'"\1":\g<2>1', payload)
        if first == FIN | TEXT and altered != payload:
            others.append(("another number", (first, altered)))
        if first == FIN | TEXT and payload.startswith(b"{"):
            others.append(("a field more", (first, b'{"more":1,' + payload[1:])))
        for what, other in others:
            yield what, {**seen, "heard": [*before, other, *after]}
        if after and isinstance(after[0], tuple) and understood(after[0]) != understood(thing):
            yield "another order", {**seen, "heard": [*before, after[0], thing, *after[1:]]}


def not_found(steps):
    """How many differences are planted in what a server did, one at a time, by their kinds; and which of them are not found."""
    counts, missed = {}, []
    for label, seen in steps:
        for what, other in planted(seen):
            counts[what] = counts.get(what, 0) + 1
            if Judge(same=True).equal(label, seen, other):
                missed.append(f"{label}: {what}")
    return counts, missed


def signed_tokens(directory):
    """The flag by which tokens are signed."""
    keys = [f"{directory}/{name}" for name in ("key", "pub")]
    for arguments in (["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", keys[0]],
                      ["pkey", "-in", keys[0], "-pubout", "-out", keys[1]]):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    return f"--auth-token=jwt,pub-key={keys[1]},priv-key={keys[0]},sign-method=RS256,ttl=10m"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", required=True)
    parser.add_argument("--same", action="store_true", help="no difference is intended")
    arguments = parser.parse_args()
    sides = [None, None]
    quick = "--bcrypt-cost=4"

    def side(number, command, jwt):
        silent = "left" if number == 0 or arguments.same else "right"
        sides[number] = [
            *transcript(command, silent, conversations()), *transcript(command, silent, unary()),
            *transcript(command, silent, users("simple"), [quick], True), *transcript(command, silent, users("signed"), [quick, jwt], True),
            *transcript(command, silent, access(), ACCESS_FLAGS)]

    with tempfile.TemporaryDirectory() as directory:
        jwt = signed_tokens(directory)
        threads = [threading.Thread(target=side, args=(*pair, jwt)) for pair in enumerate((arguments.left, arguments.right))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if None in sides:
        raise SystemExit("a server did not serve")

    judge = Judge(arguments.same)
    unexpected = 0
    for (label, left), (_, right) in zip(*sides):
        if not judge.equal(label, left, right):
            unexpected += 1
            left, right = clear(left), clear(right)
            print(f"DIFFERENT  {label}\n    left  {short(left):.500}\n    right {short(right):.500}")
            for name in HEADERS:
                pair = [seen.get("headers", {}).get(name) for seen in (left, right)]
                if pair[0] != pair[1]:
                    print(f"    {name}: left {pair[0]}, right {pair[1]}")
            for pair in zip(left.get("heard", []), right.get("heard", [])):
                if pair[0] != pair[1]:
                    print(f"    first of those that differ\n        left  {pair[0]!s:.300}\n        right {pair[1]!s:.300}")
                    break
    for label in sorted(judge.unused):
        print(f"UNUSED     {label}")
    print(f"websocket: {len(sides[0])} conversations, {unexpected} unexpected differences, {judge.intended} intended ones, "
          f"{len(judge.unused)} unused")
    missed = []
    if arguments.same:
        counts, missed = not_found(sides[0])
        for label in missed:
            print(f"NOT FOUND  {label}")
        print(f"websocket: {sum(counts.values())} differences of {len(counts)} kinds planted, {len(missed)} not found")
    sys.exit(1 if unexpected or judge.unused or missed else 0)


if __name__ == "__main__":
    main()
