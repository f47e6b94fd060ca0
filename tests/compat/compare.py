"""Everything that clients do most, of etcd and Everwatch in turn, with what it costs the servers: scripts/compare.sh.

Each run has fresh servers of one kind. Rates and latencies are what clients saw, processor time that of all servers together.
"""

import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import urllib.request
from functools import partial

from figures import (KINDS, QUICK, RUN_S_MAX, at_most, generate, heading, judged, listed, needed, number, on_cluster, parser, record,
                     size, times_etcd)
from limits import echo

ROUNDS = size("ROUNDS", 2, 1)
KEYS = size("KEYS", 100_000, 2_000)
WATCHERS = size("WATCHERS", 10_000, 1_000)
LARGE_KEYS = size("LARGE_KEYS", 1_000_000, 10_000)
LARGE_ROUNDS = size("LARGE_ROUNDS", 1, 1)
# What it takes until memory is called settled.
SETTLE_MS = size("SETTLE_MS", 3_000, 200)


class Workload:
    """`total` requests of a command. Goals: `rate`, how many times etcd's rate; `cpu`, microseconds of the servers' processors for
    each, on machines like the one on which etcd's own figures in the project's goals were taken. `counted` is what they are
    for each of. `bounded`: the same is asked of a server that does nothing, and compared."""

    rounds = ROUNDS

    def __init__(self, name, what, members, command, total, *more, clients=1000, rate=None, cpu=None, counted="requests",
                 bounded=False):
        self.name, self.what, self.members, self.counted, self.bounded = name, what, members, counted, bounded
        self.goals = {}
        if rate:
            self.goals[f"{counted}_per_s"] = f"≥ {rate} ×", times_etcd(rate)
        if cpu:
            self.goals[f"{counted}_server_cpu_us_each"] = f"≤ {cpu}", at_most(cpu)
        clients = min(clients, 50) if QUICK else clients
        total = max(100, total // 100) if QUICK else total
        self.arguments = (command, f"--clients={clients}", f"--total={total}", f"--key-space={KEYS}", *more)

    def run(self, bench, members):
        before = synced(members), written(members)
        figures = generate(bench, members, *self.arguments, "--settle-ms=1000")
        after = synced(members), written(members)
        done = figures.get("requests_count", 0)
        # What filling wrote says nothing of reading.
        if done and "--fill" not in self.arguments:
            figures["syncs_each"] = (after[0] - before[0]) / done
            figures["written_bytes_each"] = (after[1] - before[1]) / done
        return figures


class Large:
    """Keys of 32 bytes with values of 256: filling, a stop and a start on the same data, a count and a list of all of them. Goals
    are for 1,000,000 keys."""

    name, what, members, counted, bounded = "large-1", f"{LARGE_KEYS:,} keys of 32 bytes, 1 member", 1, "requests", False
    rounds = LARGE_ROUNDS
    goals = {name: (f"≤ {limit}", at_most(limit)) for name, limit in [
        ("filled_resident_mb", 200), ("restart_ms", 800), ("restarted_resident_mb", 200), ("all_counted_ms", 10), ("all_listed_s", 1.2),
        ("listed_resident_mb", 400)]}

    def run(self, bench, members):
        [member] = members
        keys = (f"--key-space={LARGE_KEYS}", "--key-size=32", "--val-size=256")

        def ask(*arguments):
            return needed(generate(bench, members, *arguments, f"--settle-ms={SETTLE_MS}"))

        # Its one range is for the keys that are written before.
        filled = ask("range", "--fill", "--total=1", *keys)
        restarted_ms = restart_ms(member, bench)
        restarted = ask("first-read")
        counted = ask("count", "--clients=1", f"--total={5 if QUICK else 20}", *keys)
        listed_once = ask("list", "--clients=1", "--total=1", *keys)
        afterwards = ask("first-read")
        return {
            "failed": None,
            "filled_per_s": filled["fill_per_s"],
            "filled_server_cpu_us_each": filled["fill_server_cpu_us_each"],
            "filled_resident_mb": megabytes(filled["filled_resident_mib"]),
            "restart_ms": restarted_ms,
            "restarted_resident_mb": megabytes(restarted["after_resident_mib"]),
            "all_counted_ms": counted["requests_p50_ms"],
            "all_listed_s": listed_once["requests_p50_ms"] / 1000,
            "listed_resident_mb": megabytes(afterwards["after_resident_mib"]),
            "steps": [filled, restarted, counted, listed_once, afterwards],
        }


def restart_ms(member, bench):
    """Asks a member to stop, starts it on the same data, and says how long it takes from there until it has answered a read."""
    member.stop()
    asking = [bench, "first-read", "--json", f"--endpoints=http://{member.endpoint}", "--seconds=300"]
    with subprocess.Popen(asking, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
        # With its first line it has begun to ask.
        asked.stderr.readline()
        member.spawn()
        answer, _ = asked.communicate(timeout=RUN_S_MAX)
    return needed(json.loads(answer))["first_read_ms"]


def megabytes(mib):
    """Of 10^6 bytes."""
    return mib * 2**20 / 1e6


WORKLOADS = [
    Workload("put-3", "put, 3 members", 3, "put", 100_000, rate=4, cpu=28),
    Workload("put-1", "put, 1 member", 1, "put", 200_000, rate=2.5, cpu=17, bounded=True),
    Workload("range-3", "linearizable range of a key, 3 members", 3, "range", 200_000, "--fill", rate=2.5, cpu=15),
    Workload("range-3s", "serializable range of a key, 3 members", 3, "range", 200_000, "--fill", "--serializable", rate=2.5, cpu=12),
    Workload("range-1s", "serializable range of a key, 1 member", 1, "range", 200_000, "--fill", "--serializable", bounded=True),
    Workload("txn-3", "txn with one put, 3 members", 3, "txn", 60_000, rate=4, cpu=32),
    Workload("mixed-3", "txns, half of them reading the first of all keys, 3 members", 3, "mixed", 2_000, "--fill", rate=100, cpu=60),
    Workload("page-1", "page of 1,000 keys, 1 member", 1, "page", 2_000, "--fill", clients=50, rate=15, cpu=1000),
    Workload("count-1", "count of all keys, 1 member", 1, "count", 1_000, "--fill", clients=10),
    Workload("list-1", "list of all keys, 1 member", 1, "list", 20, "--fill", clients=1),
    Workload("cas-1", "compare and swap of 100 keys, 1 member", 1, "cas", 20_000, "--key-space=100", clients=100),
    Workload("grant-1", "lease grant, 1 member", 1, "lease-grant", 50_000),
    Workload("keepalive-3", "lease keepalive, 3 members", 3, "lease-keepalive", 60_000, rate=4, cpu=16),
    Workload("serial-3", "put by one client, 3 members", 3, "put", 5_000, clients=1),
    Workload("watch-1", f"put to {WATCHERS:,} watchers of its key on 100 streams, 1 member", 1, "watch-fanout", 1_000,
             f"--watchers={WATCHERS}", "--streams=100", clients=16, cpu=0.3, counted="events"),
    Large(),
]


def synced(members):
    """How often logs and databases were synced so far: etcd's metrics, which both have."""
    total = 0
    for member in members:
        with urllib.request.urlopen(f"http://{member.endpoint}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name in ("etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_backend_commit_duration_seconds_count"):
            found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
            total += float(found[1]) if found else 0
    return total


def written(members):
    """Bytes written so far to the disk where the data is, by whomever: what the kernel counts for a process is whole folios of its
    page cache, of which a write may be a small part."""
    device = os.stat(members[0].base).st_dev
    stat = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(stat.read_text().split()[6]) * 512


FIGURES = [
    ("requests_per_s", "per second"),
    ("requests_server_cpu_us_each", "server CPU, µs each"),
    ("requests_p50_ms", "p50, ms"),
    ("requests_p99_ms", "p99, ms"),
    ("requests_p999_ms", "p99.9, ms"),
    ("events_per_s", "events per second"),
    ("events_server_cpu_us_each", "server CPU, µs per event"),
    ("reached_all_p50_ms", "from a put to the last of its watchers, p50, ms"),
    ("reached_all_p99_ms", "from a put to the last of its watchers, p99, ms"),
    ("filled_per_s", "filling: keys per second"),
    ("filled_server_cpu_us_each", "filling: server CPU, µs each"),
    ("filled_resident_mb", "memory after filling, MB (10^6 bytes)"),
    ("restart_ms", "from the start to the first linearizable read, ms"),
    ("restarted_resident_mb", "memory after the start, MB"),
    ("all_counted_ms", "count of all keys by one client, p50, ms"),
    ("all_listed_s", "list of all keys by one client, s"),
    ("listed_resident_mb", "memory after the list, MB"),
    ("peak_resident_mib", "most memory, MiB"),
    ("written_bytes_each", "bytes written each"),
    ("syncs_each", "syncs each"),
    ("requests_generator_cpu_share", "the generator's share of a processor"),
    ("events_generator_cpu_share", "the generator's share of a processor"),
]
# Of those, and how: what a server that does nothing has of the same requests.
BOUNDS = [
    ("requests_per_s", "efficiency: its rate ÷ the {} per second of a server that does nothing"),
    ("requests_server_cpu_us_each", "its CPU ÷ the {} µs of a server that does nothing"),
]


def median(runs, name):
    values = [run[name] for run in runs if name in run and not run["failed"]]
    return statistics.median(values) if values else None


def table(results, workloads):
    yield "| workload | figure | etcd | Everwatch | ours ÷ etcd | goal | met |"
    yield "| -------- | ------ | ---- | --------- | ----------- | ---- | --- |"
    for workload in workloads:
        what = workload.what
        for label, etcd, ours, goal in rows(results, workload):
            ratio = number(ours / etcd) if etcd and ours is not None else "–"
            words, met = goal or ("", None)
            yield f"| {what} | {label} | {number(etcd)} | {number(ours)} | {ratio} | {words} | {judged(met, etcd, ours) if met else ''} |"
            what = ""


def rows(results, workload):
    """Labels, etcd's figures, ours and goals."""
    def figures(name):
        return [median(results[kind][workload.name], name) for kind in KINDS]

    for name, label in FIGURES:
        etcd, ours = figures(name)
        if etcd is not None or ours is not None:
            yield label, etcd, ours, workload.goals.get(name)
    for name, label in BOUNDS if workload.bounded else ():
        if bound := median(results["echo"][workload.name], name):
            etcd, ours = (value and value / bound for value in figures(name))
            yield label.format(number(bound)), etcd, ours, None


def plot(results, workloads, head, path):
    """Bars of the ratios, logarithmic: to the right is better."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, rates, cpus = [], [], []
    for workload in reversed(workloads):
        pair = [results[kind][workload.name] for kind in KINDS]
        rate, cpu = ([median(runs, f"{workload.counted}_{name}") for runs in pair] for name in ("per_s", "server_cpu_us_each"))
        if all(rate) and all(cpu):
            names.append(workload.what)
            rates.append(rate[1] / rate[0])
            cpus.append(cpu[0] / cpu[1])
    if not names:
        return
    figure, axes = pyplot.subplots(figsize=(10, 0.6 * len(names) + 2))
    places = range(len(names))
    for shift, values, label, colour in ((0.2, rates, "rate", "#1f6f8b"), (-0.2, cpus, "requests per server CPU second", "#99a8b2")):
        bars = axes.barh([place + shift for place in places], values, 0.38, label=label, color=colour)
        axes.bar_label(bars, [f"{value:.1f} ×" for value in values], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(list(places), names)
    axes.set_xlabel("Everwatch ÷ etcd")
    axes.set_title(f"etcd {head['etcd']}, Everwatch {head['commit']}, {head['date']}\n{head['machine']}", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    reading = parser(__doc__)
    reading.add_argument("--only", choices=KINDS, help="one kind of server")
    reading.add_argument("--plot", help="where the plot goes")
    reading.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=" ".join(workload.name for workload in WORKLOADS))
    arguments = reading.parse_args()
    if unknown := set(arguments.workloads) - {workload.name for workload in WORKLOADS}:
        reading.error(f"no such workload: {' '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    commands = {"etcd": arguments.etcd, "everwatch": arguments.everwatch}
    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    workloads = [workload for workload in WORKLOADS if not arguments.workloads or workload.name in arguments.workloads]
    head = heading(commands, f"{ROUNDS} (large-1: {LARGE_ROUNDS})") | {"keys": f"{KEYS:,}"}
    results, failed = {kind: {workload.name: [] for workload in workloads} for kind in (*KINDS, "echo")}, []
    with record("compare", head) as (path, write):
        def keep(workload, turn, kind, measure, *arguments):
            print(f"=== {workload.name}, round {turn + 1} of {workload.rounds}: {kind}", file=sys.stderr, flush=True)
            figures = measure(*arguments)
            write({"server": kind, "workload": workload.name, "round": turn + 1, **figures})
            results[kind][workload.name].append(figures)
            if figures["failed"]:
                failed.append((kind, f"{workload.name}, round {turn + 1}, {kind}: {figures['failed']}"))

        for workload in workloads:
            for turn in range(workload.rounds):
                for kind in kinds:
                    keep(workload, turn, kind, on_cluster, commands[kind], workload.members, partial(workload.run, arguments.bench))
            for turn in range(workload.rounds if workload.bounded else 0):
                # It has every key.
                asked = (argument for argument in workload.arguments if argument != "--fill")
                keep(workload, turn, "echo", echo, arguments.bench, *asked)

    print(listed(head))
    print("\n".join(table(results, workloads)))
    print(f"\nEvery run: `{path}`")
    if arguments.plot:
        plot(results, workloads, head, arguments.plot)
    for _, what in failed:
        print(f"failed: {what}")
    # Goals that are not met are for whoever reads the table; etcd may fail.
    sys.exit(any(kind != "etcd" for kind, _ in failed))


if __name__ == "__main__":
    main()
