#!/usr/bin/env bash
# Shows that a watch survives its member, and that it is exact.
#
#   scripts/failover-demo.sh            on the three containers of docker-compose.yml
#   scripts/failover-demo.sh --local    on three processes (scripts/cluster.sh)
#   WRITES=300                          how much is written
#
# A writer puts keys. A watch runs through the leader. Half way the leader is killed (-9): the watch ends with it, and is
# continued on another member from the revision after the last one received. At the end what was received is compared with
# what was written, revision by revision. Needs etcdctl (3.4 or 3.5) and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
export ETCDCTL_API=3
writes=${WRITES:-200}
ports=(0 2379 22379 32379)
work=$(mktemp -d)
children=()

for tool in etcdctl python3; do
    command -v "$tool" >/dev/null || { echo "$tool is needed" >&2; exit 1; }
done
if [ "${1:-}" = --local ]; then
    up() { scripts/cluster.sh start; }
    down() { scripts/cluster.sh stop; }
    kill_member() { scripts/cluster.sh kill "$1"; }
    revive() { scripts/cluster.sh start >/dev/null; }
else
    compose=docker-compose
    command -v docker-compose >/dev/null || compose="docker compose"
    up() {
        docker image inspect everwatch:local >/dev/null 2>&1 || scripts/image.sh
        $compose up -d
    }
    down() { $compose stop; }
    kill_member() { $compose kill -s SIGKILL "m$1"; }
    revive() { $compose up -d; }
fi

finish() {
    for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
ctl() { local n=$1; shift; etcdctl --endpoints "http://127.0.0.1:${ports[$n]}" --dial-timeout=2s "$@"; }

# What a watch has printed so far, one line for each event: revision, key, value.
events() { python3 - "$@" <<'PYTHON'
import base64, json, sys
for path in sys.argv[1:]:
    for line in open(path, errors="replace"):
        try:
            response = json.loads(line)
        except ValueError:
            continue  # a line that the kill cut short, or a message for people
        for event in response.get("Events") or []:
            kv = event["kv"]
            text = lambda name: base64.b64decode(kv.get(name, "")).decode()
            print(kv["mod_revision"], text("key"), text("value"))
PYTHON
}

watch_through() { # member, first revision, file
    etcdctl --endpoints "http://127.0.0.1:${ports[$1]}" -w json watch --prefix "$prefix" --rev="$2" >"$3" 2>"$3.err" &
    watcher=$!
    children+=("$watcher")
}

say "three members"
up
for n in 1 2 3; do
    for _ in $(seq 60); do ctl "$n" endpoint health >/dev/null 2>&1 && break; sleep 0.5; done
    ctl "$n" endpoint health 2>&1
done

leader=
for n in 1 2 3; do
    if ctl "$n" endpoint status -w json | python3 -c '
import json, sys
status = json.load(sys.stdin)[0]["Status"]
sys.exit(status["header"]["member_id"] != status["leader"])'; then leader=$n; fi
done
[ -n "$leader" ] || { echo "nobody leads" >&2; exit 1; }
others=()
for n in 1 2 3; do [ "$n" = "$leader" ] || others+=("$n"); done

prefix="demo/$(date +%s)-$$/"
first=$(($(ctl "${others[0]}" get nothing -w json | python3 -c 'import json, sys; print(json.load(sys.stdin)["header"]["revision"])') + 1))

say "m$leader leads; watching $prefix through it from revision $first, writing through m${others[1]}"
watch_through "$leader" "$first" "$work/watch1"

writer() {
    for ((i = 1; i <= writes; i++)); do
        if answer=$(ctl "${others[1]}" put "$prefix$(printf %06d "$i")" "value-$i" -w json 2>/dev/null); then
            echo "$i $answer" >>"$work/acknowledged"
        else
            echo "$i" >>"$work/unanswered" # its leader died: it may or may not have been written
        fi
    done
}
touch "$work/acknowledged" "$work/unanswered"
writer &
writing=$!
children+=("$writing")

acknowledged() { wc -l <"$work/acknowledged"; }
while [ "$(acknowledged)" -lt $((writes / 2)) ] && kill -0 "$writing" 2>/dev/null; do sleep 0.1; done

say "killing m$leader after $(acknowledged) acknowledged writes"
kill_member "$leader"
sleep 0.5
kill "$watcher" 2>/dev/null || true
wait "$watcher" 2>/dev/null || true
last=$(events "$work/watch1" | tail -n 1 | cut -d' ' -f1)
last=${last:-$((first - 1))}
echo "the watch has ended; the last revision it received is $last"

say "continuing on m${others[0]} from revision $((last + 1)), while the writer goes on"
watch_through "${others[0]}" $((last + 1)) "$work/watch2"
wait "$writing"

ctl "${others[1]}" get --prefix "$prefix" -w json >"$work/stored"
target=$(python3 -c 'import json, sys; print(max(kv["mod_revision"] for kv in json.load(sys.stdin)["kvs"]))' <"$work/stored")
for _ in $(seq 100); do
    now=$(events "$work/watch2" | tail -n 1 | cut -d' ' -f1)
    [ "${now:-0}" -ge "$target" ] && break
    sleep 0.1
done
kill "$watcher" 2>/dev/null || true
wait "$watcher" 2>/dev/null || true
events "$work/watch1" >"$work/received1"
events "$work/watch2" >"$work/received2"

say "received against written"
result=0
python3 - "$work" <<'PYTHON' || result=$?
import base64, json, sys
work = sys.argv[1]
def received(name):
    return [(int(revision), key, value) for revision, key, value in (line.split() for line in open(f"{work}/{name}"))]
before, after = received("received1"), received("received2")
text = lambda field: base64.b64decode(field).decode()
stored = sorted((kv["mod_revision"], text(kv["key"]), text(kv["value"])) for kv in json.load(open(f"{work}/stored"))["kvs"])
acknowledged = [json.loads(line.split(" ", 1)[1])["header"]["revision"] for line in open(f"{work}/acknowledged")]
unanswered = sum(1 for _ in open(f"{work}/unanswered"))
got = before + after
print(f"acknowledged writes           {len(acknowledged)}")
print(f"writes without an answer      {unanswered}, of which stored: {len(stored) - len(acknowledged)}")
print(f"stored, by revision           {len(stored)}  ({stored[0][0]} to {stored[-1][0]})")
print(f"received before the kill      {len(before)}" + (f"  ({before[0][0]} to {before[-1][0]})" if before else ""))
print(f"received after the kill       {len(after)}" + (f"  ({after[0][0]} to {after[-1][0]})" if after else ""))
lost = sorted(set(acknowledged) - {revision for revision, _, _ in stored})
missed, invented = sorted(set(stored) - set(got)), sorted(set(got) - set(stored))
print(f"acknowledged but not stored   {len(lost)} {lost[:5] or ''}")
print(f"stored but not received       {len(missed)} {missed[:5] or ''}")
print(f"received but not stored       {len(invented)} {invented[:5] or ''}")
print(f"received twice                {len(got) - len(set(got))}")
print(f"in order                      {'yes' if got == sorted(got) else 'NO'}")
exact = got == stored and not lost
print("\nEXACT: nothing missed, nothing repeated, in order" if exact else "\nNOT EXACT")
sys.exit(not exact)
PYTHON

say "bringing m$leader back"
revive
if [ "$result" = 0 ]; then echo "done; the cluster still runs. To stop it: $([ "${1:-}" = --local ] && echo scripts/cluster.sh || echo "$compose") stop"; fi
exit "$result"
