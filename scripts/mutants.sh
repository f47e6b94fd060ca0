#!/usr/bin/env bash
# Does the simulator bite? Plants the bugs of tests/mutants/ in a copy of the tree, and lets the simulator look for each.
#
#   scripts/mutants.sh [NUMBER...]       all of them and, as 00, none of them; or these
#
# The copy is built once, with all bugs in it; the environment says which one is live. A mutant is killed when a world ends, within
# BUDGET seconds (60), in a violation that fits its bug ("shows:" in its file). A world that only takes too long does not count. First
# the scenario that is after it runs, for two thirds of the time, then drawn worlds. Without a live bug the copy must survive. The last
# line is "mutants: N planted, K killed"; K < N is an error, and so are violations without a live bug.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
budget=${BUDGET:-60}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target} RUST_BACKTRACE=0
copy=$CARGO_TARGET_DIR/mutants
mkdir -p "$copy/src" "$copy/tests" "$copy/proto"
exec 9>"$copy/lock"
flock -n 9 || { echo "mutants: another run has the copy" >&2 && exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

numbers=("$@")
[ ${#numbers[@]} -gt 0 ] || mapfile -t numbers < <(cd tests/mutants && ls | cut -d- -f1 && echo 00)

# The test that keeps the mutants true also plants them. It needs nothing but itself.
CARGO_MANIFEST_DIR=$root rustc --edition 2024 --test tests/mutants.rs -o "$work/planter"
TREE='' "$work/planter" --quiet every_mutant_can_be_planted >"$work/log" || { cat "$work/log" && exit 2; }

# The copy stays from run to run, and what is equal is not written again: what is built goes by the times of files. Its package has a
# version of its own, or the copy and the tree would take turns at the same artifacts; and no programs.
mkdir "$work/tree"
tar -c Cargo.toml Cargo.lock build.rs proto src tests | tar -x -C "$work/tree"
sed -i -E -e '/^\[\[bin\]\]/,/^$/d' -e 's/^(version = "[0-9]+\.[0-9]+\.)[0-9]+"/\1900"\nautobins = false/' "$work/tree/Cargo.toml"
sed -i -E '/^name = "everwatch"/{n;s/[0-9]+"$/900"/}' "$work/tree/Cargo.lock"
TREE=$work/tree "$work/planter" --quiet --exact plant_them >"$work/log" || { cat "$work/log" && exit 2; }
files() { (cd "$1" && find Cargo.toml Cargo.lock build.rs proto src tests -type f | sort); }
comm -13 <(files "$work/tree") <(files "$copy" 2>/dev/null) | while read -r file; do rm "$copy/$file"; done
files "$work/tree" | while read -r file; do
    cmp -s "$work/tree/$file" "$copy/$file" || install -D -m 644 "$work/tree/$file" "$copy/$file"
done
(cd "$copy" && cargo test --test sim --no-run) >"$work/log" 2>&1 || { cat "$work/log" && exit 2; }
cp "$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' "$work/log")" "$work/sim"

field() { # name, number
    sed -n "s/^$1: //p" tests/mutants/"$2"-*.txt 2>/dev/null || true
}

# Lets the simulator look, and says how it ended.
hunt() { # number
    local number=$1 log=$work/log$1 began=$SECONDS seed=0 name worlds scenario=swarm shows what left every other=""
    name=$(cd tests/mutants && ls "$number"-*.txt 2>/dev/null | sed 's/\.txt$//' || true)
    worlds=$(field worlds "$number")
    shows=$(field shows "$number")
    [ -z "$worlds" ] || scenario=$worlds
    # Without a live bug, all scenarios that are after one.
    [ "$number" != 00 ] || mapfile -t every < <(sed -n 's/^worlds: //p' tests/mutants/*.txt | sort -u)
    while left=$((began + budget - SECONDS)) && [ "$left" -gt 0 ]; do
        [ "$scenario" = swarm ] || [ "$number" = 00 ] || [ "$left" -gt $((budget / 3)) ] || { scenario=swarm seed=0; }
        seed=$((seed + 1))
        [ "$number" != 00 ] || scenario=${every[(seed - 1) % ${#every[@]}]}
        MUTANT=$number SEED=$seed SCENARIO=$scenario timeout -k 5 "$left" "$work/sim" --exact scenario >"$log" 2>&1 && continue
        what=$(sed -nE "s/^scenario \"[^\"]*\" seed [0-9]+: //p" "$log" | head -1 | cut -c1-150)
        if [ -n "$what" ] && grep -qE -e "$shows" <<<"$what"; then
            echo "${name:-00-none}: killed after $((SECONDS - began)) s by \"$scenario\" seed $seed: $what"
            return
        fi
        [ -z "$what" ] || other=" (\"$scenario\" seed $seed, unlike it: $what)"
    done
    echo "${name:-00-none}: SURVIVED until \"$scenario\" seed $seed$other"
}
export -f field hunt
export budget work

printf '%s\n' "${numbers[@]}" | xargs -P "$(nproc)" -I{} bash -c 'hunt {}' 9>&- | tee "$work/outcome"
mutants=$(printf '%s\n' "${numbers[@]}" | grep -vcx 00 || true)
killed=$(grep -v '^00-' "$work/outcome" | grep -c ': killed after ' || true)
survives=true
! grep -q '^00-none: killed' "$work/outcome" || survives=false
$survives || echo "mutants: there are violations without a live bug"
echo "mutants: $mutants planted, $killed killed"
[ "$killed" = "$mutants" ] && $survives
