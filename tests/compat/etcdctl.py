"""The same etcdctl commands against two servers: their output must be equal once ids and sizes have names.

    etcdctl.py --left etcd --right target/debug/everwatch --etcdctl etcdctl --etcdctl /usr/bin/etcdctl

Output is normalised as little as can be: the ids and addresses of the member and the cluster, ids of leases the server
chose, sizes, times and the version in a table. Exit codes and standard error count, too. The
one difference that is intended, the order of `lease list`, is sorted away where it is said why.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

from server import Certificates, Server

# One command a line, as after `etcdctl`. '<' feeds standard input. 'watch' runs beside the writes that follow '::' .
COMMANDS = r"""
put e/a 1
put e/b 2 --prev-kv
put e/a 3 --prev-kv
put e/c < from stdin
put e/a --ignore-value
put e/none --ignore-value
put e/none x --ignore-lease
put e/a x --lease=404
put
put "" x
get e/a
get e/a -w simple --print-value-only
get e/a -w json
get e/a -w fields
get e/none
get e/ --prefix
get e/ --prefix --keys-only
get e/ --prefix --count-only -w fields
get e/ --prefix --limit 2
get e/ --prefix --order=DESCEND --sort-by=KEY
get e/ --prefix --order=ASCEND --sort-by=VERSION
get e/ --prefix --order=ASCEND --sort-by=CREATE
get e/ --prefix --order=DESCEND --sort-by=MODIFY
get e/ --prefix --order=DESCEND --sort-by=VALUE
get e/ --prefix --order=UP
get e/b e/z
get e/b --from-key
get "" --from-key
get "" --prefix
get e/a --rev=2
get e/a --rev=999
get e/a --rev=-1
get e/ --prefix --consistency=s
get e/a --consistency=x
get e/a --prefix --from-key
get e/a --hex
del e/none
del e/b --prev-kv
del e/ --prefix --prev-kv
del
put e/a 1
put e/b 2
put e/c 3
del e/b --from-key
txn < value("e/a") = "1"\n\nput e/t 1\nget e/a\n\nput e/f 1\n\n
txn < value("e/a") = "2"\n\nput e/t 1\n\nget e/a\ndel e/t\n\n
txn < mod("e/a") > "0"\nver("e/a") = "1"\ncreate("e/a") < "100"\nlease("e/a") = "0"\n\nget e/ --prefix\n\n\n
txn < mod("e/a") = "x"\n\n\n\n
txn < \nput e/d 1\nput e/d 2\n\n\n
txn -w json < \nput e/d 1\nget e/d\n\n\n
lease grant 600
lease grant 0
lease grant 9000000001
lease grant
lease list
lease timetolive 404
lease revoke 404
lease keep-alive --once 404
lease timetolive zz
compact 2
compact 2
compact 99999
get e/a --rev=1
compaction 3 --physical
watch e/ --prefix :: put e/w 1|put e/w 2|del e/w
watch e/ --prefix --prev-kv :: put e/w 1|put e/w 2|del e/w|del e/w
watch e/ --prefix --rev=10 :: put e/w 5
watch e/w :: put e/v 1|put e/w 1
watch e/a e/c :: put e/a 1|put e/b 1|put e/c 1
watch e/w -w json :: put e/w 1
watch e/ --prefix --progress-notify :: put e/w 6
watch e/ --prefix --rev=1 ::
watch -i < watch e/i --prefix\nprogress\n :: put e/i 1
endpoint health
endpoint status -w json
endpoint status -w table
endpoint hashkv
endpoint hashkv --rev=12 -w json
member list
member list -w table
member list -w json
member list -w fields
alarm list
alarm disarm
version
auth status
auth enable
user add root:rootpw
user add alice:pw
user add alice:pw
user add robot --no-password
user add carol --interactive=false < pw\n
user add :x
user grant-role root root
user grant-role alice app
role add app
role add app
role grant-permission app readwrite app/ --prefix
role grant-permission app read config
role grant-permission app write a b
role grant-permission app read z --from-key
role grant-permission app run config
role grant-permission none read config
role get app
role get app -w json
role get none
role list
user grant-role alice app
user get alice
user get alice --detail
user get nobody
user list
user list -w json
user passwd carol --interactive=false < pw2\n
user passwd nobody --interactive=false < pw2\n
put app/a 1
put other 1
auth enable
put app/a 2
--user alice:pw put app/a 2
--user alice:pw put app/a 3 --prev-kv
--user alice:pw put other 2
--user alice:pw put a1 2
--user alice:pw put a1 2 --prev-kv
--user alice:pw get app/ --prefix
--user alice:pw get other
--user alice:pw get "" --prefix
--user alice:pw get z --from-key
--user alice:pw del a b
--user alice:pw del app/a --prev-kv
--user alice:wrong get app/a
--user nobody:pw get app/a
--user robot:pw get app/a
--user carol:pw get app/a
--user carol:pw2 get app/a
--user alice --password pw get app/a
--user alice:pw user get alice
--user alice:pw user get root
--user alice:pw user list
--user alice:pw role get app
--user alice:pw role add mine
--user alice:pw auth disable
--user alice:pw txn < value("app/a") = "1"\n\nput app/t 1\n\nget other\n\n
--user alice:pw txn < value("app/a") = "1"\n\nput app/t 1\n\nget app/a\n\n
--user root:rootpw put other 3 --prev-kv
--user root:rootpw get "" --prefix --count-only -w fields
--user root:rootpw user list
--user root:rootpw role revoke-permission app config
--user root:rootpw role revoke-permission app config
--user root:rootpw role revoke-permission app z --from-key
--user root:rootpw role get app
--user root:rootpw user revoke-role alice app
--user root:rootpw user revoke-role alice app
--user alice:pw get app/a
--user root:rootpw user delete alice
--user root:rootpw user delete alice
--user root:rootpw user delete root
--user root:rootpw role delete app
--user root:rootpw role delete app
--user root:rootpw auth status
--user root:rootpw auth disable
auth status
put app/a 4
user delete root
""".strip().splitlines()

LEASE_CHAIN = ("put e/l 1 --lease={id}", "lease timetolive {id}", "lease timetolive {id} --keys", "lease timetolive {id} -w json --keys",
               "lease keep-alive --once {id}", "lease list", "get e/l -w json", "put e/l 2 --ignore-lease", "lease revoke {id}",
               "get e/l", "lease timetolive {id}", "lease revoke {id}")


class Client:
    """Runs one etcdctl against one server."""

    def __init__(self, etcdctl, server):
        self.base = [etcdctl, "--endpoints", server.endpoint, "--dial-timeout=5s", "--command-timeout=10s"]
        if server.certificates:
            self.base[2] = f"{server.scheme}://{server.endpoint}"
            self.base += server.certificates.of_client("client")
        self.environment = {**os.environ, "ETCDCTL_API": "3"}
        self.names = [(server.endpoint, "ENDPOINT"), (f":{server.peer}", ":PEER")]
        listing = self.run(["member", "list", "-w", "json"])[1]
        for field, name in (("cluster_id", "CLUSTER"), ("member_id", "MEMBER")):
            number = int(re.search(rf'"{field}":(\d+)', listing).group(1))
            self.names += [(str(number), name), (f"{number:x}", name)]

    def run(self, words, stdin=""):
        done = subprocess.run(self.base + words, input=stdin, capture_output=True, text=True, errors="replace", timeout=120, env=self.environment)
        return done.returncode, done.stdout, done.stderr

    def normal(self, text):
        for value, name in self.names:
            text = text.replace(value, name)
        # An id with a leading zero is shorter, and so is its column.
        text = "\n".join(re.sub(r" +", " ", re.sub(r"-{3,}", "---", line)) if line[:1] in "+|" else line for line in text.split("\n"))
        for pattern, name in (
            (r"took = \S+", "took = TIME"), (r"took too long.*", "took too long"),
            (r'"raft_term":\d+', '"raft_term":TERM'), (r'"RaftTerm" : \d+', '"RaftTerm" : TERM'), (r'"raftTerm":\d+', '"raftTerm":TERM'),
            (r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":\d+', r'"\1":NUMBER'), (r'"version":"[\d.]+",', '"version":VERSION,'),
            (r'^\{"level".*"ts":.*?,', "{"), (r'"ts":"[^"]*"', '"ts":T'), (r'"caller":"[^"]*",?', ""), (r"0x[0-9a-f]{8,}", "POINTER"),
            (r'"ID":\d+', '"ID":LEASE'), (r'"id":\d+', '"id":LEASE'), (r"\b[0-9a-f]{16}\b", "ID"),
            (r"remaining\(\d+s\)", "remaining(S)"), (r'"ttl":\d+', '"ttl":S'),
            (r"endpoint://client-[0-9a-f-]+", "endpoint://CLIENT"), (r"Throughput is \d+", "Throughput is N"), (r"Slowest request took \S+", "Slowest TIME"),
            (r"Stddev is \S+", "Stddev TIME"), (r"[\r|].*\d+s *$", ""),
        ):
            text = re.sub(pattern, name, text, flags=re.M)
        return text

    def table_status(self, text):
        """A table of endpoint status: its shape, and the columns that do not depend on the day."""
        rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
        return [[c for i, c in enumerate(row) if i not in (2, 3, 6, 7, 8)] if number else row for number, row in enumerate(rows)]

    def watch(self, words, stdin, writes):
        """Runs a watch beside writes, until it has printed the last of them."""
        process = subprocess.Popen(self.base + words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, env=self.environment)
        lines, seen = [], threading.Condition()

        def read():
            for line in process.stdout:
                with seen:
                    lines.append(line)
                    seen.notify_all()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if stdin:
            process.stdin.write(stdin)
            process.stdin.flush()
        # etcdctl says nothing when its watch has begun: writes wait until the first of them is seen or time is up.
        time.sleep(1)
        for write in writes:
            self.run(write.split())
        heard = -1
        while heard != len(lines):
            heard = len(lines)
            with seen:
                seen.wait(1)
        process.kill()
        process.wait()
        reader.join()
        return "".join(lines)

    def say(self, line):
        """Runs one line of COMMANDS and returns what a user sees, in normal form."""
        line, _, writes = line.partition(" ::")
        command, _, stdin = line.partition(" < ")
        words = [w[1:-1] if w in ('""',) else w for w in command.split()]
        stdin = stdin.replace("\\n", "\n")
        if words[0] == "watch":
            return self.normal(self.watch(words, stdin, [w for w in writes.strip().split("|") if w]))
        code, out, err = self.run(words, stdin)
        if words[:2] == ["check", "perf"]:
            # A measurement of two servers at once on a machine that may be busy: what counts is that it can be passed.
            for _ in range(2):
                code, out, err = (code, out, err) if code == 0 else self.run(words, stdin)
        if words[:2] == ["endpoint", "status"] and words[-1] == "table":
            out = str(self.table_status(self.normal(out)))
        if words[:2] == ["lease", "list"]:
            # Intended difference: etcd's leader lists by expiry and its followers at random, we by id on every member.
            out = "\n".join(sorted(self.normal(out).split("\n")))
        if words[:2] == ["check", "perf"]:
            out = " ".join(re.findall(r"(?:PASS|FAIL):? \w+", out))
        if words[:2] == ["lease", "grant"] and code == 0:
            self.names.append((out.split()[1], f"LEASE{len(self.names)}"))
        return f"exit {code}\n{self.normal(out)}{self.normal(err)}"

    def lease_chain(self):
        """What hangs on the id of one lease."""
        lease = self.run(["lease", "grant", "500"])[1].split()[1]
        self.names += [(lease, "LEASE"), (str(int(lease, 16)), "LEASE")]
        return [(line, self.say(line.format(id=lease))) for line in LEASE_CHAIN]

    def all(self, skip):
        said = [(line, self.say(line)) for line in COMMANDS if not any(line.startswith(s) for s in skip)]
        said += self.lease_chain()
        # Last, because it writes a different number of keys each time.
        perf = "check perf --load=s"
        return said if any(perf.startswith(s) for s in skip) else [*said, (perf, self.say(perf))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", required=True)
    parser.add_argument("--etcdctl", action="append")
    parser.add_argument("--skip", action="append", default=[], help="leave out commands that start so")
    parser.add_argument("--tls", action="store_true", help="with TLS, and a client whose certificate names root")
    parser.add_argument("--jwt", action="store_true", help="users get signed tokens (needs openssl)")
    arguments = parser.parse_args()
    different, certificates, flags = 0, None, []
    directory = tempfile.TemporaryDirectory()
    if arguments.jwt:
        key, public = (f"{directory.name}/jwt.{part}" for part in ("key", "pub"))
        subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-out", key], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
        flags = [f"--auth-token=jwt,pub-key={public},priv-key={key},sign-method=RS256,ttl=10m"]
    if arguments.tls:
        certificates = Certificates(directory.name).sign("server", "a member", "IP:127.0.0.1,DNS:localhost").sign("client", "root")
    for etcdctl in arguments.etcdctl or ["etcdctl"]:
        results = [None, None]

        def side(number, command):
            with Server(command, flags=flags, certificates=certificates) as server:
                results[number] = Client(etcdctl, server).all(arguments.skip)

        threads = [threading.Thread(target=side, args=pair) for pair in enumerate((arguments.left, arguments.right))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if None in results:
            raise SystemExit("one side broke off")
        for (line, left), (_, right) in zip(*results):
            if left != right:
                different += 1
                print(f"DIFFERENT  {etcdctl} {line}\n  left:  {left!r:.700}\n  right: {right!r:.700}")
        print(f"{etcdctl}: {len(results[0])} commands compared, {different} different so far")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
