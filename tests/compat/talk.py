"""One side of a differential conversation: sends requests, records what came back in a form that can be compared.

What differs between any two servers is normalised here, and nothing else is:
  * cluster, member and auto-assigned lease ids become names (CLUSTER, MEMBER, LEASE1, ...), a zero stays a zero;
  * lists that etcd keeps in hash maps (leases, keys of a lease) are sorted;
  * the raft term becomes TERM, and the remaining seconds of a lease become REMAINING when they are plausible;
  * watch responses are recorded per watch id; neighbouring event responses of one id are joined, because catch-up may
    pack several revisions into one message. That a revision is never torn apart is checked here on each side.
Everything else must be equal, field by field, including gRPC code and message.
"""

import itertools
import queue
import threading
import time

import grpc
from google.protobuf.message import DecodeError

from stubs import SERVICES, kvpb, pb

WAIT_S = 10
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
           ("grpc.use_local_subchannel_pool", 1)]
MARKER_ID = 1 << 20
ANY_TEXT = "(text of the gRPC library)"


def identity(data):
    return data


def short(data):
    """Bytes as a person reads them; long ones by length and both ends."""
    text = repr(bytes(data))[2:-1]
    return f"'{text}'" if len(text) <= 80 else f"'{text[:24]}...{text[-8:]}'({len(data)} bytes)"


class Step:
    """A request and its normalised outcome."""

    def __init__(self, label, outcome):
        self.label, self.outcome = label, outcome


class ServerGone(Exception):
    """The server does not answer any more; names the request before."""


class Talk:
    """Speaks to one endpoint and writes the transcript."""

    def __init__(self, endpoint):
        self.channel = grpc.insecure_channel(endpoint, options=CHANNEL)
        grpc.channel_ready_future(self.channel).result(WAIT_S)
        self.steps, self.section_name, self.labels = [], "", {}
        self.leases = {}
        status = self.raw("/etcdserverpb.Maintenance/Status", pb.StatusRequest())
        self.cluster_id, self.member_id = status.header.cluster_id, status.header.member_id
        self.revision = status.header.revision
        self.streams = []

    # -- transcript -------------------------------------------------------------------------------------------------

    def section(self, name):
        self.section_name = name

    def record(self, text, outcome):
        label = f"{self.section_name}: {text}"
        seen = self.labels[label] = self.labels.get(label, 0) + 1
        if seen > 1:
            label += f" (again, {seen})"
        self.steps.append(Step(label, outcome))
        refused = isinstance(outcome, dict) and outcome.get("code") == "UNAVAILABLE"
        if refused and not outcome["message"].startswith("etcdserver"):
            raise ServerGone(label)

    def raw(self, method, request, **options):
        return self.channel.unary_unary(method, request_serializer=lambda m: m.SerializeToString(),
                                        response_deserializer=SERVICES[method][1].FromString)(
                                            request, timeout=WAIT_S, **options)

    def call(self, method, request, only=None, drop=(), code_only=False, **options):
        """Sends a unary request, records it, returns the response or None if it was refused."""
        response, outcome = None, None
        try:
            response = self.raw(method, request, **options)
            if response.HasField("header"):
                self.revision = max(self.revision, response.header.revision)
            if isinstance(response, pb.LeaseGrantResponse) and request.ID == 0:
                self.leases[response.ID] = f"LEASE{len(self.leases) + 1}"
            outcome = self.plain(response)
            if only is not None:
                outcome = {k: v for k, v in outcome.items() if k in only}
            for field in drop:
                outcome.pop(field, None)
        except grpc.RpcError as error:
            outcome = self.refused(error, code_only)
        self.record(f"{method.rsplit('/', 1)[1]} {self.words(request)}".strip(), outcome)
        return response

    def send_bytes(self, method, data, code_only=True, stream=False):
        """Sends bytes that need not be a message."""
        try:
            if stream:
                answers = self.channel.stream_stream(method, identity, identity)(iter([data]), timeout=WAIT_S)
                answer = next(answers, None)
                answers.cancel()
            else:
                answer = self.channel.unary_unary(method, identity, identity)(data, timeout=WAIT_S)
            known = SERVICES.get(method)
            outcome = self.plain(known[1].FromString(answer)) if known and answer is not None else repr(answer)
        except DecodeError:
            outcome = "an answer this client cannot read"
        except grpc.RpcError as error:
            outcome = self.refused(error, code_only)
        self.record(f"{method} bytes {short(data)}", outcome)

    @staticmethod
    def refused(error, code_only):
        return {"code": error.code().name, "message": ANY_TEXT if code_only else error.details()}

    # -- normal form ------------------------------------------------------------------------------------------------

    def plain(self, message):
        """The set fields of a message as a dict, ids and terms replaced by names."""
        result = {}
        for field, value in message.ListFields():
            if field.is_repeated:
                result[field.name] = [self.value(message, field, item) for item in value]
            else:
                result[field.name] = self.value(message, field, value)
        if isinstance(message, pb.LeaseTimeToLiveResponse) and message.grantedTTL and message.TTL >= 0:
            slack = message.grantedTTL - message.TTL
            result["TTL"] = "REMAINING" if 0 <= slack <= max(5, message.grantedTTL // 20) else message.TTL
        for field in ("leases", "keys"):  # etcd keeps both in hash maps
            if field in result:
                result[field] = sorted(result[field], key=str)
        return result

    def value(self, message, field, value):
        if field.message_type is not None:
            return self.plain(value)
        if field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            return known.name if known else value
        if isinstance(value, bytes):
            return short(value)
        if isinstance(value, str):
            return value.replace(str(self.member_id), "MEMBER")
        return self.id_name(message, field.name, value)

    def id_name(self, message, name, value):
        if name == "cluster_id" and value == self.cluster_id:
            return "CLUSTER"
        if name in ("member_id", "memberID", "targetID", "leader") and value == self.member_id:
            return "MEMBER"
        if name == "ID" and isinstance(message, pb.Member) and value == self.member_id:
            return "MEMBER"
        if name in ("raft_term", "raftTerm"):
            return "TERM"
        if name in ("ID", "lease") and value in self.leases:
            return self.leases[value]
        return value

    def words(self, message):
        """A request in one line, for labels."""
        parts = []
        for field, value in message.ListFields():
            items = list(value) if field.is_repeated else [value]
            shown = [f"{{{self.words(i)}}}" if field.message_type else str(self.value(message, field, i)) for i in items]
            if len(shown) > 6:
                shown = shown[:2] + [f"... {len(shown)} in all"]
            parts.append(f"{field.name}=" + ",".join(shown))
        return " ".join(parts)

    # -- verbs ------------------------------------------------------------------------------------------------------

    def range(self, key=b"", end=b"", **fields):
        return self.call("/etcdserverpb.KV/Range", pb.RangeRequest(key=key, range_end=end, **fields))

    def put(self, key, value=b"", **fields):
        return self.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=value, **fields))

    def delete(self, key, end=b"", **fields):
        return self.call("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest(key=key, range_end=end, **fields))

    def txn(self, compare=(), success=(), failure=()):
        return self.call("/etcdserverpb.KV/Txn", pb.TxnRequest(compare=compare, success=success, failure=failure))

    def compact(self, revision, physical=True):
        return self.call("/etcdserverpb.KV/Compact", pb.CompactionRequest(revision=revision, physical=physical))

    def hash_kv(self, revision=0):
        return self.call("/etcdserverpb.Maintenance/HashKV", pb.HashKVRequest(revision=revision),
                         drop=("hash_revision",))  # a field of etcd 3.6

    def grant(self, ttl, lease=0):
        return self.call("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=ttl, ID=lease))

    def revoke(self, lease):
        return self.call("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))

    def ttl(self, lease, keys=False):
        return self.call("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease, keys=keys))

    def leases_list(self):
        return self.call("/etcdserverpb.Lease/LeaseLeases", pb.LeaseLeasesRequest())

    def keep_alive(self, *leases):
        """One stream, one keepalive per lease, one answer each."""
        method = "/etcdserverpb.Lease/LeaseKeepAlive"
        requests = [pb.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        answers = []
        try:
            call = self.channel.stream_stream(method, lambda m: m.SerializeToString(), SERVICES[method][1].FromString)
            for answer in call(iter(requests), timeout=WAIT_S):
                answers.append(self.plain(answer))
            answers.append("end of stream")
        except grpc.RpcError as error:
            answers.append(self.refused(error, False))
        self.record("LeaseKeepAlive " + " ; ".join(self.words(r) for r in requests), answers)

    def watch(self, name, metadata=None):
        stream = WatchStream(self, name, metadata)
        self.streams.append(stream)
        return stream

    def close(self):
        for stream in self.streams:
            stream.close()
        self.channel.close()


class WatchStream:
    """One Watch RPC. Nothing is recorded while it runs: report() writes what each watch id was told, in order."""

    def __init__(self, talk, name, metadata=None):
        self.talk, self.name = talk, name
        self.requests, self.ended = queue.Queue(), None
        self.lock, self.received = threading.Condition(), []
        self.markers = itertools.count(1)
        self.marker_made = False
        method = "/etcdserverpb.Watch/Watch"
        opened = talk.channel.stream_stream(method, lambda m: m.SerializeToString(), SERVICES[method][1].FromString)
        self.call = opened(iter(self.requests.get, None), metadata=metadata)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for response in self.call:
                with self.lock:
                    self.received.append(response)
                    self.lock.notify_all()
            end = "OK"
        except grpc.RpcError as error:
            end = f"{error.code().name} {error.details()}"
        with self.lock:
            self.ended = end
            self.lock.notify_all()

    # -- requests ---------------------------------------------------------------------------------------------------

    def create(self, key=b"", end=b"", wait=True, **fields):
        """Asks for a watcher and, unless told otherwise, waits for the answer. Returns its id (-1: refused)."""
        before = self.count(lambda r: r.created)
        self.requests.put(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, range_end=end, **fields)))
        if wait:
            self.until(lambda: self.count(lambda r: r.created) > before, "created")
            return [r for r in self.received if r.created][before].watch_id
        return None

    def cancel(self, watch_id, wait=True):
        before = self.count(lambda r: r.canceled)
        self.requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))
        if wait:
            self.until(lambda: self.count(lambda r: r.canceled) > before, "canceled")

    def empty_request(self):
        self.requests.put(pb.WatchRequest())

    def half_close(self):
        self.requests.put(None)

    def progress(self):
        """Asks for progress until an answer comes: etcd drops the request while any watcher is behind."""
        before = self.count(self.is_progress)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self.requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            if self.until(lambda: self.count(self.is_progress) > before, None, 0.25):
                break

    # -- waiting ----------------------------------------------------------------------------------------------------

    @staticmethod
    def is_progress(response):
        return not (response.events or response.created or response.canceled)

    def count(self, wanted):
        return sum(1 for r in self.received if wanted(r))

    def until(self, done, what, seconds=WAIT_S):
        """Waits for a condition. When it fails to come, says so in the transcript instead of stopping the talk."""
        with self.lock:
            came = self.lock.wait_for(lambda: done() or self.ended is not None, seconds) and done()
        if not came and what:
            self.talk.record(f"stream {self.name}: wait for {what}", f"did not come; stream ended: {self.ended}")
        return came

    def until_events(self, watch_id, count):
        self.until(lambda: sum(len(r.events) for r in self.received if r.watch_id == watch_id) >= count,
                   f"{count} events of watch {watch_id}")

    def settle(self):
        """Returns once a key written now has been seen on this stream, so everything live before it has been, too."""
        key = b"~marker/" + self.name.encode()
        if not self.marker_made:
            self.create(key, watch_id=MARKER_ID)
            self.marker_made = True
        value = str(next(self.markers)).encode()
        self.talk.raw("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=value))
        self.until(lambda: any(e.kv.value == value for r in self.received if r.watch_id == MARKER_ID for e in r.events),
                   "marker")

    def catch_up(self):
        """Returns when nothing more has come for a while after a marker: there is no better sign that a watcher with a
        start in the past has read all of it, since other watchers of the stream may lie in the future."""
        self.settle()
        heard = -1
        while heard != len(self.received):
            heard = len(self.received)
            time.sleep(0.25)

    # -- what was told ----------------------------------------------------------------------------------------------

    def report(self):
        """Writes one step: for each watch id its controls and events in order, and what broke the rules of the stream."""
        with self.lock:
            received = list(self.received)
        told, broken, torn, last = {}, [], {}, {}
        for response in received:
            watch_id = response.watch_id
            if watch_id == MARKER_ID:
                continue
            if self.is_progress(response):
                told.setdefault("progress", {})[f"of {watch_id} at {response.header.revision}"] = True
                continue
            lines = told.setdefault(watch_id, [])
            if response.created or response.canceled:
                lines.append(self.talk.plain(response))
            for event in response.events:
                if event.kv.key.startswith(b"~marker/"):
                    continue
                revision = event.kv.mod_revision
                if revision < last.get(watch_id, 0):
                    broken.append(f"watch {watch_id}: {revision} after {last[watch_id]}")
                if torn.get((watch_id, revision), id(response)) != id(response) and not lines[-1:] == ["fragment"]:
                    broken.append(f"watch {watch_id}: revision {revision} in two responses")
                torn[(watch_id, revision)] = id(response)
                last[watch_id] = revision
                lines.append(self.talk.plain(event))
            if response.events and response.header.revision < last.get(watch_id, 0):
                broken.append(f"watch {watch_id}: header {response.header.revision} below event {last[watch_id]}")
        told.pop("progress", None)
        self.talk.record(f"stream {self.name}", {
            **{f"watch {watch_id}": lines for watch_id, lines in told.items()}, "rules broken": broken, "ended": self.ended})

    def progress_revisions(self):
        return [(r.watch_id, r.header.revision) for r in self.received if self.is_progress(r)]

    def close(self):
        self.requests.put(None)
        self.call.cancel()
