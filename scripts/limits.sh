#!/usr/bin/env bash
# What bounds any server on this machine: requests to a server that does nothing, and a disk that is asked for nothing but to write
# and sync. Prints a Markdown table; the figures of every run are in target/limits/.
#
#   scripts/limits.sh                two minutes
#   QUICK=1 scripts/limits.sh        small sizes, one round: whether everything works, no figures
#
# ROUNDS (3): how often.  AWAKE=1: see watch-figures.sh.  TMPDIR: the disk, which is the one where other scripts that measure have
# their data directories.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/figures-env.sh
exec "$python" tests/compat/limits.py "${servers[@]}" "$@"
