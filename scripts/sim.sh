#!/bin/sh
# Runs N drawn worlds through the simulator, on all cores, and says what came of them.
#
#   scripts/sim.sh N [FIRST_SEED]
#
# The last line is "sim: N seeds, H cluster-hours, F faults, O operations, E watch events, V violations"; V > 0 is an error.
# What is told of a violation, the command to see it again included, stands above that line.
set -eu
cd "$(dirname "$0")/.."
seeds=${1:?usage: scripts/sim.sh N [FIRST_SEED]}
first=${2:-1}
cores=$(nproc)
cargo test --test sim --no-run --quiet
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Seeds are dealt to the cores in runs of this many.
run=$(((seeds + cores * 4 - 1) / (cores * 4)))
at=0
while [ "$at" -lt "$seeds" ]; do
    left=$((seeds - at))
    echo "$((first + at)) $((left < run ? left : run))"
    at=$((at + run))
done | xargs -P "$cores" -L 1 sh -c '
    FIRST_SEED=$1 SEEDS=$2 RUST_BACKTRACE=0 cargo test --quiet --test sim -- --exact swarm --nocapture >"$0/$1" 2>&1 || true
' "$out"
cat "$out"/* | grep -v '^sim: \|^running \|^test \|^[.]*$' | grep . || true
cat "$out"/* | awk -v seeds="$seeds" '
    /^sim: swarm: / { runs += $3; hours += $5; faults += $7; ops += $14; events += $18 }
    /^scenario ".*" seed / { violations++ }
    END {
        lost = seeds - runs
        if (lost > 0) violations += lost
        printf "sim: %d seeds, %.2f cluster-hours, %d faults, %d operations, %d watch events, %d violations\n",
            runs, hours, faults, ops, events, violations
        exit violations > 0
    }'
