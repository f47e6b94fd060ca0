#!/usr/bin/env bash
# Fail-over of a hundred watchers on three containers: stop, kill, pause and disconnect the member that serves most of them,
# the leader and a follower, cut each off from the others alone, and restart all in turn; each watcher is told exactly what it
# asked for. See tests/failover.rs.
#
#   scripts/failover-test.sh                          some writes in each phase: a minute and a half
#   FAILOVER_FULL=1 scripts/failover-test.sh          many writes, and the client's own patience with silent members: five minutes
#   FAILOVER_ONLY="pause,kill leader" scripts/failover-test.sh    only these, by words of their names: here four
#   scripts/failover-test.sh --local                  on three processes (scripts/cluster.sh): what needs no containers
#
# The cluster is the test's own, on free ports, and is removed afterwards. The image (everwatch:local, or EVERWATCH_IMAGE) is
# made if it is not there. The test itself is built by cargo.
# Exit code: 0 all exact, 1 something was wrong, 77 no Docker here (--local does without). Needs python3.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-containers}
case $mode in
containers)
    docker info >/dev/null 2>&1 || { echo "there is no Docker here; try $0 --local" >&2; exit 77; }
    compose=${COMPOSE:-docker-compose}
    [ -n "${COMPOSE:-}" ] || command -v docker-compose >/dev/null || compose="docker compose"
    docker image inspect "${EVERWATCH_IMAGE:-everwatch:local}" >/dev/null 2>&1 || scripts/image.sh
    # A member that missed a few hundred writes shall need a snapshot.
    export SNAPSHOT_COUNT=200 SNAPSHOT_CATCHUP_ENTRIES=100
    export COMPOSE_PROJECT_NAME=everwatch-failover-$$ COMPOSE_FILE=docker-compose.yml:tests/failover/compose.yml
    export FAILOVER_HOOK=$PWD/tests/failover/container.sh
    up() { $compose up -d; }
    logs() { $compose logs --tail 30; }
    unpause() { $compose unpause; }
    down() { $compose down --volumes; }
    ;;
--local)
    export EVERWATCH_FLAGS="--snapshot-count=200 --snapshot-catchup-entries=100 --watch-progress-notify-interval=300ms \
--max-request-bytes=65536 --grpc-keepalive-min-time=100ms"
    CLUSTER_DIR=$(mktemp -d)
    export CLUSTER_DIR FAILOVER_HOOK=$PWD/tests/failover/process.sh FAILOVER_ONLY=${FAILOVER_ONLY:-stop,kill,pause,rolling}
    up() { scripts/cluster.sh start; }
    logs() { tail -n 30 "$CLUSTER_DIR"/*.log; }
    unpause() { for n in 1 2 3; do tests/failover/process.sh unpause "$n"; done; }
    down() { scripts/cluster.sh clean && rm -rf "$CLUSTER_DIR"; }
    ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

cargo test --locked --quiet --no-run --test failover
test=$(cargo test --locked --no-run --test failover --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "failover":
        print(built["executable"])')
read -ra ports < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(6)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
export PORT_1=${ports[0]} PORT_2=${ports[1]} PORT_3=${ports[2]}
export CLIENT_PORTS="${ports[*]:0:3}" PEER_PORTS="${ports[*]:3:3}"

finish() {
    local code=$?
    [ "$code" = 0 ] || logs || true
    unpause >/dev/null 2>&1 || true # if the test ended early
    down >/dev/null 2>&1 || { echo "could not remove the cluster" >&2; code=1; }
    exit "$code"
}
trap finish EXIT
trap 'exit 1' INT TERM

said=$(up 2>&1) || { echo "$said" >&2; exit 1; }
export FAILOVER=http://127.0.0.1:$PORT_1,http://127.0.0.1:$PORT_2,http://127.0.0.1:$PORT_3
"$test" --exact failover --nocapture
