#!/usr/bin/env bash
# Kills members of a three-member cluster under load: kill -9 the leader 20 times, all members 10 times, one follower
# through 50,000 writes, a follower while it adopts snapshots; lets one sleep until it needs a snapshot; takes one's data
# away; replaces all three by others, one by one. See tests/compat/cluster_kill.py.
#
#   scripts/kill-test.sh                                     three processes of target/release/everwatch
#   SERVER=etcd scripts/kill-test.sh                         three processes of etcd: the test of the test
#   scripts/kill-test.sh --compose                           the running compose cluster (docker kill, docker start)
#   LEADER=2 ALL=1 WRITES=2000 scripts/kill-test.sh          a short run
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${COMPAT_VENV:-target/compat-venv}
scripts/compat-venv.sh "$venv"
run() { "$venv/bin/python" tests/compat/cluster_kill.py --server "${SERVER:-target/release/everwatch}" "$@"; }
failed=0
run --scenario leader --times "${LEADER:-20}" "$@" || failed=1
run --scenario all --times "${ALL:-10}" "$@" || failed=1
run --scenario lagging --writes "${WRITES:-50000}" "$@" || failed=1
case " $* ${SERVER:-} " in
*" --compose"* | *" etcd "*) ;; # a container keeps its volume; etcd has the last scenario's words, but other flags
*)
    run --scenario snapshot --times "${SNAPSHOT:-10}" "$@" || failed=1
    run --scenario paused --times "${PAUSED:-5}" "$@" || failed=1
    run --scenario wiped "$@" || failed=1
    run --scenario replaced --times "${REPLACED:-3}" "$@" || failed=1
    ;;
esac
exit $failed
