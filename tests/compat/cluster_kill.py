"""Kills members of a three-member cluster under load and checks that nothing acknowledged is lost.

    cluster_kill.py --server target/debug/everwatch --scenario leader --times 20
    cluster_kill.py --server etcd --scenario all --times 10
    cluster_kill.py --server target/debug/everwatch --scenario lagging --writes 50000
    cluster_kill.py --server target/debug/everwatch --scenario snapshot --times 10
    cluster_kill.py --server target/debug/everwatch --scenario paused --times 5
    cluster_kill.py --server target/debug/everwatch --scenario wiped
    cluster_kill.py --server target/debug/everwatch --scenario replaced --times 1
    cluster_kill.py --compose --scenario leader --times 20       members are the containers of docker-compose.yml

A writer puts about 1,000 unique values a second over all members, and knows of each whether it was acknowledged (and at
which revision) or whether its outcome is open. One watcher starts on each member and moves to the next member at
last + 1 whenever its stream fails. Afterwards:

  * the history, read back by a fresh watch from the first revision, holds every acknowledged write at its revision,
    nothing that was never sent, and each value once;
  * every watcher's sequence is that history, without a gap, a repetition or a change of order;
  * all members give the same HashKV at the same revision.
"""

import argparse
import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc

from server import Server, free_ports
from stubs import SERVICES, pb

PREFIX, PREFIX_END = b"kill/", b"kill0"
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1),
           ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
WATCH = "/etcdserverpb.Watch/Watch"
PUT = "/etcdserverpb.KV/Put"


class ProcessCluster:
    """Three processes on 127.0.0.1."""

    def __init__(self, command, flags):
        self.flags = flags
        ports = free_ports(6)
        self.base = tempfile.mkdtemp(prefix="everwatch-kill-")
        cluster = ",".join(f"m{i}=http://127.0.0.1:{ports[3 + i]}" for i in range(3))
        self.members = [Server(command, f"m{i}", ports[i], ports[3 + i], cluster, flags, self.base) for i in range(3)]
        self.endpoints = [m.endpoint for m in self.members]
        for member in self.members:
            member.spawn()
        for member in self.members:
            member.wait()

    def kill(self, number):
        self.members[number].kill()

    def replace(self, number, name, peer, listed):
        """Another member, with an empty directory, is reached by clients where the one before it was; `listed` are all members."""
        old = self.members[number]
        cluster = ",".join(f"{member.name or name}={url}" for member in listed for url in member.peerURLs)
        flags = [*self.flags, "--initial-cluster-state=existing"]
        self.members[number] = Server(old.command, name, old.client, peer, cluster, flags, self.base)

    def start(self, number):
        self.members[number].spawn()

    def wait(self, number):
        self.members[number].wait(60)

    def close(self, keep):
        for member in self.members:
            member.kill()
        if keep:
            print(f"data and logs are kept in {self.base}")
        else:
            shutil.rmtree(self.base, ignore_errors=True)


class ComposeCluster:
    """The containers of docker-compose.yml, which is expected to be up."""

    def __init__(self, compose):
        def answer(*words):
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[0]

        self.containers = [answer(*compose.split(), "ps", "-q", f"m{n}") for n in (1, 2, 3)]
        self.endpoints = [answer("docker", "port", container, "2379") for container in self.containers]

    def docker(self, verb, number):
        subprocess.run(["docker", verb, self.containers[number]], check=True, capture_output=True)

    def kill(self, number):
        self.docker("kill", number)

    def start(self, number):
        self.docker("start", number)

    def wait(self, number):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if status(self.endpoints[number]):
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.endpoints[number]} does not serve after its start")

    def close(self, keep):
        pass


def unary(channel, method, request, timeout=5):
    return channel.unary_unary(method, lambda m: m.SerializeToString(), SERVICES[method][1].FromString)(
        request, timeout=timeout)


def status(endpoint):
    """Status of a member that has a leader, else None."""
    with grpc.insecure_channel(endpoint, options=CHANNEL) as channel:
        try:
            answer = unary(channel, "/etcdserverpb.Maintenance/Status", pb.StatusRequest(), 2)
            return answer if answer.leader else None
        except grpc.RpcError:
            return None


class Writer:
    """Puts unique values at a steady rate, each over some member, many at a time; keys repeat, values never."""

    KEYS = 500
    # Over one member. One that does not answer holds up nothing that goes over the others.
    IN_FLIGHT_MAX = 100

    def __init__(self, endpoints, rate):
        self.channels = [grpc.insecure_channel(e, options=CHANNEL) for e in endpoints]
        self.rate, self.lock = rate, threading.Lock()
        self.acknowledged, self.open, self.sent = {}, set(), set()
        self.last_at, self.longest_gap, self.recent_gap = time.monotonic(), 0, 0
        self.passed_over = None  # number of a member that is asked nothing
        self.slots = [threading.Semaphore(self.IN_FLIGHT_MAX) for _ in endpoints]
        self.stopping = threading.Event()
        self.random = random.Random(1)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        puts = [c.unary_unary(PUT, lambda m: m.SerializeToString(), pb.PutResponse.FromString) for c in self.channels]
        began = time.monotonic()
        for number in itertools.count():
            ahead = number / self.rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
            over = self._free_member()
            if over is None:
                return
            key, value = b"kill/%04d" % self.random.randrange(self.KEYS), b"%d" % number
            with self.lock:
                self.sent.add(value)
                self.open.add(value)
            call = puts[over].future(pb.PutRequest(key=key, value=value), timeout=10)
            call.add_done_callback(lambda done, key=key, value=value, over=over: self._done(done, key, value, over))

    def _free_member(self):
        """Number of one with a slot, which is taken; nobody when it is time to stop."""
        while not self.stopping.is_set():
            for over in self.random.sample(range(len(self.slots)), len(self.slots)):
                if over != self.passed_over and self.slots[over].acquire(blocking=False):
                    return over
            self.stopping.wait(0.005)
        return None

    def _done(self, call, key, value, over):
        try:
            if call.code() == grpc.StatusCode.OK:
                with self.lock:
                    now = time.monotonic()
                    self.recent_gap = max(self.recent_gap, now - self.last_at)
                    self.longest_gap = max(self.longest_gap, self.recent_gap)
                    self.last_at = now
                    self.open.discard(value)
                    self.acknowledged[value] = (key, call.result().header.revision)
        finally:
            self.slots[over].release()

    def gap_ms(self):
        """The longest between two acknowledged, or since the last one, since this was asked before."""
        with self.lock:
            gap = max(self.recent_gap, time.monotonic() - self.last_at)
            self.recent_gap = 0
        return gap * 1000

    def progress(self):
        """Acknowledged so far."""
        return len(self.acknowledged)

    def stop(self):
        self.stopping.set()
        self.thread.join()
        for slots in self.slots:
            for _ in range(self.IN_FLIGHT_MAX):
                slots.acquire()
        for channel in self.channels:
            channel.close()


class Watcher:
    """Follows the prefix from a revision on, moving to the next member at last + 1 whenever a stream fails."""

    def __init__(self, endpoints, first, start):
        self.order = endpoints[first:] + endpoints[:first]
        self.next, self.events, self.moves, self.broken = start, [], 0, []
        self.stopping, self.channel = False, None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        for endpoint in itertools.cycle(self.order):
            if self.stopping:
                return
            try:
                self._follow(endpoint)
            except grpc.RpcError:
                pass
            except ValueError:  # the channel was closed under us
                pass
            self.moves += 1
            time.sleep(0.05)  # between attempts only: a dead member refuses at once

    def _follow(self, endpoint):
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=PREFIX, range_end=PREFIX_END, start_revision=self.next))
        ended = threading.Event()

        def requests():
            yield request
            ended.wait()

        with grpc.insecure_channel(endpoint, options=CHANNEL) as self.channel:
            try:
                stream = self.channel.stream_stream(WATCH, lambda m: m.SerializeToString(), pb.WatchResponse.FromString)
                for response in stream(requests(), metadata=(("hasleader", "true"),)):
                    if response.canceled:
                        self.broken.append(f"canceled at {self.next} by {endpoint}: {response.cancel_reason} "
                                           f"compacted {response.compact_revision}")
                        return
                    for event in response.events:
                        if event.kv.mod_revision < self.next:
                            self.broken.append(f"{event.kv.mod_revision} from {endpoint}, wanted {self.next} or later")
                        self.events.append((event.kv.mod_revision, bytes(event.kv.key), bytes(event.kv.value)))
                        # Every write here is one revision of one key, so the next revision may follow at once.
                        self.next = event.kv.mod_revision + 1
            finally:
                ended.set()

    def wait_for(self, revision, seconds):
        deadline = time.monotonic() + seconds
        while self.next <= revision and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.next > revision

    def stop(self):
        self.stopping = True
        if self.channel:
            self.channel.close()
        self.thread.join(10)


def wait_until(done, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return
        time.sleep(0.05)
    raise SystemExit(f"waited {seconds} s for {what}")


def leader_of(cluster):
    """Number of the leading member, once some member knows it."""
    for _ in range(600):
        for endpoint in cluster.endpoints:
            answer = status(endpoint)
            if answer:
                for number, other in enumerate(cluster.endpoints):
                    reply = status(other)
                    if reply and reply.header.member_id == answer.leader:
                        return number
        time.sleep(0.1)
    raise SystemExit("no leader for a minute")


def kill_leader(cluster, writer, arguments):
    for turn in range(arguments.times):
        done = writer.progress()
        wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes after an election")
        victim = leader_of(cluster)
        cluster.kill(victim)
        done = writer.progress()
        wait_until(lambda: writer.progress() > done + arguments.rate // 2, 60, "writes without the old leader")
        cluster.start(victim)
        cluster.wait(victim)
        print(f"  leader m{victim} killed and back, {writer.progress()} writes acknowledged", flush=True)


def kill_all(cluster, writer, arguments):
    for turn in range(arguments.times):
        done = writer.progress()
        wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes after the restart")
        for number in range(3):
            cluster.kill(number)
        for number in range(3):
            cluster.start(number)
        for number in range(3):
            cluster.wait(number)
        print(f"  all killed and back, {writer.progress()} writes acknowledged", flush=True)


def lagging_follower(cluster, writer, arguments):
    """A follower misses so much that its log cannot catch it up: it must be given a snapshot."""
    leader = leader_of(cluster)
    victim = (leader + 1) % 3
    wait_until(lambda: writer.progress() > arguments.rate, 60, "first writes")
    cluster.kill(victim)
    done = writer.progress()
    wait_until(lambda: writer.progress() > done + arguments.writes, 60 + arguments.writes / 50, "writes without the follower")
    cluster.start(victim)
    cluster.wait(victim)
    done = writer.progress()
    wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes after its return")
    print(f"  follower m{victim} missed {arguments.writes} writes and is back", flush=True)


def broken_snapshot(cluster, writer, arguments):
    """As lagging, but the follower is killed again and again while it is given the snapshot or adopts it."""
    moments = random.Random(2)
    leader = leader_of(cluster)
    victim = (leader + 1) % 3
    for turn in range(arguments.times):
        cluster.kill(victim)
        done = writer.progress()
        wait_until(lambda: writer.progress() > done + arguments.rate * 2, 60, "writes without the follower")
        cluster.start(victim)
        if moments.random() < 0.8:
            time.sleep(0.2 + moments.random() * 1.2)
        else:
            cluster.wait(victim)
        print(f"  follower m{victim} back for a moment, {writer.progress()} writes acknowledged", flush=True)
    cluster.kill(victim)
    cluster.start(victim)
    cluster.wait(victim)
    done = writer.progress()
    wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes after its return")


def paused_follower(cluster, writer, arguments):
    """As lagging, but the follower only sleeps: its watchers' streams live through the snapshot that it is given."""
    for turn in range(arguments.times):
        victim = (leader_of(cluster) + 1) % 3
        process = cluster.members[victim].process
        writer.passed_over = victim
        process.send_signal(signal.SIGSTOP)
        done = writer.progress()
        # Longer than the transport waits for an answer; until then what it misses waits for it in sockets.
        wait_until(lambda: writer.progress() > done + arguments.rate * 9, 60, "writes without the follower")
        process.send_signal(signal.SIGCONT)
        cluster.wait(victim)
        writer.passed_over = None
        done = writer.progress()
        wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes after its return")
        print(f"  follower m{victim} slept, {writer.progress()} writes acknowledged", flush=True)


def wiped_member(cluster, writer, arguments):
    """A member whose directory is lost must not found itself again; the others go on."""
    victim = (leader_of(cluster) + 1) % 3
    wait_until(lambda: writer.progress() > arguments.rate, 60, "first writes")
    member = cluster.members[victim]
    cluster.kill(victim)
    kept = member.base / f"{member.name}.kept"
    (member.base / member.name).rename(kept)
    cluster.start(victim)
    if member.process.wait(20) == 0 or "has already been bootstrapped" not in member.log.read_text(errors="replace"):
        raise SystemExit(f"m{victim} started without its data")
    print(f"  m{victim} refused to start without its data", flush=True)
    shutil.rmtree(member.base / member.name, ignore_errors=True)
    kept.rename(member.base / member.name)
    cluster.start(victim)
    cluster.wait(victim)


def insist(endpoint, method, request):
    """The answer, once the cluster finds itself healthy enough, and a learner ready."""
    deadline = time.monotonic() + 60
    while True:
        with grpc.insecure_channel(endpoint, options=CHANNEL) as channel:
            try:
                return unary(channel, f"/etcdserverpb.Cluster/{method}", request, 10)
            except grpc.RpcError as error:
                waits = error.code() == grpc.StatusCode.FAILED_PRECONDITION or "unhealthy cluster" in error.details()
                if not waits or time.monotonic() > deadline:
                    raise SystemExit(f"{method} by {endpoint}: {error.code()}: {error.details()}") from None
        time.sleep(0.1)


def replaced_members(cluster, writer, arguments):
    """Every member is removed, leader or follower, and another with an empty directory takes its place: as a learner that is promoted,
    or with a vote at once."""
    for turn in range(arguments.times):
        old, ids = {0, 1, 2}, set()
        while old:
            done = writer.progress()
            wait_until(lambda: writer.progress() > done + arguments.rate, 60, "writes by all members")
            leader = leader_of(cluster)
            writer.gap_ms()
            # In the middle a follower, if that can be.
            victim = next((n for n in old if (n == leader) != (len(old) == 2)), min(old))
            old.discard(victim)
            asked, gone, name = cluster.endpoints[(victim + 1) % 3], cluster.members[victim], f"n{turn}{victim}"
            id = status(gone.endpoint).header.member_id
            ids.add(id)
            insist(asked, "MemberRemove", pb.MemberRemoveRequest(ID=id))
            removed_at = time.monotonic()
            gone.process.wait(60)  # by itself
            stopped_s = time.monotonic() - removed_at
            leader_of(cluster)
            removal = writer.gap_ms()

            writer.passed_over, [peer] = victim, free_ports(1)
            learns = len(old) != 1
            url = f"http://127.0.0.1:{peer}"
            added = insist(asked, "MemberAdd", pb.MemberAddRequest(peerURLs=[url], isLearner=learns))
            cluster.replace(victim, name, peer, added.members)
            cluster.start(victim)
            if learns:
                insist(asked, "MemberPromote", pb.MemberPromoteRequest(ID=added.member.ID))
            cluster.wait(victim)
            writer.passed_over = None
            print(f"  {gone.name}{', which led,' if victim == leader else ''} left, gap of {removal:.0f} ms, it stopped after {stopped_s:.1f} s; {name} came "
                  f"{'to learn' if learns else 'with a vote'}, {writer.gap_ms():.0f} ms; {writer.progress()} writes acknowledged", flush=True)
        left = insist(cluster.endpoints[0], "MemberList", pb.MemberListRequest(linearizable=True)).members
        if len(left) != 3 or ids & {member.ID for member in left} or any(member.isLearner for member in left):
            raise SystemExit(f"not three others: {left}")


SCENARIOS = {"leader": kill_leader, "all": kill_all, "lagging": lagging_follower, "snapshot": broken_snapshot,
             "paused": paused_follower, "wiped": wiped_member, "replaced": replaced_members}


def check(cluster, writer, watchers, first_revision):
    """The three promises. Returns what is broken, as lines of text."""
    wrong = []
    with grpc.insecure_channel(cluster.endpoints[0], options=CHANNEL) as channel:
        put = unary(channel, PUT, pb.PutRequest(key=PREFIX + b"end", value=b"end"), 30)
        last = put.header.revision
    judge = Watcher(cluster.endpoints, 0, first_revision)
    if not judge.wait_for(last, 60):
        wrong.append(f"a fresh watch got to {judge.next} of {last} only")
    judge.stop()
    history = judge.events
    wrong += judge.broken

    revisions = [r for r, _, _ in history]
    if revisions != list(range(first_revision, last + 1)):
        wrong.append(f"the history from {first_revision} to {last} has {len(revisions)} entries, not one for each revision")
    values = {}
    for revision, key, value in history[:-1]:
        if value in values:
            wrong.append(f"value {value} twice, at {values[value][1]} and {revision}")
        if value not in writer.sent:
            wrong.append(f"value {value} at {revision} was never sent")
        values[value] = (key, revision)
    for value, put in writer.acknowledged.items():
        if values.get(value) != put:
            wrong.append(f"acknowledged write {value} as {put}, the history has {values.get(value)}")

    for number, watcher in enumerate(watchers):
        if not watcher.wait_for(last, 60):
            wrong.append(f"watcher {number} got to {watcher.next} of {last} only")
        watcher.stop()
        wrong += [f"watcher {number}: {line}" for line in watcher.broken]
        if watcher.events != history:
            at = next((i for i, pair in enumerate(zip(watcher.events, history)) if pair[0] != pair[1]), None)
            wrong.append(f"watcher {number} has {len(watcher.events)} events, the history {len(history)}; first difference at {at}")

    hashes = {}
    for endpoint in cluster.endpoints:
        with grpc.insecure_channel(endpoint, options=CHANNEL) as channel:
            unary(channel, "/etcdserverpb.KV/Range", pb.RangeRequest(key=b"none"), 30)  # the member has applied all by now
            answer = unary(channel, "/etcdserverpb.Maintenance/HashKV", pb.HashKVRequest(revision=last), 30)
            hashes[endpoint] = (answer.hash, answer.compact_revision)
    if len(set(hashes.values())) != 1:
        wrong.append(f"HashKV at {last} differs: {hashes}")
    return wrong, len(history)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="target/debug/everwatch")
    parser.add_argument("--compose", nargs="?", const="docker-compose", help="the compose command, when containers are the members")
    parser.add_argument("--scenario", choices=SCENARIOS, default="leader")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--writes", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=1000, help="writes per second")
    parser.add_argument("--flag", action="append", default=[], help="one more flag for the processes")
    parser.add_argument("--keep", action="store_true", help="keep data and logs")
    arguments = parser.parse_args()

    flags = list(arguments.flag)
    if arguments.scenario == "lagging":
        flags += ["--snapshot-count", str(max(100, arguments.writes // 20))]
    if arguments.scenario in ("snapshot", "paused"):
        flags += ["--snapshot-count", "100", "--snapshot-catchup-entries", "50"]
    if arguments.scenario == "replaced":
        flags += ["--snapshot-count", "1000"]  # who comes has to be given a snapshot
    began = time.monotonic()
    cluster = ComposeCluster(arguments.compose) if arguments.compose else ProcessCluster(arguments.server, flags)
    wrong, seen = ["the run broke off"], 0
    try:
        leader_of(cluster)
        with grpc.insecure_channel(cluster.endpoints[0], options=CHANNEL) as channel:
            first = unary(channel, PUT, pb.PutRequest(key=PREFIX + b"begin", value=b"begin"), 30).header.revision + 1
        watchers = [Watcher(cluster.endpoints, number, first) for number in range(3)]
        writer = Writer(cluster.endpoints, arguments.rate)
        SCENARIOS[arguments.scenario](cluster, writer, arguments)
        writer.stop()
        wrong, seen = check(cluster, writer, watchers, first)
    finally:
        cluster.close(arguments.keep or bool(wrong))
    for line in wrong[:20]:
        print(f"WRONG  {line}")
    print(f"{arguments.scenario} x{arguments.times if arguments.scenario not in ('lagging', 'wiped') else 1}: {len(writer.acknowledged)} writes "
          f"acknowledged with gaps of up to {writer.longest_gap * 1000:.0f} ms, {len(writer.open)} with an open outcome, history of {seen}; watchers moved "
          f"{[w.moves for w in watchers]} times; {'FAILED: ' + str(len(wrong)) + ' violations' if wrong else 'all promises kept'}; "
          f"{time.monotonic() - began:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
