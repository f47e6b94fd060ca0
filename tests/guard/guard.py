"""Holds the instructions that hot paths take against a committed baseline: scripts/bench-guard.sh.

Instructions are counted by callgrind: no time is measured, and nothing depends on what else the machine does. They do depend on
the compiler and, by the C library's choice of how to copy and compare, on the processor: a baseline names both, and where others
are used nothing is refused.
"""

import pathlib
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

BASELINE = pathlib.Path("tests/guard/baseline.txt")
# Of the baseline, either way: less is a reason for a new baseline.
TOLERANCE = 0.05
# What is off is counted again, up to so often, and the least counts: tables of hashes are seeded at random, and setting a path up takes
# some more now and then.
AGAIN = 7
COUNTS = (1_000, 3_000)


def instructions(program, path, count):
    run = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, path, str(count)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not found:
        raise SystemExit(f"{path}: valgrind failed\n{run.stderr[-2000:]}")
    return int(found[1])


def cost(program, path, expected=None):
    """Of one turn. It is counted until it is within the tolerance of what is expected, if anything is, or often enough."""
    least = [None, None]
    for _ in range(1 + AGAIN):
        seen = [instructions(program, path, count) for count in COUNTS]
        least = [min(old or new, new) for old, new in zip(least, seen)]
        turn = round((least[1] - least[0]) / (COUNTS[1] - COUNTS[0]))
        if expected and abs(turn / expected - 1) <= TOLERANCE:
            break
    return turn


def processor():
    with open("/proc/cpuinfo") as info:
        names = (line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
        return next(names, platform.machine())


def main():
    program, compiler, *more = sys.argv[1:]
    compiler = f"{compiler}, {processor()}"
    paths = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    head, *lines = BASELINE.read_text().splitlines()
    baseline = {path: int(count) for path, count in (line.split() for line in lines)}
    expected = {} if more == ["--write"] else baseline
    with ThreadPoolExecutor(2) as pool:
        seen = dict(zip(paths, pool.map(lambda path: cost(program, path, expected.get(path)), paths)))
    if more == ["--write"]:
        lines = [f"# Instructions of one turn of each path; {compiler}.", *(f"{path} {count}" for path, count in seen.items())]
        BASELINE.write_text("\n".join(lines) + "\n")
        head, baseline = lines[0], dict(seen)
    off = []
    for path, count in seen.items():
        was = baseline.pop(path, None)
        change = None if was is None else count / was - 1
        print(f"{path:18} {count:10,}" + ("  is not in the baseline" if was is None else f"  {change:+.1%}"))
        if change is None or abs(change) > TOLERANCE:
            off.append(path)
    off += [f"{path} (gone)" for path in baseline]
    if not off:
        return
    print(f"not within {TOLERANCE:.0%} of {BASELINE}: {', '.join(off)}")
    if compiler not in head:
        print(f"but this is {compiler}, which the baseline is not of: nothing is known")
        return
    print("a change that is wanted: scripts/bench-guard.sh --write, and say why in the commit")
    sys.exit(1)


if __name__ == "__main__":
    main()
