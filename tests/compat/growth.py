"""What a put costs as something grows, of etcd and Everwatch in turn: scripts/growth.sh.

A *point* is one run of the generator against a fresh cluster of one kind, after others that made what grows so large. An *axis* is
points; of each figure it has a slope: that of the line through the logarithms of both, 0 where a put costs the same however
large it is, 1 where it costs twice as much when there is twice as much. Points where nothing is there are shown and not fitted.

Puts are those of 100 clients, each of which sends the next when the one before is answered (but for the axes of clients and
connections). At a rate that both kinds of server can take, most puts have a sync for themselves: it costs many times what
grows, and would hide it. With 100 at a time it is shared, as it is where servers have something to do. Latencies are of puts
that are served together, then, and not of one alone: their slopes say something, less so their values.
"""

import math
import os
import signal
import statistics
import sys

from figures import KINDS, PROGRAMS, QUICK, generate, heading, listed, needed, number, on_cluster, parser, record, size

FULL = os.environ.get("FULL", "") not in ("", "0")
ROUNDS = size("ROUNDS", 1, 1)
PUTS = size("PUTS", 50_000, 1_000)
KEYS = size("KEYS", 10_000, 500)
CLIENTS = size("CLIENTS", 100, 10)
HISTORY_KEYS = size("HISTORY_KEYS", 1_000, 100)
SETTLE_MS = 500
# Bytes of values that a point of large ones writes.
VALUES_BYTES = 400_000_000


def upto(first, last, quick):
    """Powers of ten from one to another."""
    return [10**power for power in range(round(math.log10(first)), round(math.log10(quick if QUICK else last)) + 1)]


def fill(keys):
    """Writes each key once, from 1,000 clients; its one range is for that."""
    return ("range", "--fill", "--total=1", f"--key-space={keys}")


def load(keys=KEYS, clients=CLIENTS, total=PUTS):
    return f"--key-space={keys}", f"--clients={clients}", f"--total={total}"


def put(*more, **which):
    return ("put", *load(**which), *more)


class Point:
    """`at` is how much there is of what grows, `measured` the run whose figures with this `name` count, after those `before`."""

    def __init__(self, at, measured, before=(fill(KEYS),), name="requests", members=1):
        self.at, self.measured, self.before, self.name, self.members = at, measured, before, name, members

    def run(self, bench, members):
        before = [needed(generate(bench, members, *arguments, f"--settle-ms={SETTLE_MS}")) for arguments in self.before]
        return generate(bench, members, *self.measured, f"--settle-ms={SETTLE_MS}") | {"before": before}

    def cost(self, figures):
        """Its figures by the names that are the same everywhere."""
        return {figure: figures.get(f"{self.name}_{figure}") for figure, _ in FIGURES}


def history(revisions):
    """`revisions` of each key, and half of those that the measured puts add."""
    total, rest = PUTS // 5, (revisions - 1) * HISTORY_KEYS
    overwritten = [put(keys=HISTORY_KEYS, clients=1_000, total=rest)] if rest else []
    return Point(revisions + total // HISTORY_KEYS // 2, put(keys=HISTORY_KEYS, total=total), [fill(HISTORY_KEYS), *overwritten])


def idle(watchers, name="with"):
    """Watchers of keys that nobody writes. The generator measures without and with them, in turn."""
    measured = ("watch-idle", *load(total=PUTS // 2), "--rounds=1", f"--watchers={watchers}", f"--streams={min(watchers, 100)}")
    return Point(watchers if name == "with" else 0, measured, name=name)


def stalled(streams):
    measured = ("watch-stalled", *load(total=PUTS // 2), "--rate=0", "--val-size=256", f"--streams={streams}")
    return Point(streams, measured, name="puts")


def leases(count):
    return Point(count, put(), [fill(KEYS), *([("lease-memory", f"--total={count}")] if count else [])])


def value(size_bytes):
    return Point(size_bytes, put(f"--val-size={size_bytes}", total=min(PUTS, VALUES_BYTES // size_bytes)))


def clients(count):
    """As many puts as can be told from the clock of processor time, and ten of each client. (etcd refuses puts while 5,000 wait to
    be carried out: of so many clients it may have no figure.)"""
    return Point(count, put(clients=count, total=max(PUTS // 10 if count == 1 else PUTS, 10 * count)))


class Axis:
    def __init__(self, name, what, points):
        self.name, self.what, self.points = name, what, list(points)


AXES = [
    Axis("keys", "keys in the store", (Point(keys, put(keys=keys), [fill(keys)]) for keys in (
        (100, 1_000) if QUICK else (10_000, 30_000, 100_000, 300_000, 1_000_000, *([10_000_000] if FULL else []))))),
    Axis("history", f"revisions of each of {HISTORY_KEYS:,} keys", map(history, upto(1, 1_000, 10))),
    Axis("watchers", "idle watchers of other keys",
         [idle(100, "without"), *map(idle, upto(100, 1_000_000 if FULL else 100_000, 1_000))]),
    Axis("stalled", "streams that nobody reads, of what is written", map(stalled, [0, *upto(1, 100, 10)])),
    Axis("leases", "leases", map(leases, [0, *upto(1_000, 1_000_000, 10_000)])),
    Axis("values", "bytes of a value", map(value, (16, 256, 4_096, 65_536) if QUICK else (16, 256, 4_096, 65_536, 1_000_000))),
    Axis("connections", f"connections of {upto(1, 1_000, 10)[-1]:,} clients",
         (Point(count, put(f"--conns={count}", clients=upto(1, 1_000, 10)[-1])) for count in upto(1, 1_000, 10))),
    Axis("clients", "clients on up to 100 connections", map(clients, upto(1, 10_000, 100))),
    Axis("members", "members", (Point(count, put(), members=count) for count in (1, 3, 5))),
]

FIGURES = [
    ("server_cpu_us_each", "server CPU, µs per put"),
    ("p50_ms", "p50, ms"),
    ("p99_ms", "p99, ms"),
]


def slope(points):
    """Of the least-squares line through the logarithms; `None` of fewer than two points."""
    logs = [(math.log(at), math.log(cost)) for at, cost in points if at > 0 and cost > 0]
    return statistics.linear_regression(*zip(*logs)).slope if len(logs) > 1 else None


def curve(results, kind, axis, figure):
    """Where, and the median of what was seen there."""
    for point in axis.points:
        costs = [point.cost(run)[figure] for run in results[kind][axis.name, point.at] if not run["failed"]]
        if costs := [cost for cost in costs if cost is not None]:
            yield point.at, statistics.median(costs)


def table(results, axes, kinds):
    yield "| grows | figure | server | at: figure | slope |"
    yield "| ----- | ------ | ------ | ---------- | ----- |"
    for axis in axes:
        what = axis.what
        for figure, label in FIGURES:
            for kind in kinds:
                points = list(curve(results, kind, axis, figure))
                shown, steep = "; ".join(f"{at:,}: {number(cost)}" for at, cost in points), slope(points)
                yield f"| {what} | {label} | {PROGRAMS[kind]} | {shown} | {'–' if steep is None else f'{steep:+.2f}'} |"
                what = label = ""


def plot(results, axes, kinds, head, path):
    """A small plot for each axis, both of its scales logarithmic and all of one height: what is flat costs the same everywhere."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    columns = min(3, len(axes))
    lines = math.ceil(len(axes) / columns)
    # One more line for what belongs to all of them.
    figure, places = pyplot.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines + 1), squeeze=False, sharey=True)
    colours, styles = {"etcd": "#99a8b2", "everwatch": "#1f6f8b"}, ("-", "--", ":")
    for place, axis in zip(places.flat, axes):
        for kind in kinds:
            for (name, label), style in zip(FIGURES, styles):
                points = list(curve(results, kind, axis, name))
                # Both in microseconds.
                factor = 1000 if name.endswith("_ms") else 1
                place.plot([at for at, _ in points], [cost * factor for _, cost in points], style, marker=".", color=colours[kind],
                           label=f"{PROGRAMS[kind]}: {label.split(',')[0]}", linewidth=1.2)
        ats = [point.at for point in axis.points]
        if 0 in ats:
            place.set_xscale("symlog", linthresh=min(at for at in ats if at > 0), linscale=0.5)
        else:
            place.set_xscale("log")
        place.set_yscale("log")
        place.minorticks_off()
        place.set_xticks(ats)
        place.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        place.tick_params(labelsize=8)
        place.grid(alpha=0.3)
        place.set_title(axis.what, fontsize=9)
    for place in places.flat[len(axes):]:
        place.set_visible(False)
    for line in places:
        line[0].set_ylabel("µs", fontsize=9)
    handles, labels = places.flat[0].get_legend_handles_labels()
    figure.suptitle(", ".join(f"{PROGRAMS[kind]} {head[PROGRAMS[kind]]}" for kind in kinds)
                    + f", {head['commit']}, {head['date']}\n{head['machine']}", fontsize=9)
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8)
    figure.tight_layout(rect=(0, 0.7 / (3.2 * lines + 1), 1, 1))
    figure.savefig(path, dpi=120)


def main():
    reading = parser(__doc__)
    reading.add_argument("--only", choices=KINDS, help="one kind of server")
    reading.add_argument("--plot", help="where the plot goes")
    reading.add_argument("axes", nargs="*", metavar="AXIS", help=" ".join(axis.name for axis in AXES))
    arguments = reading.parse_args()
    if unknown := set(arguments.axes) - {axis.name for axis in AXES}:
        reading.error(f"no such axis: {' '.join(sorted(unknown))}")
    # Servers are stopped, and directories removed, when this is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    kinds = [kind for kind in KINDS if arguments.only in (None, kind)]
    commands = {kind: getattr(arguments, kind) for kind in kinds}
    axes = [axis for axis in AXES if not arguments.axes or axis.name in arguments.axes]
    head = heading(commands, ROUNDS) | {"puts, keys, clients": f"{PUTS:,}, {KEYS:,}, {CLIENTS:,}, where the axis says nothing else"}
    results, failed = {kind: {(axis.name, point.at): [] for axis in axes for point in axis.points} for kind in kinds}, []
    with record("growth", head) as (path, write):
        for axis in axes:
            for point in axis.points:
                for turn in range(ROUNDS):
                    for kind in kinds:
                        where = f"{axis.name} at {point.at:,}, round {turn + 1} of {ROUNDS}"
                        print(f"=== {where}: {kind}", file=sys.stderr, flush=True)
                        figures = on_cluster(commands[kind], point.members, lambda members: point.run(arguments.bench, members))
                        write({"server": kind, "axis": axis.name, "at": point.at, "round": turn + 1, **figures})
                        results[kind][axis.name, point.at].append(figures)
                        if figures["failed"]:
                            failed.append((kind, f"{where}, {kind}: {figures['failed']}"))

    print(listed(head))
    print("\n".join(table(results, axes, kinds)))
    print(f"\nEvery run: `{path}`")
    if arguments.plot:
        plot(results, axes, kinds, head, arguments.plot)
    for _, what in failed:
        print(f"failed: {what}")
    # Slopes are for whoever reads the table; etcd may fail.
    sys.exit(any(kind != "etcd" for kind, _ in failed))


if __name__ == "__main__":
    main()
