"""Holds the JSON gateways of two servers against each other: the same HTTP requests to each, then what came back, one by one.

    gateway.py --left etcd --right target/debug/everwatch
    gateway.py --left etcd --right etcd --same       proves the comparison itself

Compared are the status, the headers that clients look at and the body, with what depends on the cluster replaced. A difference is
fine only if it is listed below with its reason; an entry that matches nothing fails the run. What answers 501 because it is not
there yet is counted apart.
"""

import argparse
import base64
import http.client
import json
import sys
import threading

from server import Server

PATIENCE_S = 20
#: Of a cluster or a moment, by the name of the field; what is a string of digits stays one.
VARIABLE = {"cluster_id", "member_id", "raft_term", "leader", "raftIndex", "raftAppliedIndex", "raftTerm", "dbSize", "dbSizeInUse",
            "version", "peerURLs", "clientURLs", "memberID", "token"}
#: Names of fields that only later versions of the API have.
LATER = {"storageVersion", "dbSizeQuota", "downgradeInfo"}
HEADERS = ("Content-Type", "Grpc-Metadata-Content-Type", "Location", "X-Content-Type-Options", "Access-Control-Allow-Origin",
           "Access-Control-Allow-Methods", "Access-Control-Allow-Headers")

PARSER = "what is no JSON is refused in the words of our parser"
NO_ARRAY = "an array of numbers is no way to write bytes"
HASHKV = "the path of HashKV is that of etcd from 3.6; before, it had that of Hash"
LENIENT = "base64 of URLs and without padding is understood, as in etcd from 3.6"
#: Label -> reason. Status and code must be equal, the words may differ.
OTHER_WORDS = {
    "odd: {\"key\":\"Zm9v\",}": PARSER,
    "odd: {key:\"Zm9v\"}": PARSER,
    "odd: {\"key\":\"Zm9v\" \"limit\":1}": PARSER,
    "odd: {\"key\":[\"Zm9v\"]}": NO_ARRAY,
    "odd: {\"limit\":\"0x5\",\"key\":\"Zm9v\"}": PARSER,
    "keepalive: x": PARSER,
}
#: Label -> (reason, our outcome, as `status code message` or `status` if it is well).
OTHERWISE = {
    "odd: {\"key\":\"_-8=\"}": (LENIENT, "200"),
    "odd: {\"key\":\"Zm8\"}": (LENIENT, "200"),
    "odd: {\"key\":[1,2]}": (NO_ARRAY, "400 3 json: cannot unmarshal array into Go value of type []uint8"),
    "odd: {\"sort_order\":99,\"key\":\"Zm9v\"}": ("an unknown sort order is refused, as by later etcd",
                                                "400 3 etcdserver: invalid sort option"),
    "odd: path /v3/kv//range": ("paths are not cleaned", "404"),
    **{f"maintenance: /v3/maintenance/hashkv {json.dumps(body)}": (HASHKV, "200") for body in ("", "{}", '{"nope":[{"a":null}]}')},
    "maintenance: /v3/maintenance/hashkv {\"revision\": 9999}": (
        HASHKV, "400 11 etcdserver: mvcc: required revision is a future revision"),
}


def b64(text):
    return base64.b64encode(text.encode()).decode()


def end(prefix):
    return b64(prefix[:-1] + chr(ord(prefix[-1]) + 1))


KEY = {"key": b64("k")}


def requests():
    """(label, method, path, body, headers, lines): `lines` is how many are read of a stream that does not end."""
    post = lambda section, path, body="{}", lines=None, headers=None, method="POST": (  # noqa: E731
        f"{section}: {body if section in ('odd', 'keepalive') else path + ' ' + json.dumps(body)[:150]}", method, path,
        body if isinstance(body, str) else json.dumps(body), headers or {}, lines)
    put = lambda key, value="v", **more: post("kv", "/v3/kv/put", {"key": b64(key), "value": b64(value), **more})  # noqa: E731

    yield put("k", "1")
    yield put("k", "2", prev_kv=True)
    yield put("k2")
    yield put("k3", "<&>\u00e9")
    yield put("k4", lease="12345")
    yield put("k", "", ignore_value=True)
    yield put("k", "x", ignore_value=True)
    yield put("nokey", "", ignore_value=True)
    yield put("k", "x", ignore_lease=True, lease=1)
    yield post("kv", "/v3/kv/put", {"value": "eA=="})
    yield post("kv", "/v3/kv/put", {"key": b64("k"), "prevKv": True, "ignoreValue": True})
    for body in (
            KEY, {}, {"key": b64("none")}, {"key": b64("k"), "range_end": end("k")}, {"key": b64("k"), "rangeEnd": end("k")},
            {"key": "AA==", "range_end": "AA=="}, {"key": b64("k"), "range_end": end("k"), "limit": 1},
            {"key": b64("k"), "range_end": end("k"), "limit": "2", "sort_order": "DESCEND"},
            {"key": b64("k"), "range_end": end("k"), "sort_order": 2, "sort_target": 1},
            {"key": b64("k"), "range_end": end("k"), "sort_order": "ASCEND", "sort_target": "VALUE"},
            {"key": b64("k"), "range_end": end("k"), "keys_only": True}, {"key": b64("k"), "range_end": end("k"), "count_only": True},
            {"key": b64("k"), "revision": 2}, {"key": b64("k"), "revision": "2"}, {"key": b64("k"), "revision": 9999},
            {"key": b64("k"), "revision": -1}, {"key": b64("k"), "serializable": True},
            {"key": b64("k"), "range_end": end("k"), "min_mod_revision": 3, "max_mod_revision": "4"},
            {"key": b64("k"), "range_end": end("k"), "min_create_revision": 3, "maxCreateRevision": 5}):
        yield post("kv", "/v3/kv/range", body)
    for body in (
            {"compare": [{"key": b64("k"), "target": "VALUE", "value": b64("2")}],
             "success": [{"request_put": {"key": b64("t"), "value": b64("1")}}, {"request_range": KEY}],
             "failure": [{"request_range": KEY}]},
            {"compare": [{"key": b64("k"), "target": "CREATE", "result": "GREATER", "create_revision": "99"}],
             "success": [], "failure": [{"requestRange": KEY}]},
            {"compare": [{"key": b64("k"), "target": 0, "result": "NOT_EQUAL", "version": 0}],
             "success": [{"request_delete_range": {"key": b64("t"), "prev_kv": True}}]},
            {"success": [{"request_txn": {"success": [{"request_put": {"key": b64("t2")}}]}}]},
            {"compare": [{"key": b64("k"), "target": "MOD", "mod_revision": 3}]},
            {"compare": [{"key": b64("k"), "target": "LEASE", "lease": 0}]},
            {"compare": [{"key": b64("k"), "range_end": end("k"), "target": "VERSION", "result": "LESS", "version": 100}]},
            {"success": [{"request_put": {"key": b64("a")}}, {"request_put": {"key": b64("a")}}]},
            {"success": [{"request_put": {}}]}, {"success": [{}]}, {"compare": [{}]}, {}, {"success": [None]}, {"success": None},
            {"compare": [{"key": b64("k"), "target": "MODD"}]}, {"success": {}}, {"success": ["x"]}):
        yield post("txn", "/v3/kv/txn", body)
    for body in ({"key": b64("k4")}, KEY, {"key": b64("k"), "range_end": end("k"), "prev_kv": True}, {}):
        yield post("kv", "/v3/kv/deleterange", body)
    yield put("c", "1")
    yield put("c", "2")
    for body in ({"revision": "3"}, {"revision": 3}, {"revision": 5, "physical": True}, {"revision": 9999}, {}, {"revision": -5}):
        yield post("kv", "/v3/kv/compaction", body)
    yield post("kv", "/v3/kv/range", {"key": b64("c"), "revision": 2})

    for path, body in (
            ("/v3/lease/grant", {"ID": "77", "TTL": 60}), ("/v3/lease/grant", {"ID": 77, "TTL": "60"}), ("/v3/lease/grant", {"TTL": 90}),
            ("/v3/lease/grant", {"ID": 78, "TTL": 99999999999}), ("/v3/lease/grant", {"id": 5, "ttl": 7}),
            ("/v3/lease/timetolive", {"ID": 77, "keys": True}), ("/v3/kv/lease/timetolive", {"ID": 77}), ("/v3/lease/timetolive", {"ID": 1}),
            ("/v3/kv/put", {"key": b64("l"), "lease": 77}), ("/v3/lease/timetolive", {"ID": "77", "keys": True}),
            ("/v3/lease/revoke", {"ID": 77}), ("/v3/lease/revoke", {"ID": 77}), ("/v3/kv/lease/revoke", {"ID": "5"}),
            ("/v3/kv/range", {"key": b64("l")})):
        yield post("lease", path, body)
    yield post("lease", "/v3/lease/grant", {"ID": "79", "TTL": 60})
    yield post("lease", "/v3/lease/grant", {"ID": 9007199254740993, "TTL": 60})
    for path in ("/v3/lease/timetolive",):
        yield post("lease", path, {"ID": 9007199254740993})
    for body in ('{"ID":79}', '{"ID":"79"}{"ID":1}', '{"ID":79} \n {"ID":79}\n', '', 'x', '{"ID":79} x', '{"ID":true}', '{}', 'null',
                 'null {"ID":79}null', '"x"', 'true', '5 ', '[]'):
        yield post("keepalive", "/v3/lease/keepalive", body, lines=9)

    for body, lines in (
            ({"create_request": {"key": b64("c"), "start_revision": 6}}, 2),
            ({"create_request": {"key": b64("c"), "start_revision": "1"}}, 2),
            ({"create_request": {"key": b64("c"), "filters": ["NOPUT"], "watch_id": 7}}, 1),
            ({"createRequest": {"key": b64("c"), "rangeEnd": end("c"), "prevKv": True, "startRevision": 6}}, 2),
            ({"create_request": {"key": b64("c"), "range_end": b64("b")}}, 1),
            ({"create_request": {"key": 5}}, 1), ({"create_request": {"key": "c", "filters": ["NEITHER"]}}, 1)):
        yield post("watch", "/v3/watch", body, lines=lines)
    yield "watch: more than a request may be", "POST", "/v3/watch", json.dumps({"create_request": {"key": b64("k" * 2_200_000)}}), {}, 1
    several = '{"create_request":{"key":"Yw==","watch_id":3}}{"create_request":{"key":"Yw=="}}\n{"cancel_request":{"watch_id":3}} '
    yield post("watch", "/v3/watch", several, lines=3)
    yield post("watch", "/v3/watch", several + "nonsense", lines=3)
    yield post("watch", "/v3/watch", '{"create_request":{"key":"Yw=="}}{"progress_request":{}}', lines=2)

    for path in ("status", "hashkv"):
        for body in ("", "{}", '{"nope":[{"a":null}]}'):
            yield post("maintenance", f"/v3/maintenance/{path}", body)
    yield post("maintenance", "/v3/maintenance/hashkv", {"revision": 9999})
    yield post("maintenance", "/v3/maintenance/defragment")
    yield post("maintenance", "/v3/maintenance/snapshot", "", lines=1)
    for body in ({}, {"action": "GET"}, {"action": "DEACTIVATE", "alarm": "NOSPACE"}, {"action": 0, "alarm": 1}, {"action": "WHAT"},
                 {"alarm": "NOPE"}):
        yield post("maintenance", "/v3/maintenance/alarm", body)
    yield post("maintenance", "/v3/maintenance/transfer-leadership", {"targetID": "5"})
    yield post("maintenance", "/v3/maintenance/downgrade", {"action": "VALIDATE", "version": "x"})

    for path, body in (
            ("list", {}), ("list", {"linearizable": True}), ("add", {"peerURLs": ["nonsense"]}), ("add", {"peerURLs": "x"}), ("add", {}),
            ("remove", {"ID": "5"}), ("promote", {"ID": [5]}), ("update", {"peerURLs": 5}), ("remove", {"ID": "x"}), ("remove", {"ID": -5}),
            ("remove", {"ID": 18446744073709551616})):
        # Not one change of members after the other: etcd drops the second while it has not carried out the first.
        yield post("cluster", f"/v3/cluster/member/{path}", body)

    yield post("lease", "/v3/lease/grant", {"ID": 16, "TTL": 600})
    yield post("lease", "/v3/lease/grant", {"ID": 17, "TTL": 600})
    for path, body in (
            ("lock", {"name": b64("lk"), "lease": 16}), ("lock", {"name": b64("lk"), "lease": "16"}), ("lock", {"name": b64("lk"), "lease": 99}),
            ("unlock", {"key": b64("lk/10")}), ("unlock", {"key": b64("lk/10")}), ("unlock", {}), ("lock", {"lease": 17}),
            ("unlock", {"key": b64("/11")})):
        yield post("lock", f"/v3/lock/{path}", body)
    leader = {"name": b64("el"), "key": b64("el/10"), "lease": 16}
    for path, body in (
            ("leader", {"name": b64("el")}), ("campaign", {"name": b64("el"), "lease": 16, "value": b64("1")}), ("leader", {"name": b64("el")}),
            ("campaign", {"name": b64("el"), "lease": 16, "value": b64("2")}), ("campaign", {"name": b64("el"), "lease": 98}),
            ("proclaim", {"leader": {**leader, "rev": 1}, "value": b64("3")}), ("proclaim", {"value": b64("3")}),
            ("resign", {}), ("resign", {"leader": {**leader, "rev": 1}}), ("leader", {"name": b64("el")}), ("leader", {})):
        yield post("election", f"/v3/election/{path}", body)
    yield post("election", "/v3/election/observe", {"name": b64("el")}, lines=1)

    for body in (
            '', ' ', 'null', '{}', '[]', '"x"', '5', 'true', 'tru', '[1', '{"key":"Zm9v', '{"key":"Zm9v"} trailing', '{"key":"Zm9v"',
            '{"key":"Zm9v",}', '{key:"Zm9v"}', '{"key":"Zm9v" "limit":1}', '{"key":5}', '{"key":true}', '{"key":{}}', '{"key":["Zm9v"]}',
            '{"key":[1,2]}', '{"key":null}', '{"key":""}', '{"key":"Z!9v"}', '{"key":"Zm9v\\n"}', '{"key":" Zm9v"}', '{"key":"_-8="}',
            '{"key":"Zm8"}', '{"key":"Zm9vY"}', '{"key":"\\u005am9v"}', '{"KEY":"Zm9v"}', '{"nope":1,"key":"Zm9v"}',
            '{"range_end":"AA==","rangeEnd":"Zg==","key":"Zm9v"}', '{"key":"Zm9v","key":"eA=="}',
            *('{"limit":%s,"key":"Zm9v"}' % limit for limit in (
                '1.0', '1e2', '1.5', '"1.0"', '-1', '"-1"', '" 5"', '""', 'null', 'true', '"true"', '{}', '[]', '"0x5"', '"abc"', '"+5"',
                '9223372036854775807', '9223372036854775808', '99999999999999999999', '"9223372036854775808"')),
            *('{"serializable":%s,"key":"Zm9v"}' % flag for flag in ('"true"', '1', 'null', '{}')),
            *('{"sort_order":%s,"key":"Zm9v"}' % order for order in ('"NOPE"', '"2"', '99', '1.5', 'null', 'true', '"descend"'))):
        yield post("odd", "/v3/kv/range", body)
    yield ("odd: a key of a mebibyte", "POST", "/v3/kv/range", json.dumps({"key": base64.b64encode(b"k" * (1 << 20)).decode()}), {}, None)
    yield ("odd: a value that is too long", "POST", "/v3/kv/put",
           json.dumps({"key": b64("k"), "value": base64.b64encode(b"v" * (2 << 20)).decode()}), {}, None)
    yield ("odd: a value over the limit of txns", "POST", "/v3/kv/put",
           json.dumps({"key": b64("k"), "value": base64.b64encode(b"v" * (1700 << 10)).decode()}), {}, None)

    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
        yield (f"odd: {method}", method, "/v3/kv/range", "" if method in ("GET", "HEAD") else "{}", {}, None)
    for path in ("/v3", "/v3/", "/v3/nope", "/v3/kv", "/v3/kv/range/", "/v3/kv//range", "/v3/kv/Range", "/v3alpha/kv/range", "/v3beta/kv/range",
                 "/v3beta/nope", "/v3/kv/range?limit=1", "/v3/kv/range?nope=1", "/v3x/kv/range", "/v3/etcdserverpb.KV/Range"):
        yield (f"odd: path {path}", "POST", path, json.dumps(KEY), {}, None)
    yield ("odd: GET /v3/nope", "GET", "/v3/nope", "", {}, None)
    for name, value in (("Content-Type", "text/plain"), ("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "text/html"),
                        ("Authorization", "nonsense"), ("Authorization", "Bearer nonsense"), ("Grpc-Metadata-token", "nonsense"),
                        ("Grpc-Metadata-hasleader", "true"), ("Grpc-Timeout", "20S"), ("Grpc-Timeout", "0n"), ("Grpc-Timeout", "soon"),
                        ("Grpc-Timeout", "5")):
        yield (f"odd: header {name}: {value}", "POST", "/v3/kv/range", json.dumps(KEY), {name: value}, None)

    yield from auth(post)


def auth(post):
    """Users, last: with auth on, nothing else works without a token."""
    for path, body in (
            ("status", {}), ("authenticate", {"name": "root", "password": "p"}), ("user/add", {"name": "root", "password": "p"}),
            ("user/add", {"name": "root", "password": "p"}), ("user/add", {}), ("user/add", {"name": 5}), ("user/list", {}),
            ("role/add", {"name": "root"}), ("role/add", {"name": "r"}), ("role/list", ""), ("role/get", {"role": "r"}),
            ("role/grant", {"name": "r", "perm": {"permType": "READWRITE", "key": b64("a"), "range_end": b64("b")}}),
            ("role/grant", {"name": "r", "perm": {"permType": "EVERYTHING", "key": b64("a")}}), ("role/get", {"role": "r"}),
            ("role/revoke", {"role": "r", "key": b64("zz")}), ("user/grant", {"user": "root", "role": "root"}),
            ("user/get", {"name": "root"}), ("user/get", {"name": "none"}), ("user/changepw", {"name": "none", "password": "x"}),
            ("user/revoke", {"name": "root", "role": "r"}), ("role/delete", {"role": "none"}), ("user/delete", {"name": "none"}),
            ("enable", {}), ("status", {}), ("authenticate", {"name": "root", "password": "wrong"})):
        yield post("auth", f"/v3/auth/{path}", body)
    yield post("auth", "/v3/kv/range", KEY)
    yield post("auth", "/v3/kv/range", KEY, headers={"Authorization": "TOKEN"})
    yield post("auth", "/v3/kv/put", KEY, headers={"Authorization": "nonsense"})
    yield post("auth", "/v3/lock/lock", {"name": b64("lk"), "lease": 17})
    yield post("auth", "/v3/lock/lock", {"name": b64("lk"), "lease": 17}, headers={"Authorization": "TOKEN"})
    yield post("auth", "/v3/auth/disable", {}, headers={"Authorization": "TOKEN"})
    yield post("auth", "/v3/auth/status", {})


#: What both servers are started with for the last requests. The server itself is asked by its address.
ACCESS_FLAGS = ["--cors=http://a.example:80,http://b.example:80", "--host-whitelist=127.0.0.1,localhost,::1"]


def access():
    """Who may come, and who may read."""
    for path in ("/v3/kv/range", "/health", "/nope"):
        method = "POST" if path.startswith("/v3") else "GET"
        for host in ("localhost", "localhost:2379", "evil.example", "evil.example:2379", "[::1]:2379", "127.0.0.1", "10.0.0.1:1", ""):
            yield (f"access: {path} at {host}", method, path, json.dumps(KEY), {"Host": host}, None)
        for origin in ("http://a.example:80", "http://b.example:80", "http://c.example:80", "http://a.example", ""):
            yield (f"access: {path} from {origin}", method, path, json.dumps(KEY), {"Origin": origin}, None)
    yield ("access: OPTIONS", "OPTIONS", "/v3/kv/range", "", {"Origin": "http://b.example:80"}, None)
    yield ("access: OPTIONS elsewhere", "OPTIONS", "/v3/kv/range", "", {"Host": "evil.example"}, None)


def normal(value, name=None):
    if isinstance(value, dict):
        # A piece of a snapshot: files are of different lengths, and later versions say which layout theirs has.
        if "blob" in value:
            return {"blob": "BLOB"}
        return {key: normal(inner, key) for key, inner in value.items() if key not in LATER}
    if name in VARIABLE and value:
        return name.upper()
    # Those that the server chose.
    if name == "ID" and isinstance(value, str) and len(value) > 16:
        return "ID"
    if name == "TTL" and isinstance(value, str) and value.isdigit() and 0 < int(value) < 1000:
        return "TTL"
    if isinstance(value, list):
        return [normal(inner, name) for inner in value]
    return value


def parsed(text):
    try:
        return normal(json.loads(text))
    except ValueError:
        return text


def outcome(endpoint, method, path, body, headers, lines):
    """What the client sees: status, headers, and the body or so many lines of it."""
    connection = http.client.HTTPConnection(endpoint, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body.encode(), headers)
        response = connection.getresponse()
        shown = {name: response.getheader(name) for name in HEADERS if response.getheader(name)}
        if lines is None or response.status != 200:
            text = response.read().decode()
            return {"status": response.status, "headers": shown, "body": parsed(text)}, text
        read = []
        while len(read) < lines:
            line = response.readline()
            if not line:
                break
            read.append(parsed(line))
        return {"status": response.status, "headers": shown, "lines": read}, ""
    except (OSError, http.client.HTTPException) as error:
        return {"broke off": repr(error)}, ""
    finally:
        connection.close()


def transcript(server, requests):
    token, steps = "none", []
    for label, method, path, body, headers, lines in requests:
        headers = {name: token if value == "TOKEN" else value for name, value in headers.items()}
        seen, text = outcome(server.endpoint, method, path, body, headers, lines)
        if path == "/v3/auth/enable" and seen.get("status") == 200:
            _, text = outcome(server.endpoint, "POST", "/v3/auth/authenticate", '{"name":"root","password":"p"}', {}, None)
            token = json.loads(text)["token"]
        steps.append((label, seen))
    return steps


def short(seen):
    """`status code message`."""
    body = seen.get("body")
    failed = isinstance(body, dict) and "error" in body
    return f"{seen.get('status')} {body['code']} {body['message']}" if failed else str(seen.get("status"))


def wordless(seen):
    body = seen.get("body")
    if isinstance(body, dict) and "message" in body:
        return {**seen, "body": {**body, "error": "", "message": ""}}
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", required=True)
    parser.add_argument("--same", action="store_true", help="no difference is intended")
    arguments = parser.parse_args()
    sides = [None, None]

    def side(number, command):
        with Server(command) as server:
            steps = transcript(server, requests())
        with Server(command, flags=ACCESS_FLAGS) as server:
            sides[number] = steps + transcript(server, access())

    threads = [threading.Thread(target=side, args=pair) for pair in enumerate((arguments.left, arguments.right))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in sides:
        raise SystemExit("a server did not serve")

    other_words, otherwise = ({}, {}) if arguments.same else (dict(OTHER_WORDS), dict(OTHERWISE))
    unexpected = intended = 0
    for (label, left), (_, right) in zip(*sides):
        if left == right:
            continue
        if label in OTHER_WORDS and not arguments.same and wordless(left) == wordless(right):
            other_words.pop(label, None)
            intended += 1
        elif label in OTHERWISE and not arguments.same and OTHERWISE[label][1] == short(right):
            otherwise.pop(label, None)
            intended += 1
        else:
            unexpected += 1
            print(f"DIFFERENT  {label}\n    left  {json.dumps(left):.500}\n    right {json.dumps(right):.500}")
    unused = [*other_words, *otherwise]
    for label in unused:
        print(f"UNUSED     {label}")
    print(f"gateway: {len(sides[0])} requests, {unexpected} unexpected differences, {intended} intended ones, {len(unused)} unused")
    sys.exit(1 if unexpected or unused else 0)


if __name__ == "__main__":
    main()
