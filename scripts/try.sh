#!/usr/bin/env bash
# Runs a server on 127.0.0.1:2379 in a directory of its own, puts, gets and watches a key with etcdctl, and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
export ETCDCTL_API=3
command -v etcdctl >/dev/null || { echo "etcdctl is needed (Debian: apt install etcd-client)" >&2; exit 1; }
cargo build --release --bin everwatch
data=$(mktemp -d)
target/release/everwatch --data-dir "$data/member" 2>"$data/log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; rm -rf "$data"' EXIT
# Its own word, not an answer on the port: that could be another server's.
until grep -q 'ready to serve client requests' "$data/log"; do
    kill -0 "$server" 2>/dev/null || { cat "$data/log" >&2; exit 1; }
    sleep 0.1
done
touch "$data/watched"
set -x
etcdctl put hello world
etcdctl get hello
etcdctl put hello again
etcdctl watch hello --rev=2 >"$data/watched" &
{ set +x; } 2>/dev/null
watcher=$! deadline=$((SECONDS + 30))
until [ "$(grep -c '^PUT' "$data/watched")" -ge 2 ]; do
    kill -0 "$watcher" 2>/dev/null || { echo "the watch ended early" >&2; exit 1; }
    [ $SECONDS -lt $deadline ] || { echo "the watch received too little in 30 s" >&2; exit 1; }
    sleep 0.1
done
kill "$watcher"
cat "$data/watched"
