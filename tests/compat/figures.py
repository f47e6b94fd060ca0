"""What scripts that measure have in common: arguments, fresh clusters, runs of the generator, records, numbers for people."""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys

import server
from server import ServerFailed

QUICK = os.environ.get("QUICK", "") not in ("", "0")
KINDS = ("etcd", "everwatch")
# What they call themselves.
PROGRAMS = {"etcd": "etcd", "everwatch": "Everwatch"}
# A quota that nothing here reaches.
FLAGS = ("--quota-backend-bytes", str(16 << 30))
RUN_S_MAX = 3600


def size(name, full, quick):
    """A number that the environment may change."""
    return int(os.environ.get(name, quick if QUICK else full))


def parser(description):
    """For the arguments that all of them have."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--etcd", default="etcd")
    arguments.add_argument("--everwatch", default="target/release/everwatch")
    arguments.add_argument("--bench", default="target/release/everwatch-bench")
    return arguments


class Failed(Exception):
    """A run without which the next makes no sense did not go well."""


def needed(figures):
    if figures["failed"]:
        raise Failed(figures["failed"])
    return figures


def attempted(run, *arguments):
    """The figures that come back; `failed` says why there are none."""
    try:
        return run(*arguments)
    except (subprocess.TimeoutExpired, ValueError, OSError, ServerFailed, Failed) as error:
        return {"failed": str(error)}


def on_cluster(command, size, run, certificates=None):
    """The figures that `run` makes of the members of a fresh cluster."""
    def on_fresh():
        with cluster(command, size, FLAGS, certificates) as members:
            return run(members)
    return attempted(on_fresh)


@contextlib.contextmanager
def cluster(command, size, flags=(), certificates=None):
    """Members of a new cluster that are the server's process itself: what is measured is not something that has started it."""
    with server.cluster(command, size, flags, certificates) as members:
        for member in members:
            program = os.path.basename(os.readlink(f"/proc/{member.process.pid}/exe"))
            if not program.startswith(("etcd", "everwatch")):
                raise SystemExit(f"{command} runs as {program}: name the binary itself")
        yield members


def generate(bench, members, *arguments):
    """The figures of one run of the generator, with or without servers; `failed` says what went wrong, if anything did."""
    if members:
        arguments += ("--endpoints=" + ",".join(f"{member.scheme}://{member.endpoint}" for member in members),
                      "--pids=" + ",".join(str(member.process.pid) for member in members))
    run = subprocess.run([bench, *arguments, "--json"], stdout=subprocess.PIPE, text=True, timeout=RUN_S_MAX)
    return json.loads(run.stdout) if run.stdout else {"failed": f"the generator ended with code {run.returncode}"}


@contextlib.contextmanager
def record(what, head):
    """A new file below target/ with the heading, and a function that adds lines to it. Work of idle priority goes on beside it, if
    that is asked for."""
    directory = pathlib.Path("target") / what
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}.jsonl"
    with open(path, "w", buffering=1) as raw, awake():
        print(json.dumps(head), file=raw)
        yield path, lambda line: print(json.dumps(line), file=raw)


def at_most(limit):
    return lambda etcd, ours: ours <= limit


def of_etcd(share):
    """Ours is at most this share of etcd's; unknown without etcd's."""
    return lambda etcd, ours: None if etcd is None else ours <= share * etcd


def times_etcd(factor):
    """Ours is at least so many times etcd's; unknown without etcd's."""
    return lambda etcd, ours: None if etcd is None else ours >= factor * etcd


def judged(met, etcd, ours):
    return {True: "yes", False: "**no**", None: ""}[None if ours is None else met(etcd, ours)]


def number(value):
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def shown(values):
    if len(values) < 2 or min(values) == max(values):
        return number(statistics.median(values) if values else None)
    return f"{number(statistics.median(values))} ({number(min(values))} – {number(max(values))})"


def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()


def version(command, program):
    """What a server says of itself: Everwatch has a line for the etcd that it is like, and one for itself."""
    said = output_of(*shlex.split(command), "--version")
    return next((line.split(": ")[1] for line in said.splitlines() if line.startswith(f"{program} Version: ")), said)


def heading(commands, rounds):
    """What was measured, where, when and how."""
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    changed = " (changed)" if output_of("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%F %H:%M UTC"),
        "machine": f"{os.cpu_count()} × {model}, {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB, "
                   f"Linux {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        **{PROGRAMS[kind]: version(command, kind) for kind, command in commands.items()},
        "commit": output_of("git", "rev-parse", "--short", "HEAD") + changed,
        "rounds": f"{rounds}" + (", QUICK: no figures to rely on" if QUICK else ""),
        "kept awake": "yes" if os.environ.get("AWAKE") else "no",
    }


def listed(head):
    return "".join(f"* {name}: {value}\n" for name, value in head.items())


@contextlib.contextmanager
def awake():
    """Work of idle priority, if that is asked for: a processor that sleeps notices interrupts late on some machines."""
    if not os.environ.get("AWAKE"):
        yield
        return
    busy = subprocess.Popen(["chrt", "--idle", "0", sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()
