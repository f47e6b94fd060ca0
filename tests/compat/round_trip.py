"""Backups that move both ways: etcd, Everwatch made from its backup, etcd made from that one's backup, Everwatch made from the
directory of that one. And what is made from the directory of an etcd that was killed before its file had what its log has, beside that
etcd when it has started again. At each step everything that can be asked for is the same: HashKV, revision, compaction, leases with their keys,
users, roles, whether users are asked who they are; and who could log in, and read or write what, still can, and nobody else.

    round_trip.py --etcd etcd --etcdctl etcdctl --etcdutl etcdutl \
        --everwatch target/debug/everwatch --everwatchctl target/debug/everwatchctl --keys 1000
"""

import argparse
import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from server import Server

# An alarm of a member that is none here would be taken back.
OURS = ("--quota-manual-disarm",)
# The file gets nothing until it has to: a compaction, and switching users on.
LATE = ("--backend-batch-interval=1h", "--backend-batch-limit=1000000000")
# Puts of one transaction.
AT_ONCE = 100
# Logins are many here, and the cost of a hash is not the subject.
FLAGS = ("--bcrypt-cost=4",)
PASSWORDS = {"root": "root's own", "jane": "jane's own", "reader": "reader's own", "late": "the last one's"}
ROOT = f"--user=root:{PASSWORDS['root']}"


def run(*command, code=0):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    if done.returncode != code:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Member(Server):
    """One that serves in spite of an alarm."""

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health?exclude=NOSPACE", timeout=2) as answer:
                return b"true" in answer.read()
        except OSError:
            return False


class Asking:
    """What is asked of a server, with etcdctl."""

    def __init__(self, etcdctl, server):
        self.etcdctl, self.server = etcdctl, server

    def ctl(self, *command, user=ROOT, **more):
        """By root; that is nobody in particular while users are not asked who they are."""
        return run(self.etcdctl, "--endpoints", self.server.endpoint, *([user] if user else []), *command, **more)

    def json(self, *command):
        return json.loads(self.ctl(*command, "-w", "json"))

    def told(self, *command):
        """Without what says who answered."""
        answer = self.json(*command)
        del answer["header"]
        return answer

    def users(self):
        """All there is to know of users, and what they may do here and now."""
        status = self.told("auth", "status")
        names = self.told("user", "list").get("users") or []
        roles = self.told("role", "list").get("roles") or []
        logins = {}
        for name in names:
            for password in (PASSWORDS.get(name, ""), "another's"):
                logins[name, password] = login(self.server, name, password)
            if name in PASSWORDS and status.get("enabled") and logins[name, PASSWORDS[name]] is not True:
                sys.exit(f"{self.server.name}: {name} cannot log in: {logins}")
        # With an alarm etcd 3.5 carries out what it has refused to users before: its applier then lacks the part that asks.
        if status.get("enabled") and not self.told("alarm", "list").get("alarms"):
            # Who may delete a key may write it; where there is none nothing changes.
            self.may("jane", "get", "key/0000001", 0)
            self.may("jane", "get", "large", 1)
            self.may("jane", "del", "key/jane", 0)
            self.may("jane", "del", "large/none", 1)
            self.may("reader", "get", "large", 0)
            self.may("reader", "del", "key/jane", 1)
        return {
            "status": status,
            "users": {name: self.told("user", "get", name) for name in names},
            # What root may do is shown by Everwatch, as by later etcd, and not by 3.5.
            "roles": {role: self.told("role", "get", role) if role != "root" else None for role in roles},
            "logins": logins,
        }

    def may(self, user, verb, key, code):
        self.ctl(verb, key, user=f"--user={user}:{PASSWORDS[user]}", code=code)

    def facts(self):
        """All that has to survive."""
        (hashed,) = self.json("endpoint", "hashkv")
        hashed = hashed["HashKV"]
        leases = sorted(lease["id"] for lease in self.json("lease", "list").get("leases") or [])
        kept = {}
        for lease in leases:
            told = self.json("lease", "timetolive", f"{lease:x}", "--keys")
            kept[lease] = (told["granted-ttl"], sorted(base64.b64decode(key).decode() for key in told["keys"] or []))
        return {
            "hash": hashed["hash"],
            "compacted": hashed["compact_revision"],
            "revision": hashed["header"]["revision"],
            "keys": self.json("get", "", "--prefix", "--keys-only")["count"],
            "leases": kept,
            "alarms": sorted(alarm["alarm"] for alarm in self.json("alarm", "list").get("alarms") or []),
            "users": self.users(),
        }


def post(server, path, body, token=None):
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(f"http://{server.endpoint}/v3/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def login(server, name, password):
    """Whether they get a token, or why not."""
    try:
        return bool(post(server, "auth/authenticate", {"name": name, "password": password})["token"])
    except urllib.error.HTTPError as refused:
        return json.load(refused)["error"]


def text(value):
    return base64.b64encode(value.encode()).decode()


def fill(server, keys):
    """Keys, some with leases, some overwritten, some deleted; large values; a compaction in the middle."""
    leases = [int(post(server, "lease/grant", {"TTL": 6000 + n})["ID"]) for n in range(50)]
    for begin in range(0, keys, AT_ONCE):
        puts = []
        for n in range(begin, min(keys, begin + AT_ONCE)):
            put = {"key": text(f"key/{n:07}"), "value": text(f"value {n} " * (n % 7))}
            if n % 3 == 0:
                put["lease"] = leases[n // 3 % len(leases)]
            puts.append({"request_put": put})
        post(server, "kv/txn", {"success": puts})
    for n in range(0, min(keys, 300), 7):
        post(server, "kv/put", {"key": text(f"key/{n:07}"), "value": text("again")})
    revision = int(post(server, "kv/put", {"key": text("large"), "value": text("x" * 900_000)})["header"]["revision"])
    post(server, "kv/compaction", {"revision": revision - 5, "physical": True})
    for n in range(0, min(keys, 300), 11):
        post(server, "kv/deleterange", {"key": text(f"key/{n:07}")})
    post(server, "kv/deleterange", {"key": text("key/00002"), "range_end": text("key/00003")})


def keep_on(asked, enabled):
    """Something of every kind, the last that is done."""
    server = asked.server
    token = post(server, "auth/authenticate", {"name": "root", "password": PASSWORDS["root"]})["token"] if enabled else None

    def tell(path, **body):
        return post(server, path, body, token)

    def put(key, value, **more):
        return {"request_put": {"key": text(key), "value": text(value), **more}}

    leases = [int(tell("lease/grant", TTL=ttl, ID=4000 + ttl)["ID"]) for ttl in (700, 800, 900)]
    for n in range(100):
        tell("kv/put", key=text(f"late/{n % 40:03}"), value=text(f"late {n}"), lease=leases[n % 3] if n % 2 else 0)
    tell("kv/put", key=text("late/001"), ignore_value=True, lease=leases[0])
    tell("kv/put", key=text("late/002"), value=text("as it was"), ignore_lease=True)
    tell("kv/deleterange", key=text("late/010"))
    tell("kv/deleterange", key=text("late/02"), range_end=text("late/03"))
    inner = {
        "compare": [{"key": text("late/000"), "target": "VERSION", "result": "GREATER", "version": 1}],
        "success": [put("late/nested", "yes", lease=leases[1]), {"request_delete_range": {"key": text("late/001")}}],
        "failure": [put("late/nested", "no")],
    }
    for holds in ("EQUAL", "NOT_EQUAL"):
        other = {"request_range": {"key": text("late/"), "range_end": text("late0")}}
        compare = [{"key": text("late/none"), "target": "CREATE", "result": holds, "create_revision": 0}]
        tell("kv/txn", compare=compare, success=[put("late/txn", holds), other, {"request_txn": inner}], failure=[put("late/else", holds)])
    tell("lease/revoke", ID=leases[2])
    tell("auth/role/add", name="late")
    tell("auth/role/grant", name="late", perm={"permType": "READ", "key": text("late/"), "range_end": text("late0")})
    tell("auth/role/grant", name="late", perm={"permType": "WRITE", "key": text("late/txn")})
    tell("auth/role/revoke", role="late", key=text("late/txn"))
    tell("auth/user/add", name="late", password="to be changed")
    tell("auth/user/changepw", name="late", password=PASSWORDS["late"])
    tell("auth/user/grant", user="late", role="late")
    tell("auth/user/revoke", name="nobody", role="looks")
    tell("auth/role/delete", role="unused")
    if enabled:
        # In the log, and without effect.
        asked.ctl("put", "large", "not hers", user=f"--user=jane:{PASSWORDS['jane']}", code=1)
    tell("kv/put", key=text("key/last"), value=text("word"))
    member_id = int(asked.json("member", "list")["members"][0]["ID"])
    tell("maintenance/alarm", action="ACTIVATE", memberID=member_id, alarm="NOSPACE")
    asked.ctl("put", "key/none", "no room", code=1)


def admit(asked, enabled=True):
    """Users with roles: all, a range to read and write, keys to read; one without a password, a role that nobody has."""
    for name in ("root", "jane", "reader"):
        asked.ctl("user", "add", f"{name}:{PASSWORDS[name]}", user=None)
    asked.ctl("user", "add", "nobody", "--no-password", user=None)
    for role in ("root", "editor", "looks", "unused"):
        asked.ctl("role", "add", role, user=None)
    asked.ctl("role", "grant-permission", "editor", "--prefix=true", "readwrite", "key/", user=None)
    asked.ctl("role", "grant-permission", "editor", "write", "draft", user=None)
    asked.ctl("role", "grant-permission", "looks", "--from-key=true", "read", "key/", user=None)
    asked.ctl("role", "grant-permission", "unused", "read", "a", "b", user=None)
    for name, role in (("root", "root"), ("jane", "editor"), ("reader", "looks"), ("nobody", "looks"), ("nobody", "editor")):
        asked.ctl("user", "grant-role", name, role, user=None)
    if enabled:
        asked.ctl("auth", "enable", user=None)


def same(step, before, after):
    if before != after:
        differing = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        sys.exit(f"{step}: not the same: {differing}")
    print(f"{step}: HashKV {after['hash']:08x}, revision {after['revision']}, compacted {after['compacted']}, "
          f"{after['keys']} keys, {len(after['leases'])} leases, alarms {after['alarms']}, {len(after['users']['users'])} users, "
          f"{len(after['users']['roles'])} roles, {'asked' if after['users']['status'].get('enabled') else 'not asked'} who they are", flush=True)


def same_file(arguments, file):
    """Both tools see the same in a file."""
    for form in ("simple", "json", "table", "fields"):
        theirs = run(arguments.etcdutl, "snapshot", "status", file, "-w", form)
        ours = run(arguments.everwatchctl, "snapshot", "status", file, "-w", form)
        if theirs != ours:
            sys.exit(f"status of {file} as {form}:\n{theirs}{ours}")


def main():
    parser = argparse.ArgumentParser()
    for tool in ("etcd", "etcdctl", "etcdutl", "everwatch", "everwatchctl"):
        parser.add_argument(f"--{tool}", default=tool)
    parser.add_argument("--keys", type=int, default=1000)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="everwatch-round-trip-") as base:
        base = pathlib.Path(base)

        def member(command, name, flags=()):
            ours = OURS if command == arguments.everwatch else ()
            return Member(command, name=name, base=base, flags=FLAGS + ours + flags)

        def migrate(directory, server):
            said = run(arguments.everwatchctl, "migrate", "--from", directory, "--data-dir", base / server.name,
                       "--name", server.name, "--initial-cluster", server.cluster, "--initial-advertise-peer-urls",
                       f"http://127.0.0.1:{server.peer}")
            print(said, end="", flush=True)
            return said

        def restore(tool, file, server):
            peer = f"http://127.0.0.1:{server.peer}"
            began = time.monotonic()
            run(tool, "snapshot", "restore", file, "--data-dir", base / server.name, "--name", server.name,
                "--initial-cluster", server.cluster, "--initial-advertise-peer-urls", peer)
            print(f"{pathlib.Path(str(tool)).name} restored {file.stat().st_size} bytes in "
                  f"{time.monotonic() - began:.2f} s", flush=True)

        def ask(server):
            return Asking(arguments.etcdctl, server)

        first = member(arguments.etcd, "first")
        with first:
            fill(first, arguments.keys)
            member_id = int(ask(first).json("member", "list")["members"][0]["ID"])
            post(first, "maintenance/alarm", {"action": "ACTIVATE", "memberID": member_id, "alarm": "NOSPACE"})
            admit(ask(first))
            ask(first).ctl("snapshot", "save", base / "first.db")
            run(arguments.everwatchctl, "snapshot", "save", base / "again.db", "--endpoints", first.endpoint, ROOT)
            begun = ask(first).facts()
            first.stop()
        same("etcd", begun, begun)
        same_file(arguments, base / "first.db")
        same_file(arguments, base / "again.db")

        second = member(arguments.everwatch, "second")
        restore(arguments.everwatchctl, base / "first.db", second)
        with second:
            asked = ask(second)
            same("Everwatch from etcd's backup", begun, asked.facts())
            asked.ctl("alarm", "disarm")
            for n in range(20):
                asked.ctl("put", f"key/{n:07}", "Everwatch")
            lease = asked.json("lease", "grant", "7000")["ID"]
            asked.ctl("put", "leased", "here", f"--lease={lease:x}")
            asked.ctl("del", "key/0000003")
            asked.ctl("compact", str(begun["revision"] + 10), "--physical")
            asked.ctl("user", "add", f"late:{PASSWORDS['late']}")
            asked.ctl("user", "grant-role", "late", "looks")
            asked.ctl("user", "revoke-role", "nobody", "looks")
            asked.ctl("role", "revoke-permission", "editor", "draft")
            asked.ctl("role", "delete", "unused")
            same("Everwatch, changed", changed := asked.facts(), changed)
            asked.ctl("auth", "disable")
            changed = asked.facts()
            asked.ctl("snapshot", "save", base / "second.db")
            run(arguments.everwatchctl, "snapshot", "save", base / "ours.db", "--endpoints", second.endpoint, ROOT)
            second.stop()
        same_file(arguments, base / "second.db")
        if (base / "second.db").read_bytes() != (base / "ours.db").read_bytes():
            sys.exit("two backups of the same state are not the same")

        third = member(arguments.etcd, "third")
        restore(arguments.etcdutl, base / "second.db", third)
        with third:
            same("etcd from Everwatch's backup", changed, ask(third).facts())
            ask(third).ctl("auth", "enable")
            ask(third).ctl("put", "last", "word")
            last = ask(third).facts()
            run(arguments.everwatchctl, "migrate", "--from", base / third.name, "--data-dir", base / "none", code=1)
            third.stop()

        migrated = member(arguments.everwatch, "migrated")
        migrate(base / third.name, migrated)
        with migrated:
            same("Everwatch from etcd's directory", last, ask(migrated).facts())
            migrated.stop()

        fourth = member(arguments.everwatch, "fourth")
        run(arguments.everwatchctl, "snapshot", "restore", base / "second.db", "--data-dir", base / fourth.name,
            "--name", fourth.name, "--initial-cluster", fourth.cluster, "--initial-advertise-peer-urls",
            f"http://127.0.0.1:{fourth.peer}", "--bump-revision", 1000000, "--mark-compacted")
        with fourth:
            bumped = ask(fourth).facts()
            if (bumped["revision"], bumped["compacted"]) != (changed["revision"] + 1000000,) * 2:
                sys.exit(f"not a million revisions later: {bumped}")
            fourth.stop()

        for enabled in (True, False):
            kind = "asked" if enabled else "unasked"
            killed = member(arguments.etcd, f"killed-{kind}", LATE)
            with killed:
                if enabled:
                    fill(killed, arguments.keys)
                admit(ask(killed), enabled)
                keep_on(ask(killed), enabled)
                killed.kill()
                shutil.copytree(base / killed.name, base / f"copy-{kind}")
                killed.start()
                left = ask(killed).facts()
                ask(killed).ctl("alarm", "disarm")
                disarmed = ask(killed).facts()
                killed.stop()
            found = member(arguments.everwatch, f"found-{kind}")
            said = migrate(base / f"copy-{kind}", found)
            changes = re.search(r"log, (\d+) changes among it that only the log had\n", said)
            if not changes or int(changes[1]) < 100:
                sys.exit(f"the file was not behind the log: {said}")
            with found:
                same(f"Everwatch from the directory of an etcd that was killed, {kind}", left, ask(found).facts())
                ask(found).ctl("alarm", "disarm")
                same("and without its alarm", disarmed, ask(found).facts())
                found.stop()
    print("equal at every step")


if __name__ == "__main__":
    main()
