//! A: users, roles and tokens, and what they mean for watches and for every method there is.

use std::collections::BTreeMap;

use everwatch::metrics::{CallKind, METHODS};
use everwatch::pb::authpb::Permission;
use everwatch::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ResignRequest};
use everwatch::pb::v3lockpb::{LockRequest, UnlockRequest};
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;

use super::*;

const FLAGS: &[&str] = &["--bcrypt-cost", "4"];
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
const READ: i32 = 0;
const READWRITE: i32 = 2;

/// Messages as their bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(out, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(from)];
        bytes::Buf::copy_to_slice(from, &mut item);
        Ok(Some(item))
    }
}

fn with_token<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", MetadataValue::try_from(token).expect("visible text"));
    }
    request
}

/// The first answer of a call by whoever has this token.
async fn call(channel: &Channel, path: &str, message: Vec<u8>, token: Option<&str>) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.expect("the server listens");
    let path: http::uri::PathAndQuery = path.parse().expect("a path");
    let (service, name) = path.path()[1..].split_once('/').expect("a method");
    let kind = METHODS.iter().find(|method| (method.0, method.1) == (service, name)).expect("a method we know").2;
    let answers = async {
        let message = tokio_stream::once(message);
        let response = if kind == CallKind::BidiStream {
            // It stays open, so that the stream of answers does.
            grpc.streaming(with_token(message.chain(tokio_stream::pending()), token), path, Raw).await?
        } else {
            grpc.streaming(with_token(message, token), path, Raw).await?
        };
        response.into_inner().message().await
    };
    let answer = tokio::time::timeout(PATIENCE, answers).await.expect("an answer in time")?;
    Ok(answer.unwrap_or_default())
}

/// A server with users, all of whose passwords are `secret`.
struct Users {
    client: Client,
    tokens: BTreeMap<String, String>,
}

impl Users {
    async fn new() -> Users {
        Users::with(FLAGS).await
    }

    async fn with(flags: &'static [&'static str]) -> Users {
        Users::on(Server::start_with(flags)).await
    }

    async fn on(server: Arc<Server>) -> Users {
        let client = Client::on(server).await;
        let users = Users { client, tokens: BTreeMap::new() };
        users.add("root", &[]).await;
        users.auth("UserGrantRole", pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() }).await;
        users
    }

    async fn ask<M: Message, R: Message + Default>(&self, user: &str, path: &str, message: M) -> Result<R, Status> {
        let token = self.tokens.get(user).map(String::as_str);
        let answer = call(&self.client.channel, path, message.encode_to_vec(), token).await?;
        Ok(R::decode(&answer[..]).expect("a message"))
    }

    /// What root manages; nobody does before auth is on.
    async fn auth(&self, method: &str, message: impl Message) {
        let path = format!("/etcdserverpb.Auth/{method}");
        let outcome = self.ask::<_, pb::AuthEnableResponse>("root", &path, message).await;
        outcome.unwrap_or_else(|status| panic!("{method}: {status}"));
    }

    async fn add(&self, name: &str, roles: &[&str]) {
        let password = "secret".into();
        self.auth("UserAdd", pb::AuthUserAddRequest { name: name.into(), password, ..Default::default() }).await;
        for role in roles {
            self.auth("UserGrantRole", pb::AuthUserGrantRoleRequest { user: name.into(), role: (*role).into() }).await;
        }
    }

    async fn role(&self, name: &str, perm_type: i32, key: bytes::Bytes, range_end: bytes::Bytes) {
        self.auth("RoleAdd", pb::AuthRoleAddRequest { name: name.into() }).await;
        let perm = Some(Permission { perm_type, key, range_end });
        self.auth("RoleGrantPermission", pb::AuthRoleGrantPermissionRequest { name: name.into(), perm }).await;
    }

    async fn enable(&mut self) {
        self.auth("AuthEnable", pb::AuthEnableRequest {}).await;
        self.login("root").await.expect("root logs in");
    }

    async fn login(&mut self, name: &str) -> Result<(), Status> {
        let request = pb::AuthenticateRequest { name: name.into(), password: "secret".into() };
        let response: pb::AuthenticateResponse = self.ask("nobody", "/etcdserverpb.Auth/Authenticate", request).await?;
        self.tokens.insert(name.into(), response.token);
        Ok(())
    }

    async fn put(&self, user: &str, key: &str) -> Result<i64, Status> {
        let request = self.client.put_request(key, "v");
        let response: pb::PutResponse = self.ask(user, "/etcdserverpb.KV/Put", request).await?;
        Ok(response.header.expect("a header").revision)
    }

    async fn range(&self, user: &str, key: &str) -> Result<i64, Status> {
        let request = RangeRequest { key: self.client.key(key), ..Default::default() };
        let response: pb::RangeResponse = self.ask(user, "/etcdserverpb.KV/Range", request).await?;
        Ok(response.count)
    }

    fn stream(&self, user: &str) -> Stream {
        self.client.stream_as(self.tokens.get(user).map(String::as_str))
    }
}

/// Why the next watcher is not there.
async fn refused(stream: &mut Stream, create: WatchCreateRequest) -> String {
    stream.ask(create);
    let response = stream.next().await;
    assert!(response.created && response.canceled && response.watch_id == -1, "{response:?}");
    response.cancel_reason
}

async fn created(stream: &mut Stream, create: WatchCreateRequest) -> i64 {
    stream.ask(create);
    let response = stream.next().await;
    assert!(response.created && !response.canceled, "{response:?}");
    response.watch_id
}

/// With a user `u` who may read the one key foo.
async fn reader_of_foo() -> Users {
    reader_with(FLAGS).await
}

async fn reader_with(flags: &'static [&'static str]) -> Users {
    let mut users = Users::with(flags).await;
    users.role("one", READ, users.client.key("foo"), bytes::Bytes::new()).await;
    users.add("u", &["one"]).await;
    users.enable().await;
    users.login("u").await.expect("he has a password");
    users
}

/// One key is not all keys from there on (GHSA-xg4h-6gfc-h4m8).
#[tokio::test]
async fn a01_a02_a03_a04_a_watch_needs_to_read_all_of_its_range() {
    let users = reader_of_foo().await;
    let (client, mut stream) = (&users.client, users.stream("u"));
    assert_eq!(refused(&mut stream, client.one("bar")).await, DENIED);
    assert_eq!(created(&mut stream, client.one("foo")).await, 0);
    let open = WatchCreateRequest { key: client.key("foo"), range_end: "\0".into(), ..Default::default() };
    let prefix = WatchCreateRequest { key: client.key("foo"), range_end: client.key("fop"), ..Default::default() };
    let all = WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
    for more in [&open, &prefix, &all] {
        assert_eq!(refused(&mut stream, more.clone()).await, DENIED, "{more:?}");
    }
    users.put("root", "foo1").await.expect("root may");
    let revision = users.put("root", "foo").await.expect("root may");
    assert_eq!(stream.events().await, [format!("put foo=v @{revision} c{revision} v1")]);

    users.role("prefix", READ, client.key("foo"), client.key("fop")).await;
    users.auth("UserGrantRole", pb::AuthUserGrantRoleRequest { user: "u".into(), role: "prefix".into() }).await;
    assert_eq!(created(&mut stream, prefix).await, 1);
    assert_eq!(refused(&mut stream, all.clone()).await, DENIED);
    users.role("all", READ, "\0".into(), "\0".into()).await;
    users.auth("UserGrantRole", pb::AuthUserGrantRoleRequest { user: "u".into(), role: "all".into() }).await;
    assert_eq!(created(&mut stream, all).await, 2);
}

#[tokio::test]
async fn a05_who_does_not_say_who_he_is_is_told_so() {
    let mut users = reader_of_foo().await;
    users.tokens.insert("bad".into(), "nonsense.1".into());
    let foo = users.client.one("foo");
    let reason = refused(&mut users.stream("bad"), foo.clone()).await;
    assert_eq!(reason, "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token");
    let reason = refused(&mut users.stream("nobody"), foo.clone()).await;
    assert_eq!(reason, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
    // A token that is void says the same as one that never was: its client logs in again.
    let mut stream = users.stream("u");
    created(&mut stream, foo.clone()).await;
    users.auth("UserDelete", pb::AuthUserDeleteRequest { name: "u".into() }).await;
    assert!(stream.next().await.canceled);
    assert!(refused(&mut stream, foo).await.contains("invalid auth token"));
}

#[tokio::test]
async fn a06_a07_a_watcher_that_runs_outlives_its_grant_and_auth_if_that_is_wanted() {
    let users = reader_with(&["--bcrypt-cost=4", "--watch-outlives-rights"]).await;
    let foo = users.client.one("foo");
    let mut stream = users.stream("u");
    created(&mut stream, foo.clone()).await;
    users.auth("UserRevokeRole", pb::AuthUserRevokeRoleRequest { name: "u".into(), role: "one".into() }).await;
    let first = users.put("root", "foo").await.expect("root may");
    assert_eq!(stream.events().await, [format!("put foo=v @{first} c{first} v1")]);
    assert_eq!(refused(&mut stream, foo.clone()).await, DENIED);

    users.auth("AuthDisable", pb::AuthDisableRequest {}).await;
    assert_eq!(created(&mut users.stream("nobody"), foo).await, 0);
    users.put("nobody", "foo").await.expect("nobody is asked");
    assert_eq!(stream.events().await, [format!("put foo=v @{} c{first} v2", first + 1)]);
}

#[tokio::test]
async fn a_watcher_that_runs_ends_with_its_grant_and_its_user_and_goes_on_without_auth() {
    let users = reader_of_foo().await;
    let grant = |role: &str| pb::AuthUserGrantRoleRequest { user: "u".into(), role: role.into() };
    users.role("two", READ, users.client.key("bar"), bytes::Bytes::new()).await;
    users.auth("UserGrantRole", grant("two")).await;
    let (mut stream, mut other) = (users.stream("u"), users.stream("root"));
    for (id, key) in ["foo", "bar"].into_iter().enumerate() {
        assert_eq!(created(&mut stream, users.client.one(key)).await, id as i64);
    }
    created(&mut other, users.client.one("foo")).await;
    users.auth("UserRevokeRole", pb::AuthUserRevokeRoleRequest { name: "u".into(), role: "one".into() }).await;
    let last = stream.next().await;
    assert_eq!((last.canceled, last.watch_id, last.cancel_reason.as_str()), (true, 0, DENIED));
    let foo = users.put("root", "foo").await.expect("root may");
    let bar = users.put("root", "bar").await.expect("root may");
    assert_eq!(stream.events().await, [format!("put bar=v @{bar} c{bar} v1")], "the first that comes");
    assert_eq!(other.events().await, [format!("put foo=v @{foo} c{foo} v1")]);
    // The same grant anew does not bring it back: its client asks again.
    users.auth("UserGrantRole", grant("one")).await;
    assert_eq!(created(&mut stream, users.client.one("foo")).await, 2);
    users.auth("UserDelete", pb::AuthUserDeleteRequest { name: "u".into() }).await;
    let mut ended = Vec::new();
    for _ in 0..2 {
        let response = stream.next().await;
        assert!(response.canceled && response.cancel_reason == DENIED, "{response:?}");
        ended.push(response.watch_id);
    }
    assert_eq!(ended, [1, 2]);

    users.auth("AuthDisable", pb::AuthDisableRequest {}).await;
    let foo = users.put("nobody", "foo").await.expect("nobody is asked");
    assert!(other.events().await[0].starts_with(&format!("put foo=v @{foo}")));
}

/// Turning auth on makes no auth revision. What changed while it was off begins to count all the same, and a stream on which a
/// watcher was created meanwhile is still its user's.
#[tokio::test]
async fn a_watcher_ends_when_auth_comes_on_again_and_its_grant_is_gone() {
    let mut users = reader_of_foo().await;
    let mut stream = users.stream("u");
    let foo = users.client.one("foo");
    assert_eq!(created(&mut stream, foo.clone()).await, 0);
    users.auth("AuthDisable", pb::AuthDisableRequest {}).await;
    users.tokens.clear();
    users.auth("UserRevokeRole", pb::AuthUserRevokeRoleRequest { name: "u".into(), role: "one".into() }).await;
    let revision = users.put("nobody", "foo").await.expect("nobody is asked");
    assert_eq!(stream.events().await, [format!("put foo=v @{revision} c{revision} v1")]);
    assert_eq!(created(&mut stream, foo).await, 1);
    users.enable().await;
    for id in [0, 1] {
        let last = stream.next().await;
        assert_eq!((last.canceled, last.watch_id, last.cancel_reason.as_str()), (true, id, DENIED));
    }
}

#[tokio::test]
async fn a08_root_hears_everything() {
    let users = reader_of_foo().await;
    let mut stream = users.stream("root");
    let all = WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
    created(&mut stream, all).await;
    for key in ["foo", "bar"] {
        let revision = users.put("root", key).await.expect("root may");
        assert_eq!(stream.events().await, [format!("put {key}=v @{revision} c{revision} v1")]);
    }
}

#[tokio::test]
async fn users_survive_a_crash_and_their_tokens_do_not_outlive_a_password() {
    let mut users = reader_of_foo().await;
    assert_eq!(users.range("u", "foo").await.expect("he may"), 0);
    let change = pb::AuthUserChangePasswordRequest { name: "u".into(), password: "other".into(), ..Default::default() };
    users.auth("UserChangePassword", change).await;
    let status = users.range("u", "foo").await.expect_err("his token is void");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "etcdserver: invalid auth token"));
    let status = users.login("u").await.expect_err("that is not his password any more");
    assert_eq!(status.message(), "etcdserver: authentication failed, invalid user ID or password");
    let change =
        pb::AuthUserChangePasswordRequest { name: "u".into(), password: "secret".into(), ..Default::default() };
    users.auth("UserChangePassword", change).await;

    users.client.server.crash_and_restart();
    let deadline = Instant::now() + PATIENCE;
    loop {
        users.client.channel =
            Channel::from_shared(users.client.server.url.clone()).expect("our own url").connect_lazy();
        // Until it listens.
        match users.range("nobody", "foo").await {
            Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => {
                assert_eq!(outcome.expect_err("auth is on").message(), "etcdserver: user name is empty");
                break;
            }
        }
    }
    users.login("u").await.expect("he is there again");
    assert_eq!(users.range("u", "foo").await.expect("he may"), 0);
    assert_eq!(users.put("u", "foo").await.expect_err("he may not").code(), Code::PermissionDenied);
}

/// `everwatchctl` with these arguments.
fn ctl(arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_everwatchctl"));
    command.args(arguments);
    command
}

#[tokio::test]
async fn the_control_tool_logs_in() {
    let users = reader_of_foo().await;
    let endpoints = format!("--endpoints={}", users.client.server.url);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("backup.db");
    let save = |login: &[&str]| {
        let line = ["snapshot", "save", file.to_str().expect("text"), &endpoints];
        let output = ctl(&[&line, login].concat()).output().expect("it runs");
        assert_eq!(output.status.success(), file.exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (login, why) in [
        (&[][..], "user name is empty"),
        (&["--user=root:wrong"], "authentication failed"),
        (&["--user=u:secret"], "permission denied"),
        // It is asked for, and nobody answers.
        (&["--user=root"], "authentication failed"),
    ] {
        let said = save(login);
        assert!(said.contains(why) && !file.exists(), "{login:?}: {said}");
    }
    assert_eq!(save(&["--user=root", "--password=secret"]), "");
    assert!(file.exists());

    users.put("root", "foo").await.expect("root may");
    let key = String::from_utf8(users.client.key("foo").to_vec()).expect("text");
    let mut watching = ctl(&["watch", &key, "--rev=1", "--user=u:secret", &endpoints]);
    let mut watching = watching.stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let mut seen = [0; 4];
    std::io::Read::read_exact(&mut watching.stdout.take().expect("a pipe"), &mut seen).expect("it says something");
    watching.kill().and_then(|()| watching.wait()).expect("it ends");
    assert_eq!(&seen, b"PUT\n");
}

/// CVE-2021-28235: what was asked for could be looked up, passwords among it. Neither what is kept has them nor what is logged, however
/// much that is.
#[tokio::test]
async fn no_password_is_written_anywhere() {
    let mut users = Users::on(Server::start_with(&["--bcrypt-cost=4", "--log-level=debug"])).await;
    let password = "needle-in-the-haystack";
    let add = pb::AuthUserAddRequest { name: "u".into(), password: password.into(), ..Default::default() };
    users.auth("UserAdd", add).await;
    let change =
        pb::AuthUserChangePasswordRequest { name: "u".into(), password: password.into(), ..Default::default() };
    users.auth("UserChangePassword", change).await;
    users.enable().await;
    let login = pb::AuthenticateRequest { name: "u".into(), password: password.into() };
    let logged_in: Result<pb::AuthenticateResponse, _> =
        users.ask("nobody", "/etcdserverpb.Auth/Authenticate", login).await;
    assert!(logged_in.is_ok());
    // The same by HTTP, and what somebody mistyped.
    for (name, status) in [("u", "200"), ("nobody", "400")] {
        let json = format!(r#"{{"name":"{name}","password":"{password}"}}"#);
        let head = format!("POST /v3/auth/authenticate HTTP/1.0\r\nHost: m0\r\nContent-Length: {}\r\n\r\n", json.len());
        let address = users.client.server.url.strip_prefix("http://").expect("our own url");
        let mut connection = std::net::TcpStream::connect(address).expect("it listens");
        connection.write_all((head + &json).as_bytes()).expect("a request");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.0 {status}")), "{answer}");
    }
    let (mut looked_at, mut directories) = (0, vec![users.client.server.data.path().to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("our own directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            looked_at += 1;
            let content = std::fs::read(&path).expect("our own file");
            assert!(!content.windows(password.len()).any(|part| part == password.as_bytes()), "{path:?}");
        }
    }
    assert!(looked_at >= 3, "the log of the process, the raft log and the backend");
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Nobody,
    BadToken,
    Denied,
    LetIn,
}
use Outcome::*;

fn outcome(path: &str, answer: Result<Vec<u8>, Status>) -> Outcome {
    let text = match answer {
        Err(status) => status.message().to_owned(),
        Ok(answer) if path.ends_with("Watch/Watch") => WatchResponse::decode(&answer[..]).expect("one").cancel_reason,
        Ok(_) => String::new(),
    };
    match text.rsplit("desc = ").next() {
        Some("etcdserver: user name is empty") => Nobody,
        Some("etcdserver: invalid auth token") => BadToken,
        Some("etcdserver: permission denied") => Denied,
        _ => LetIn,
    }
}

/// Who is let in, of nobody, a bad token, a user without roles, one whom it concerns, and root.
const ANYBODY: [Outcome; 5] = [LetIn; 5];
const USERS: [Outcome; 5] = [Nobody, BadToken, LetIn, LetIn, LetIn];
const CONCERNED: [Outcome; 5] = [Nobody, BadToken, Denied, LetIn, LetIn];
const ROOT: [Outcome; 5] = [Nobody, BadToken, Denied, Denied, LetIn];

/// A request for every method, and who may make it. Where root may, it is one that then fails for another reason, if there is any.
fn example(path: &str, key: bytes::Bytes) -> (Vec<u8>, [Outcome; 5]) {
    let name = String::from;
    let put = PutRequest { key: key.clone(), ..Default::default() };
    let create = WatchCreateRequest { key: key.clone(), ..Default::default() };
    match path.rsplit('/').next().expect("a method") {
        "Authenticate" => (pb::AuthenticateRequest::default().encode_to_vec(), ANYBODY),
        "Check" => (Vec::new(), ANYBODY),
        "Watch" if path.contains("Health") => (Vec::new(), ANYBODY),
        "MemberList" | "Status" => (Vec::new(), USERS),
        // There are some with keys that not every user may read.
        "LeaseLeases" => (Vec::new(), CONCERNED),
        "Alarm" => (pb::AlarmRequest::default().encode_to_vec(), USERS),
        "LeaseGrant" => (LeaseGrantRequest { ttl: 60, id: 0 }.encode_to_vec(), USERS),
        "Range" | "RangeStream" => (RangeRequest { key, ..Default::default() }.encode_to_vec(), CONCERNED),
        "Put" => (put.encode_to_vec(), CONCERNED),
        "DeleteRange" => (DeleteRangeRequest { key, ..Default::default() }.encode_to_vec(), CONCERNED),
        "Txn" => {
            let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
            (TxnRequest { success, ..Default::default() }.encode_to_vec(), CONCERNED)
        }
        "Watch" => {
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            (request.encode_to_vec(), CONCERNED)
        }
        "LeaseRevoke" => (LeaseRevokeRequest { id: 71 }.encode_to_vec(), CONCERNED),
        "LeaseKeepAlive" => (pb::LeaseKeepAliveRequest { id: 72 }.encode_to_vec(), CONCERNED),
        "LeaseTimeToLive" => (pb::LeaseTimeToLiveRequest { id: 72, keys: true }.encode_to_vec(), CONCERNED),
        // With the lease it is always the same key, so that nobody waits for another.
        "Lock" => (LockRequest { name: key, lease: 72 }.encode_to_vec(), CONCERNED),
        "Unlock" => (UnlockRequest { key }.encode_to_vec(), CONCERNED),
        "Campaign" => (CampaignRequest { name: key, lease: 72, ..Default::default() }.encode_to_vec(), CONCERNED),
        // What is proclaimed comes after the leader's key, and may be nothing.
        "Proclaim" | "Resign" => {
            let leader = Some(LeaderKey { key, rev: 1, lease: 72, ..Default::default() });
            (ResignRequest { leader }.encode_to_vec(), CONCERNED)
        }
        "Leader" | "Observe" => (LeaderRequest { name: key }.encode_to_vec(), CONCERNED),
        "UserGet" => (pb::AuthUserGetRequest { name: name("right") }.encode_to_vec(), CONCERNED),
        "RoleGet" => (pb::AuthRoleGetRequest { role: name("app") }.encode_to_vec(), CONCERNED),
        "Compact" => (CompactionRequest { revision: 1 << 40, physical: false }.encode_to_vec(), ROOT),
        "MemberAdd" => {
            (MemberAddRequest { peer_ur_ls: vec![name("nonsense")], ..Default::default() }.encode_to_vec(), ROOT)
        }
        "MemberRemove" | "MemberPromote" => (MemberRemoveRequest { id: 1 }.encode_to_vec(), ROOT),
        "MemberUpdate" => {
            (MemberUpdateRequest { id: 1, peer_ur_ls: vec![name("http://127.0.0.1:1")] }.encode_to_vec(), ROOT)
        }
        "UserAdd" => (pb::AuthUserAddRequest { name: name("right"), ..Default::default() }.encode_to_vec(), ROOT),
        "UserDelete"
        | "UserChangePassword"
        | "UserGrantRole"
        | "UserRevokeRole"
        | "RoleDelete"
        | "RoleGrantPermission"
        | "RoleRevokePermission" => (pb::AuthUserDeleteRequest { name: name("ghost") }.encode_to_vec(), ROOT),
        "RoleAdd" => (pb::AuthRoleAddRequest { name: name("app") }.encode_to_vec(), ROOT),
        "Defragment" | "Hash" | "HashKV" | "Snapshot" | "MoveLeader" | "Downgrade" | "AuthEnable" | "AuthDisable"
        | "AuthStatus" | "UserList" | "RoleList" => (Vec::new(), ROOT),
        _ => panic!("{path} is new: who may call it?"),
    }
}

/// Every method there is, by everybody there is (CVE-2026-33413; what a lease has keys of is asked for as well: CVE-2023-32082).
#[tokio::test]
async fn every_method_asks_who_calls() {
    let mut users = Users::new().await;
    users.role("app", READWRITE, users.client.key(""), users.client.end()).await;
    users.add("wrong", &[]).await;
    users.add("right", &["app"]).await;
    for id in [71, 72] {
        users.client.lease.lease_grant(LeaseGrantRequest { ttl: 600, id }).await.expect("grant");
        let put = PutRequest { lease: id, ..users.client.put_request(&format!("leased{id}"), "v") };
        users.client.send_put(put).await;
    }
    users.enable().await;
    users.tokens.insert("bad".into(), "AAAAAAAAAAAAAAAA.1".into());
    for name in ["wrong", "right"] {
        users.login(name).await.expect("he has a password");
    }
    // Last, what makes everybody welcome.
    let mut methods: Vec<_> = METHODS.iter().collect();
    methods.sort_by_key(|(_, name, _)| *name == "AuthDisable");
    for (service, name, _) in methods {
        let path = format!("/{service}/{name}");
        let (request, expected) = example(&path, users.client.key("k"));
        for (user, expected) in ["nobody", "bad", "wrong", "right", "root"].into_iter().zip(expected) {
            let token = users.tokens.get(user).map(String::as_str);
            let answer = call(&users.client.channel, &path, request.clone(), token).await;
            assert_eq!(outcome(&path, answer.clone()), expected, "{path} by {user}: {answer:?}");
        }
    }
}
