#!/usr/bin/env bash
# Shows that a watch survives its member, and that it is exact.
#
#   scripts/failover-demo.sh            on three containers (docker-compose.yml)
#   scripts/failover-demo.sh --local    on three processes (scripts/cluster.sh)
#   WRITES=500                          how much is written
#
# A writer puts keys. A watch runs through the leader. Half way the leader is killed (-9), and the watch is continued on
# another member from the revision after the last one received. At the end what was received is compared with what was
# written, revision by revision. The cluster is the demo's own, on free ports, and is removed afterwards.
#
# Exit code: 0 exact, 1 not exact or no cluster, 77 no Docker here (--local does without). Needs etcdctl and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
export ETCDCTL_API=3
writes=${WRITES:-100}
mode=${1:-containers}
children=()

for tool in etcdctl python3; do
    command -v "$tool" >/dev/null || { echo "$tool is needed" >&2; exit 1; }
done
case $mode in
--local)
    up() { quietly scripts/cluster.sh start; }
    down() { quietly scripts/cluster.sh clean; }
    kill_member() { quietly scripts/cluster.sh kill "$1"; }
    revive() { quietly scripts/cluster.sh start; }
    ;;
containers)
    docker info >/dev/null 2>&1 || { echo "there is no Docker here; try $0 --local" >&2; exit 77; }
    compose=docker-compose
    command -v docker-compose >/dev/null || compose="docker compose"
    export COMPOSE_PROJECT_NAME=everwatch-demo-$$
    docker image inspect "${EVERWATCH_IMAGE:-everwatch:local}" >/dev/null 2>&1 || scripts/image.sh
    up() { quietly $compose up -d; }
    down() { quietly $compose down --volumes; }
    kill_member() { quietly $compose kill -s SIGKILL "m$1"; }
    revive() { quietly $compose up -d; }
    ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

work=$(mktemp -d)
read -ra ports < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(6)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(0, *(s.getsockname()[1] for s in sockets))
PYTHON
)
export PORT_1=${ports[1]} PORT_2=${ports[2]} PORT_3=${ports[3]}
export CLIENT_PORTS="${ports[*]:1:3}" PEER_PORTS="${ports[*]:4:3}" CLUSTER_DIR=$work/cluster

finish() {
    local code=$?
    for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null || true; done
    say "removing the cluster"
    down || code=1
    rm -rf "$work"
    exit "$code"
}

# Runs a command, and shows what it says only if it fails.
quietly() { "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; return 1; }; }
say() { printf '\n== %s\n' "$*"; }
ctl() { local n=$1; shift; etcdctl --endpoints "http://127.0.0.1:${ports[$n]}" --dial-timeout=2s "$@"; }
field() { python3 -c "import json, sys; answer = json.load(sys.stdin); print($1)"; }

# Repeats a command until it succeeds, for 60 seconds at most.
until_it_works() {
    local deadline=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "not within 60 s: $*" >&2; return 1; }
        sleep 0.1
    done
}

# What a watch has printed so far, one line for each event: revision, key, value.
events() { python3 - "$1" <<'PYTHON'
import base64, json, sys
for line in open(sys.argv[1], errors="replace"):
    try:
        response = json.loads(line)
    except ValueError:
        continue  # a line the kill cut short: its events count as not received
    for event in response.get("Events") or []:
        text = lambda name: base64.b64decode(event["kv"].get(name, "")).decode()
        print(event["kv"]["mod_revision"], text("key"), text("value"))
PYTHON
}

watch_through() { # member, first revision, file
    etcdctl --endpoints "http://127.0.0.1:${ports[$1]}" -w json watch --prefix "$prefix" --rev="$2" >"$3" 2>"$3.err" &
    watcher=$!
    children+=("$watcher")
}

end_watch() { # file of its events
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    events "$1" >"$1.events"
}

has_received() { [ "$(events "$1" | tail -n 1 | cut -d' ' -f1)" -ge "$2" ]; }

show() { # member, its events
    while read -r revision key value; do printf '   m%s   revision %-5s %s = %s\n' "$1" "$revision" "$key" "$value"; done
}

trap finish EXIT
trap 'exit 1' INT TERM

say "three members"
up
for n in 1 2 3; do until_it_works ctl "$n" endpoint health; done
leader=
for n in 1 2 3; do
    status=$(ctl "$n" endpoint status -w json | field 'answer[0]["Status"]["header"]["member_id"] == answer[0]["Status"]["leader"]')
    echo "m$n  http://127.0.0.1:${ports[$n]}  healthy$([ "$status" = False ] || echo ", leads")"
    [ "$status" = False ] || leader=$n
done
[ -n "$leader" ] || { echo "nobody leads" >&2; exit 1; }
others=()
for n in 1 2 3; do [ "$n" = "$leader" ] || others+=("$n"); done

prefix=demo/
first=$(($(ctl "${others[0]}" get nothing -w json | field 'answer["header"]["revision"]') + 1))
say "watching $prefix through m$leader from revision $first, writing through m${others[1]}"
watch_through "$leader" "$first" "$work/before"

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
until [ "$(acknowledged)" -ge $((writes / 2)) ]; do
    kill -0 "$writing" 2>/dev/null || { echo "the writer ended early" >&2; exit 1; }
    sleep 0.05
done
until_it_works has_received "$work/before" "$first"

echo "kill -9 of m$leader after $(acknowledged) acknowledged writes"
kill_member "$leader"
end_watch "$work/before"
last=$(tail -n 1 "$work/before.events" | cut -d' ' -f1)

say "continuing on m${others[0]} from revision $((last + 1)), while the writer goes on"
watch_through "${others[0]}" $((last + 1)) "$work/after"
until_it_works has_received "$work/after" $((last + 1))
tail -n 3 "$work/before.events" | show "$leader"
echo "   m$leader   killed"
events "$work/after" | sed -n 1,3p | show "${others[0]}"

wait "$writing"
ctl "${others[1]}" get --prefix "$prefix" -w json >"$work/stored"
until_it_works has_received "$work/after" "$(field 'max(kv["mod_revision"] for kv in answer["kvs"])' <"$work/stored")" ||
    echo "the watch does not get to the end"
end_watch "$work/after"

say "received against written"
result=0
python3 - "$work" <<'PYTHON' || result=1
import base64, json, sys
work = sys.argv[1]
def received(name):
    return [(int(revision), key, value) for revision, key, value in (line.split() for line in open(f"{work}/{name}.events"))]
before, after = received("before"), received("after")
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
exact = got == stored and not lost and before and after
print("\nEXACT: nothing missed, nothing repeated, in order" if exact else "\nNOT EXACT")
sys.exit(not exact)
PYTHON

say "m$leader comes back"
revive || result=1
until_it_works ctl "$leader" endpoint health || result=1
hashes=
for n in 1 2 3; do
    hash=$(ctl "$n" endpoint hashkv | cut -d' ' -f2)
    echo "m$n  hash of all keys and revisions: $hash"
    hashes+="$hash "
done
[ "$(tr ' ' '\n' <<<"${hashes% }" | sort -u | wc -l)" = 1 ] || { echo "the members DIFFER"; result=1; }
exit "$result"
