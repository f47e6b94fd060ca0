#!/usr/bin/env bash
# Draws inputs for every fuzz target, or for one, for so many seconds each:  scripts/fuzz.sh SECONDS [TARGET]
# FUZZ_SEED chooses other inputs. What fails is cut down, saved under tests/corpus/ and told with the command that replays it.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET]}
targets=${2:-log sealed snapshots peers requests txns ranges watches settings boot readers backups etcd_logs wires}
output=$(mktemp)
trap 'rm -f "$output"' EXIT
cargo test --quiet --test fuzz --no-run || exit 1
broken=0
for target in $targets; do
    FUZZ_SECONDS=$seconds timeout $((seconds + 600)) \
        cargo test --quiet --test fuzz -- --exact --nocapture "$target" 2>&1 | tee -a "$output" | grep -a '^fuzz\|^  replay' || true
    # A process that died, or a target that is not there, has no line of its own.
    grep -aq "^fuzz-target $target:" "$output" || { echo "fuzz target $target did not come to its end"; broken=$((broken + 1)); }
done
awk -v broken="$broken" '
    /^fuzz-target / { targets++; inputs += $5; panics += $7; differences += $9 }
    END {
        panics += broken
        printf "fuzz: %d targets, %d inputs, %d panics, %d differences\n", targets, inputs, panics, differences
        exit panics + differences > 0 || targets == 0
    }' "$output"
