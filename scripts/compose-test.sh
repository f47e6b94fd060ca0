#!/usr/bin/env bash
# Tests the image and docker-compose.yml: three containers become healthy and serve, lose nothing when they are killed
# under load, stop with exit code 0 when they are told to, and find their data again after `down` and `up`. And watchers are told
# exactly what they asked for whatever happens to containers (scripts/failover-test.sh).
#
#   scripts/compose-test.sh
#   LEADER=20 ALL=10 WRITES=50000 scripts/compose-test.sh       more kills (see scripts/kill-test.sh)
#   FAILOVER_FULL=1 scripts/compose-test.sh                     longer scenarios of fail-over
#   COMPOSE="docker compose" scripts/compose-test.sh            with Compose v2 (default: docker-compose if it is there)
#
# The clusters are the test's own, on free ports, and are removed afterwards; the image (everwatch:local, or EVERWATCH_IMAGE)
# is made anew and stays. Exit code: 77 if there is no Docker here. Needs etcdctl, python3 with venv, and what `cargo test`
# needs.
set -euo pipefail
cd "$(dirname "$0")/.."
export ETCDCTL_API=3 LEADER=${LEADER:-1} ALL=${ALL:-1} WRITES=${WRITES:-3000}
docker info >/dev/null 2>&1 || { echo "there is no Docker here" >&2; exit 77; }
compose=${COMPOSE:-docker-compose}
[ -n "${COMPOSE:-}" ] || command -v docker-compose >/dev/null || compose="docker compose"

scripts/image.sh
echo "== fail-over"
scripts/failover-test.sh

export COMPOSE_PROJECT_NAME=everwatch-test-$$
# The follower that misses WRITES shall need a snapshot: the log keeps less than that.
export SNAPSHOT_COUNT=$((WRITES / 20)) SNAPSHOT_CATCHUP_ENTRIES=$((WRITES / 20))
read -r PORT_1 PORT_2 PORT_3 < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
export PORT_1 PORT_2 PORT_3

finish() {
    local code=$?
    [ "$code" = 0 ] || $compose logs --tail 20 || true
    $compose down --volumes >/dev/null 2>&1 || { echo "could not remove $COMPOSE_PROJECT_NAME" >&2; code=1; }
    exit "$code"
}
trap finish EXIT
trap 'exit 1' INT TERM

fail() { echo "FAILED: $*" >&2; exit 1; }
containers() { for n in 1 2 3; do $compose ps -q -a "m$n" 2>/dev/null || $compose ps -q "m$n"; done; }
healthy() {
    local health
    # shellcheck disable=SC2046 # ids are words
    health=$(docker inspect --format '{{.State.Health.Status}}' $(containers)) && [ "$(sort -u <<<"$health")" = healthy ]
}
up() {
    $compose up -d
    local deadline=$((SECONDS + 60))
    until healthy; do
        [ $SECONDS -lt $deadline ] || fail "not all containers are healthy after 60 s"
        sleep 0.2
    done
}
ctl() { local port=PORT_$1; shift; etcdctl --endpoints "http://127.0.0.1:${!port}" "$@"; }
expect() {
    local answer
    answer=$(ctl "$1" get compose/test --print-value-only)
    [ "$answer" = "$2" ] || fail "m$1 answers '$answer', not '$2'"
}

echo "== up"
up
ctl 1 put compose/test written
for n in 1 2 3; do expect "$n" written; done

echo "== killed under load"
scripts/kill-test.sh --compose "$compose"

echo "== stop"
# shellcheck disable=SC2207 # ids are words
ids=($(containers))
$compose stop
codes=$(docker inspect --format '{{.State.ExitCode}}' "${ids[@]}" | tr '\n' ' ')
[ "$codes" = "0 0 0 " ] || fail "exit codes $codes, not 0 0 0"

echo "== down and up again"
$compose down
up
for n in 1 2 3; do expect "$n" written; done
echo "compose test: all held"
