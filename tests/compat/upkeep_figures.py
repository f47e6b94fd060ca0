"""What operators do to three members, and what clients notice of it, of etcd and Everwatch in turn: scripts/upkeep-figures.sh.

Puts come at a rate whatever became of those before, through all members. Most are the generator's: it says how long the slowest
of them took from when it was due, and that one bounds every pause. The others are a *probe's*, which notes when each was acknowledged:
the longest gap between two of them, and the 99th percentile within any window. A gap is of acknowledgements of the whole cluster:
puts through a single member that stands still are in the slowest put.
"""

import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
import types

import grpc

from cluster_kill import CHANNEL, PUT, leader_of
from compare import restart_ms
from figures import Failed, KINDS, at_most, generate, heading, judged, listed, needed, number, on_cluster, parser, record, size
from round_trip import run
from server import Server, free_ports
from stubs import pb

KEYS = size("KEYS", 200_000, 2_000)
LARGE_KEYS = size("LARGE_KEYS", 1_000_000, 5_000)
RATE = size("RATE", 2_000, 200)
PROBES = size("PROBES", 400, 100)
# Of each window; one in which something is done lasts until it is done.
SECONDS = size("SECONDS_EACH", 10, 2)
SETTLE_MS = 500


class Probe:
    """Puts at a rate, each through the next member, and when they were acknowledged after how long."""

    def __init__(self, members):
        # Looking for what could be freed would hold up all of its puts for a tenth of a second.
        gc.disable()
        self.channels = [grpc.insecure_channel(member.endpoint, options=CHANNEL) for member in members]
        self.acknowledged, self.failed = [], 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        puts = [channel.unary_unary(PUT, lambda m: m.SerializeToString(), pb.PutResponse.FromString) for channel in self.channels]
        began, calls = time.monotonic(), []
        for turn, put in zip(itertools.count(), itertools.cycle(puts)):
            due = began + turn / PROBES
            if self.stopping.wait(due - time.monotonic()):
                break
            call = put.future(pb.PutRequest(key=b"probe/%04d" % (turn % 1000), value=b"x" * 256), timeout=60)
            call.add_done_callback(lambda done, due=due: self._done(done, due))
            calls.append(call)
        for call in calls:
            call.exception()

    def _done(self, call, due):
        now = time.monotonic()
        if call.code() == grpc.StatusCode.OK:
            self.acknowledged.append((now, now - due))
        else:
            self.failed += 1

    def stop(self):
        self.stopping.set()
        self.thread.join()
        for channel in self.channels:
            channel.close()
        gc.enable()
        self.acknowledged.sort()

    def longest_gap_ms(self):
        times = [at for at, _ in self.acknowledged]
        return max(later - earlier for earlier, later in itertools.pairwise(times)) * 1000

    def p99_ms(self, begin, end):
        """Of the puts that were due then."""
        took = sorted(took for at, took in self.acknowledged if begin <= at - took <= end)
        return took[len(took) * 99 // 100] * 1000 if took else None


def nothing():
    pass


def window(bench, members, act=nothing):
    """What is noticed of `act` under puts; it may say when it began in earnest."""
    figures, times = {"failed": None}, []

    def acting():
        times.append(time.monotonic())
        try:
            times[0] = act() or times[0]
        except (SystemExit, OSError, Failed) as error:
            figures["failed"] = str(error)
        times.append(time.monotonic())

    probe, runs = Probe(members), []
    # A second later the generator has connected and sends.
    doing = threading.Timer(1, acting)
    doing.daemon = True
    doing.start()
    while not runs or doing.is_alive():
        runs.append(generate(bench, members, "put", f"--rate={RATE - PROBES}", f"--total={(RATE - PROBES) * SECONDS}",
                             f"--key-space={KEYS}", f"--settle-ms={SETTLE_MS}"))
    probe.stop()
    begin, end = times if act is not nothing else (float("-inf"), float("inf"))
    return figures | {
        "gap_ms": probe.longest_gap_ms(),
        "slowest_ms": max(run["requests_max_ms"] for run in runs),
        "p99_ms": probe.p99_ms(begin, end),
        "took_s": times[1] - times[0],
        "refused": probe.failed + sum(run["requests_errors"] for run in runs),
        "runs": runs,
    }


def tool(ctl, member, *words):
    run(ctl, "--endpoints", member.endpoint, "--command-timeout=600s", *words)


def compute(seconds):
    """What a process costs the others on this machine that does nothing else."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(seconds)
    finally:
        busy.kill()
        busy.wait()


def gaps(arguments, members):
    """Keys, written twice, so that there is something to compact; then one thing after another."""
    bench, ctl = arguments.bench, arguments.ctl
    needed(generate(bench, members, "put", "--fill", f"--key-space={KEYS}", f"--total={KEYS}", f"--settle-ms={SETTLE_MS}"))
    leader = leader_of(types.SimpleNamespace(endpoints=[member.endpoint for member in members]))
    followers = [member for member in members if member is not members[leader]]
    leader = members[leader]

    def compaction():
        with grpc.insecure_channel(leader.endpoint, options=CHANNEL) as channel:
            ask = channel.unary_unary("/etcdserverpb.KV/Range", lambda m: m.SerializeToString(), pb.RangeResponse.FromString)
            revision = ask(pb.RangeRequest(key=b"none"), timeout=60).header.revision
        tool(ctl, leader, "compaction", str(revision), "--physical")

    acts = {
        "nothing": nothing,
        "defragment the leader": lambda: tool(ctl, leader, "defrag"),
        "defragment a follower": lambda: tool(ctl, followers[0], "defrag"),
        "defragment the other": lambda: tool(ctl, followers[1], "defrag"),
        "snapshot save": lambda: tool(ctl, leader, "snapshot", "save", str(leader.base / "backup.db")),
        "compaction of everything": compaction,
        "defragment the leader after it": lambda: tool(ctl, leader, "defrag"),
    }
    return {"failed": None, "windows": {name: window(bench, members, act) for name, act in acts.items()}}


def large(arguments, members):
    """Many keys: a member is stopped and starts again, a follower and the leader; an empty one joins under puts."""
    bench = arguments.bench
    needed(generate(bench, members, "range", "--fill", "--total=1", f"--key-space={LARGE_KEYS}", "--key-size=32", "--val-size=256",
                    f"--settle-ms={SETTLE_MS}"))
    of_all = types.SimpleNamespace(endpoints=[member.endpoint for member in members])
    follower = members[(leader_of(of_all) + 1) % 3]
    figures = {"failed": None, "follower_ms": restart_ms(follower, bench)}
    figures["leader_ms"] = restart_ms(members[leader_of(of_all)], bench)

    client, peer = free_ports(2)
    initial = f"{members[0].cluster},joining=http://127.0.0.1:{peer}"
    joining = Server(arguments.command, "joining", client, peer, initial, [*members[0].flags, "--initial-cluster-state=existing"],
                     members[0].base)

    def join():
        adding = ("--endpoints", members[leader_of(of_all)].endpoint, "member", "add", "joining", f"--peer-urls=http://127.0.0.1:{peer}")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            began = time.monotonic()
            added = subprocess.run([arguments.ctl, *adding], capture_output=True, text=True)
            # Members that were restarted count as healthy when they have been connected for some seconds.
            if "unhealthy cluster" not in added.stderr:
                break
            time.sleep(0.2)
        if added.returncode != 0:
            raise SystemExit(added.stderr)
        joining.spawn()
        needed(generate(bench, [joining], "first-read", "--settle-ms=0"))
        return began

    try:
        figures["before"] = window(bench, members, nothing)
        figures["joining"] = window(bench, members, join)
        figures["busy"] = window(bench, members, lambda: compute(figures["joining"]["took_s"]))
        figures["failed"] = figures["joining"]["failed"]
    finally:
        joining.kill()
    return figures


def table(results):
    def pair(case, *path):
        for kind in KINDS:
            value = results.get((kind, case))
            for name in path:
                value = value.get(name) if value else None
            yield value

    def line(what, figure, values, goal="", met=None):
        etcd, ours = values
        return f"| {what} | {figure} | {number(etcd)} | {number(ours)} | {goal} | {judged(met, etcd, ours) if met else ''} |"

    yield "| under puts | figure | etcd | Everwatch | goal | met |"
    yield "| ---------- | ------ | ---- | --------- | ---- | --- |"
    names = next((result["windows"] for (_, case), result in results.items() if case == "gaps" and result.get("windows")), {})
    for name in names:
        yield line(name, "longest gap between acknowledged puts, ms", pair("gaps", "windows", name, "gap_ms"), "< 100", at_most(100))
        yield line("", "slowest put, ms", pair("gaps", "windows", name, "slowest_ms"))
        yield line("", "puts refused", pair("gaps", "windows", name, "refused"))
        if name != "nothing":
            yield line("", "it took, s", pair("gaps", "windows", name, "took_s"))
    for what, name in ("a follower", "follower_ms"), ("the leader", "leader_ms"):
        yield line(f"{what} stops, and starts again on {LARGE_KEYS:,} keys", "until its first linearizable read, ms", pair("large", name),
                   "less than etcd", lambda etcd, ours: None if etcd is None else ours < etcd)
    before, during, busy = (list(pair("large", when, "p99_ms")) for when in ("before", "joining", "busy"))
    yield line(f"before an empty member joins, {LARGE_KEYS:,} keys", "put p99, ms", before)
    yield line("while it joins, until its first linearizable read", "put p99, ms", during)
    ratios = [b and d and d / b for b, d in zip(before, during)]
    yield line("", "how many times the one before", ratios, "≤ 1.5", at_most(1.5))
    yield line("", "the same while a process computes for as long instead", [b and c and c / b for b, c in zip(before, busy)])
    yield line("", "it took, s", pair("large", "joining", "took_s"))
    yield line("", "longest gap between acknowledged puts, ms", pair("large", "joining", "gap_ms"))
    yield line("", "puts refused", pair("large", "joining", "refused"))


CASES = {"gaps": gaps, "large": large}


def main():
    reading = parser(__doc__)
    reading.add_argument("--ctl", default="target/release/everwatchctl", help="asks both kinds of servers")
    reading.add_argument("--only", choices=KINDS, help="one kind of server")
    reading.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    arguments = reading.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        reading.error(f"no such case: {' '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    commands = {kind: getattr(arguments, kind) for kind in kinds}
    head = heading(commands, 1) | {
        "puts": f"{RATE:,} a second of 256 bytes through all members, {PROBES:,} of them the probe's, {SECONDS} s a window or longer",
        "keys": f"{KEYS:,} of 256 bytes, and {LARGE_KEYS:,} of 32 bytes with 256"}
    results, failed = {}, []
    with record("upkeep", head) as (path, write):
        for case in arguments.cases or CASES:
            for kind in kinds:
                print(f"=== {case}: {kind}", file=sys.stderr, flush=True)
                arguments.command = commands[kind]
                figures = on_cluster(commands[kind], 3, lambda members: CASES[case](arguments, members))
                write({"server": kind, "case": case, **figures})
                results[kind, case] = figures
                parts = [figures["failed"], *(part["failed"] for part in figures.get("windows", {}).values())]
                failed += [(kind, f"{case}, {kind}: {why}") for why in parts if why]

    print(listed(head))
    print("\n".join(table(results)))
    print(f"\nEvery run: `{path}`")
    for _, what in failed:
        print(f"failed: {what}")
    # Goals that are not met are for whoever reads the table; etcd may fail.
    sys.exit(any(kind != "etcd" for kind, _ in failed))


if __name__ == "__main__":
    main()
