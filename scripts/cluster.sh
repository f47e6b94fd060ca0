#!/usr/bin/env bash
# Three members on this machine: clients on 2379, 22379, 32379, peers on 2380, 22380, 32380.
#
#   scripts/cluster.sh start     start those that do not run, wait until all are healthy
#   scripts/cluster.sh stop      stop all; their data stays
#   scripts/cluster.sh status    say who runs and who is healthy
#   scripts/cluster.sh kill N    kill -9 member N (1, 2 or 3)
#   scripts/cluster.sh clean     stop all and remove their data
#
# EVERWATCH: the binary (default: the newest of target/{release,debug}/everwatch).
# CLUSTER_DIR: data, logs and process ids (default: target/cluster).  EVERWATCH_FLAGS: further flags of every member.
# CLIENT_PORTS, PEER_PORTS: three ports each, for a second cluster (with a CLUSTER_DIR of its own) beside the first.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${CLUSTER_DIR:-target/cluster}
binary=${EVERWATCH:-$(ls -t target/release/everwatch target/debug/everwatch 2>/dev/null | head -n 1 || true)}
members=(1 2 3)
# Counted from 1, as the members are.
read -ra client_ports <<<"0 ${CLIENT_PORTS:-2379 22379 32379}"
read -ra peer_ports <<<"0 ${PEER_PORTS:-2380 22380 32380}"
initial=
for n in "${members[@]}"; do initial+=${initial:+,}m$n=http://127.0.0.1:${peer_ports[$n]}; done

# The process id of member $1 if that process is still the one we started.
pid_of() {
    local pid
    pid=$(cat "$dir/m$1.pid" 2>/dev/null) || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q -- "--name m$1 " || return 1
    echo "$pid"
}

start_one() {
    local client=http://127.0.0.1:${client_ports[$1]} peer=http://127.0.0.1:${peer_ports[$1]}
    # shellcheck disable=SC2086 # the flags are words
    "$binary" --name "m$1" --data-dir "$dir/m$1" --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$initial" \
        --initial-cluster-token everwatch-local ${EVERWATCH_FLAGS:-} >>"$dir/m$1.log" 2>&1 </dev/null &
    echo $! >"$dir/m$1.pid"
}

healthy() {
    "$binary" --health-check "http://127.0.0.1:${client_ports[$1]}/health" >/dev/null 2>&1
}

start() {
    [ -x "$binary" ] || { echo "no binary: run cargo build --release first" >&2; exit 1; }
    mkdir -p "$dir"
    for n in "${members[@]}"; do
        pid_of "$n" >/dev/null && continue
        ! healthy "$n" || { echo "another server answers on port ${client_ports[$n]}" >&2; exit 1; }
        start_one "$n"
    done
    for n in "${members[@]}"; do
        for _ in $(seq 150); do
            healthy "$n" && break
            pid_of "$n" >/dev/null || { echo "m$n ended; the end of its log:" >&2; tail -n 5 "$dir/m$n.log" >&2; exit 1; }
            sleep 0.2
        done
        healthy "$n" || { echo "m$n is not healthy after 30 s; see $dir/m$n.log" >&2; exit 1; }
    done
    status
}

stop() {
    local pid pids=()
    for n in "${members[@]}"; do
        if pid=$(pid_of "$n"); then kill -TERM "$pid" && pids+=("$pid"); fi
    done
    for pid in ${pids[@]+"${pids[@]}"}; do
        for _ in $(seq 75); do [ -e "/proc/$pid" ] || break; sleep 0.2; done
        if [ -e "/proc/$pid" ]; then
            echo "process $pid did not stop in 15 s, killing it" >&2
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
    for n in "${members[@]}"; do rm -f "$dir/m$n.pid"; done
}

status() {
    local state pid
    for n in "${members[@]}"; do
        state=stopped
        if pid=$(pid_of "$n"); then state="running, not healthy (process $pid)"; healthy "$n" && state="healthy (process $pid)"; fi
        echo "m$n  http://127.0.0.1:${client_ports[$n]}  $state"
    done
}

case "${1:-}" in
start) start ;;
stop) stop ;;
status) status ;;
kill) kill -KILL "$(pid_of "${2:?which member: 1, 2 or 3}")" ;;
clean) stop; rm -rf "$dir/m1" "$dir/m2" "$dir/m3" "$dir"/m?.log ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
