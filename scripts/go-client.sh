#!/usr/bin/env bash
# The Go client, clientv3, against Everwatch, where every case has to pass, and against etcd, where it is said which do not:
# watches, keys, leases, locks, users and members, and what all that does while members are stopped, killed and paused.
#
#   scripts/go-client.sh                                with target/release/everwatch, which is built if it is not there
#   RIGHT=target/debug/everwatch scripts/go-client.sh -only 'watch_.*' -v
#   ETCD= scripts/go-client.sh                          without etcd
#
# Needs Go and clientv3's source (Debian: golang-go, golang-etcd-server-dev), and etcd on the PATH or in $ETCD. Without Go, without
# the source or where it does not build, the exit code is 3; 1 is for cases that failed.
set -euo pipefail
cd "$(dirname "$0")/.."
left=${ETCD-etcd}
right=${RIGHT:-target/release/everwatch}
# Debian's Go libraries, which are found without modules and without a network.
libraries=${GOLIBRARIES:-/usr/share/gocode}

if ! command -v go > /dev/null; then
    echo "go-client: there is no Go on this machine: nothing was tested" >&2
    exit 3
fi
if [ ! -d "$libraries/src/go.etcd.io/etcd/clientv3" ]; then
    echo "go-client: there is no clientv3 below $libraries: nothing was tested" >&2
    exit 3
fi
if [ -n "$left" ] && ! command -v "$left" > /dev/null; then
    echo "go-client: there is no $left: ETCD= to do without" >&2
    exit 2
fi
if [ ! -x "$right" ]; then
    cargo build --release --locked --bin everwatch
fi

work=$(mktemp -d)
client=
finish() {
    # It ends its servers before itself.
    if [ -n "$client" ]; then kill "$client" 2> /dev/null && wait "$client" || true; fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
if ! GO111MODULE=off GOPATH="$libraries" GOFLAGS= go build -o "$work/go-client" ./tests/go; then
    echo "go-client: it does not build: nothing was tested" >&2
    exit 3
fi
# The servers' data go where it goes.
code=0
TMPDIR=$work "$work/go-client" ${left:+-left "$left"} -right "$right" "$@" &
client=$!
wait "$client" || code=$?
client=
exit "$code"
