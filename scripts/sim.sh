#!/usr/bin/env bash
# Runs N drawn worlds through the simulator, on all cores, and says what came of them.
#
#   scripts/sim.sh N [FIRST_SEED]
#
# The last line is "sim: N seeds, H cluster-hours, F faults, O operations, W watches, E watch events, V violations"; V > 0 is an error.
# Above it stand the faults by kind, and above those what is told of each violation, the command to see it again included.
# A world that does not come to its end (it crashed, or took more than PATIENCE seconds, 300) is a violation too.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:?usage: scripts/sim.sh N [FIRST_SEED]}
first=${2:-1}
cores=$(nproc)
export PATIENCE=${PATIENCE:-300} RUST_BACKTRACE=0
cargo test --test sim --no-run --quiet
binary=$(cargo test --test sim --no-run 2>&1 | sed -n 's/.*Executable .*(\(.*\))$/\1/p')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export binary out

# A run of seeds in one process; after one that brought the process down the rest follow in another.
deal() { # first seed, how many
    local at=$1 end=$(($1 + $2)) part last
    while [ "$at" -lt "$end" ]; do
        part=$out/$(printf %020d "$at")
        FIRST_SEED=$at SEEDS=$((end - at)) timeout $((PATIENCE * (end - at))) \
            "$binary" --exact swarm --nocapture >"$part" 2>&1 && return
        grep -q '^test swarm \.\.\. FAILED' "$part" && return
        last=$(sed -n 's/^sim: begins seed //p' "$part" | tail -n 1)
        last=${last:-$at}
        echo "scenario \"swarm\" seed $last: the run did not come to its end" >>"$part"
        echo "replay: SEED=$last SCENARIO=\"swarm\" cargo test --test sim scenario -- --nocapture" >>"$part"
        at=$((last + 1))
    done
}
export -f deal

began=$SECONDS
# Short runs, so that no core is left waiting for another's long one.
length=$(((seeds + cores * 8 - 1) / (cores * 8)))
for ((at = 0; at < seeds; at += length)); do
    echo "$((first + at)) $((seeds - at < length ? seeds - at : length))"
done | xargs -P "$cores" -L 1 bash -c 'deal "$@"' deal

cat "$out"/* | grep -vE '^sim: |^running |^test |^failures:|^    swarm$|^[.]*$|^note: |^---- ' || true
cat "$out"/* | awk -v seeds="$seeds" -v wall=$((SECONDS - began)) -v cores="$cores" '
    /^sim: seed [0-9]+: / {
        runs++
        for (at = 4; at <= NF; at++) {
            split($at, pair, "=")
            if (pair[1] == "slowest_recovery_ms") { if (pair[2] > slowest) slowest = pair[2] }
            else sum[pair[1]] += pair[2]
            if (sub(/^fault\./, "", pair[1]) && !(pair[1] in known)) { known[pair[1]]; kind[++kinds] = pair[1] }
        }
    }
    /^scenario "swarm" seed [0-9]+: / { violations++ }
    END {
        # What is neither told of nor finished went wrong in a way that nobody thought of.
        if (runs + violations < seeds) violations = seeds - runs
        printf "faults by kind:"
        for (at = 1; at <= kinds; at++) printf " %s %d", kind[at], sum["fault." kind[at]]
        printf "\n"
        printf "crashes %d, power cuts %d, damaged logs refused %d, snapshots adopted %d, leaders %d, slowest recovery of a quorum %.1f s, ",
            sum["crashes"], sum["power_cuts"], sum["refusals"], sum["snapshots"], sum["leaders"], slowest / 1000
        printf "%.0f times real time (%.0f per core)\n",
            sum["virtual_ms"] / 1000 / (wall + 0.5), sum["wall_ms"] ? sum["virtual_ms"] / sum["wall_ms"] : 0
        printf "sim: %d seeds, %.2f cluster-hours, %d faults, %d operations, %d watches, %d watch events, %d violations\n",
            seeds, sum["virtual_ms"] / 3.6e6, sum["faults"], sum["operations"], sum["watches"], sum["watch_events"], violations
        exit violations > 0
    }'
