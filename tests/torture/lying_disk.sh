#!/usr/bin/env bash
# The test of the test: a member whose disk says "synced" and has not. A power cut must then show as a violation:
#
#   SERVER=tests/torture/lying_disk.sh FAULTS=power_all scripts/torture.sh 30
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
# The tracer stands aside (-D), so that whoever started and kills this process has the member itself.
exec strace -D -f -qq -o /dev/null -e trace=fdatasync,fsync -e inject=fdatasync,fsync:retval=0 \
    "${EVERWATCH:-$here/target/x86_64-unknown-linux-gnu/release/everwatch}" "$@"
