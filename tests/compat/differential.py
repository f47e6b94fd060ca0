"""Holds two servers against each other: the same conversation with each, then a comparison step by step.

    differential.py --left etcd --right target/debug/everwatch              the scripted conversation
    differential.py --left etcd --right everwatch --seed 7 --count 3000     a random one
    differential.py --left etcd --right everwatch --auth                    the one about users

With the same program on both sides there must be no difference at all (--same: intended differences do not apply).
A difference is fine only if intended.py lists it with its reason, and an entry that matches nothing fails the run.
"""

import argparse
import json
import sys
import threading
import time

import auth_talk
import conversation
import random_talk
from intended import ANY_ANSWER, INTENDED, INTENDED_OF_AUTH, INTENDED_OF_JWT, INSTEAD_OF_A_CRASH
from server import Server
from talk import Talk


def transcripts(commands, speak, flags, kind=Talk):
    """Both conversations at once, each with its own fresh server."""
    talks, errors = [None, None], []

    def side(number):
        try:
            with Server(commands[number], flags=flags) as server:
                talk = talks[number] = kind(server.endpoint)
                speak(talk)
                talk.close()
        except BaseException as error:  # a thread must not fail silently
            errors.append((commands[number], error))
            raise

    threads = [threading.Thread(target=side, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        for step in talks[1].steps[-12:] if talks[1] else ():
            print(f"{step.label}\n    {step.outcome!r:.300}")
        raise SystemExit(f"conversation with {errors[0][0]} broke off: {errors[0][1]!r}")
    return [talk.steps for talk in talks]


def difference(left, right, path=""):
    """Where two outcomes differ first, as (path, left, right), or None."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted(set(left) | set(right), key=str):
            found = difference(left.get(name), right.get(name), f"{path}.{name}")
            if found:
                return found
        return None
    if isinstance(left, list) and isinstance(right, list):
        for number, pair in enumerate(zip(left, right)):
            found = difference(*pair, f"{path}[{number}]")
            if found:
                return found
        if len(left) != len(right):
            return f"{path}.length", len(left), len(right)
        return None
    return None if left == right else (path, left, right)


def compare(left, right, intended):
    """All differences that are not intended, and the intended ones that did not occur."""
    unexpected, unused = [], dict(intended)
    for number, (a, b) in enumerate(zip(left, right)):
        if a.label != b.label:
            unexpected.append((f"step {number}", "label", a.label, b.label))
            break
        found = difference(a.outcome, b.outcome)
        if not found:
            continue
        wanted = intended.get(a.label)
        if wanted and wanted.right == b.outcome:
            unused.pop(a.label, None)
        else:
            unexpected.append((a.label, *found))
    if len(left) != len(right):
        unexpected.append(("the whole", "steps", len(left), len(right)))
    return unexpected, unused


def crash_requests(command, flags):
    """What ends an etcd 3.5.1 process must be refused by Everwatch, as intended.py says."""
    def alone(talk):
        talk.compacted = 1
        talk.section("fatal_to_etcd")
        conversation.fatal_to_etcd(talk)

    with Server(command, flags=flags) as server:
        talk = Talk(server.endpoint)
        alone(talk)
        talk.close()
    wanted = dict(INSTEAD_OF_A_CRASH)
    wrong = [(step.label, "", INSTEAD_OF_A_CRASH.get(step.label), step.outcome) for step in talk.steps
             if wanted.pop(step.label, None) not in (step.outcome, ANY_ANSWER)]
    return wrong + [(label, "never asked", outcome, None) for label, outcome in wanted.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", default="etcd")
    parser.add_argument("--right", required=True)
    parser.add_argument("--same", action="store_true", help="no difference is intended")
    parser.add_argument("--seed", type=int, help="a random conversation instead of the script")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--auth", action="store_true", help="the conversation about users instead of the script")
    parser.add_argument("--sections", help="only these sections of the script, by comma")
    parser.add_argument("--flag", action="append", default=[], help="one more flag for both servers")
    parser.add_argument("--show", type=int, default=40, help="print at most this many differences")
    parser.add_argument("--dump", help="write the right side's transcript to this file")
    parser.add_argument("--later", action="store_true", help="with services that are not there yet")
    arguments = parser.parse_args()

    kind, script = Talk, arguments.seed is None and not arguments.auth
    if arguments.auth:
        kind, speak = auth_talk.AuthTalk, auth_talk.speak
        kind.signed_tokens = any("auth-token=jwt" in flag for flag in arguments.flag)
        intended = {} if arguments.same else INTENDED_OF_JWT if kind.signed_tokens else INTENDED_OF_AUTH
        arguments.flag += ["--bcrypt-cost", "4"]
    elif arguments.seed is not None:
        intended = {}
        speak = lambda t: random_talk.speak(t, arguments.seed, arguments.count)  # noqa: E731
    else:
        intended = {} if arguments.same or arguments.sections else INTENDED
        sections = conversation.SECTIONS + (conversation.LATER_SECTIONS if arguments.later else ())
        if arguments.sections:
            names = arguments.sections.split(",")
            sections = [s for s in sections if s.__name__ in names]
        speak = lambda t: conversation.speak(t, sections)  # noqa: E731

    began = time.monotonic()
    left, right = transcripts((arguments.left, arguments.right), speak, arguments.flag, kind)
    if arguments.dump:
        with open(arguments.dump, "w") as out:
            for step in right:
                out.write(f"{step.label}\n    {json.dumps(step.outcome)}\n")
    unexpected, unused = compare(left, right, intended)
    if script and not (arguments.same or arguments.sections):
        unexpected += crash_requests(arguments.right, arguments.flag)
    for label, path, a, b in unexpected[:arguments.show]:
        print(f"DIFFERENT  {label}\n    at {path}\n    left  {a!r:.400}\n    right {b!r:.400}")
    for label, wanted in unused.items():
        print(f"UNUSED     {label}: no such difference any more ({wanted.reason})")
    what = f"seed {arguments.seed}" if arguments.seed is not None else "users" if arguments.auth else "script"
    print(f"{what}: {len(left)} requests and reports, {len(unexpected)} unexpected differences, "
          f"{len(intended) - len(unused)} intended ones, {len(unused)} unused; {time.monotonic() - began:.1f} s")
    sys.exit(1 if unexpected or unused else 0)


if __name__ == "__main__":
    main()
