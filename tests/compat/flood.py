"""What a client that behaves notices of one that floods the cluster: scripts/flood.sh.

The one that behaves puts 100 keys a second, watches a key that it puts ten times a second, and renews leases, first alone and then
beside the flood, on connections of its own. The flood puts as fast as it is answered, with far more requests under way than the members can carry out in
the time of one; it begins before the second look, and ends after it. All share the processors of one machine: the
generator of the flood takes its part of them, and what that alone does to the others is in the figures, too (`NICE`).
"""

import base64
import http.client
import json
import subprocess
import threading
import time
import urllib.request

from figures import (FLAGS, KINDS, PROGRAMS, Failed, attempted, cluster, heading, listed, needed, number, parser, record,
                     shown, size)

ROUNDS = size("ROUNDS", 1, 1)
SECONDS = size("SECONDS_EACH", 20, 3)
FLOOD = size("FLOOD", 2_000, 100)
CONNECTIONS = size("CONNECTIONS", 200, 10)
NICE = size("NICE", 0, 0)
RATE, WATCHED_RATE, RENEWALS = 100, 10, 20
SETTLES_S = 2
# More than any flood comes to; it is stopped.
ENDLESS = 1 << 40


def metric(member, name):
    """The value of a metric without labels."""
    with urllib.request.urlopen(f"http://{member.endpoint}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    raise Failed(f"no metric {name}")


def started(bench, members, *arguments):
    endpoints = "--endpoints=" + ",".join(f"http://{member.endpoint}" for member in members)
    return subprocess.Popen([bench, *arguments, endpoints, "--settle-ms=0", "--json"], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


class Watch:
    """A key that is put a few times a second, and a watch of it, both as JSON: when each event comes, and whether all do."""

    KEY = base64.b64encode(b"behaved").decode()

    def __init__(self, member):
        self.host = member.endpoint
        self.stream = http.client.HTTPConnection(self.host, timeout=60)
        self.stream.request("POST", "/v3/watch", json.dumps({"create_request": {"key": self.KEY}}))
        self.lines = self.stream.getresponse()
        self.lines.readline()
        self.put_at, self.took, self.failed = [], [], 0

    def run(self):
        reader = threading.Thread(target=self.read)
        reader.start()
        puts, begin = http.client.HTTPConnection(self.host, timeout=60), time.monotonic()
        for turn in range(WATCHED_RATE * SECONDS):
            time.sleep(max(0, begin + turn / WATCHED_RATE - time.monotonic()))
            self.put_at.append(time.monotonic())
            value = base64.b64encode(str(turn).encode()).decode()
            puts.request("POST", "/v3/kv/put", json.dumps({"key": self.KEY, "value": value}))
            answer = puts.getresponse()
            answer.read()
            self.failed += answer.status != 200
        reader.join(timeout=60)
        self.stream.close()

    def read(self):
        while len(self.took) < WATCHED_RATE * SECONDS and not self.failed:
            now_told = json.loads(self.lines.readline() or "{}").get("result", {}).get("events", [])
            if not now_told:
                return
            for event in now_told:
                turn = int(base64.b64decode(event["kv"]["value"]))
                # In order, each once.
                if turn != len(self.took):
                    return
                self.took.append(1000 * (time.monotonic() - self.put_at[turn]))


def looked(bench, members):
    """What the client that behaves is answered."""
    leases = started(bench, members, "lease-keepalive", "--clients=2", "--conns=1", f"--total={RENEWALS * SECONDS}",
                     f"--rate={RENEWALS}")
    puts = started(bench, members, "put", "--clients=16", "--conns=1", f"--total={RATE * SECONDS}", f"--rate={RATE}")
    watch = Watch(members[-1])
    watch.run()
    puts, renewals = (needed(json.loads(process.communicate(timeout=120)[0])) for process in (puts, leases))
    took = sorted(watch.took) or [float("inf")]
    return {
        "put p50, ms": puts["requests_p50_ms"],
        "put p99, ms": puts["requests_p99_ms"],
        "put max, ms": puts["requests_max_ms"],
        "event p99, ms": took[len(took) * 99 // 100],
        "renewal p99, ms": renewals["requests_p99_ms"],
        "renewal max, ms": renewals["requests_max_ms"],
        "failed": puts["requests_errors"] + renewals["requests_errors"] + watch.failed,
        "events missing": WATCHED_RATE * SECONDS - len(watch.took),
    }


def flooded(command, bench, members_count):
    """Quiet, then beside the flood."""
    with cluster(command, members_count, FLAGS) as members:
        time.sleep(SETTLES_S)
        quiet = looked(bench, members)
        changes = [metric(member, "etcd_server_leader_changes_seen_total") for member in members]
        nice = ["nice", "-n", str(NICE)] if NICE else []
        endpoints = "--endpoints=" + ",".join(f"http://{member.endpoint}" for member in members)
        flood = subprocess.Popen([*nice, bench, "put", f"--clients={FLOOD}", f"--conns={CONNECTIONS}", f"--total={ENDLESS}",
                                  endpoints, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(SETTLES_S)
            puts, begin = metric(members[0], "etcd_mvcc_put_total"), time.monotonic()
            beside = looked(bench, members)
            took = time.monotonic() - begin
            rate = (metric(members[0], "etcd_mvcc_put_total") - puts) / took
            if flood.poll() is not None:
                raise Failed("the flood ended by itself")
        finally:
            flood.kill()
            flood.wait()
        lost = sum(metric(member, "etcd_server_leader_changes_seen_total") for member in members) - sum(changes)
        return {"quiet": quiet, "beside": beside, "puts per second": rate, "leader changes": lost, "failed": None}


SHOWN = ["put p50, ms", "put p99, ms", "put max, ms", "event p99, ms", "renewal p99, ms", "renewal max, ms"]


def table(results, kinds, counts):
    yield "| members | | " + " | ".join(f"{PROGRAMS[kind]}: quiet | beside the flood | ratio" for kind in kinds) + " |"
    yield "| --- | --- |" + " --- |" * (3 * len(kinds))
    for count in counts:
        for name in SHOWN:
            cells = []
            for kind in kinds:
                runs = [run for run in results.get((kind, count), []) if not run["failed"]]
                quiet, beside = ([run[when][name] for run in runs] for when in ("quiet", "beside"))
                ratios = [b / q for q, b in zip(quiet, beside) if q]
                cells += [shown(quiet), shown(beside), shown(ratios)]
            yield f"| {count} | {name} | " + " | ".join(cells) + " |"
        for name, of in (("failed calls, events missing", lambda run: run["beside"]["failed"] + run["beside"]["events missing"]),
                         ("changes of the leader", lambda run: run["leader changes"]),
                         ("puts per second in all", lambda run: run["puts per second"])):
            cells = []
            for kind in kinds:
                runs = [run for run in results.get((kind, count), []) if not run["failed"]]
                cells += ["", shown([of(run) for run in runs]), ""]
            yield f"| {count} | {name} | " + " | ".join(cells) + " |"


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=KINDS)
    arguments.add_argument("--members", default="1,3")
    arguments = arguments.parse_args()
    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    commands = {kind: getattr(arguments, kind) for kind in kinds}
    counts = [int(count) for count in arguments.members.split(",")]
    head = heading(commands, ROUNDS)
    head["flood"] = f"{FLOOD} puts of 256 bytes under way on {CONNECTIONS} connections" + (f", nice {NICE}" if NICE else "")
    results, bad = {}, []
    with record("flood", head) as (path, note):
        for _ in range(ROUNDS):
            for count in counts:
                for kind in kinds:
                    run = attempted(flooded, commands[kind], arguments.bench, count)
                    note({"kind": kind, "members": count, **run})
                    results.setdefault((kind, count), []).append(run)
                    if run["failed"]:
                        bad.append(f"{kind}, {count} members: {run['failed']}")
    print(listed(head))
    print("\n".join(table(results, kinds, counts)))
    # What Everwatch promises: a put of the one that behaves takes less than 5 times as long, nothing of it fails, the leader stays.
    for (kind, count), runs in results.items():
        for run in (run for run in runs if not run["failed"] and kind == "everwatch"):
            ratio = run["beside"]["put p99, ms"] / run["quiet"]["put p99, ms"]
            if ratio >= 5:
                bad.append(f"{count} members: p99 of puts is {number(ratio)} times that of quiet")
            if run["beside"]["failed"] or run["beside"]["events missing"] or run["leader changes"]:
                bad.append(f"{count} members: calls failed, events are missing, or the leader has changed")
    print(f"\nfigures: {path}")
    for line in bad:
        print(f"not met: {line}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
