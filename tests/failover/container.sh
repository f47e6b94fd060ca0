#!/usr/bin/env bash
# Does something to member N of the compose project COMPOSE_PROJECT_NAME, and returns when it is done (tests/failover.rs):
#
#   container.sh stop N         as `docker stop` does it; fails unless the exit code is 0
#   container.sh kill N         kill -9
#   container.sh start N        after either
#   container.sh pause N        and unpause N
#   container.sh disconnect N   from everybody, and connect N
#   container.sh cut N          from the other members, and mend N
set -euo pipefail
verb=$1 n=$2 project=$COMPOSE_PROJECT_NAME
label=com.docker.compose
id=$(docker ps --all --quiet --filter "label=$label.project=$project" --filter "label=$label.service=m$n")
[ -n "$id" ] || { echo "$project has no container of m$n" >&2; exit 1; }
leave() { docker network disconnect "${project}_$1" "$id"; }
join() { docker network connect --alias "$2" "${project}_$1" "$id"; }
case $verb in
stop)
    docker stop "$id"
    code=$(docker inspect --format '{{.State.ExitCode}}' "$id")
    [ "$code" = 0 ] || { echo "m$n stopped with exit code $code" >&2; exit 1; }
    ;;
kill | start | pause | unpause) docker "$verb" "$id" ;;
disconnect) leave peers && leave default ;;
connect) join default "m$n" && join peers "peer-$n" ;;
cut) leave peers ;;
mend) join peers "peer-$n" ;;
*) echo "not known: $verb" >&2; exit 2 ;;
esac
