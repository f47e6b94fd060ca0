#!/usr/bin/env bash
# Does the simulator bite? Plants each bug of tests/mutants/ in a copy of the tree, and lets the simulator look for it.
#
#   scripts/mutants.sh [NUMBER...]       all of them, or these
#
# A mutant is killed when a world ends in a violation within BUDGET seconds (60); a world that only takes too long does not count, nor
# does a copy that does not compile. First the scenario that is after it runs, then drawn worlds. The same goes for the tree as it
# is, which must survive. The last line is "mutants: N planted, K killed"; K < N is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
budget=${BUDGET:-60}
export CARGO_TARGET_DIR=$root/target RUST_BACKTRACE=0
work=$(mktemp -d "$root/target/mutants.XXXXXX")
trap 'rm -rf "$work"' EXIT
cargo build --quiet --tests 2>/dev/null || cargo build --tests

numbers=("$@")
[ ${#numbers[@]} -gt 0 ] || mapfile -t numbers < <(cd tests/mutants && ls | cut -d- -f1)

copy() { # into
    mkdir -p "$1"
    tar -c --exclude=./target --exclude=./.git . | tar -x -C "$1"
}

# Plants a mutant (none for 00), builds the simulator, prints the binary.
build() { # number, tree
    copy "$2"
    [ "$1" = 00 ] || MUTANT=$1 TREE=$2 cargo test --quiet --test mutants -- --exact plant_one >/dev/null
    (cd "$2" && cargo test --test sim --no-run 2>&1) | tee "$2/build.log" | sed -n 's/.*Executable .*(\(.*\))$/\1/p'
}

# Lets the simulator look. Prints how it ended.
hunt() { # number, binary, tree
    local number=$1 binary=$2 tree=$3 worlds start=$SECONDS seed=1
    worlds=$(sed -n 's/^worlds: //p' "$root"/tests/mutants/"$number"-*.txt 2>/dev/null || true)
    while [ $((SECONDS - start)) -lt "$budget" ]; do
        for scenario in "$worlds" swarm; do
            [ -n "$scenario" ] || continue
            local code=0
            (cd "$tree" && SEED=$seed SCENARIO=$scenario timeout "$budget" "$binary" --exact scenario) >"$tree/run.log" 2>&1 || code=$?
            if [ "$code" = 124 ]; then
                continue
            elif [ "$code" != 0 ]; then
                echo "killed after $((SECONDS - start)) s by \"$scenario\" seed $seed: $(why "$tree/run.log")"
                return 0
            fi
        done
        seed=$((seed + 1))
    done
    echo "SURVIVED $((seed - 1)) seeds"
    return 1
}

why() {
    grep -m1 -E '^scenario ".*" seed [0-9]+: ' "$1" | sed -E 's/^scenario "[^"]*" seed [0-9]+: //' | cut -c1-120 ||
        grep -m1 -A1 'panicked at' "$1" | tail -1 | cut -c1-120 || echo "no reason given"
}

one() { # number
    local number=$1 tree=$work/$1 name binary outcome
    name=$(cd tests/mutants && ls "$number"-*.txt 2>/dev/null | sed 's/\.txt$//' || true)
    binary=$(build "$number" "$tree") || true
    if [ -z "$binary" ]; then
        echo "$name: DOES NOT COMPILE"
        grep -m3 '^error' "$tree/build.log" | sed 's/^/    /'
    else
        cp "$binary" "$tree/sim"
        outcome=$(hunt "$number" "$tree/sim" "$tree") || true
        echo "${name:-the tree as it is}: $outcome"
    fi
    rm -rf "$tree"
}
export -f copy build hunt why one
export root work budget

printf '%s\n' "${numbers[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one {}' | tee "$work/outcome"
planted=${#numbers[@]}
killed=$(grep -c ': killed after ' "$work/outcome" || true)
echo "mutants: $planted planted, $killed killed"
[ "$killed" = "$planted" ]
