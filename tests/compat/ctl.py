"""etcdctl and everwatchctl with the same arguments: their output and exit codes must be equal.

    ctl.py --server target/debug/everwatch --ctl target/debug/everwatchctl --etcdctl etcdctl

Each tool talks to a fresh member of its own and the commands stand in one order, so that revisions, counts and versions have to agree
as they are. Named instead of compared: ids and addresses of member and cluster, ids of leases, and what depends on the day (sizes,
raft's numbers, durations, hashes). Differences that are meant are listed in DIFFERENT, each with its reason; an entry that
nothing needs fails the run.
"""

import argparse
import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time

from server import Server, free_ports

# One command a line, as after the tool's name. '%%' stands for each format in turn; '<' feeds standard input; '{dir}' is a directory.
# Words are split as a shell splits them, quotes included. 'WATCH a :: b | c' runs a beside b and c; 'FOR a' interrupts a when it has
# printed something; 'ENV A=b c' runs c with a variable.
# Backups come before locks and elections: etcdctl leaves their leases behind, and a lease is a key of a backup. Each member that is
# added has an address of its own, because its id is made from it and the second, and no id comes twice.
COMMANDS = r"""
-w %% put e/a 1
-w %% put e/a 2 --prev-kv
-w %% put e/b "x<&>\"é	 " --prev-kv
-w %% get e/a
-w %% get e/b
-w %% get e/b --hex
-w %% get e/none
-w %% get e/ --prefix --keys-only
-w %% get e/ --prefix --limit 1
-w %% get e/ --prefix --count-only
-w %% get e/a --print-value-only
-w %% del e/none
-w %% del e/b --prev-kv
-w %% txn < value("e/a") = "z"\n\nput e/a 2\n\nget e/a\nput e/c 1\nput e/d "a b" --prev-kv\nget e/ e/z --prefix=false\ndel e/h\n\n
-w %% txn -i < mod("e/a") > "0"\nver("e/a") > "0"\nc("e/a") != "0"\n\nput e/a 2 --prev-kv\nget e/c\ndel e/d --prev-kv\n\n\n
-w %% lease grant 600
-w %% lease timetolive 1234
-w %% lease list
-w %% lease revoke 1234
-w %% lease keep-alive --once 1234
-w %% member list
-w %% member list --hex
-w %% member add other --learner --peer-urls=http://%%.invalid:9
-w %% member promote 1
-w %% member update 1 --peer-urls=http://127.0.0.1:9
-w %% member remove 1
-w %% endpoint status
-w %% endpoint status --cluster
-w %% endpoint health
-w %% endpoint health --cluster
-w %% endpoint hashkv
-w %% endpoint hashkv --cluster --rev=3
-w %% alarm list
-w %% alarm disarm
-w %% defrag
-w %% defrag --cluster
-w %% compaction 2
-w %% version
-w %% auth status
-w %% user add u-%% --no-password
-w %% user add v-%%:pw
-w %% user list
-w %% role add r-%%
-w %% role list
-w %% role grant-permission r-%% readwrite a b
-w %% role grant-permission r-%% read p --prefix
-w %% role grant-permission r-%% write p --from-key
-w %% role grant-permission r-%% write one
-w %% role get r-%%
-w %% user grant-role u-%% r-%%
-w %% user get u-%%
-w %% user get u-%% --detail
-w %% role revoke-permission r-%% a b
-w %% role revoke-permission r-%% one
-w %% role revoke-permission r-%% p --from-key
-w %% role revoke-permission r-%% none
-w %% user passwd v-%% --interactive=false < pw2\n
-w %% user revoke-role u-%% r-%%
-w %% user delete u-%%
-w %% role delete r-%%
-w %% move-leader 1
snapshot save {dir}/backup
-w %% snapshot status {dir}/backup
-w %% lock l true
FOR -w %% lock l
FOR -w %% elect l me
WATCH -w %% watch w/ --prefix :: put w/1 a | put w/1 "b c" | del w/1
WATCH -w %% watch w/ --prefix --prev-kv :: put w/1 a | put w/1 "b c" | del w/1 | del w/1
WATCH -w %% watch w/ --prefix --rev=1 ::
put e/c < from stdin
put e/a --ignore-value
put e/none --ignore-value
put e/none x --ignore-lease
put e/a x --lease=404
put e/a x --ignore-value
put a --lease=zz b
put
put a
put "" x
put a b c
get "" --from-key
get "" --prefix
get ""
get
get e/a --rev=999
get e/a --rev=-1
get e/ --prefix --order=DESCEND --sort-by=KEY
get e/ --prefix --order=ascend --sort-by=version
get e/ --prefix --order=DESCEND --sort-by=CREATE
get e/ --prefix --order=DESCEND --sort-by=MODIFY
get e/ --prefix --order=DESCEND --sort-by=VALUE
get e/a --order=UP
get e/a --sort-by=foo
get e/a --consistency=x
get e/a --consistency=s
get e/b e/z
get e/b --from-key
get e/a --prefix --from-key
get e/a e/b --prefix
get e/a --limit=x
get e/a --prefix=x
get e/a --limit
get e/a --nope
get e/a -z
-w xml get a
del
del a b c
del a b --prefix
del e/c --from-key
del a b
del "" --prefix
lease grant
lease grant x
lease grant 0
lease grant 9000000001
lease revoke
lease revoke zz
lease timetolive
lease timetolive zz
lease keep-alive
lease keep-alive zz
lease keep-alive 5
member add
member add n
member add n --peer-urls=bad
member add n --peer-urls=http://127.0.0.1
member add n --peer-urls=http://127.0.0.1:1/x
member remove
member remove zz
member update
member update zz
member update 1
member promote
member promote zz
alarm list x
alarm disarm x
compaction
compaction x
compaction 1 2
compaction 99999
compaction 3 --physical
lock
lock l nocommand
lock l /no/command
lock l sh -- -c "exit 3"
lock --ttl=-5 l true
elect
elect a b c
elect l
auth enable x
auth status x
auth disable x
user add
user add a b
user add foo
user add foo:
user add foo: --no-password
user add :x
user add foo --new-user-password=x
user add f3 --new-user-password=x
user add g < pw\n
user add g < pw\npw\n
user add g2 --interactive=false < pw\n
user passwd g < pw\npw2\n
user passwd g < pw\npw\n
user passwd none
user passwd
user delete
user delete none
user get
user get none
user list x
user grant-role
user grant-role a
user revoke-role a
role add
role add root
role get root
role delete
role get
role get none
role list x
role grant-permission
role grant-permission a b c
role grant-permission a read b c --prefix
role grant-permission a read
role revoke-permission a
role revoke-permission
move-leader
move-leader zz
snapshot save
snapshot save a b
snapshot save {dir}/none/none
snapshot status
snapshot status {dir}/none
make-mirror
make-mirror a b
check perf --load=zz
txn < value(k) = "z"\n\n\n\n
txn < value("k" = "z"\n\n\n\n
txn < foo("k") = "z"\n\n\n\n
txn < value("k") ~ "z"\n\n\n\n
txn < value("k") = z\n\n\n\n
txn < value("k")="z"\n\n\n\n
txn < val('k') = 'z'\n\n\n\n
txn < mod("k") = "x"\n\n\n\n
txn < mod("k") = "1"
txn < lease("k") = "0"\n\nget k\n\n\n
txn < \nfoo a\n\n\n
txn < \nput a\n\n\n
txn < \ndel\n\n\n
txn < \nget --nope a\n\n\n
txn < \nput a b --lease=zz\n\n\n
txn < \nput "a\x41" "b\n"\nget "aA"\n\n\n
txn < \nput a1 "b \n\n\n
txn < \nput a2 'b'\n\n\n
txn < \nget "" --prefix --limit=1\n\n\n
txn < \nput a 1\nput a 2\n\n\n
watch
watch a --
watch a b --prefix
watch a --nope
watch z y
watch -i < watch a\nfoo\n
watch -i < watch\n
WATCH watch w/ --prefix --hex :: put w/1 a
WATCH watch w/1 -- sh -c "env | grep ETCD_WATCH | sort; exit 1" :: put w/1 "x y"
WATCH watch w/ x :: put w/2 1 | put y 1
WATCH watch w/ --prefix --progress-notify :: put w/1 1
ENV ETCDCTL_WATCH_KEY=w/ watch a
ENV ETCDCTL_WRITE_OUT=json get w/1
ENV ETCDCTL_ENDPOINTS=127.0.0.1:1 get w/1
ENV ETCDCTL_FOO=1 get w/1
ENV ETCDCTL_API=3 get w/1
--user= get w/1
--user=a:b get w/1
--user=a get w/1 < pw\n
--password=x get w/1
--command-timeout=x get w/1
--command-timeout=1m0.5s get w/1
--cacert=/nope get w/1
--cert=/nope get w/1
--key=/nope get w/1
--hex=x get w/1
me list
ro list
m list
nope
role x
lease
version x
user add root:rootpw
user grant-role root root
user add alice:pw
role add app
role grant-permission app readwrite app/ --prefix
user grant-role alice app
auth enable
put app/a 1
--user alice:pw put app/a 2
--user alice:pw put other 2
--user alice:pw -w json get app/ --prefix
--user alice:pw get "" --prefix
--user alice:wrong get app/a
--user nobody:pw get app/a
--user alice --password pw get app/a
--user alice:pw user get alice
--user alice:pw user get root
--user alice:pw endpoint health
--user root:rootpw endpoint health
--user root:rootpw auth status
--user root:rootpw user list
--user alice:pw auth disable
--user root:rootpw auth disable
""".strip("\n").splitlines()

FORMATS = ("simple", "fields", "json", "table", "protobuf")

# Commands that cannot reach anything: (arguments, with %s for a port nobody listens on).
UNREACHABLE = (
    "get a", "put a b", "member list", "lease grant 5", "defrag", "endpoint status", "endpoint health", "endpoint health -w json",
    "endpoint hashkv", "endpoint hashkv -w json", "--user a:b get a",
)

# Pattern of the command -> why the two may differ there. What is left to compare is said in `agree`.
DIFFERENT = {
    r"^-w fields alarm disarm$": "etcdctl crashes: it prints a header that is not there",
    r"^txn < value\(\"k\"\) ~": "etcdctl crashes on an operator it does not know",
    r"^txn < lease\(": "etcdctl crashes when it compares a lease",
    r"^(-w \w+ )?version": "each has its own version",
    r"^-w protobuf lease revoke [^1]": "etcdctl shows the memory of a Go structure",
    r"^snapshot save \{dir\}/backup": "which version a backup is of is said by etcdctl from 3.6 on, and by us",
    r"^ENV ETCDCTL_ENDPOINTS": "a refusal as a log line with a stack of Go's, and one as an error",
    r"^(watch -i|txn < \\nget --nope)": "etcdctl's help goes to stderr before the error",
}


class Tool:
    """One tool and its server."""

    def __init__(self, command, server, directory):
        self.command, self.server, self.directory = command, server, directory
        self.base = [command, "--endpoints", server.endpoint, "--dial-timeout=5s", "--command-timeout=10s"]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCDCTL_")}
        self.names = [(server.endpoint, "ENDPOINT"), (f":{server.peer}", ":PEER"), (str(directory), "DIR"),
                      ("everwatchctl", "etcdctl")]
        listing = self.run(["-w", "json", "member", "list"])[1].decode()
        for field, name in (("cluster_id", "CLUSTER"), ("member_id", "MEMBER")):
            number = int(re.search(rf'"{field}":(\d+)', listing).group(1))
            self.names += [(str(number), name), (f"{number:x}", name)]
            self.names.append((varint(number), name))
        self.added = 0

    def run(self, words, stdin=b"", environment=(), base=None):
        environment = {**self.environment, **dict(environment)}
        try:
            done = subprocess.run([*(base or self.base), *words], input=stdin, capture_output=True, timeout=30, env=environment)
        except subprocess.TimeoutExpired:
            return "does not end", b"", b""
        return done.returncode, done.stdout, done.stderr

    def normal(self, output):
        for value, name in self.names:
            output = output.replace(value if isinstance(value, bytes) else value.encode(), name.encode())
        # Numbers that stand for ids are as long as they are, and so is what holds them.
        output = re.sub(rb"\n[\x10-\x20](\x08CLUSTER\x10MEMBER)", rb"N\1", output)
        output = re.sub(rb"[\x12\x1a][!-Z](\x08(MEMBER|ADDED))", rb"<>\1", output)
        head, *members = output.split(b"<>\x08")
        output = b"<>\x08".join([head, *sorted(members)])
        output = re.sub(rb"\x12.\n.(l/ID)", rb"N\1", output, flags=re.S)
        output = re.sub(rb"(Member|cluster)  +", rb"\1 ", output)
        text = output.decode(errors="backslashreplace")
        # Members stand in the order of their ids, here and above.
        text = re.sub(r'(?<="members":\[{)(.*)(?=}\]})', lambda list: "},{".join(sorted(list[0].split("},{"))), text)
        text = re.sub(r'(?<=INITIAL_CLUSTER=")[^"]+', lambda list: ",".join(sorted(list[0].split(","))), text)
        # Columns are as wide as what stands in them.
        text = "\n".join(re.sub(r" +", " ", re.sub(r"-{3,}", "---", line)) if line[:1] in "+|" else line for line in text.split("\n"))
        for pattern, name in (
            (r"took = \S+", "took = TIME"), (r'"took":"[^"]+"', '"took":TIME'), (r'"Took" : \S+', '"Took" : TIME'),
            (r"\| \d[\d.]*(µs|ms|s) \|", "| TIME |"),
            (r'"raft_term":\d+', '"raft_term":TERM'), (r'"RaftTerm" : [1-9]\d*', '"RaftTerm" : TERM'), (r'"raftTerm":\d+', '"raftTerm":TERM'),
            (r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":\d+', r'"\1":NUMBER'),
            (r'"(DBSize|RaftIndex|RaftAppliedIndex|Hash|Size)" : \d+', r'"\1" : NUMBER'), (r"\b\d+(\.\d)? [kM]B", "SIZE"),
            (r'"(hash|totalSize)":\d+', r'"\1":NUMBER'), (r"(ENDPOINT, )\d+$", r"\1HASH"), (r"(ENDPOINT \| )\d+ \|", r"\1HASH |"),
            (r"(true|false), (true|false), \d+, \d+, \d+", r"\1, \2, RAFT"), (r"(true|false) \| (true|false) \| \d+ \| \d+ \| \d+ \|", r"\1 | \2 | RAFT |"),
            (r"^[0-9a-f]+, (\d+, \d+, SIZE)$", r"HASH, \1"), (r"\| [0-9a-f]+ (\| \d+ \| \d+ \| SIZE)", r"| HASH \1"),
            (r'("ID":)\d{6,}', r"\1ID"), (r'("id":)\d{6,}', r"\1ID"), (r'("ID" : )\d{6,}', r"\1ID"),
            (r'"lease":\d+', '"lease":LEASE'), (r'"Lease" : [1-9]\d+', '"Lease" : LEASE'),
            (r"\b[0-9a-f]{15,16}\b", "ID"), (r'"key":"bC[89][^"]*"', '"key":"l/ID"'),
        ):
            text = re.sub(pattern, name, text, flags=re.M)
        return text

    def spoken(self, stderr):
        """What a tool says of itself, without its client library's log, Go's stacks, and a line that stands there twice."""
        lines = [line for line in self.normal(stderr).split("\n") if line and not line.startswith(('{"level"', "stty: "))]
        lines = [line for line in lines if not line.startswith(("Deprecated: Use", "everwatchctl: "))]
        lines = [line for i, line in enumerate(lines) if line not in lines[:i]]
        # Suggestions are the parser's.
        return [line for line in lines if line != "Did you mean this?" and not line.startswith("\t")]

    def say(self, line):
        line = line.replace("{dir}", str(self.directory))
        environment = []
        if line.startswith("ENV "):
            pair, line = line[4:].split(" ", 1)
            environment = [pair.split("=", 1)]
        command, _, stdin = line.partition(" < ")
        stdin = re.sub(r"(?<!\")\\n(?!\")", "\n", stdin).encode()
        if command.startswith("WATCH "):
            return self.watch(command[6:])
        if command.startswith("FOR "):
            return self.interrupted(words_of(command[4:]))
        words = words_of(command)
        code, out, err = self.run(words, stdin, environment)
        if "member" in words and "add" in words and code == 0 or words[-5:-3] == ["member", "add"]:
            self.forget_member()
        out = self.normal(out)
        # How a command is used each tool says in its own words.
        if re.search(r"^(NAME|Usage):|^USAGE:|^Commands:", out, re.M):
            out = "HELP"
        return code, out, self.spoken(err)

    def forget_member(self):
        """Removes what was added, as etcd takes one learner at a time. Its id is part of the answers."""
        listing = self.run(["-w", "json", "member", "list"])[1].decode()
        for number in map(int, re.findall(r'"ID":(\d+),"peerURLs":\["http://\w+\.invalid:9"', listing)):
            self.names += [(str(number), "ADDED"), (f"{number:x}", "ADDED"), (varint(number), "ADDED")]
            self.run(["member", "remove", f"{number:x}"])

    def interrupted(self, words):
        """Interrupts a command when it has printed something, or lets it end."""
        process = subprocess.Popen([*self.base, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment)
        first = os.read(process.stdout.fileno(), 65536)
        if first:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        out = re.sub(rb"l/[0-9a-f]+", b"l/ID", first + out)
        if "protobuf" in words:
            # The lease's id is in there, as a number.
            out = re.sub(rb"0[\x80-\xff]+[\x00-\x7f] \x01$", b"LEASE", out)
        return process.returncode, self.normal(out), self.spoken(err)

    def watch(self, line):
        """Runs a watch beside writes, until it has printed nothing for a while."""
        command, _, writes = line.partition(" ::")
        process = subprocess.Popen([*self.base, *words_of(command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=self.environment)
        chunks, heard = [], threading.Condition()

        def read():
            while chunk := os.read(process.stdout.fileno(), 65536):
                with heard:
                    chunks.append(chunk)
                    heard.notify_all()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        # A watch does not say that it has begun: a change nobody asked for is repeated until the tool's server knows of a watcher.
        self.await_watcher(process)
        for write in filter(None, map(str.strip, writes.split("|"))):
            self.run(words_of(write))
        with heard:
            count = -1
            while count != len(chunks):
                count = len(chunks)
                heard.wait(1.0)
        if process.poll() is None:
            process.kill()
            code = "killed"
        else:
            code = process.returncode
        process.wait()
        reader.join()
        return code, self.normal(b"".join(chunks)), self.spoken(process.stderr.read())

    def await_watcher(self, process):
        """Waits until the server counts a watcher, or the tool has ended."""
        import urllib.request
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and process.poll() is None:
            with urllib.request.urlopen(f"http://{self.server.endpoint}/metrics", timeout=5) as answer:
                metrics = answer.read().decode()
            if re.search(r"^etcd_debugging_mvcc_watcher_total [1-9]", metrics, re.M):
                return
            time.sleep(0.05)

    def lease_chain(self):
        """What hangs on the id of one lease."""
        lease = self.run(["lease", "grant", "500"])[1].decode().split()[1]
        self.names += [(lease, "LEASE"), (str(int(lease, 16)), "LEASE")]
        said = []
        for form in FORMATS:
            for line in ("put q 1 --lease={}", "lease timetolive {}", "lease timetolive {} --keys", "lease keep-alive --once {}", "get q"):
                code, out, err = self.run(["-w", form, *line.format(lease).split()])
                out = re.sub(rb'(remaining\(|"ttl":|"TTL" : )4?\d\d\b', rb"\1S", out)
                out = re.sub(rb"0[\x80-\xff]+[\x00-\x7f] \x01$", b"LEASE", out) if form == "protobuf" else out
                said.append((f"-w {form} {line.format('LEASE')}", (code, self.normal(out), self.spoken(err))))
        for form in FORMATS:
            lease = self.run(["lease", "grant", "500"])[1].decode().split()[1]
            self.names += [(lease, "LEASE"), (str(int(lease, 16)), "LEASE")]
            code, out, err = self.run(["-w", form, "lease", "revoke", lease])
            said.append((f"-w {form} lease revoke LEASE", (code, self.normal(out), self.spoken(err))))
        return said

    def unreachable(self, port):
        base = [self.command, "--endpoints", f"127.0.0.1:{port}", "--dial-timeout=1s", "--command-timeout=1s"]
        self.names.insert(0, (f"127.0.0.1:{port}", "NOBODY"))
        said = []
        for line in UNREACHABLE:
            code, out, err = self.run(line.split(), base=base)
            said.append((f"(nobody there) {line}", (code, self.normal(out), self.spoken(err))))
        return said

    def all(self, port):
        said = []
        for line in COMMANDS:
            for form in FORMATS if "%%" in line else ("",):
                if line.startswith("FOR") and form == "table":
                    # etcdctl ends without giving back what it holds, and every later revision would depend on when that is noticed.
                    continue
                one = line.replace("%%", form)
                said.append((one, self.say(one)))
        return said + self.lease_chain() + self.unreachable(port)


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def words_of(line):
    """Takes a line apart at spaces, with double quotes as in a shell."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)
    return [bare or quoted.replace('\\"', '"') for quoted, bare in words]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ctl", required=True)
    parser.add_argument("--etcdctl", default="etcdctl")
    parser.add_argument("--show", help="print what both say of commands that match this")
    arguments = parser.parse_args()
    import tempfile
    import pathlib
    [port] = free_ports(1)
    results, errors = [None, None], []

    def side(number, command):
        try:
            with Server(arguments.server) as server, tempfile.TemporaryDirectory(prefix="everwatch-ctl-") as directory:
                results[number] = Tool(command, server, pathlib.Path(directory)).all(port)
        except BaseException as error:  # a thread must not fail silently
            errors.append((command, error))
            raise

    threads = [threading.Thread(target=side, args=pair) for pair in enumerate((arguments.etcdctl, arguments.ctl))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise SystemExit(f"{errors[0][0]} broke off: {errors[0][1]!r}")
    different, unused = 0, dict(DIFFERENT)
    for (line, left), (_, right) in zip(*results):
        if arguments.show and re.search(arguments.show, line):
            print(f"{line}\n  etcdctl:      {left!r}\n  everwatchctl: {right!r}")
        if left == right:
            continue
        reasons = [pattern for pattern in DIFFERENT if re.search(pattern, line)]
        for pattern in reasons:
            unused.pop(pattern, None)
        if not reasons:
            different += 1
            print(f"DIFFERENT  {line}\n  etcdctl:      {left!r:.900}\n  everwatchctl: {right!r:.900}")
    for pattern, reason in unused.items():
        print(f"no longer different: {pattern} ({reason})")
    print(f"{len(results[0])} commands compared, {different} different, {len(DIFFERENT) - len(unused)} kinds of difference meant")
    sys.exit(1 if different or unused else 0)


if __name__ == "__main__":
    main()
