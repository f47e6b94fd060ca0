"""Starts server processes of either kind from a command, waits until they serve, kills them by pid.

A server is always given as a command (`etcd`, `target/debug/everwatch`, ...) that understands etcd's flags, so the same
test can hold etcd against etcd (there must be no difference) and etcd against Everwatch.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import random
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

READY_S = 30


def free_ports(count):
    """Ports nobody listens on just now, all different, below those that the system gives to outgoing connections: between
    this look and the server's own, no client of somebody else's can take one."""
    ports = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Certificates:
    """An authority made with openssl, and what it signed, in a directory."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.openssl("req", "-x509", *self.NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority",
                     "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def sign(self, file, name, hosts=""):
        """A certificate for `name`, as FILE.pem and FILE.key."""
        self.openssl("req", *self.NEW_KEY, "-keyout", f"{file}.key", "-out", f"{file}.csr", "-subj", f"/CN={name}")
        extensions = "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={hosts}\n" if hosts else "")
        (self.directory / f"{file}.ext").write_text(extensions)
        self.openssl("x509", "-req", "-in", f"{file}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                     "-extfile", f"{file}.ext", "-out", f"{file}.pem")
        return self

    def of_server(self):
        """Flags of a server that asks everybody for a certificate."""
        flags = []
        for side in ("", "peer-"):
            flags += [f"--{side}cert-file", self.path("server.pem"), f"--{side}key-file", self.path("server.key")]
            flags += [f"--{side}trusted-ca-file", self.path("ca.pem"), f"--{side}client-cert-auth"]
        return flags

    def of_client(self, file):
        return ["--cacert", self.path("ca.pem"), "--cert", self.path(f"{file}.pem"), "--key", self.path(f"{file}.key")]

    def path(self, name):
        return str(self.directory / name)

    def context(self, file):
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        context.load_cert_chain(self.path(f"{file}.pem"), self.path(f"{file}.key"))
        return context


class ServerFailed(SystemExit):
    """Ends a script that does not expect it."""


class Server:
    """One process; its data directory outlives kill() and start(), and goes with close()."""

    def __init__(self, command, name="m0", client=None, peer=None, cluster=None, flags=(), base=None, certificates=None):
        if client is None:
            client, peer = free_ports(2)
        self.command, self.name, self.client, self.peer = command, name, client, peer
        # With certificates it speaks TLS with everybody, and "server" and "client" are to be among them.
        self.certificates, self.scheme = certificates, "https" if certificates else "http"
        self.cluster = cluster or f"{name}={self.scheme}://127.0.0.1:{peer}"
        self.flags = list(flags) + (certificates.of_server() if certificates else [])
        self.owns_base = base is None
        self.base = pathlib.Path(base or tempfile.mkdtemp(prefix="everwatch-compat-"))
        self.log = self.base / f"{name}.log"
        self.process = None

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.client}"

    def spawn(self):
        client, peer = f"{self.scheme}://127.0.0.1:{self.client}", f"{self.scheme}://127.0.0.1:{self.peer}"
        arguments = shlex.split(self.command) + [
            "--name", self.name, "--data-dir", str(self.base / self.name),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", self.cluster, *self.flags,
        ]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self

    def wait(self, seconds=READY_S):
        """Returns once /health answers true; fails with the end of the log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.healthy():
                return self
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise ServerFailed(f"{self.command} ({self.name}) does not serve; end of its log:\n{tail}")

    def healthy(self):
        try:
            context = self.certificates.context("client") if self.certificates else None
            with urllib.request.urlopen(f"{self.scheme}://{self.endpoint}/health", timeout=2, context=context) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def start(self):
        return self.spawn().wait()

    def stop(self, seconds=READY_S):
        """Asks it to end, as an operator does, and returns when it has."""
        self.process.terminate()
        self.process.wait(seconds)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def cpu_seconds(self):
        """User and system time this process has used so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        self.kill()
        if self.owns_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def cluster(command, size, flags=(), certificates=None):
    """Members of a new cluster, all serving; gone afterwards."""
    ports, base = free_ports(2 * size), tempfile.mkdtemp(prefix="everwatch-cluster-")
    clients, peers = ports[:size], ports[size:]
    scheme = "https" if certificates else "http"
    initial = ",".join(f"m{i}={scheme}://127.0.0.1:{peer}" for i, peer in enumerate(peers))
    members = [Server(command, f"m{i}", client, peer, initial, flags, base, certificates)
               for i, (client, peer) in enumerate(zip(clients, peers))]
    try:
        for member in members:
            member.spawn()
        for member in members:
            member.wait()
        yield members
    finally:
        for member in members:
            member.kill()
        shutil.rmtree(base, ignore_errors=True)
