"""What certificates and users cost, of etcd and Everwatch in turn: scripts/secure-figures.sh.

Puts and reads of one key each, as in compare.py, by anybody, with TLS and a certificate on either side, by a user with a token, and with
both. The user is not root: what he may is looked up.
"""

import json
import signal
import statistics
import sys
import tempfile
import urllib.request

from figures import KINDS, generate, heading, listed, needed, number, on_cluster, parser, record, size
from server import Certificates

ROUNDS = size("ROUNDS", 2, 1)
PUTS = size("PUTS", 100_000, 1_000)
RANGES = size("RANGES", 100_000, 1_000)
CLIENTS = size("CLIENTS", 1_000, 50)
KEYS = size("KEYS", 100_000, 1_000)
WORKLOADS = {
    "put": ("put", f"--total={PUTS}"),
    "range": ("range", f"--total={RANGES}"),
}
# How, whether with TLS, and whether by a user.
WAYS = {"plain": (False, False), "TLS": (True, False), "a user": (False, True), "TLS and a user": (True, True)}
USER, PASSWORD = "bench", "secret"


def add_user(member):
    """Turns users on, with one who may do with every key what he likes."""
    context = member.certificates.context("client") if member.certificates else None

    def ask(path, **request):
        url = f"{member.scheme}://{member.endpoint}/v3/auth/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode()), timeout=30, context=context) as answer:
            answer.read()

    for name, role in (("root", "root"), (USER, "all")):
        ask("user/add", name=name, password=PASSWORD)
        ask("role/add", name=role)
        ask("user/grant", user=name, role=role)
    # From "\0" to no end: every key.
    ask("role/grant", name="all", perm={"permType": "READWRITE", "key": "AA==", "range_end": "AA=="})
    ask("enable")


def look(bench, arguments, certificates, by_user, members):
    more = []
    if certificates:
        files = iter(certificates.of_client("client"))
        more += [f"{flag}={file}" for flag, file in zip(files, files)]
    if by_user:
        add_user(members[0])
        more.append(f"--user={USER}:{PASSWORD}")
    return needed(generate(bench, members, *arguments, f"--clients={CLIENTS}", f"--key-space={KEYS}", "--settle-ms=500", *more))


def table(results, kinds, counts):
    """What is told of a way is how it compares: a ratio of ours that is no smaller than without certificates and users is the goal."""
    yield "| members | | " + " | ".join(f"{kind}: per second | CPU, µs" for kind in kinds) + " | rate, ours ÷ etcd | CPU, etcd ÷ ours |"
    yield "| --- | --- |" + " --- | --- |" * len(kinds) + " --- | --- |"
    for count in counts:
        for workload in WORKLOADS:
            for way in WAYS:
                cells, pairs = [], []
                for kind in kinds:
                    runs = [run for run in results.get((kind, count, workload, way), []) if not run["failed"]]
                    pair = [statistics.median(run[name] for run in runs) if runs else None
                            for name in ("requests_per_s", "requests_server_cpu_us_each")]
                    pairs.append(pair)
                    cells += [number(value) for value in pair]
                if len(pairs) == 2 and all(map(all, pairs)):
                    (etcd_rate, etcd_cpu), (rate, cpu) = pairs
                    cells += [number(rate / etcd_rate), number(etcd_cpu / cpu)]
                else:
                    cells += ["–", "–"]
                yield f"| {count} | {workload}, {way} | " + " | ".join(cells) + " |"


def main():
    reading = parser(__doc__)
    reading.add_argument("--only", choices=KINDS)
    reading.add_argument("--members", default="1,3")
    arguments = reading.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    commands = {kind: getattr(arguments, kind) for kind in kinds}
    counts = [int(count) for count in arguments.members.split(",")]
    head, results, failed = heading(commands, ROUNDS), {}, []
    with tempfile.TemporaryDirectory(prefix="everwatch-figures-") as directory, record("secure-figures", head) as (path, note):
        made = Certificates(directory).sign("server", "server", "DNS:localhost,IP:127.0.0.1").sign("client", "client")
        for turn in range(ROUNDS):
            for count in counts:
                for workload, asked in WORKLOADS.items():
                    for way, (tls, by_user) in WAYS.items():
                        for kind in kinds:
                            where = f"{workload}, {way}, {count} members, round {turn + 1} of {ROUNDS}: {kind}"
                            print(f"=== {where}", file=sys.stderr, flush=True)
                            certificates = made if tls else None
                            run = on_cluster(commands[kind], count,
                                             lambda members: look(arguments.bench, asked, certificates, by_user, members),
                                             certificates)
                            note({"kind": kind, "members": count, "workload": workload, "way": way, **run})
                            results.setdefault((kind, count, workload, way), []).append(run)
                            if run["failed"] or run.get("requests_errors"):
                                failed.append(f"{where}: {run['failed'] or run['requests_errors']}")
    print(listed(head))
    print("\n".join(table(results, kinds, counts)))
    print(f"\nfigures: {path}")
    for line in failed:
        print(f"failed: {line}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
