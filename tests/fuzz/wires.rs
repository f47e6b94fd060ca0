//! Connections of clients, below their requests: gRPC whose lengths and flags are lies, HTTP/2 frames that nobody meant, and JSON
//! that is none, on plain connections and on ones of TLS, to real servers. Each call is answered by a status of gRPC, each
//! connection whose client has nothing more to say is closed, both before long; no thread of the server panics; and whoever comes
//! next is answered.
//!
//! Two servers serve all inputs of a run. What they are asked changes keys and leases, but neither users nor members.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use everwatch::client::{self, Client};
use everwatch::pb::etcdserverpb as pb;
use everwatch::tls::{Dialer, Settings, ask_anybody};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use crate::engine::{Dice, Feed, mutated, outcome};
use crate::process::{PATIENCE, Server, Started, ask, runtime};
use crate::requests;

/// Every method that clients may call, but for those that would leave this member without a quorum or with users.
const METHODS: [&str; 48] = [
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
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/Authenticate",
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
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Proclaim",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/v3electionpb.Election/Resign",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];
/// Calls of these go on until their client gives them up, or until somebody else does something.
const GO_ON: [&str; 6] = [
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/v3lockpb.Lock/Lock",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Observe",
    "/grpc.health.v1.Health/Watch",
];
/// Of the gateway, and what is asked there.
const POSTS: [(&str, &str); 22] = [
    ("kv/range", r#"{"key":"YQ==","range_end":"Yg==","limit":"3","sort_order":"DESCEND"}"#),
    ("kv/put", r#"{"key":"YQ==","value":"Yg==","lease":"0","prev_kv":true}"#),
    ("kv/deleterange", r#"{"key":"YQ==","prevKv":true}"#),
    (
        "kv/txn",
        r#"{"compare":[{"result":"EQUAL","target":"VERSION","key":"YQ==","version":"1"}],"success":[{"requestPut":{"key":"YQ==","value":"Yg=="}}],"failure":[{"requestRange":{"key":"YQ=="}},{"requestTxn":{}}]}"#,
    ),
    ("kv/compaction", r#"{"revision":"2","physical":false}"#),
    ("watch", r#"{"create_request":{"key":"YQ==","start_revision":"1"}}{"progress_request":{}}"#),
    ("lease/grant", r#"{"TTL":"100","ID":"7"}"#),
    ("lease/revoke", r#"{"ID":"7"}"#),
    ("lease/keepalive", r#"{"ID":"7"}{"ID":"8"}"#),
    ("lease/timetolive", r#"{"ID":"7","keys":true}"#),
    ("lease/leases", "{}"),
    ("cluster/member/list", "{}"),
    ("maintenance/status", "{}"),
    ("maintenance/hash", r#"{"revision":"0"}"#),
    ("maintenance/snapshot", "{}"),
    ("auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("auth/user/add", r#"{"name":"a","password":"b","options":{"no_password":true}}"#),
    ("auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#),
    ("lock/lock", r#"{"name":"bg==","lease":"7"}"#),
    ("election/campaign", r#"{"name":"bg==","lease":"7","value":"dg=="}"#),
    ("election/observe", r#"{"name":"bg=="}"#),
    ("no/such/thing", "[]"),
];
/// Longest that a call is waited for which may go on.
const GLANCE: Duration = Duration::from_millis(3);

struct World {
    runtime: tokio::runtime::Runtime,
    /// Plain, and TLS.
    sides: [Side; 2],
    _root: tempfile::TempDir,
}

struct Side {
    server: Server,
    address: String,
    channel: Channel,
    tls: bool,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Stops the servers when it is dropped.
pub(crate) struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        WORLD.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn world() -> World {
    let root = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let sides = [false, true].map(|tls| {
        let own = root.path().join(if tls { "tls" } else { "plain" });
        std::fs::create_dir(&own).expect("a directory of its own");
        let Started::Serving(server) = Server::start_with(&runtime, &own, tls) else { panic!("a new member starts") };
        let address = server.address().to_owned();
        let dialer = Dialer::new(
            Settings { unverified: true, ..Settings::default() },
            &slog::Logger::root(slog::Discard, slog::o!()),
        );
        let dialer = dialer.expect("nothing to read");
        let channel = runtime.block_on(async {
            let url = format!("{}://{address}", if tls { "https" } else { "http" });
            Client::dialling(&[url], 1, &client::Settings::default(), &dialer).expect("our own URL").channel(0, 0)
        });
        Side { server, address, channel, tls }
    });
    World { runtime, sides, _root: root }
}

/// A message of a method, as its clients send it.
fn message(feed: &mut Feed<'_>, path: &str) -> Bytes {
    let known = requests::METHODS.iter().position(|known| *known == path);
    if let Some(method) = known.filter(|method| requests::is_written(*method)) {
        return requests::message(feed, method);
    }
    let name = || "a".to_owned();
    let key = || Bytes::from_static(b"a");
    let lease = feed.number();
    let bytes = match path.rsplit('/').next().expect("a path has pieces") {
        "Authenticate" => pb::AuthenticateRequest { name: name(), password: name() }.encode_to_vec(),
        "UserAdd" => pb::AuthUserAddRequest { name: name(), password: name(), ..Default::default() }.encode_to_vec(),
        "UserChangePassword" => {
            pb::AuthUserChangePasswordRequest { name: name(), password: name(), ..Default::default() }.encode_to_vec()
        }
        "UserGrantRole" | "UserRevokeRole" => {
            pb::AuthUserGrantRoleRequest { user: name(), role: name() }.encode_to_vec()
        }
        "RoleGrantPermission" => {
            let perm = everwatch::pb::authpb::Permission { perm_type: 2, key: key(), range_end: "b".into() };
            pb::AuthRoleGrantPermissionRequest { name: name(), perm: Some(perm) }.encode_to_vec()
        }
        "RoleRevokePermission" => {
            pb::AuthRoleRevokePermissionRequest { role: name(), key: key(), range_end: "b".into() }.encode_to_vec()
        }
        "UserGet" | "UserDelete" | "RoleAdd" | "RoleGet" | "RoleDelete" => {
            pb::AuthUserGetRequest { name: name() }.encode_to_vec()
        }
        // A name, a lease and a value are at the same places in all of these.
        "Lock" | "Campaign" | "Leader" | "Observe" => {
            everwatch::pb::v3electionpb::CampaignRequest { name: key(), lease, value: key() }.encode_to_vec()
        }
        "Unlock" => everwatch::pb::v3lockpb::UnlockRequest { key: key() }.encode_to_vec(),
        "Proclaim" | "Resign" => {
            let leader = everwatch::pb::v3electionpb::LeaderKey { name: key(), key: key(), rev: 1, lease };
            match path.ends_with("Resign") {
                true => everwatch::pb::v3electionpb::ResignRequest { leader: Some(leader) }.encode_to_vec(),
                false => {
                    let (leader, value) = (Some(leader), key());
                    everwatch::pb::v3electionpb::ProclaimRequest { leader, value }.encode_to_vec()
                }
            }
        }
        _ => feed.bytes(20),
    };
    if feed.one_in(3) {
        mutated(&mut Dice::new(feed.u64()), &bytes, b"\x0a\x01a\x12\x00", 400).into()
    } else {
        bytes.into()
    }
}

/// Messages as gRPC frames them, or not quite.
fn framed(feed: &mut Feed<'_>, path: &str) -> BytesMut {
    let mut body = BytesMut::new();
    for _ in 0..1 + feed.below(3) {
        let message = message(feed, path);
        body.put_u8(if feed.one_in(4) { feed.pick(&[1, 2, 0x80, 0xff]) } else { 0 });
        let len = message.len() as u32;
        body.put_u32(match feed.below(10) {
            0 => len.wrapping_add(1),
            1 => len.wrapping_sub(1),
            2 => feed.pick(&[0, u32::MAX, i32::MAX as u32, 1 << 24, (4 << 20) + 1]),
            _ => len,
        });
        body.put_slice(&message);
    }
    if feed.one_in(5) {
        body.truncate(feed.below(body.len() + 1));
    }
    body
}

/// A call whose HTTP is in order. What it came to.
fn call(world: &World, side: &Side, feed: &mut Feed<'_>) -> String {
    let path = feed.pick(&METHODS);
    let body = framed(feed, path).freeze();
    let mut request = Request::post(path).body(Body::new(Full::new(body))).expect("a request");
    let is_grpc = !feed.one_in(12);
    let kinds = ["application/json", "text/plain", "", "application/grpc-web", "APPLICATION/GRPC"];
    let mut kind = if is_grpc { "application/grpc" } else { feed.pick(&kinds) };
    if is_grpc && feed.one_in(4) {
        kind = "application/grpc+proto";
    }
    let mut header = |name: &'static str, value: &'static str| {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    };
    header("content-type", kind);
    header("te", "trailers");
    if feed.one_in(3) {
        header("grpc-encoding", feed.pick(&["gzip", "identity", "deflate", "zstd", "", "no such"]));
    }
    if feed.one_in(4) {
        header("grpc-timeout", feed.pick(&["1n", "1S", "0m", "99999999H", "999999999H", "-1S", "S", "", "1x"]));
    }
    if feed.one_in(4) {
        header(
            feed.pick(&["token", "authorization"]),
            feed.pick(&["x", "Bearer ", "abcdefghijklmnop.9999999", ".", ""]),
        );
    }
    if feed.one_in(8) {
        header(
            feed.pick(&["grpc-accept-encoding", "hasleader", "x-bin", "content-length"]),
            feed.pick(&["true", "gzip,,", "%", "7"]),
        );
    }
    let mut channel = side.channel.clone();
    let calling = async {
        let service = channel.ready().await.expect("the server is there");
        let response = service.call(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let trailers = body.collect().await.map(|body| body.trailers().cloned().unwrap_or_default());
        Ok::<_, String>((parts, trailers))
    };
    let limit = if GO_ON.contains(&path) { GLANCE } else { PATIENCE };
    let answered = world.runtime.block_on(async { tokio::time::timeout(limit, calling).await });
    let answered = match answered {
        Err(_) if limit == GLANCE => return format!("{path} goes on"),
        Err(_) => panic!("{path} was not answered"),
        // The connection or the stream: what was sent is no HTTP, after all.
        Ok(Err(error)) => return format!("{path}: {}", crate::engine::gist(&error)),
        Ok(Ok(answered)) => answered,
    };
    let (parts, trailers) = answered;
    let told = Status::from_header_map(&parts.headers);
    let told = told.or_else(|| trailers.as_ref().ok().and_then(Status::from_header_map));
    if let Some(status) = told {
        return format!("{path} {:?}", status.code());
    }
    // A stream that was reset says so with its reason instead.
    let reset = trailers.is_err();
    assert!(reset || !is_grpc, "{path} was answered {} and no status: {:?}", parts.status, parts.headers);
    format!("{path} {} {reset}", parts.status)
}

/// A frame of HTTP/2.
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(text.len() as u8 & 0x7f);
        block.extend_from_slice(&text.as_bytes()[..text.len() & 0x7f]);
    }
}

/// What a client of HTTP/2 says, with frames in it that it should not send, and some bytes changed.
fn frames(feed: &mut Feed<'_>) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, 4, 0, 0, &[]);
    let mut stream = 1;
    for _ in 0..1 + feed.below(4) {
        let path = feed.pick(&METHODS);
        let mut block = Vec::new();
        for (name, value) in
            [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "m"), ("te", "trailers")]
        {
            if !feed.one_in(20) {
                field(&mut block, name, value);
            }
        }
        field(&mut block, "content-type", "application/grpc");
        let body = framed(feed, path);
        match feed.below(12) {
            // Headers in pieces, the last of which may not come.
            0 => {
                let half = block.len() / 2;
                frame(&mut out, 1, 0, stream, &block[..half]);
                (0..feed.below(200)).for_each(|_| frame(&mut out, 9, 0, stream, &[]));
                frame(&mut out, 9, feed.pick(&[0, 4]), stream, &block[half..]);
            }
            // Padding that is longer than the frame.
            1 => frame(&mut out, 1, 4 | 8, stream, &[&[feed.byte()], &block[..]].concat()),
            2 => frame(&mut out, 1, 4 | 0x20, stream, &[&stream.to_be_bytes()[..], &[9], &block].concat()),
            _ => frame(&mut out, 1, 4, stream, &block),
        }
        match feed.below(8) {
            0 => frame(&mut out, 0, 1 | 8, stream, &[&[feed.byte()], &body[..]].concat()),
            1 => (0..feed.below(100)).for_each(|_| frame(&mut out, 0, 0, stream, &[])),
            2 => frame(&mut out, 3, 0, stream, &[0, 0, 0, feed.byte() % 16]),
            _ => frame(&mut out, 0, u8::from(!feed.one_in(4)), stream, &body),
        }
        for _ in 0..feed.below(3) {
            let (kind, flags) = (feed.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99]), feed.byte());
            let payload = match kind {
                4 => [&[0, 1 + feed.byte() % 8], &(feed.u64() as u32).to_be_bytes()[..]].concat(),
                3 | 8 => (feed.u64() as u32).to_be_bytes().to_vec(),
                6 => vec![7; 8],
                _ => feed.bytes(40),
            };
            let on = feed.pick(&[0, 0, stream, stream, 2, stream + 100, 1 << 31, u32::MAX]);
            frame(&mut out, kind, flags, on, &payload);
        }
        stream += 2;
    }
    if feed.one_in(2) {
        return out;
    }
    mutated(&mut Dice::new(feed.u64()), &out, &feed.bytes(40), 1 << 16)
}

/// A request of HTTP/1, of which any part may be wrong; and whether it may go on when its client has gone. With bytes behind a request
/// nobody sees the end of the connection before the response has ended, and these end when somebody does something: as in Go.
fn post(feed: &mut Feed<'_>) -> (Vec<u8>, bool) {
    let (path, json) = feed.pick(&POSTS);
    let goes_on = ["watch", "lease/keepalive", "lock/lock", "election/campaign", "election/observe"].contains(&path);
    let mut body = json.as_bytes().to_vec();
    if feed.one_in(2) {
        let with = br#"{"a":[[[[[[{"\ud800\u0000":-1e999,"key":"*"null true"#;
        body = mutated(&mut Dice::new(feed.u64()), &body, with, 4000);
    }
    if feed.one_in(20) {
        let (opens, closes) = feed.pick(&[("[", "]"), (r#"{"success":[{"requestTxn":"#, "}]}"), (r#"{"a":"#, "}")]);
        let depth = feed.below(20_000);
        body = [opens.repeat(depth), "1".to_owned(), closes.repeat(depth)].concat().into_bytes();
    }
    let method = if feed.one_in(10) { feed.pick(&["GET", "PUT", "OPTIONS", "PRI", ""]) } else { "POST" };
    let prefix = if feed.one_in(10) { feed.pick(&["/v3beta/", "/v3alpha/", "/", "/v3//", "*"]) } else { "/v3/" };
    let mut out = format!("{method} {prefix}{path} HTTP/1.1\r\nhost: m\r\n").into_bytes();
    let mut len = body.len();
    if feed.one_in(6) {
        len = feed.pick(&[len + 1, len.saturating_sub(1), 0, usize::MAX]);
    }
    match feed.below(6) {
        0 => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            out.extend_from_slice(format!("{len:x}\r\n").as_bytes());
            out.extend_from_slice(&body);
            out.extend_from_slice(feed.pick(&[&b"\r\n0\r\n\r\n"[..], b"\r\n", b"0"]));
        }
        1 => {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&body);
        }
        _ => {
            out.extend_from_slice(format!("content-length: {len}\r\n").as_bytes());
            if feed.one_in(4) {
                let odd =
                    ["connection: close\r\n", "expect: 100-continue\r\n", "authorization: x\r\n", "upgrade: h2c\r\n"];
                out.extend_from_slice(feed.pick(&odd).as_bytes());
            }
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&body);
        }
    }
    let out = if feed.one_in(6) { mutated(&mut Dice::new(feed.u64()), &out, b"\r\n\r\nPOST ", 1 << 16) } else { out };
    (out, goes_on)
}

/// Says all of it and that this is all. What comes back, until the server has closed the connection; if that may take long, what comes at
/// once.
fn say(side: &Side, bytes: &[u8], goes_on: bool) -> Vec<u8> {
    let stream = TcpStream::connect(&side.address).expect("it listens");
    // The handshake is no glance.
    let limit = if goes_on { 10 * GLANCE } else { PATIENCE };
    stream.set_read_timeout(Some(limit)).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    let end = stream.try_clone().expect("a socket");
    if !side.tls {
        return exchange(stream, &end, bytes, goes_on);
    }
    exchange(ask_anybody("localhost", stream).expect("a name"), &end, bytes, goes_on)
}

fn exchange(mut stream: impl Read + Write, end: &TcpStream, bytes: &[u8], goes_on: bool) -> Vec<u8> {
    // It may have heard enough before the end.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    let _ = end.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let late = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!late || goes_on, "the connection was not closed: {} bytes came", answer.len());
    }
    answer
}

/// Whoever comes next is answered, on a connection that was there and on one of its own.
fn assert_well(world: &mut World) {
    for side in &mut world.sides {
        let request = pb::RangeRequest { key: "a".into(), count_only: true, ..Default::default() };
        let asking = ask(side.channel.clone(), METHODS[0], request.encode_to_vec().into());
        let answer = world.runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await });
        let said = side.server.said();
        let answer = answer.unwrap_or_else(|_| panic!("the server does not answer: {said}"));
        answer.unwrap_or_else(|status| panic!("the server refuses: {status}: {said}"));
        side.server.assert_sound();
    }
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut held = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let world = held.get_or_insert_with(world);
    let mut feed = Feed::new(input);
    let mut seen = Vec::new();
    for _ in 0..4 {
        if feed.is_empty() {
            break;
        }
        let side = &world.sides[feed.below(2)];
        seen.push(match feed.below(3) {
            0 => call(world, side, &mut feed),
            1 => {
                let answer = say(side, &frames(&mut feed), false);
                // Which frames came, each once.
                let mut kinds: Vec<u8> = Vec::new();
                let mut rest = &answer[..];
                while let [a, b, c, kind, _, _, _, _, _, more @ ..] = rest {
                    kinds.push(*kind);
                    rest = more.get(u32::from_be_bytes([0, *a, *b, *c]) as usize..).unwrap_or_default();
                }
                kinds.sort_unstable();
                kinds.dedup();
                format!("frames {kinds:?}")
            }
            _ => {
                let (bytes, goes_on) = post(&mut feed);
                let answer = say(side, &bytes, goes_on);
                let head = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let head = String::from_utf8_lossy(head).into_owned();
                // HTTP/2, if what was said looks like that.
                let is_http = head.starts_with("HTTP/1.") || answer.is_empty() || answer[3..].first() == Some(&4);
                assert!(is_http, "{head}");
                head
            }
        });
    }
    assert_well(world);
    seen.truncate(1);
    outcome(seen)
}
