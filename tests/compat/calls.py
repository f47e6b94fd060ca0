"""What the suites of foreign Python clients have in common: `etcd3_calls.py`, `etcd3gw_calls.py` and `aetcd_calls.py`.

A case is a function of what it needs, which asserts; each runs against three members of etcd and of Everwatch. One that fails with
etcd is told, and its failure is the client's: only what fails with Everwatch alone fails the suite. So does a call of the client that
no case has made.
"""

import argparse
import asyncio
import base64
import functools
import importlib.metadata
import inspect
import json
import signal
import sys
import time
import traceback
import urllib.error
import urllib.request

from server import cluster

CASE_S_MAX = 30
# Tried again so often while something is on its way.
AGAIN_AFTER_S = 0.05


def text(value):
    """As JSON has bytes."""
    return base64.b64encode(value.encode()).decode()


def post(member, path, body, token=None):
    headers = {"Authorization": token} if token else {}
    context = member.certificates.context("client") if member.certificates else None
    request = urllib.request.Request(f"{member.scheme}://{member.endpoint}/v3/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.read()}") from None


def admit(member):
    """Users that are asked who they are: root, and jane, who may read and write what begins with `jane/`."""
    for role, user in (("root", "root"), ("hers", "jane")):
        post(member, "auth/role/add", {"name": role})
        post(member, "auth/user/add", {"name": user, "password": f"{user}'s own"})
        post(member, "auth/user/grant", {"user": user, "role": role})
    post(member, "auth/role/grant", {"name": "hers", "perm": {"permType": "READWRITE", "key": text("jane/"), "range_end": text("jane0")}})
    post(member, "auth/enable", {})


def dismiss(member):
    """Nobody is asked any more, and there are no users."""
    token = post(member, "auth/authenticate", {"name": "root", "password": "root's own"})["token"]
    post(member, "auth/disable", {}, token)
    for role, user in (("root", "root"), ("hers", "jane")):
        post(member, "auth/user/delete", {"name": user})
        post(member, "auth/role/delete", {"role": role})


def eventually(done, seconds=15):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(AGAIN_AFTER_S)


def once_healthy(change, *refusals):
    """What a change of members gives: a cluster refuses it until its members have been connected for some seconds."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return change()
        except refusals:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def refused(error, call, *arguments, **more):
    """The error that a call ends with, which is of this kind."""
    try:
        answer = call(*arguments, **more)
    except error as refusal:
        return refusal
    raise AssertionError(f"not refused: {answer}")


class Calls:
    """Public methods and properties of some classes, and which of them were used."""

    def __init__(self, *classes):
        self.all, self.made = set(), set()
        for each in classes:
            for name, member in list(vars(each).items()):
                function = member.fget if isinstance(member, property) else member
                if name.startswith("_") or not inspect.isfunction(function):
                    continue
                call = f"{each.__name__}.{name}"
                self.all.add(call)
                counted = self.counted(function, call)
                setattr(each, name, property(counted) if isinstance(member, property) else counted)

    def counted(self, function, call):
        @functools.wraps(function)
        def counted(*arguments, **more):
            self.made.add(call)
            return function(*arguments, **more)
        return counted


def outcome(case, connect, members):
    """What went wrong, if anything."""
    def too_long(*_):
        raise TimeoutError(f"took longer than {CASE_S_MAX} s")

    async def with_client():
        async with connect(members[0]) as client:
            await case(client, members)

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(CASE_S_MAX)
    try:
        if inspect.iscoroutinefunction(case):
            asyncio.run(with_client())
        else:
            with connect(members[0]) as client:
                case(client, members)
        return None
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({at.name}, line {at.lineno}: {at.line})"
    finally:
        signal.alarm(0)


def run(package, calls, connect, cases):
    """Runs the cases; `connect` makes a client of a member, to be entered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", default="target/debug/everwatch")
    arguments = parser.parse_args()
    failed, both = 0, 0
    with cluster(arguments.left, 3) as etcd, cluster(arguments.right, 3) as ours:
        for case in cases:
            theirs, found = outcome(case, connect, etcd), outcome(case, connect, ours)
            name = case.__name__
            if theirs:
                both += bool(found)
                print(f"  {package} {name}: fails with etcd{', too' if found else ' only'}: {theirs}")
            elif found:
                failed += 1
                print(f"FAILED {package} {name}: {found}")
    if missing := sorted(calls.all - calls.made):
        failed += 1
        print(f"FAILED {package}: never called: {', '.join(missing)}")
    print(f"{package} {importlib.metadata.version(package)}: {len(cases)} cases, {len(calls.made)} of {len(calls.all)} calls; "
          f"{failed} failed with Everwatch, {both} with both")
    sys.exit(bool(failed))
