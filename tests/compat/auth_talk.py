"""What is said about users, roles and tokens: a conversation of its own, for it changes what everything else means.

Every request is made as somebody: the label says who. Tokens differ from server to server and are a name in the transcript.
"""

import re

import grpc

from conversation import (ALL, AUTH, CLUSTER, KV, LEASE, MAINTENANCE, compare, op_delete, op_put, op_range, op_txn, prefix)
from stubs import authpb, pb
from talk import Talk

READ, WRITE, READWRITE = 0, 1, 2
TOKEN = re.compile(r"[A-Za-z]{16}\.\d+|eyJ[\w-]+\.[\w-]+\.[\w-]+")


class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends the present speaker's token with every call."""

    def __init__(self, talk):
        self.talk = talk

    def details(self, details):
        metadata = list(details.metadata or ()) + self.talk.metadata
        return details._replace(metadata=metadata)

    def intercept_unary_unary(self, next_call, details, request):
        return next_call(self.details(details), request)

    def intercept_stream_stream(self, next_call, details, requests):
        return next_call(self.details(details), requests)


class AuthTalk(Talk):
    """A talk in which somebody speaks."""

    # Signed tokens are of the auth revision at which they were made: the speaker logs in anew before every request.
    signed_tokens = False

    def __init__(self, endpoint):
        self.metadata, self.speaker, self.tokens, self.passwords = [], "nobody", {}, {}
        super().__init__(endpoint)
        self.channel = grpc.intercept_channel(self.channel, WithToken(self))

    def record(self, text, outcome):
        super().record(f"[{self.speaker}] {text}", outcome)

    def value(self, message, field, value):
        if field.name == "token" and isinstance(value, str) and TOKEN.fullmatch(value):
            return "TOKEN"
        return super().value(message, field, value)

    def call(self, method, request, **options):
        if self.signed_tokens and self.speaker in self.passwords:
            login = pb.AuthenticateRequest(name=self.speaker, password=self.passwords[self.speaker])
            try:
                self.tokens[self.speaker] = self.raw(AUTH + "Authenticate", login).token
            except grpc.RpcError:
                pass  # Whoever cannot any more uses what he has.
            self.speak_as(self.speaker)
        return super().call(method, request, **options)

    @staticmethod
    def refused(error, code_only):
        # 3.5.1 sends the error of its auth store as it stands.
        if error.details() == "auth: revision in header is old":
            return {"code": "INVALID_ARGUMENT", "message": "etcdserver: revision of auth store is old"}
        return Talk.refused(error, code_only)

    def speak_as(self, name, header="token"):
        """Whoever is named speaks from now on, with the token he got last."""
        token = self.tokens.get(name)
        self.speaker = name
        self.metadata = [] if token is None else [(header, token)]

    def login(self, name, password):
        """Logs somebody in. His token counts only if there is one."""
        response = self.auth("Authenticate", pb.AuthenticateRequest(name=name, password=password))
        if response is not None:
            self.tokens[name], self.passwords[name] = response.token, password

    def auth(self, method, request, **options):
        return self.call(AUTH + method, request, **options)

    def user_add(self, name, password="", **fields):
        return self.auth("UserAdd", pb.AuthUserAddRequest(name=name, password=password, **fields))

    def user_get(self, name):
        return self.auth("UserGet", pb.AuthUserGetRequest(name=name))

    def grant_role(self, user, role):
        return self.auth("UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role))

    def revoke_role(self, user, role):
        return self.auth("UserRevokeRole", pb.AuthUserRevokeRoleRequest(name=user, role=role))

    def role_add(self, name):
        return self.auth("RoleAdd", pb.AuthRoleAddRequest(name=name))

    def role_get(self, name):
        return self.auth("RoleGet", pb.AuthRoleGetRequest(role=name))

    def permit(self, role, kind, key, end=b""):
        permission = authpb.Permission(permType=kind, key=key, range_end=end)
        return self.auth("RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=role, perm=permission))

    def forbid(self, role, key, end=b""):
        return self.auth("RoleRevokePermission", pb.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end))

    def status(self):
        return self.auth("AuthStatus", pb.AuthStatusRequest())

    def lists(self):
        self.auth("UserList", pb.AuthUserListRequest())
        self.auth("RoleList", pb.AuthRoleListRequest())


def users(t):
    t.status()
    t.lists()
    t.login("alice", "secret")
    t.user_add("", "x")
    t.user_add("alice", "secret")
    t.user_add("alice", "other")
    t.user_add("bob", "secret", options=authpb.UserAddOptions(no_password=False))
    t.user_add("carol", "", options=authpb.UserAddOptions(no_password=True))
    t.user_add("carl", "ignored", options=authpb.UserAddOptions(no_password=True))
    t.user_add("empty", "")
    t.user_add("Ünïcode / name", "secret")
    t.status()
    for name in ("alice", "carol", "nobody", ""):
        t.user_get(name)
    t.lists()
    for name, password in (("alice", "secret"), ("nobody", "x"), ("carol", "x"), ("empty", ""), ("", "")):
        t.auth("UserChangePassword", pb.AuthUserChangePasswordRequest(name=name, password=password))
    t.status()
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="carl"))
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="carl"))
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name=""))
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="Ünïcode / name"))
    t.status()
    t.lists()


def roles(t):
    t.role_add("")
    t.role_add("app")
    t.role_add("app")
    t.role_add("zeta")
    t.role_add("audit")
    for name in ("app", "none", "", "root"):
        t.role_get(name)
    t.lists()
    t.auth("RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name="app"))
    t.permit("none", READ, b"a")
    t.permit("app", READWRITE, *prefix(b"app/"))
    t.permit("app", READ, b"config")
    t.permit("app", READ, b"config")
    t.permit("app", WRITE, b"config")
    t.permit("app", READ, b"b", b"c")
    t.permit("app", WRITE, b"a", b"b")
    t.permit("app", READ, b"z", b"\0")
    t.role_get("app")
    t.status()
    t.forbid("app", b"b")
    t.forbid("app", b"b", b"c")
    t.forbid("app", b"b", b"c")
    t.forbid("none", b"b", b"c")
    t.role_get("app")
    t.permit("audit", READ, *prefix(b"log/"))
    t.permit("audit", READ, b"app/one")
    t.permit("zeta", READ, b"m", b"p")
    t.permit("zeta", READ, b"p", b"q")
    t.status()
    for user, role in (("alice", "app"), ("alice", "app"), ("alice", "audit"), ("nobody", "app"), ("alice", "none"),
                       ("bob", "zeta"), ("bob", "audit"), ("", "app"), ("alice", "")):
        t.grant_role(user, role)
    t.user_get("alice")
    t.status()
    for user, role in (("bob", "audit"), ("bob", "audit"), ("nobody", "audit"), ("bob", "none")):
        t.revoke_role(user, role)
    t.user_get("bob")
    t.role_add("doomed")
    t.grant_role("bob", "doomed")
    t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="doomed"))
    t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="doomed"))
    t.user_get("bob")
    t.status()


def enabling(t):
    enable, disable = pb.AuthEnableRequest(), pb.AuthDisableRequest()
    t.auth("AuthEnable", enable)
    t.auth("AuthDisable", disable)
    t.user_add("root", "rootpw")
    t.auth("AuthEnable", enable)
    t.grant_role("root", "root")
    t.user_get("root")
    t.role_get("root")
    t.put(b"app/one", b"1")
    t.put(b"app/two", b"2")
    t.put(b"log/one", b"1")
    t.put(b"other", b"1")
    t.status()
    t.auth("AuthEnable", enable)
    t.auth("AuthEnable", enable)
    for name, password in (("root", "rootpw"), ("alice", "secret"), ("bob", "secret"), ("alice", "wrong"), ("alice", ""),
                           ("ghost", "x"), ("carol", "x"), ("carol", ""), ("empty", ""), ("", ""), ("alice", "Secret")):
        t.login(name, password)
    t.tokens["bad"] = "AAAAAAAAAAAAAAAA.1"
    t.tokens["bad without dot"] = "nonsense"
    t.speak_as("root")
    t.auth("AuthEnable", enable)
    t.status()
    t.role_add("root")
    t.lists()


EVERYBODY = ("nobody", "bad", "bad without dot", "alice", "bob", "root")


def reads_and_writes(t):
    for name in EVERYBODY:
        t.speak_as(name)
        for serializable in (False, True):
            t.range(b"app/one", serializable=serializable)
        t.range(*prefix(b"app/"))
        t.range(*ALL, count_only=True)
        t.range(b"config")
        t.range(b"zz", b"\0")
        t.range(b"y", b"\0")
        t.range(b"m", b"q")
        t.range(b"m", b"r")
        t.range(b"log/one", keys_only=True)
        t.put(b"config", b"x")
        t.put(b"config", b"x", prev_kv=True)
        t.put(b"app/one", b"x", prev_kv=True)
        t.put(b"log/one", b"x")
        t.put(b"other", b"x")
        t.put(b"", b"x")
        t.delete(b"app/none")
        t.delete(*prefix(b"app/none"), prev_kv=True)
        t.delete(b"log/none")
        t.delete(b"a", b"b")
        t.delete(b"a", b"b", prev_kv=True)
        t.delete(b"a", b"c")


def txns(t):
    for name in ("alice", "bob", "nobody", "root"):
        t.speak_as(name)
        t.txn(success=[op_range(b"app/one")])
        t.txn(success=[op_range(b"app/one")], failure=[op_range(b"other")])
        t.txn(compare=[compare(b"other", 0, 0, version=1)], success=[op_range(b"app/one")])
        t.txn(compare=[compare(b"app/", 0, 0, b"app0", version=1)], success=[op_range(b"app/one")])
        t.txn(success=[op_put(b"app/t", b"1"), op_range(b"app/t"), op_delete(b"app/t2", prev_kv=True)])
        t.txn(success=[op_put(b"app/t", b"1")], failure=[op_put(b"other", b"1")])
        t.txn(success=[op_delete(b"a", b"b")])
        t.txn(success=[op_delete(b"a", b"b", prev_kv=True)])
        if name in ("alice", "root"):
            t.txn(success=[op_txn(success=[op_put(b"app/n", b"1")], failure=[op_range(b"log/one")])])


def leases(t):
    t.speak_as("root")
    t.grant(300, 70)
    t.grant(300, 71)
    t.put(b"other", b"leased", lease=71)
    for name in ("alice", "bad", "root"):
        t.speak_as(name)
        t.grant(300, 72 if name == "alice" else 73)
        t.put(b"app/leased", b"1", lease=70)
        t.put(b"app/leased", b"1", lease=71)
        t.put(b"app/leased", b"1", lease=99)
    t.speak_as("root")
    t.put(b"app/leased", b"1", lease=70)
    for name in ("alice", "bob", "nobody", "root"):
        t.speak_as(name)
        t.revoke(71)
        if name != "nobody":
            t.revoke(70)
            t.revoke(98)
    t.speak_as("alice")
    t.keep_alive(72)
    t.ttl(72, keys=True)
    t.revoke(72)


def management(t):
    """Everything that only root may do, and what users may see of themselves."""
    for name in ("nobody", "bad", "alice", "root"):
        t.speak_as(name)
        t.status()
        t.lists()
        t.user_get("alice")
        t.user_get("bob")
        t.role_get("app")
        t.role_get("zeta")
        t.role_get("none")
        t.user_add("new", "x")
        t.auth("UserChangePassword", pb.AuthUserChangePasswordRequest(name="bob", password="secret"))
        t.role_add("newrole")
        t.permit("newrole", READ, b"x")
        t.grant_role("new", "newrole")
        t.forbid("newrole", b"x")
        t.revoke_role("new", "newrole")
        t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="newrole"))
        t.auth("UserDelete", pb.AuthUserDeleteRequest(name="new"))
        url = "nonsense" if name == "root" else "http://127.0.0.1:1"  # etcd looks at it first
        t.call(CLUSTER + "MemberAdd", pb.MemberAddRequest(peerURLs=[url]))
        t.call(CLUSTER + "MemberRemove", pb.MemberRemoveRequest(ID=1))
        if name != "root":  # etcd 3.5.1 does not answer
            t.call(CLUSTER + "MemberPromote", pb.MemberPromoteRequest(ID=1))
            t.call(CLUSTER + "MemberUpdate", pb.MemberUpdateRequest(ID=1, peerURLs=["http://127.0.0.1:1"]))
    for name in ("alice", "root"):
        t.speak_as(name)
        t.call(CLUSTER + "MemberList", pb.MemberListRequest(), only=("header",))
        t.call(MAINTENANCE + "Status", pb.StatusRequest(), only=("raft_term",))
    t.speak_as("root")
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="root"))
    t.revoke_role("root", "root")
    t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="root"))
    t.hash_kv()


def maintenance_denied(t):
    for name in ("nobody", "bad", "alice"):
        t.speak_as(name)
        t.call(MAINTENANCE + "HashKV", pb.HashKVRequest())
        t.call(MAINTENANCE + "Hash", pb.HashRequest())
        t.call(MAINTENANCE + "Defragment", pb.DefragmentRequest())


def tokens(t):
    t.speak_as("root")
    t.login("bob", "secret")
    t.speak_as("bob")
    t.range(b"m", b"q")
    t.speak_as("bob", "authorization")
    t.range(b"m", b"q")
    t.speak_as("root")
    t.permit("zeta", READ, b"zz")
    t.speak_as("bob")
    t.range(b"zz")
    t.speak_as("root")
    t.auth("UserChangePassword", pb.AuthUserChangePasswordRequest(name="bob", password="better"))
    t.speak_as("bob")
    t.range(b"zz")
    t.login("bob", "secret")
    t.login("bob", "better")
    t.speak_as("bob")
    t.range(b"zz")
    t.speak_as("root")
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="bob"))
    t.speak_as("bob")
    t.range(b"zz")
    t.login("bob", "better")
    t.speak_as("root")
    t.revoke_role("alice", "app")
    t.speak_as("alice")
    t.range(b"app/one")
    t.range(b"app/two")
    t.put(b"app/one", b"x")
    t.speak_as("root")
    t.grant_role("alice", "app")
    t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="audit"))
    t.speak_as("alice")
    t.range(b"log/one")
    t.range(b"app/two")
    t.user_get("alice")


def watches(t):
    t.speak_as("root")
    t.put(b"app/w", b"1")
    t.speak_as("alice")
    stream, denied = t.watch("of alice"), t.watch("of alice, denied")
    denied.create(b"other", watch_id=51)
    stream.create(b"app/w")
    stream.create(b"app/", b"app0")
    denied.create(b"app/", b"app1", watch_id=52)
    stream.create(b"zz", b"\0")
    denied.create(b"", b"\0", watch_id=53)
    denied.create(b"config", watch_id=54)
    t.speak_as("root")
    t.put(b"app/w", b"2")
    t.put(b"other", b"2")
    stream.until_events(0, 1)
    t.revoke_role("alice", "app")
    t.put(b"app/w", b"3")
    stream.until_events(0, 2)
    t.speak_as("alice")
    t.user_get("alice")
    revoked = t.watch("of alice, revoked")
    revoked.create(b"app/w")
    t.speak_as("root")
    t.grant_role("alice", "app")
    t.speak_as("alice")
    t.user_get("alice")
    again = t.watch("of alice again")
    again.create(b"app/w")
    t.speak_as("root")
    t.put(b"app/w", b"4")
    stream.until_events(0, 3)
    stream.until_events(1, 3)
    again.until_events(0, 1)
    stream.report()
    again.report()
    denied.report()
    revoked.report()
    for name in ("nobody", "bad", "root"):
        t.speak_as(name)
        stream = t.watch(f"of {name}")
        stream.create(*ALL)
        stream.create(b"app/w")
        stream.report()


def holes_of_etcd(t):
    """What etcd 3.5.1 lets through and should not. It changes nothing there that is looked at afterwards."""
    t.speak_as("alice")
    t.txn(success=[op_txn(success=[op_range(b"other")])])
    t.txn(success=[op_txn(failure=[op_put(b"other", b"nested")])])
    never = [compare(b"app/one", 0, 0, version=1 << 40)]
    t.txn(never, [op_put(b"config", b"1", prev_kv=True)])
    t.txn(never, [op_put(b"app/one", b"1", lease=73)])
    t.compact(2)
    t.call(MAINTENANCE + "Alarm", pb.AlarmRequest(action=2, alarm=1, memberID=t.member_id))
    t.speak_as("nobody")
    t.txn(success=[op_txn(success=[op_range(b"app/one")], failure=[op_range(b"log/one")])])
    t.txn()
    t.grant(300, 90)
    t.revoke(90)
    t.keep_alive(73)
    t.ttl(73, keys=True)
    t.leases_list()
    t.call(MAINTENANCE + "Alarm", pb.AlarmRequest())
    t.call(MAINTENANCE + "Status", pb.StatusRequest(), only=("raft_term",))
    t.call(MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=1))
    t.call(CLUSTER + "MemberList", pb.MemberListRequest(), only=("header",))
    t.compact(1)
    t.speak_as("bad")
    t.call(MAINTENANCE + "Status", pb.StatusRequest(), only=("raft_term",))
    t.call(CLUSTER + "MemberList", pb.MemberListRequest(), only=("header",))
    t.speak_as("root")
    t.role_get("root")
    t.role_add("odd")
    for key, end in ((b"", b""), (b"", b"\0"), (b"b", b"a"), (b"b", b"b"), (b"", b"b")):
        t.permit("odd", READ, key, end)
    t.auth("RoleDelete", pb.AuthRoleDeleteRequest(role="odd"))


def disabling(t):
    for name in ("nobody", "bad", "alice", "root"):
        t.speak_as(name)
        t.auth("AuthDisable", pb.AuthDisableRequest())
    t.speak_as("nobody")
    t.auth("AuthStatus", pb.AuthStatusRequest(), drop=("authRevision",))
    t.range(b"other")
    t.put(b"other", b"free")
    t.speak_as("root")
    t.range(b"other")
    t.put(b"other", b"with a token of before")
    t.speak_as("nobody")
    t.login("root", "rootpw")
    t.revoke_role("root", "root")
    t.auth("AuthEnable", pb.AuthEnableRequest())
    t.auth("UserDelete", pb.AuthUserDeleteRequest(name="root"))
    t.auth("AuthEnable", pb.AuthEnableRequest())
    t.lists()
    t.compact(t.revision)
    t.hash_kv()


SECTIONS = (users, roles, enabling, reads_and_writes, txns, management, maintenance_denied, leases, watches, tokens, holes_of_etcd,
            disabling)


def speak(t):
    """Says everything."""
    for section in SECTIONS:
        t.speak_as("nobody")
        t.section(section.__name__)
        section(t)
