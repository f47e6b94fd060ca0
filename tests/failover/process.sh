#!/usr/bin/env bash
# Does something to member N of scripts/cluster.sh, and returns when it is done (tests/failover.rs). What can be done to
# processes is done here: stop, kill, start, pause, unpause. Their exit codes are container.sh's business.
set -euo pipefail
cd "$(dirname "$0")/../.."
verb=$1 n=$2
pid=$(cat "${CLUSTER_DIR:?}/m$n.pid")
# Sends it a signal that ends it, and waits for its end.
end_by() {
    kill "-$1" "$pid"
    for _ in $(seq 750); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.02
    done
    echo "m$n does not end 15 s after SIG$1" >&2
    exit 1
}
case $verb in
stop) end_by TERM ;;
kill) end_by KILL ;;
start) scripts/cluster.sh start ;;
pause) kill -STOP "$pid" ;;
unpause) kill -CONT "$pid" ;;
*) echo "not possible with processes: $verb" >&2; exit 2 ;;
esac
