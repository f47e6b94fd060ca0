//! Requests of clients: every method of the public API, with messages that are well-formed, odd, or not messages at all,
//! to a real server. No thread of it panics, it answers afterwards, and what is refused has changed nothing.
//!
//! One server serves all inputs of a run, so a failure may need those before it; keys and leases are few, so that it is
//! likely not to.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use everwatch::pb::etcdserverpb as pb;
use prost::Message;
use tonic::Code;
use tonic::transport::Channel;

use crate::engine::{Dice, Feed, mutated, outcome};
use crate::process::{PATIENCE, Server, Started, ask, call, runtime};

pub(crate) const METHODS: [&str; 43] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/Downgrade",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.Cluster/MemberPromote",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserDelete",
    "/etcdserverpb.Auth/UserChangePassword",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/UserRevokeRole",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/etcdserverpb.Auth/RoleDelete",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/grpc.health.v1.Health/Check",
    "/etcdserverpb.KV/NoSuchMethod",
    "/everwatchpb.Peer/Members",
    // Last: with no second voter to come, one that is added takes the quorum with it. Only what is no request goes there.
    "/etcdserverpb.Cluster/MemberAdd",
];
/// Methods drawn from the first so many half of the time: those that do most.
const BUSY: usize = 12;
const WATCH: usize = 5;
const ALARM: usize = 11;

struct World {
    runtime: tokio::runtime::Runtime,
    server: Server,
    channel: Channel,
    _root: tempfile::TempDir,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Stops the server when it is dropped.
pub(crate) struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        WORLD.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn world() -> World {
    let root = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let Started::Serving(server) = Server::start(&runtime, root.path()) else { panic!("a new member starts") };
    let channel = server.channel(&runtime);
    World { runtime, server, channel, _root: root }
}

fn key(feed: &mut Feed<'_>) -> Bytes {
    feed.pick(&["a", "b", "c", "aa", "\u{ff}", "", "\0"]).into()
}

fn end(feed: &mut Feed<'_>) -> Bytes {
    feed.pick(&["", "", "\0", "b", "c", "zz", "\0\0"]).into()
}

fn range(feed: &mut Feed<'_>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key(feed),
        range_end: end(feed),
        limit: feed.number(),
        revision: if feed.one_in(3) { feed.number() } else { 0 },
        sort_order: feed.below(5) as i32 - 1,
        sort_target: feed.below(7) as i32 - 1,
        serializable: feed.one_in(3),
        keys_only: feed.one_in(4),
        count_only: feed.one_in(4),
        min_mod_revision: if feed.one_in(4) { feed.number() } else { 0 },
        max_mod_revision: if feed.one_in(4) { feed.number() } else { 0 },
        min_create_revision: if feed.one_in(4) { feed.number() } else { 0 },
        max_create_revision: if feed.one_in(4) { feed.number() } else { 0 },
    }
}

fn put(feed: &mut Feed<'_>) -> pb::PutRequest {
    pb::PutRequest {
        key: key(feed),
        value: feed.bytes(6).into(),
        lease: if feed.one_in(4) { feed.number() } else { 0 },
        prev_kv: feed.one_in(3),
        ignore_value: feed.one_in(6),
        ignore_lease: feed.one_in(6),
    }
}

fn delete(feed: &mut Feed<'_>) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key(feed), range_end: end(feed), prev_kv: feed.one_in(3) }
}

fn txn(feed: &mut Feed<'_>, depth: usize) -> pb::TxnRequest {
    use pb::compare::TargetUnion;
    use pb::request_op::Request;
    let ops = |feed: &mut Feed<'_>| {
        let op = |feed: &mut Feed<'_>| pb::RequestOp {
            request: match feed.below(9) {
                0 | 1 => Some(Request::RequestRange(range(feed))),
                2 | 3 => Some(Request::RequestPut(put(feed))),
                4 => Some(Request::RequestDeleteRange(delete(feed))),
                5 | 6 if depth < 40 => Some(Request::RequestTxn(txn(feed, depth + 1))),
                _ => feed.one_in(8).then(|| Request::RequestPut(put(feed))),
            },
        };
        (0..feed.below(4)).map(|_| op(feed)).collect::<Vec<_>>()
    };
    let (success, failure) = (ops(feed), ops(feed));
    let compare = |feed: &mut Feed<'_>| pb::Compare {
        result: feed.below(6) as i32 - 1,
        target: feed.below(7) as i32 - 1,
        key: key(feed),
        range_end: end(feed),
        target_union: match feed.below(6) {
            0 => None,
            1 => Some(TargetUnion::Value(feed.bytes(4).into())),
            2 => Some(TargetUnion::Version(feed.number())),
            3 => Some(TargetUnion::CreateRevision(feed.number())),
            4 => Some(TargetUnion::ModRevision(feed.number())),
            _ => Some(TargetUnion::Lease(feed.number())),
        },
    };
    pb::TxnRequest { compare: (0..feed.below(3)).map(|_| compare(feed)).collect(), success, failure }
}

fn watch(feed: &mut Feed<'_>) -> pb::WatchRequest {
    use pb::watch_request::RequestUnion;
    let create = |feed: &mut Feed<'_>| pb::WatchCreateRequest {
        key: key(feed),
        range_end: end(feed),
        start_revision: feed.number(),
        progress_notify: feed.one_in(2),
        filters: (0..feed.below(3)).map(|_| feed.below(4) as i32 - 1).collect(),
        prev_kv: feed.one_in(2),
        watch_id: if feed.one_in(2) { feed.number() } else { 0 },
        fragment: feed.one_in(2),
    };
    let request_union = match feed.below(6) {
        0..=2 => Some(RequestUnion::CreateRequest(create(feed))),
        3 => Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: feed.number() })),
        4 => Some(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})),
        _ => None,
    };
    pb::WatchRequest { request_union }
}

pub(crate) fn message(feed: &mut Feed<'_>, method: usize) -> Bytes {
    let bytes = match method {
        0 | 22 => range(feed).encode_to_vec(),
        1 => put(feed).encode_to_vec(),
        2 => delete(feed).encode_to_vec(),
        3 => txn(feed, 0).encode_to_vec(),
        4 => pb::CompactionRequest { revision: feed.number(), physical: feed.one_in(2) }.encode_to_vec(),
        WATCH => watch(feed).encode_to_vec(),
        // Long leases: none ends while this runs, which would look like a change that nobody made.
        6 => pb::LeaseGrantRequest { id: feed.number(), ttl: 1_000_000 + feed.below(9_000_000_000) as i64 }
            .encode_to_vec(),
        ALARM => pb::AlarmRequest {
            action: feed.below(4) as i32,
            member_id: feed.number() as u64,
            alarm: feed.below(4) as i32,
        }
        .encode_to_vec(),
        7..=19 => [&[8u8][..], &varint(feed.number() as u64), &[16, feed.byte() & 1]].concat(),
        42 => b"\x0a\x05never".to_vec(),
        _ => feed.bytes(30),
    };
    match feed.below(3) {
        // Not of leases, which could become short ones, nor of a member to add.
        2 if method != 6 && method != 42 => {
            mutated(&mut Dice::new(feed.u64()), &bytes, b"\x0a\x01a\x12\x00", 400).into()
        }
        _ => bytes.into(),
    }
}

/// Whether its messages are more than bytes.
pub(crate) fn is_written(method: usize) -> bool {
    matches!(method, 0..20 | 22)
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

impl World {
    /// The revision, asked through the log: this also shows that the server answers.
    fn revision(&self) -> i64 {
        let request = pb::RangeRequest { key: "a".into(), count_only: true, ..Default::default() };
        let answer = self.runtime.block_on(ask(self.channel.clone(), METHODS[0], request.encode_to_vec().into()));
        let answer =
            answer.unwrap_or_else(|status| panic!("the server does not answer: {status}: {}", self.server.said()));
        pb::RangeResponse::decode(answer).expect("a response").header.expect("a header").revision
    }

    fn disarm(&self) {
        for alarm in [1, 2] {
            let request = pb::AlarmRequest { action: 2, member_id: 0, alarm };
            for member_id in self.armed() {
                let request = pb::AlarmRequest { member_id, ..request }.encode_to_vec().into();
                let _ = self.runtime.block_on(ask(self.channel.clone(), METHODS[ALARM], request));
            }
        }
    }

    fn armed(&self) -> Vec<u64> {
        let answer = self.runtime.block_on(ask(self.channel.clone(), METHODS[ALARM], Bytes::new()));
        let alarms = answer.ok().and_then(|answer| pb::AlarmResponse::decode(answer).ok()).map(|answer| answer.alarms);
        alarms.unwrap_or_default().iter().map(|alarm| alarm.member_id).collect()
    }

    /// What a call came to.
    fn call(&self, method: usize, messages: Vec<Bytes>) -> Code {
        let channel = self.channel.clone();
        self.runtime.block_on(async {
            let calling = async {
                let mut answers = call(channel, METHODS[method], messages).await?;
                if method == WATCH {
                    // A watch goes on; what has come is looked at, the rest is given up with the call.
                    let waiting = async {
                        while answers.message().await?.is_some() {}
                        Ok(())
                    };
                    return tokio::time::timeout(Duration::from_millis(3), waiting).await.unwrap_or(Ok(()));
                }
                while answers.message().await?.is_some() {}
                Ok::<(), tonic::Status>(())
            };
            match tokio::time::timeout(PATIENCE, calling).await {
                Ok(Ok(())) => Code::Ok,
                Ok(Err(status)) => status.code(),
                Err(_) => panic!("{} was not answered", METHODS[method]),
            }
        })
    }
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut held = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let world = held.get_or_insert_with(world);
    let mut feed = Feed::new(input);
    let mut seen = Vec::new();
    let mut revision = world.revision();
    for _ in 0..8 {
        if feed.is_empty() {
            break;
        }
        let method = if feed.one_in(2) { feed.below(METHODS.len()) } else { feed.below(BUSY) };
        let count = if matches!(METHODS[method], "/etcdserverpb.Watch/Watch" | "/etcdserverpb.Lease/LeaseKeepAlive") {
            1 + feed.below(6)
        } else {
            1
        };
        let messages = (0..count).map(|_| message(&mut feed, method)).collect();
        let code = world.call(method, messages);
        if method == ALARM {
            world.disarm();
        }
        let after = world.revision();
        assert!(after >= revision, "revisions do not go down");
        assert!(
            code == Code::Ok || after == revision,
            "{} was refused ({code:?}) and made revision {after}",
            METHODS[method]
        );
        assert!(code != Code::Unknown && code != Code::Cancelled, "{} ended {code:?}", METHODS[method]);
        revision = after;
        seen.push((method, code as i32));
    }
    world.server.assert_sound();
    seen.truncate(2);
    outcome(seen)
}
