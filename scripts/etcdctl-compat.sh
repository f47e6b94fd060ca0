#!/usr/bin/env bash
# The same etcdctl commands against etcd 3.5.1 and Everwatch, with etcdctl 3.5 and 3.4: equal output wanted.
#
#   scripts/etcdctl-compat.sh                    etcd against target/debug/everwatch
#   LEFT=etcd RIGHT=etcd scripts/etcdctl-compat.sh       proves the comparison itself
#   ETCDCTL="etcdctl /usr/bin/etcdctl"           the clients to use
#   scripts/etcdctl-compat.sh --tls              with TLS everywhere, and a client whose certificate names root (needs openssl)
#   scripts/etcdctl-compat.sh --jwt              users get JSON Web Tokens (needs openssl)
set -euo pipefail
cd "$(dirname "$0")/.."
clients=()
for client in ${ETCDCTL:-etcdctl /usr/bin/etcdctl}; do clients+=(--etcdctl "$client"); done
exec python3 tests/compat/etcdctl.py --left "${LEFT:-etcd}" --right "${RIGHT:-target/debug/everwatch}" "${clients[@]}" "$@"
