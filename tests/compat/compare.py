"""Everything that clients do most, of etcd and Everwatch in turn, with what it costs the servers: scripts/compare.sh.

Each run has fresh servers of one kind. Rates and latencies are what clients saw, processor time that of all servers together.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import urllib.request

from figures import awake, cluster, generate, heading, number
from server import ServerFailed

QUICK = os.environ.get("QUICK", "") not in ("", "0")
ROUNDS = int(os.environ.get("ROUNDS", 1 if QUICK else 2))
KINDS = ("etcd", "everwatch")
FLAGS = ("--quota-backend-bytes", str(16 << 30))
KEYS = int(os.environ.get("KEYS", 2_000 if QUICK else 100_000))


class Workload:
    """`total` requests of a command. Goals: `rate`, how many times etcd's rate; `cpu`, microseconds of the servers' processors for
    each, on machines like the one on which etcd's own figures in the project's goals were taken."""

    def __init__(self, name, what, members, command, total, *more, clients=1000, rate=None, cpu=None):
        self.name, self.what, self.members = name, what, members
        self.rate, self.cpu = rate, cpu
        clients = min(clients, 50) if QUICK else clients
        total = max(100, total // 100) if QUICK else total
        self.arguments = (command, f"--clients={clients}", f"--total={total}", f"--key-space={KEYS}", *more)


WORKLOADS = [
    Workload("put-3", "put, 3 members", 3, "put", 100_000, rate=4, cpu=28),
    Workload("put-1", "put, 1 member", 1, "put", 200_000, rate=2.5, cpu=17),
    Workload("range-3", "linearizable range of a key, 3 members", 3, "range", 200_000, "--fill", rate=2.5, cpu=15),
    Workload("range-3s", "serializable range of a key, 3 members", 3, "range", 200_000, "--fill", "--serializable", rate=2.5, cpu=12),
    Workload("txn-3", "txn with one put, 3 members", 3, "txn", 60_000, rate=4, cpu=32),
    Workload("mixed-3", "txns, half of them reading the first of all keys, 3 members", 3, "mixed", 2_000, "--fill", rate=100, cpu=60),
    Workload("page-1", "page of 1,000 keys, 1 member", 1, "page", 2_000, "--fill", clients=50, rate=15, cpu=1000),
    Workload("count-1", "count of all keys, 1 member", 1, "count", 1_000, "--fill", clients=10),
    Workload("list-1", "list of all keys, 1 member", 1, "list", 20, "--fill", clients=1),
    Workload("cas-1", "compare and swap of 100 keys, 1 member", 1, "cas", 20_000, "--key-space=100", clients=100),
    Workload("grant-1", "lease grant, 1 member", 1, "lease-grant", 50_000),
    Workload("keepalive-3", "lease keepalive, 3 members", 3, "lease-keepalive", 60_000, rate=4, cpu=16),
    Workload("serial-3", "put by one client, 3 members", 3, "put", 5_000, clients=1),
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


def measure(workload, command, bench):
    try:
        with cluster(command, workload.members, FLAGS) as members:
            before = synced(members), written(members)
            figures = generate(bench, members, *workload.arguments, "--settle-ms=1000")
            after = synced(members), written(members)
            done = figures.get("requests_count", 0)
            # What filling wrote says nothing of reading.
            if done and "--fill" not in workload.arguments:
                figures["syncs_each"] = (after[0] - before[0]) / done
                figures["written_bytes_each"] = (after[1] - before[1]) / done
            return figures
    except (subprocess.TimeoutExpired, ValueError, OSError, ServerFailed) as error:
        return {"failed": str(error)}


FIGURES = [
    ("requests_per_s", "per second"),
    ("requests_server_cpu_us_each", "server CPU, µs each"),
    ("requests_p50_ms", "p50, ms"),
    ("requests_p99_ms", "p99, ms"),
    ("requests_p999_ms", "p99.9, ms"),
    ("peak_resident_mib", "most memory, MiB"),
    ("written_bytes_each", "bytes written each"),
    ("syncs_each", "syncs each"),
    ("requests_generator_cpu_share", "the generator's share of a processor"),
]


def median(runs, name):
    values = [run[name] for run in runs if name in run and not run["failed"]]
    return statistics.median(values) if values else None


def verdict(workload, name, etcd, ours):
    """Target and whether it is met, of the two figures that have one."""
    if name == "requests_per_s" and workload.rate and etcd and ours:
        return f"≥ {workload.rate} ×", "yes" if ours >= workload.rate * etcd else "**no**"
    if name == "requests_server_cpu_us_each" and workload.cpu and ours:
        return f"≤ {workload.cpu}", "yes" if ours <= workload.cpu else "**no**"
    return "", ""


def table(results, workloads):
    yield "| workload | figure | etcd | Everwatch | ours ÷ etcd | goal | met |"
    yield "| -------- | ------ | ---- | --------- | ----------- | ---- | --- |"
    for workload in workloads:
        what = workload.what
        for name, label in FIGURES:
            etcd, ours = (median(results[kind][workload.name], name) for kind in KINDS)
            if etcd is None and ours is None:
                continue
            ratio = number(ours / etcd) if etcd and ours is not None else "–"
            goal, met = verdict(workload, name, etcd, ours)
            yield f"| {what} | {label} | {number(etcd)} | {number(ours)} | {ratio} | {goal} | {met} |"
            what = ""


def plot(results, workloads, head, path):
    """Bars of the ratios, logarithmic: to the right is better."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, rates, cpus = [], [], []
    for workload in reversed(workloads):
        pair = [results[kind][workload.name] for kind in KINDS]
        rate, cpu = ([median(runs, name) for runs in pair] for name in ("requests_per_s", "requests_server_cpu_us_each"))
        if all(rate) and all(cpu):
            names.append(workload.what)
            rates.append(rate[1] / rate[0])
            cpus.append(cpu[0] / cpu[1])
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", default="etcd")
    parser.add_argument("--everwatch", default="target/release/everwatch")
    parser.add_argument("--bench", default="target/release/everwatch-bench")
    parser.add_argument("--only", choices=KINDS, help="one kind of server")
    parser.add_argument("--plot", help="where the plot goes")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=" ".join(workload.name for workload in WORKLOADS))
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - {workload.name for workload in WORKLOADS}:
        parser.error(f"no such workload: {' '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    commands = {"etcd": arguments.etcd, "everwatch": arguments.everwatch}
    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    workloads = [workload for workload in WORKLOADS if not arguments.workloads or workload.name in arguments.workloads]
    head = heading(commands) | {
        "rounds": f"{ROUNDS}" + (", QUICK: no figures to rely on" if QUICK else ""),
        "keys": f"{KEYS:,}",
        "kept awake": "yes" if os.environ.get("AWAKE") else "no",
    }
    directory = pathlib.Path("target/compare")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}.jsonl"
    results, failed = {kind: {workload.name: [] for workload in workloads} for kind in KINDS}, []
    with open(path, "w", buffering=1) as raw, awake():
        print(json.dumps(head), file=raw)
        for workload in workloads:
            for turn in range(ROUNDS):
                for kind in kinds:
                    print(f"=== {workload.name}, round {turn + 1} of {ROUNDS}: {kind}", file=sys.stderr, flush=True)
                    figures = measure(workload, commands[kind], arguments.bench)
                    print(json.dumps({"server": kind, "workload": workload.name, "round": turn + 1, **figures}), file=raw)
                    results[kind][workload.name].append(figures)
                    if figures["failed"]:
                        failed.append(f"{workload.name}, round {turn + 1}, {kind}: {figures['failed']}")

    print("".join(f"* {name}: {value}\n" for name, value in head.items()))
    print("\n".join(table(results, workloads)))
    print(f"\nEvery run: `{path}`")
    if arguments.plot:
        plot(results, workloads, head, arguments.plot)
    for what in failed:
        print(f"failed: {what}")
    # Goals that are not met are for whoever reads the table.
    sys.exit(any(", everwatch: " in what for what in failed))


if __name__ == "__main__":
    main()
