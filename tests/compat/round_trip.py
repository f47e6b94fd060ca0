"""Backups that move both ways: etcd, Everwatch made from its backup, etcd made from that one's backup, Everwatch made from the
directory of that one. At each step everything that can be asked for is the same: HashKV, revision, compaction, leases with their keys.

    round_trip.py --etcd etcd --etcdctl etcdctl --etcdutl etcdutl \
        --everwatch target/debug/everwatch --everwatchctl target/debug/everwatchctl --keys 1000
"""

import argparse
import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from server import Server

# Puts of one transaction.
AT_ONCE = 100


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

    def ctl(self, *command, **more):
        return run(self.etcdctl, "--endpoints", self.server.endpoint, *command, **more)

    def json(self, *command):
        return json.loads(self.ctl(*command, "-w", "json"))

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
        }


def post(server, path, body):
    request = urllib.request.Request(f"http://{server.endpoint}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


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


def same(step, before, after):
    if before != after:
        differing = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        sys.exit(f"{step}: not the same: {differing}")
    print(f"{step}: HashKV {after['hash']:08x}, revision {after['revision']}, compacted {after['compacted']}, "
          f"{after['keys']} keys, {len(after['leases'])} leases, alarms {after['alarms']}", flush=True)


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

        def member(command, name):
            return Member(command, name=name, base=base)

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
            ask(first).ctl("snapshot", "save", base / "first.db")
            run(arguments.everwatchctl, "snapshot", "save", base / "again.db", "--endpoints", first.endpoint)
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
            changed = asked.facts()
            asked.ctl("snapshot", "save", base / "second.db")
            run(arguments.everwatchctl, "snapshot", "save", base / "ours.db", "--endpoints", second.endpoint)
            second.stop()
        same_file(arguments, base / "second.db")
        if (base / "second.db").read_bytes() != (base / "ours.db").read_bytes():
            sys.exit("two backups of the same state are not the same")

        third = member(arguments.etcd, "third")
        restore(arguments.etcdutl, base / "second.db", third)
        with third:
            same("etcd from Everwatch's backup", changed, ask(third).facts())
            ask(third).ctl("put", "last", "word")
            last = ask(third).facts()
            run(arguments.everwatchctl, "migrate", "--from", base / third.name, "--data-dir", base / "none", code=1)
            third.stop()

        migrated = member(arguments.everwatch, "migrated")
        said = run(arguments.everwatchctl, "migrate", "--from", base / third.name, "--data-dir", base / migrated.name,
                   "--name", migrated.name, "--initial-cluster", migrated.cluster, "--initial-advertise-peer-urls",
                   f"http://127.0.0.1:{migrated.peer}")
        print(said, end="", flush=True)
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
    print("equal at every step")


if __name__ == "__main__":
    main()
