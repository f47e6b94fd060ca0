"""What bounds any server on this machine: requests to a server that does nothing, and a disk that does nothing else: scripts/limits.sh.

The generator has one thread, and so has the server that does nothing: what they reach together is what a server could at most
reach beside the same generator, if all that it does cost nothing.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import types

from figures import attempted, generate, heading, listed, needed, number, parser, record, shown, size
from server import free_ports

ROUNDS = size("ROUNDS", 3, 1)
CLIENTS = size("CLIENTS", 1_000, 50)
PUTS = size("PUTS", 200_000, 2_000)
RANGES = size("RANGES", 200_000, 2_000)
PAGES = size("PAGES", 10_000, 100)
SERIAL = size("SERIAL", 5_000, 100)
SYNC_SECONDS = size("SYNC_SECONDS", 5, 1)


@contextlib.contextmanager
def echo_server(bench):
    """A server that does nothing, when it answers. It is enough of a member to be asked and looked at."""
    [port] = free_ports(1)
    process = subprocess.Popen([bench, "echo", f"--listen=127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    server = types.SimpleNamespace(scheme="http", endpoint=f"127.0.0.1:{port}", process=process)
    try:
        needed(generate(bench, [server], "first-read", "--seconds=30", "--settle-ms=0"))
        yield server
    finally:
        process.kill()
        process.wait()


def echo(bench, *arguments):
    """The figures of these requests to a server that does nothing."""
    def run():
        with echo_server(bench) as server:
            return generate(bench, [server], *arguments)
    return attempted(run)


def sync(bench, files, block):
    """Those of so many files that are written and synced, on the disk where data directories are."""
    def run():
        with tempfile.TemporaryDirectory(prefix="everwatch-figures-") as directory:
            return generate(bench, [], "sync", f"--dir={directory}", f"--clients={files}", f"--val-size={block}",
                            f"--seconds={SYNC_SECONDS}")
    return attempted(run)


class Limit:
    def __init__(self, what, name, of, *arguments):
        self.what, self.name, self.of, self.arguments = what, name, of, arguments


LIMITS = [
    Limit("put to a server that does nothing", "requests", echo, "put", f"--clients={CLIENTS}", f"--total={PUTS}"),
    Limit("range of a key from a server that does nothing", "requests", echo,
          "range", "--serializable", f"--clients={CLIENTS}", f"--total={RANGES}"),
    Limit("page of 1,000 keys from a server that does nothing, 50 clients", "requests", echo, "page", "--clients=50", f"--total={PAGES}"),
    Limit("put by one client to a server that does nothing", "requests", echo, "put", "--clients=1", f"--total={SERIAL}"),
    *(Limit(f"write {block >> 10} KiB and sync, {'a file' if files == 1 else f'{files} files at a time'}", "sync", sync, files, block)
      for files in (1, 3) for block in (4 << 10, 64 << 10)),
]

FIGURES = [
    ("per_s", "per second"),
    ("p50_ms", "p50, ms"),
    ("p99_ms", "p99, ms"),
    ("server_cpu_us_each", "server CPU, µs each"),
    ("generator_cpu_share", "the generator's share of a processor"),
    ("mib_per_s", "MiB per second"),
]


def table(results):
    yield f"| limit | {' | '.join(label for _, label in FIGURES)} |"
    yield "| --- |" + " --- |" * len(FIGURES)
    for limit, runs in zip(LIMITS, results):
        columns = ([run[f"{limit.name}_{name}"] for run in runs if f"{limit.name}_{name}" in run] for name, _ in FIGURES)
        yield f"| {limit.what} | {' | '.join(shown(values) if values else '' for values in columns)} |"


def main():
    arguments = parser(__doc__).parse_args()
    # The server is stopped, and directories removed, when this is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    head = heading({"everwatch": arguments.everwatch}, ROUNDS) | {"clients": number(CLIENTS)}
    results, failed = [[] for _ in LIMITS], []
    with record("limits", head) as (path, write):
        for turn in range(ROUNDS):
            for limit, runs in zip(LIMITS, results):
                print(f"=== {limit.what}, round {turn + 1} of {ROUNDS}", file=sys.stderr, flush=True)
                figures = limit.of(arguments.bench, *limit.arguments)
                write({"limit": limit.what, "round": turn + 1, **figures})
                runs.append(figures)
                if figures["failed"]:
                    failed.append(f"{limit.what}, round {turn + 1}: {figures['failed']}")

    print(listed(head))
    print("\n".join(table(results)))
    print(f"\nEvery run: `{path}`")
    for what in failed:
        print(f"failed: {what}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
