"""Runs the same load against a three-member cluster of each kind, one after the other, several rounds.

    bench_compare.py --left etcd --right target/release/everwatch --bench target/release/everwatch-bench
"""

import argparse
import json
import shutil
import subprocess
import tempfile

from server import Server, free_ports


def measure(command, bench, arguments):
    """One line of figures of one fresh cluster."""
    ports, base = free_ports(6), tempfile.mkdtemp(prefix="everwatch-bench-")
    cluster = ",".join(f"m{i}=http://127.0.0.1:{ports[3 + i]}" for i in range(3))
    members = [Server(command, f"m{i}", ports[i], ports[3 + i], cluster, (), base) for i in range(3)]
    try:
        for member in members:
            member.spawn()
        for member in members:
            member.wait()
        run = subprocess.run(
            [bench, arguments.workload, "--json", "--endpoints=" + ",".join(f"http://{m.endpoint}" for m in members),
             "--pids=" + ",".join(str(m.process.pid) for m in members), f"--clients={arguments.clients}",
             f"--conns={arguments.conns}", f"--total={arguments.total}", f"--val-size={arguments.val_size}"],
            check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(run.stdout)
        return ("{requests_count:.0f} done, {requests_errors:.0f} errors, {requests_per_s:.0f} per second, "
                "p50 {requests_p50_ms:.1f} ms, p99 {requests_p99_ms:.1f} ms, worst {requests_max_ms:.1f} ms, "
                "{requests_server_cpu_us_each:.2f} server CPU seconds per million").format(**figures)
    finally:
        for member in members:
            member.kill()
        shutil.rmtree(base, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", default="target/release/everwatch")
    parser.add_argument("--bench", default="target/release/everwatch-bench")
    parser.add_argument("--workload", default="put", choices=("put", "range"))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--conns", type=int, default=100)
    parser.add_argument("--total", type=int, default=100_000)
    parser.add_argument("--val-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for turn in range(arguments.rounds):
        for name in (arguments.left, arguments.right):
            print(f"round {turn + 1}  {name:28} {measure(name, arguments.bench, arguments)}", flush=True)


if __name__ == "__main__":
    main()
