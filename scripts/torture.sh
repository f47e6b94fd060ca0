#!/usr/bin/env bash
# Three real processes under load while they are killed, paused, cut off from each other and from the power, and while their
# disks are slow, failing and full; the judge of the simulator on what the clients saw. See tests/torture/torture.py.
#
#   scripts/torture.sh                    60 seconds (or SECONDS_TOTAL)
#   scripts/torture.sh 1800               half an hour
#   SEED=7 scripts/torture.sh             other faults in another order
#   FAULTS="power_one kill_leader" scripts/torture.sh       only these
#   SERVER=tests/torture/lying_disk.sh FAULTS=power_all scripts/torture.sh 30     must fail: the test of the test
#   COMPOSE=1 scripts/torture.sh 120      on three containers of docker-compose.yml, with the faults that containers allow
#
# SERVER: the binary (default: the static one, built if it is not there). MIN_RATE: acknowledged operations per second, outside
# faults, below which the run counts for nothing (default 50). TORTURE_OUT: where logs and history go if something is wrong
# (default target/torture).
#
# Each round of at most five minutes is followed by half a minute of peace, in which all leases must run out.
#
# The last line is "torture: S seconds, F faults (kind=n ...), P power cuts, O operations, E watch events, V violations".
# Exit code: 0 if nothing was wrong; 1 if something was, or the load was too thin; 3 if this machine does not allow it
# (0 with TORTURE_OPTIONAL=1).
#
# All of it happens in namespaces of its own (processes, network, mounts) that end with the script, whatever ends it: no
# address, mount or loop device of the machine is touched. Needs root; Debian packages e2fsprogs, iproute2, mount, procps,
# python3, strace, util-linux.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-${SECONDS_TOTAL:-60}}
out=${TORTURE_OUT:-target/torture}
mkdir -p "$out"

cannot() {
    echo "torture: not possible on this machine: $*" >&2
    [ "${TORTURE_OPTIONAL:-}" != 1 ] || exit 0
    exit 3
}

compose=()
if [ -n "${COMPOSE:-}" ]; then
    docker info >/dev/null 2>&1 || cannot "there is no Docker"
    scripts/image.sh
    compose=(--compose)
    [ "$COMPOSE" = 1 ] || compose+=("$COMPOSE")
else
    [ "$(id -u)" = 0 ] || cannot "namespaces and loop devices need root"
    missing=
    for tool in ip:iproute2 mkfs.ext4:e2fsprogs mount:mount nsenter:util-linux python3:python3 strace:strace unshare:util-linux; do
        command -v "${tool%%:*}" >/dev/null || missing+=" ${tool#*:}"
    done
    [ -z "$missing" ] || cannot "missing packages:$missing"
    unshare --net --mount --pid --fork --mount-proc true || cannot "no namespaces"
    server=${SERVER:-target/x86_64-unknown-linux-gnu/release/everwatch}
    [ -x "$server" ] || scripts/static.sh
fi

# What is written must reach a disk, or a power cut means nothing.
work=$(mktemp -d)
if [ "$(stat --file-system --format %T "$work")" = tmpfs ]; then
    rmdir "$work"
    work=$(mktemp -d -p "$(realpath "$out")")
    [ "$(stat --file-system --format %T "$work")" != tmpfs ] || { rmdir "$work"; cannot "only tmpfs to write to"; }
fi
child= ending=TERM
finish() {
    local code=$?
    trap - EXIT
    [ -z "$child" ] || { kill "-$ending" "$child" 2>/dev/null && wait "$child" 2>/dev/null; } || true
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 1' INT TERM

cargo test --locked --quiet --no-run --test torture
clients=$(cargo test --locked --no-run --test torture --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "torture":
        print(built["executable"])')
arguments=(--seconds "$seconds" --clients "$clients" --work "$work" --out "$out" --seed "${SEED:-$RANDOM}" --min-rate "${MIN_RATE:-50}")
[ -z "${FAULTS:-}" ] || arguments+=(--faults "$FAULTS")
if [ ${#compose[@]} -gt 0 ]; then
    python3 tests/torture/torture.py "${arguments[@]}" "${compose[@]}" &
else
    # `unshare` does not heed other signals. When it is gone so is the first process in the namespaces, and with that the rest.
    ending=KILL
    unshare --net --mount --pid --fork --kill-child --mount-proc \
        python3 tests/torture/torture.py "${arguments[@]}" --server "$(realpath "$server")" &
fi
child=$!
code=0
wait "$child" || code=$?
child=
[ "$code" != 3 ] || cannot "see above"
exit "$code"
