"""What scripts that measure have in common: fresh clusters, runs of the generator, numbers for people."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

from server import Server, free_ports

RUN_S_MAX = 3600


@contextlib.contextmanager
def cluster(command, size, flags=()):
    """Members of a new cluster, all serving; gone afterwards."""
    ports, base = free_ports(2 * size), tempfile.mkdtemp(prefix="everwatch-figures-")
    clients, peers = ports[:size], ports[size:]
    initial = ",".join(f"m{i}=http://127.0.0.1:{peer}" for i, peer in enumerate(peers))
    members = [Server(command, f"m{i}", client, peer, initial, flags, base)
               for i, (client, peer) in enumerate(zip(clients, peers))]
    try:
        for member in members:
            member.spawn()
        for member in members:
            member.wait()
            # What is measured is the process itself, not something that has started it.
            program = os.path.basename(os.readlink(f"/proc/{member.process.pid}/exe"))
            if not program.startswith(("etcd", "everwatch")):
                raise SystemExit(f"{command} runs as {program}: name the binary itself")
        yield members
    finally:
        for member in members:
            member.kill()
        shutil.rmtree(base, ignore_errors=True)


def generate(bench, members, *arguments):
    """The figures of one run of the generator; `failed` says what went wrong, if anything did."""
    run = subprocess.run(
        [bench, *arguments, "--json",
         "--endpoints=" + ",".join(f"http://{member.endpoint}" for member in members),
         "--pids=" + ",".join(str(member.process.pid) for member in members)],
        stdout=subprocess.PIPE, text=True, timeout=RUN_S_MAX)
    return json.loads(run.stdout) if run.stdout else {"failed": f"the generator ended with code {run.returncode}"}


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


def heading(commands):
    """What was measured, where and when."""
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    changed = " (changed)" if output_of("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%F %H:%M UTC"),
        "machine": f"{os.cpu_count()} × {model}, {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB, "
                   f"Linux {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "etcd": version(commands["etcd"], "etcd"),
        "Everwatch": version(commands["everwatch"], "everwatch"),
        "commit": output_of("git", "rev-parse", "--short", "HEAD") + changed,
    }


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
