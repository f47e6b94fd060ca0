"""Tortures a cluster: three members under load, one fault after another, and a verdict.

Called by scripts/torture.sh, in namespaces of its own. Each member has a network of its own, with this process as the
router between them, and a file system of its own on a loop device. The clients are tests/torture.rs; they write down
what they see and judge it at the end. This program makes the faults and heals them, and adds what clients cannot see: a
member that ends for no reason or with the wrong one, one that does not serve when everything is healed, and load that was too
thin to prove anything.

A run is made of rounds of at most ROUND seconds. Each has a new cluster and a history of its own, which the judge can
read in seconds. Faults are dealt like cards: every kind once before any comes again.
"""

import argparse
import collections
import fcntl
import http.client
import os
import queue
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ROUND = 300
# Members are well again, after a fault has been healed, within this time. The machine may be busy.
HEALED = 60
# A member whose disk fails ends by itself within this time.
ENDED = 30
# Undisturbed time between two faults: from the last member being well.
QUIET = (1.5, 3.5)
# Length of a fault that lasts.
HOLD = (1.0, 7.0)
FIRST_CARDS = ["kill_leader", "power_one", "cut_one_way", "pause_leader"]
MEMBERS = (1, 2, 3)
FLAGS = [
    # Small, so that a member that was away needs a snapshot.
    "--snapshot-count", "1000", "--snapshot-catchup-entries", "500",
    "--watch-progress-notify-interval", "1s", "--initial-cluster-token", "torture",
    # Clients soon ask whether a member is still there.
    "--grpc-keepalive-min-time", "100ms",
]


class NotHere(Exception):
    """This machine does not allow something that the test needs."""


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def get(host, port, path, timeout=2.0):
    """Status and body, or nothing if there was no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Cluster:
    """What all clusters have: three members that can be asked how they are."""

    def __init__(self):
        self.wrongs = []
        self.power_cuts = 0
        # Members that this program has stopped.
        self.down = set()
        # Told of every life of a member before it begins.
        self.clients = None

    def wrong(self, what):
        say(f"WRONG: {what}")
        self.wrongs.append(what)

    def leader(self):
        for n in MEMBERS:
            answer = get(*self.address(n), "/metrics", timeout=1.0)
            if answer and "\netcd_server_is_leader 1\n" in answer[1]:
                return n
        return None

    def pick(self):
        """Often the leader."""
        leader = self.leader() if dice.random() < 0.5 else None
        return leader or dice.choice(MEMBERS)

    def serves(self, n):
        answer = get(*self.address(n), "/health")
        return answer is not None and answer[0] == 200

    def wait_until_well(self):
        deadline = time.monotonic() + HEALED
        for n in MEMBERS:
            while not self.serves(n):
                self.look_after(n)
                if n in self.down:
                    return
                if time.monotonic() > deadline:
                    self.wrong(f"m{n} does not serve {HEALED} s after everything was healed")
                    return
                time.sleep(0.05)

    def look_after(self, n):
        """Notices a member that has ended by itself. It stays where it is: the round is over."""

    def next_life(self, n):
        if self.clients:
            self.clients.expect_life(n)

    def restart_later(self, members):
        """Each starts again by itself after a while."""
        due = sorted((dice.uniform(0.5, 5.0), n) for n in members)
        began = time.monotonic()
        for after, n in due:
            time.sleep(max(0.0, began + after - time.monotonic()))
            self.start(n)

    def kill_leader(self):
        n = self.leader() or dice.choice(MEMBERS)
        say(f"kill m{n}, who leads")
        self.kill([n])
        self.restart_later([n])

    def kill_one(self):
        n = self.pick()
        say(f"kill m{n}")
        self.kill([n])
        self.restart_later([n])

    def kill_all(self):
        say("kill all")
        self.kill(MEMBERS)
        self.restart_later(MEMBERS)

    def pause_leader(self):
        self.pause_for(self.leader() or dice.choice(MEMBERS), dice.uniform(1.0, 8.0))

    def pause_one(self):
        self.pause_for(self.pick(), dice.uniform(0.1, 8.0))

    def pause_for(self, n, seconds):
        say(f"pause m{n} for {seconds:.1f} s")
        self.pause(n)
        time.sleep(seconds)
        self.resume(n)


class Processes(Cluster):
    """Three processes, each in a network and on a file system of its own."""

    KINDS = [
        "kill_leader", "kill_one", "kill_all", "pause_leader", "pause_one", "cut_one_way", "cut_route", "isolate_leader",
        "isolate_one", "isolate_half", "separate_all", "bridge", "slow_sync", "sync_eio", "write_enospc",
        "power_one", "power_leader", "power_all",
    ]

    def __init__(self, arguments):
        super().__init__()
        self.server, self.work, self.out = arguments.server, arguments.work, arguments.out
        self.process, self.holder, self.disturbed = {}, {}, []
        self.client_urls = {n: f"http://{self.ip(n)}:2379" for n in MEMBERS}
        try:
            self.make_networks()
            self.make_disks()
        except (subprocess.CalledProcessError, OSError) as error:
            raise NotHere(f"{error}: {getattr(error, 'output', '')}") from error

    def ip(self, n):
        return f"10.77.{n}.2"

    def address(self, n):
        return self.ip(n), 2379

    def urls(self):
        return list(self.client_urls.values())

    # The machine around the members.

    def make_networks(self):
        run("ip", "link", "set", "lo", "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
        for n in MEMBERS:
            # A namespace lives as long as somebody is in it.
            self.holder[n] = subprocess.Popen(["unshare", "--net", "sleep", "infinity"]).pid
            ours = os.stat("/proc/self/ns/net").st_ino
            while os.stat(f"/proc/{self.holder[n]}/ns/net").st_ino == ours:
                time.sleep(0.01)
            run("ip", "link", "add", f"m{n}", "type", "veth", "peer", "name", "eth0", "netns", str(self.holder[n]))
            run("ip", "address", "add", f"10.77.{n}.1/24", "dev", f"m{n}")
            run("ip", "link", "set", f"m{n}", "up")
            self.inside(n, "ip", "link", "set", "lo", "up")
            self.inside(n, "ip", "address", "add", f"{self.ip(n)}/24", "dev", "eth0")
            self.inside(n, "ip", "link", "set", "eth0", "up")
            self.inside(n, "ip", "route", "add", "default", "via", f"10.77.{n}.1")

    def inside(self, n, *command):
        return run("nsenter", f"--net=/proc/{self.holder[n]}/ns/net", *command)

    def image(self, n):
        return f"{self.work}/m{n}.img"

    def disk(self, n):
        return f"{self.work}/m{n}"

    def make_disks(self):
        for n in MEMBERS:
            os.makedirs(self.disk(n), exist_ok=True)
            with open(self.image(n), "wb") as image:
                image.truncate(2 << 30)
            run("mkfs.ext4", "-q", "-F", self.image(n))
            run("mount", "-o", "loop", self.image(n), self.disk(n))

    # Members.

    def start(self, n):
        self.next_life(n)
        peers = {m: f"http://{self.ip(m)}:2380" for m in MEMBERS}
        command = [
            "nsenter", f"--net=/proc/{self.holder[n]}/ns/net", self.server, "--name", f"m{n}",
            "--data-dir", f"{self.disk(n)}/data",
            "--listen-client-urls", self.client_urls[n], "--advertise-client-urls", self.client_urls[n],
            "--listen-peer-urls", peers[n], "--initial-advertise-peer-urls", peers[n],
            "--initial-cluster", ",".join(f"m{m}={url}" for m, url in peers.items()), *FLAGS,
        ]
        with open(f"{self.work}/m{n}.log", "ab") as log:
            self.process[n] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.down.discard(n)

    def start_all(self):
        for n in MEMBERS:
            self.start(n)

    def begin_anew(self):
        """Ends all members and takes their data away."""
        self.kill(MEMBERS)
        for n in MEMBERS:
            shutil.rmtree(f"{self.disk(n)}/data", ignore_errors=True)

    def look_after(self, n):
        if n not in self.down and self.process[n].poll() is not None:
            self.wrong(f"m{n} ended by itself with {self.process[n].returncode}: {self.last_words(n)}")
            self.down.add(n)

    def last_words(self, n):
        with open(f"{self.work}/m{n}.log", "rb") as log:
            return (log.read().splitlines() or [b"nothing"])[-1].decode(errors="replace")

    def kill(self, members):
        for n in members:
            if n in self.process:
                self.look_after(n)
                self.down.add(n)
                self.process[n].kill()
        for n in members:
            if n in self.process:
                self.process[n].wait()

    def pause(self, n):
        self.process[n].send_signal(signal.SIGSTOP)

    def resume(self, n):
        self.process[n].send_signal(signal.SIGCONT)

    # Networks.

    def drop(self, source, target):
        """What one sends to the other is lost on the way, in silence."""
        run("ip", "rule", "add", "from", self.ip(source), "to", self.ip(target), "blackhole")
        self.disturbed.append(["ip", "rule", "del", "from", self.ip(source), "to", self.ip(target), "blackhole"])

    def part(self, pairs, seconds):
        for a, b in pairs:
            self.drop(a, b)
            self.drop(b, a)
        time.sleep(seconds)
        self.heal()

    def heal(self):
        while self.disturbed:
            run(*self.disturbed.pop())

    def cut_one_way(self):
        source = self.pick()
        target = dice.choice([n for n in MEMBERS if n != source])
        if dice.random() < 0.5:
            source, target = target, source
        seconds = dice.uniform(*HOLD)
        say(f"what m{source} sends to m{target} is lost for {seconds:.1f} s")
        self.drop(source, target)
        time.sleep(seconds)
        self.heal()

    def cut_route(self):
        source = self.pick()
        target = dice.choice([n for n in MEMBERS if n != source])
        seconds = dice.uniform(*HOLD)
        say(f"m{source} cannot send to m{target}, and is told so, for {seconds:.1f} s")
        enter = ["nsenter", f"--net=/proc/{self.holder[source]}/ns/net", "ip", "route"]
        run(*enter, "add", "blackhole", f"{self.ip(target)}/32")
        self.disturbed.append([*enter, "del", "blackhole", f"{self.ip(target)}/32"])
        time.sleep(seconds)
        self.heal()

    def isolate(self, n):
        seconds = dice.uniform(*HOLD)
        say(f"m{n} is cut off from the others for {seconds:.1f} s")
        self.part([(n, m) for m in MEMBERS if m != n], seconds)

    def isolate_leader(self):
        self.isolate(self.leader() or dice.choice(MEMBERS))

    def isolate_one(self):
        self.isolate(dice.choice(MEMBERS))

    def isolate_half(self):
        """One hears the others, but is not heard, or the other way round."""
        n, heard, seconds = self.pick(), dice.random() < 0.5, dice.uniform(*HOLD)
        say(f"m{n} {'is heard by the others but does not hear' if heard else 'hears the others but is not heard'} "
            f"for {seconds:.1f} s")
        for m in MEMBERS:
            if m != n:
                self.drop(*((m, n) if heard else (n, m)))
        time.sleep(seconds)
        self.heal()

    def separate_all(self):
        seconds = dice.uniform(*HOLD)
        say(f"nobody reaches anybody for {seconds:.1f} s")
        self.part([(1, 2), (2, 3), (1, 3)], seconds)

    def bridge(self):
        between = self.pick()
        a, b = (n for n in MEMBERS if n != between)
        seconds = dice.uniform(*HOLD)
        say(f"m{a} and m{b} reach m{between} but not each other for {seconds:.1f} s")
        self.part([(a, b)], seconds)

    # Disks.

    def trace(self, n, *inject):
        """A tracer of member n that meddles with its calls of the system."""
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(self.process[n].pid)]
        tracer = subprocess.Popen(command + list(inject), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE)
        time.sleep(0.2)
        if tracer.poll() is not None and self.process[n].poll() is None:
            raise NotHere(f"strace: {tracer.stderr.read().decode()}")
        return tracer

    def slow_sync(self):
        n, seconds, delay = self.pick(), dice.uniform(2.0, 7.0), dice.choice([20, 100, 500, 1500])
        say(f"m{n} syncs {delay} ms slower for {seconds:.1f} s")
        tracer = self.trace(n, "-e", "trace=fdatasync,fsync", "-e",
                            f"inject=fdatasync,fsync:delay_enter={delay * 1000}")
        time.sleep(seconds)
        tracer.terminate()
        tracer.wait()

    def failing(self, n, calls, error):
        when = dice.choice([1, 1, 2, 5, 20])
        say(f"m{n}: {error} from call {when} of {calls} on")
        tracer = self.trace(n, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}+")
        self.down.add(n)
        try:
            if self.process[n].wait(timeout=ENDED) == 0:
                self.wrong(f"m{n} ended without an error after {error}")
            say(f"m{n} ended with {self.process[n].returncode}")
        except subprocess.TimeoutExpired:
            self.wrong(f"m{n} goes on {ENDED} s after {error} of {calls}")
            self.kill([n])
        tracer.terminate()
        tracer.wait()
        self.restart_later([n])

    def sync_eio(self):
        self.failing(self.pick(), "fdatasync,fsync", "EIO")

    def write_enospc(self):
        self.failing(self.pick(), "pwrite64,pwritev,pwritev2", "ENOSPC")

    def cut_power(self, members):
        """What had not been synced is gone; then the process; then the disk comes back as it is."""
        say(f"power cut of {', '.join(f'm{n}' for n in members)}")
        shutdown, no_log_flush = 0x8004587D, struct.pack("I", 2)
        self.down.update(members)
        for n in members:
            directory = os.open(self.disk(n), os.O_RDONLY)
            try:
                fcntl.ioctl(directory, shutdown, no_log_flush)
            except OSError as error:
                raise NotHere(f"a file system cannot be shut down: {error}") from error
            finally:
                os.close(directory)
            if dice.random() < 0.7:
                self.process[n].kill()
        # Those who live on for a moment see a dead disk, and must not acknowledge anything.
        time.sleep(dice.uniform(0.0, 0.3))
        for n in members:
            self.process[n].kill()
            self.process[n].wait()
            run("umount", self.disk(n))
            run("mount", "-o", "loop", self.image(n), self.disk(n))
            self.power_cuts += 1
        self.restart_later(members)

    def power_one(self):
        self.cut_power([dice.choice(MEMBERS)])

    def power_leader(self):
        self.cut_power([self.leader() or dice.choice(MEMBERS)])

    def power_all(self):
        self.cut_power(list(MEMBERS))

    def keep(self, target):
        for n in MEMBERS:
            shutil.copy(f"{self.work}/m{n}.log", target)
            subprocess.run(["cp", "-r", "--sparse=always", f"{self.disk(n)}/data", f"{target}/m{n}.data"], check=False)

    def end(self):
        """All ends with the namespaces."""
        for n in MEMBERS:
            if n in self.process:
                self.process[n].kill()


class Containers(Cluster):
    """The cluster of docker-compose.yml, under a project name of its own."""

    KINDS = ["kill_leader", "kill_one", "kill_all", "pause_leader", "pause_one", "disconnect_leader", "disconnect_one"]

    def __init__(self, arguments):
        super().__init__()
        self.compose = arguments.compose.split()
        sockets = [socket.socket() for _ in MEMBERS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        self.port = {n: one.getsockname()[1] for n, one in zip(MEMBERS, sockets)}
        for one in sockets:
            one.close()
        self.project = f"everwatch-torture-{os.getpid()}"
        os.environ.update({f"PORT_{n}": str(port) for n, port in self.port.items()})
        os.environ.update(COMPOSE_PROJECT_NAME=self.project, SNAPSHOT_COUNT="1000", SNAPSHOT_CATCHUP_ENTRIES="500")
        self.name = {}

    def address(self, n):
        return "127.0.0.1", self.port[n]

    def urls(self):
        return [f"http://127.0.0.1:{self.port[n]}" for n in MEMBERS]

    def start_all(self):
        run(*self.compose, "up", "-d")
        self.name = {n: run(*self.compose, "ps", "-q", f"m{n}").strip() for n in MEMBERS}
        self.network = run("docker", "inspect", "--format", "{{range $n, $_ := .NetworkSettings.Networks}}{{$n}}{{end}}",
                           self.name[1]).strip()

    def begin_anew(self):
        run(*self.compose, "down", "--volumes")

    def look_after(self, n):
        if n not in self.down and run("docker", "inspect", "--format", "{{.State.Status}}", self.name[n]).strip() == "exited":
            self.wrong(f"m{n} ended by itself: {run('docker', 'logs', '--tail', '1', self.name[n])}")
            self.down.add(n)

    def kill(self, members):
        self.down.update(members)
        run("docker", "kill", *(self.name[n] for n in members))

    def start(self, n):
        self.next_life(n)
        run("docker", "start", self.name[n])
        self.down.discard(n)

    def pause(self, n):
        run("docker", "pause", self.name[n])

    def resume(self, n):
        run("docker", "unpause", self.name[n])

    def disconnect(self, n):
        seconds = dice.uniform(*HOLD)
        say(f"m{n} is disconnected for {seconds:.1f} s")
        run("docker", "network", "disconnect", self.network, self.name[n])
        time.sleep(seconds)
        run("docker", "network", "connect", "--alias", f"m{n}", self.network, self.name[n])

    def disconnect_leader(self):
        self.disconnect(self.leader() or dice.choice(MEMBERS))

    def disconnect_one(self):
        self.disconnect(self.pick())

    def keep(self, target):
        for n, name in self.name.items():
            with open(f"{target}/m{n}.log", "w") as log:
                subprocess.run(["docker", "logs", name], stdout=log, stderr=log, check=False)

    def end(self):
        subprocess.run([*self.compose, "down", "--volumes"], check=False, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)


class Clients:
    """The clients of one round, and what they say."""

    def __init__(self, arguments, cluster):
        environment = dict(os.environ, TORTURE=",".join(cluster.urls()), TORTURE_SEED=str(dice.randrange(1 << 62)),
                           TORTURE_OUT=os.path.abspath(arguments.work), RUST_BACKTRACE="0")
        command = [arguments.clients, "--exact", "torture", "--nocapture"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        self.began, self.rates, self.verdict = None, [], None
        self.said, self.other = [], []
        self.has_begun = threading.Event()
        self.lives = queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if not self.has_begun.wait(30):
            raise RuntimeError(f"the clients do not begin: {self.other}")

    def read(self):
        for line in self.process.stdout:
            head, _, rest = line.rstrip("\n").partition("torture-clients: ")
            if not rest:
                self.other.append(head)
            elif rest == "began":
                self.began = time.monotonic()
                self.has_begun.set()
            elif rest.startswith("life "):
                self.lives.put(int(rest.split()[1]))
            elif rest.startswith("acknowledged per 100 ms:"):
                self.rates = [int(word) for word in rest.split(":")[1].split()]
            elif rest.startswith("verdict "):
                self.verdict = {key: int(value) for key, value in (word.split("=") for word in rest.split()[1:])}
            else:
                say(rest)
                self.said.append(rest)

    def expect_life(self, n):
        """A member is about to start again: returns when the clients know."""
        try:
            self.process.stdin.write(f"life {n}\n")
            self.process.stdin.flush()
            assert self.lives.get(timeout=30) == n
        except (BrokenPipeError, queue.Empty):
            # They have ended, which shows in their verdict.
            pass

    def end(self):
        self.process.stdin.write("stop\n")
        self.process.stdin.close()
        self.process.wait()
        self.reader.join()


def say(what):
    line = f"{time.monotonic() - started:8.2f}  {what}"
    story.append(line)
    print(line, flush=True)


def one_round(arguments, cluster, seconds, deck, counts, totals):
    """One cluster, one history."""
    wrongs = len(cluster.wrongs)
    cluster.begin_anew()
    cluster.start_all()
    cluster.wait_until_well()
    clients = cluster.clients = Clients(arguments, cluster)
    until = time.monotonic() + seconds
    quiet = []
    while True:
        # Undisturbed time counts from a moment after everybody is well, when clients have connected again.
        calm = time.monotonic() + 0.5
        time.sleep(max(0.0, min(dice.uniform(*QUIET), until - time.monotonic())))
        quiet.append((calm, time.monotonic()))
        if time.monotonic() >= until or clients.process.poll() is not None or len(cluster.wrongs) > wrongs:
            break
        for n in MEMBERS:
            cluster.look_after(n)
        if not deck:
            deck.extend(dice.sample(arguments.kinds, len(arguments.kinds)))
        kind = deck.pop(0)
        getattr(cluster, kind)()
        counts[kind] += 1
        cluster.wait_until_well()
    ended = time.monotonic()
    cluster.clients = None
    clients.end()
    for n in MEMBERS:
        cluster.look_after(n)
    totals["seconds"] += ended - clients.began
    if clients.verdict is None:
        cluster.wrong(f"the clients came to no verdict: {clients.other[-5:]}")
        return
    for name, value in clients.verdict.items():
        totals[name] += value
    acknowledged = undisturbed = 0
    for begin, end in quiet:
        first, last = (int((moment - clients.began) * 10) for moment in (begin, end))
        acknowledged += sum(clients.rates[first:last])
        undisturbed += max(0, last - first) / 10
    rate = acknowledged / max(undisturbed, 0.1)
    say(f"round: {clients.verdict}, {rate:.0f} acknowledged per second in {undisturbed:.0f} undisturbed seconds")
    if rate < arguments.min_rate:
        cluster.wrong(f"thin load: {rate:.0f} acknowledged per second when undisturbed, {arguments.min_rate} wanted")


def keep(arguments, cluster):
    """What is needed to find out what was wrong."""
    target = os.path.join(arguments.out, time.strftime("wrong-%Y%m%d-%H%M%S"))
    os.makedirs(target, exist_ok=True)
    with open(f"{target}/story", "w") as file:
        file.write("\n".join(story) + "\n")
    if os.path.exists(f"{arguments.work}/history"):
        shutil.copy(f"{arguments.work}/history", target)
    cluster.keep(target)
    say(f"kept in {target}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", required=True)
    parser.add_argument("--server")
    parser.add_argument("--compose", nargs="?", const="docker-compose" if shutil.which("docker-compose") else "docker compose")
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--min-rate", type=float, default=50)
    parser.add_argument("--faults", default="")
    arguments = parser.parse_args()
    dice.seed(arguments.seed)
    say(f"seed {arguments.seed}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kind = Containers if arguments.compose else Processes
    arguments.kinds = arguments.faults.split() or kind.KINDS
    unknown = set(arguments.kinds) - set(kind.KINDS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(kind.KINDS)}")
    deck = [card for card in FIRST_CARDS if card in arguments.kinds]
    deck += dice.sample([card for card in arguments.kinds if card not in deck], len(arguments.kinds) - len(deck))
    counts, totals = collections.Counter(), collections.Counter()
    cluster = None
    try:
        cluster = kind(arguments)
        rounds = max(1, round(arguments.seconds / ROUND))
        for _ in range(rounds):
            one_round(arguments, cluster, arguments.seconds / rounds, deck, counts, totals)
            if cluster.wrongs or totals["violations"]:
                keep(arguments, cluster)
                break
    except NotHere as error:
        print(f"torture: {error}", file=sys.stderr)
        return 3
    finally:
        if cluster:
            cluster.end()
    violations = totals["violations"] + len(cluster.wrongs)
    kinds = " ".join(f"{kind}={count}" for kind, count in sorted(counts.items()))
    print(f"torture: {totals['seconds']:.0f} seconds, {sum(counts.values())} faults ({kinds}), {cluster.power_cuts} power cuts, "
          f"{totals['operations']} operations, {totals['events']} watch events, {violations} violations")
    return 1 if violations else 0


dice = random.Random()
started = time.monotonic()
story = []
if __name__ == "__main__":
    sys.exit(main())
