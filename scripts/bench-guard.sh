#!/usr/bin/env bash
# Whether what every request runs through takes more instructions than it did: counted by callgrind, held against
# tests/guard/baseline.txt. No time is measured. It is the build of the tests that is looked at: what it does too often, the
# optimized one does too often as well, and it is there anyway.
#
#   scripts/bench-guard.sh [--write]     --write makes what is seen the baseline
#
# Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(cargo bench --locked --profile dev --bench hot_paths --no-run --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["target"]["name"] == "hot_paths":
        print(made["executable"])') || true
[ -n "$program" ] || { cargo bench --locked --profile dev --bench hot_paths --no-run; exit 1; }
exec python3 tests/guard/guard.py "$program" "$(rustc --version | cut -d' ' -f1,2)" "$@"
