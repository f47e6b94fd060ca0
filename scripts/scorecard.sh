#!/usr/bin/env bash
# The evidence, in figures: runs the long suites, and writes what came of them into the README's table.
#
#   scripts/scorecard.sh run [SUITE...]    runs these suites (all of them: some hours) and keeps what they said in target/proof/
#   scripts/scorecard.sh                   writes the table from what target/proof/ has
#
# How much a suite does: SEEDS (5000) worlds, TORTURE_SECONDS (1800), FUZZ_SECONDS (60) for each target.
# A row names the commit that the suite ran on. A suite that failed has its row, too, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
proof=target/proof

prove() { # suite, command
    local suite=$1 code=0
    shift
    mkdir -p "$proof"
    {
        printf 'commit %s\n' "$(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' (changed)')"
        printf 'date %s\n' "$(date -u +%F)"
    } >"$proof/$suite.part"
    printf '=== %s: %s\n' "$suite" "$*"
    "$@" 2>&1 | tee -a "$proof/$suite.part" || code=$?
    printf 'exit code %d\n' "$code" >>"$proof/$suite.part"
    mv "$proof/$suite.part" "$proof/$suite"
    return "$code"
}

run() { # suite
    case $1 in
        sim) prove sim scripts/sim.sh "${SEEDS:-5000}" "${FIRST_SEED:-100000}" ;;
        named) prove named cargo test --test sim named_scenarios -- --nocapture ;;
        crashes) prove crashes env STRIDE=1 cargo test --test sim a_crash_at_any_disk_command -- --nocapture ;;
        twice) prove twice env TWICE=50 cargo test --test sim the_same_seed_is_the_same_run -- --nocapture ;;
        corruption) prove corruption cargo test --test corruption -- --nocapture ;;
        mutants) prove mutants scripts/mutants.sh ;;
        torture) prove torture scripts/torture.sh "${TORTURE_SECONDS:-1800}" ;;
        fuzz) prove fuzz scripts/fuzz.sh "${FUZZ_SECONDS:-60}" ;;
        *) echo "no such suite: $1" >&2 && return 2 ;;
    esac
}

# The last line of a suite's output that matches, without what the expression's group leaves out.
said() { # suite, expression
    [ -e "$proof/$1" ] || return 0
    sed -nE "s/$2/\1/p" "$proof/$1" | tail -n 1
}

row() { # suite, words for it, figures
    [ -e "$proof/$1" ] || return 0
    local figures=${3:-nothing}
    grep -q '^exit code 0$' "$proof/$1" || figures="**failed**: $figures"
    printf '| %s | %s | %s | %s |\n' "$2" "$figures" "$(said "$1" '^commit (.*)$')" "$(said "$1" '^date (.*)$')"
}

table() {
    printf 'Written by `scripts/scorecard.sh` on %s cores, %s GiB of memory.\n\n' "$(nproc)" \
        "$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)"
    printf '| evidence | figures | commit | date |\n|---|---|---|---|\n'
    if [ -e "$proof/sim" ]; then
        row sim "drawn worlds (\`scripts/sim.sh\`)" "$(said sim '^sim: (.*)$')"
        row sim "their faults by kind" "$(said sim '^faults by kind: (.*)$')"
        row sim "what became of members; speed" "$(said sim '^(crashes .* real time.*)$')"
    fi
    row named "named scenarios" "$(grep -c '^sim: .*: virtual_ms=' "$proof/named" 2>/dev/null || true) scenarios, 0 violations"
    row crashes "a crash at every disk command, three kinds of loss" "$(said crashes '^sim: sweep: .*( crashes=[0-9]+ power_cuts=[0-9]+ ).*$')"
    row twice "the same seed twice" "50 seeds, equal traces"
    row corruption "one bit turned on disk" "$(said corruption '^([0-9]+ of [0-9]+ right.*)$')"
    row mutants "planted bugs (\`scripts/mutants.sh\`)" "$(said mutants '^mutants: (.*)$')"
    row torture "real processes (\`scripts/torture.sh\`)" "$(said torture '^torture: (.*)$')"
    row fuzz "fuzz targets (\`scripts/fuzz.sh\`)" "$(said fuzz '^fuzz: (.*)$')"
}

if [ "${1:-}" = run ]; then
    shift
    [ $# -gt 0 ] || set -- crashes twice named corruption fuzz mutants torture sim
    failed=0
    for suite in "$@"; do
        run "$suite" || failed=1
    done
    exit "$failed"
fi

written=$(mktemp)
trap 'rm -f "$written"' EXIT
table >"$written"
awk -v table="$written" '
    /^<!-- scorecard -->$/ { print; print ""; while ((getline line < table) > 0) print line; print ""; inside = 1; next }
    /^<!-- end of scorecard -->$/ { inside = 0 }
    !inside { print }' README.md >"$written.readme"
mv "$written.readme" README.md
sed -n '/^<!-- scorecard -->$/,/^<!-- end of scorecard -->$/p' README.md
