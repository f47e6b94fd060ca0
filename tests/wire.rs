//! What a client sees on the wire, asked of a real server process: watches above all, and the basics of KV and leases.
//!
//! Tests are named after what they pin down and grouped by a letter, each letter with a file of its own: S stream, C create,
//! N cancel, E events, T txn, X filters, V prev_kv, G fragments, P progress, K compaction, L load, M members, A auth, W other clients. Here is what they share. Each uses keys
//! of its own. Tests that care about the store's revision have a server to themselves, the others share one. Nothing
//! sleeps: that something does *not* arrive is shown by a marker written afterwards which arrives first. Names begin with the
//! numbers of the cases in `tests/watch_cases.txt`, which says where each is.
//!
//! `EVERWATCH_BIN` names another server to test, real etcd 3.5.1 for example; where that differs on purpose the test
//! asks `is_etcd`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use everwatch::pb::etcdserverpb::{
    self as pb, CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use everwatch::pb::mvccpb::{Event, event::EventType};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long anything that must come may take. Long, because the machine may be busy; never waited out by a passing test.
const PATIENCE: Duration = Duration::from_secs(20);
/// Watch id of the marker watcher: far from any id a test uses.
const MARKER: i64 = 1 << 40;
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

fn binary() -> String {
    std::env::var("EVERWATCH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_everwatch").to_owned())
}

/// True when the server under test is etcd itself, which lacks what Everwatch does better.
fn is_etcd() -> bool {
    binary().rsplit('/').next() == Some("etcd")
}

/// A server process with its data directory; ends with the last test that uses it.
struct Server {
    child: Mutex<Child>,
    url: String,
    peer: String,
    data: tempfile::TempDir,
    flags: &'static [&'static str],
}

impl Server {
    fn start() -> Arc<Server> {
        Server::start_with(&[])
    }

    fn start_with(flags: &'static [&'static str]) -> Arc<Server> {
        let data = tempfile::tempdir().expect("a temporary directory");
        let (url, peer) = (free_url(), free_url());
        let child = Server::spawn(&url, &peer, data.path(), flags);
        Arc::new(Server { child: Mutex::new(child), url, peer, data, flags })
    }

    fn spawn(url: &str, peer: &str, data: &std::path::Path, flags: &[&str]) -> Child {
        Command::new(binary())
            .args(["--name", "m0", "--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("m0={peer}"), "--data-dir"])
            .arg(data.join("data"))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(data.join("log")).expect("a file"))
            .spawn()
            .expect("the server's binary starts")
    }

    /// Kills the process without warning and starts it again on the same data.
    fn crash_and_restart(&self) {
        let mut child = self.child.lock().expect("no test panicked in here");
        child.kill().expect("the process is ours");
        child.wait().expect("the process is ours");
        *child = Server::spawn(&self.url, &self.peer, self.data.path(), self.flags);
    }

    /// A metric without labels, as the server tells it now.
    fn metric(&self, name: &str) -> f64 {
        let address = self.url.strip_prefix("http://").expect("our own url");
        let mut connection = std::net::TcpStream::connect(address).expect("the server listens");
        connection.write_all(b"GET /metrics HTTP/1.0\r\nHost: m0\r\n\r\n").expect("a request");
        let mut text = String::new();
        connection.read_to_string(&mut text).expect("an answer");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name}")).trim().parse().expect("a number")
    }

    /// Memory of the process.
    fn resident_bytes(&self) -> u64 {
        let process = self.child.lock().expect("no test panicked in here").id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is ours");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        resident.expect("it is named").trim().parse::<u64>().expect("a number") << 10
    }

    /// The server that tests share while any of them runs.
    fn shared() -> Arc<Server> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let server = Server::start();
            *shared = Arc::downgrade(&server);
            server
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An address nobody listens on. Below the ports that the system gives to outgoing connections: one of those may take a port
/// between our look at it and the server's.
fn free_url() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let offset = u64::from(std::process::id()) * 199 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 10_000 + offset % 20_000);
        if TcpListener::bind(&address).is_ok() {
            return format!("http://{address}");
        }
    }
}

/// One test's view of a server: clients and a prefix of its own.
struct Client {
    server: Arc<Server>,
    channel: Channel,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    prefix: String,
    markers: u64,
}

impl Client {
    async fn on(server: Arc<Server>) -> Client {
        static TESTS: AtomicU64 = AtomicU64::new(0);
        let channel = Client::connect(&server).await;
        Client {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            prefix: format!("t{:03}/", TESTS.fetch_add(1, Ordering::Relaxed)),
            channel,
            server,
            markers: 0,
        }
    }

    /// Connects once the server answers a linearizable read, which is what "ready to serve client requests" means.
    async fn connect(server: &Server) -> Channel {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(channel) = Channel::from_shared(server.url.clone()).expect("our own url").connect().await {
                let probe = RangeRequest { key: "probe".into(), ..Default::default() };
                if KvClient::new(channel.clone()).range(probe).await.is_ok() {
                    return channel;
                }
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(server.data.path().join("log")).unwrap_or_default();
                panic!("the server does not come up; its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn reconnect(&mut self) {
        self.channel = Client::connect(&self.server).await;
        self.kv = KvClient::new(self.channel.clone());
        self.lease = LeaseClient::new(self.channel.clone());
    }

    fn key(&self, key: &str) -> bytes::Bytes {
        format!("{}{key}", self.prefix).into()
    }

    /// End of the test's own prefix.
    fn end(&self) -> bytes::Bytes {
        format!("{}0", &self.prefix[..self.prefix.len() - 1]).into()
    }

    fn put_request(&self, key: &str, value: &str) -> PutRequest {
        PutRequest { key: self.key(key), value: value.to_owned().into(), ..Default::default() }
    }

    async fn send_put(&mut self, request: PutRequest) -> i64 {
        let response = self.kv.put(request).await.expect("put").into_inner();
        response.header.expect("a header").revision
    }

    async fn put(&mut self, key: &str, value: &str) -> i64 {
        self.send_put(self.put_request(key, value)).await
    }

    async fn put_raw(&mut self, key: &'static [u8]) -> i64 {
        self.send_put(PutRequest { key: key.into(), ..Default::default() }).await
    }

    async fn delete(&mut self, key: &str) -> i64 {
        let request = DeleteRangeRequest { key: self.key(key), ..Default::default() };
        self.kv.delete_range(request).await.expect("delete").into_inner().header.expect("a header").revision
    }

    async fn delete_all(&mut self) -> i64 {
        let request = DeleteRangeRequest { key: self.key(""), range_end: self.end(), ..Default::default() };
        self.kv.delete_range(request).await.expect("delete").into_inner().header.expect("a header").revision
    }

    async fn txn(&mut self, success: Vec<RequestOp>) -> Result<i64, Status> {
        let response = self.kv.txn(TxnRequest { success, ..Default::default() }).await?.into_inner();
        Ok(response.header.expect("a header").revision)
    }

    async fn revision(&mut self) -> i64 {
        let request = RangeRequest { key: "none".into(), ..Default::default() };
        self.kv.range(request).await.expect("range").into_inner().header.expect("a header").revision
    }

    async fn compact(&mut self, revision: i64) {
        let request = CompactionRequest { revision, physical: true };
        self.kv.compact(request).await.expect("compact");
    }

    async fn grant(&mut self, ttl: i64) -> i64 {
        self.lease.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await.expect("grant").into_inner().id
    }

    fn stream(&self) -> Stream {
        self.stream_as(None)
    }

    /// A stream of whoever has this token.
    fn stream_as(&self, token: Option<&str>) -> Stream {
        let (send, requests) = mpsc::unbounded_channel();
        let (tell, responses) = mpsc::unbounded_channel();
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        let mut requests = tonic::Request::new(UnboundedReceiverStream::new(requests));
        if let Some(token) = token {
            requests.metadata_mut().insert("token", token.parse().expect("visible text"));
        }
        // etcd sends response headers with the first response only, so the call is awaited beside the test.
        tokio::spawn(async move {
            match client.watch(requests).await {
                Err(status) => drop(tell.send(Err(status))),
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    loop {
                        let next = stream.message().await;
                        let over = !matches!(next, Ok(Some(_)));
                        let Some(next) = next.transpose() else { return };
                        if tell.send(next).is_err() || over {
                            return;
                        }
                    }
                }
            }
        });
        Stream { send: Some(send), responses, prefix: self.prefix.clone(), marked: false }
    }

    /// Asks for a watcher of the test's whole prefix.
    fn everything(&self) -> WatchCreateRequest {
        WatchCreateRequest { key: self.key(""), range_end: self.end(), ..Default::default() }
    }

    fn one(&self, key: &str) -> WatchCreateRequest {
        WatchCreateRequest { key: self.key(key), ..Default::default() }
    }

    /// Everything the stream says before it reports a key written now.
    async fn before_marker(&mut self, stream: &mut Stream) -> Vec<WatchResponse> {
        let key = format!("~marker/{}", self.prefix);
        let mut early = Vec::new();
        if !stream.marked {
            stream.marked = true;
            stream.ask(WatchCreateRequest { key: key.clone().into(), watch_id: MARKER, ..Default::default() });
            early = stream.until(|response| response.created && response.watch_id == MARKER).await;
        }
        self.markers += 1;
        let value = self.markers.to_string();
        let written = self.send_put(PutRequest { key: key.into(), value: value.into(), ..Default::default() }).await;
        early.extend(stream.until(|r| r.watch_id == MARKER && r.events.iter().any(|e| modified(e) == written)).await);
        early.retain(|response| response.watch_id != MARKER);
        early
    }

    /// Asserts that the stream has nothing to say.
    async fn assert_quiet(&mut self, stream: &mut Stream) {
        let said = self.before_marker(stream).await;
        assert!(said.is_empty(), "nothing was to come, but: {said:?}");
    }

    /// All events of one watcher up to now, as text.
    async fn events_of(&mut self, stream: &mut Stream, id: i64) -> Vec<String> {
        let said = self.before_marker(stream).await;
        said.iter().filter(|r| r.watch_id == id).flat_map(|r| stream.show(r)).collect()
    }
}

/// One Watch RPC.
struct Stream {
    send: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    prefix: String,
    marked: bool,
}

impl Stream {
    fn request(&self, union: Option<RequestUnion>) {
        let send = self.send.as_ref().expect("the stream is not closed");
        send.send(WatchRequest { request_union: union }).expect("the stream is open");
    }

    fn ask(&self, create: WatchCreateRequest) {
        self.request(Some(RequestUnion::CreateRequest(create)));
    }

    fn ask_cancel(&self, watch_id: i64) {
        self.request(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })));
    }

    fn ask_progress(&self) {
        self.request(Some(RequestUnion::ProgressRequest(WatchProgressRequest {})));
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.recv()).await.expect("a response in time");
        let response = next.expect("the stream is open").expect("the stream goes on");
        let header = response.header.as_ref().expect("a header");
        assert!(header.cluster_id > 0 && header.member_id > 0 && header.raft_term > 0, "{header:?}");
        response
    }

    /// Responses up to the wanted one, without it.
    async fn until(&mut self, wanted: impl Fn(&WatchResponse) -> bool) -> Vec<WatchResponse> {
        let mut before = Vec::new();
        loop {
            let response = self.next().await;
            if wanted(&response) {
                return before;
            }
            before.push(response);
        }
    }

    /// Creates a watcher and returns the answer, which must be the next response.
    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(create);
        let response = self.next().await;
        assert!(response.created && response.events.is_empty(), "{response:?}");
        response
    }

    /// Creates a watcher that must be accepted under this id.
    async fn create_as(&mut self, create: WatchCreateRequest, id: i64) -> i64 {
        let response = self.create(create).await;
        assert_eq!((response.watch_id, response.canceled, response.compact_revision), (id, false, 0), "{response:?}");
        assert_eq!(response.cancel_reason, "");
        response.header.expect("a header").revision
    }

    /// Creates a watcher that must be refused with this reason.
    async fn create_refused(&mut self, create: WatchCreateRequest, reason: &str) {
        let response = self.create(create).await;
        assert_eq!((response.watch_id, response.canceled, response.compact_revision), (-1, true, 0));
        assert_eq!(response.cancel_reason, reason);
    }

    async fn cancel(&mut self, id: i64) -> WatchResponse {
        self.ask_cancel(id);
        let response = self.next().await;
        assert!(response.canceled && response.watch_id == id && response.events.is_empty(), "{response:?}");
        assert_eq!((response.cancel_reason.as_str(), response.compact_revision), ("", 0));
        response
    }

    /// Asks for progress until it is answered: etcd forgets the question while a watcher is behind.
    async fn progress(&mut self) -> (i64, Vec<WatchResponse>) {
        let mut before = Vec::new();
        loop {
            self.ask_progress();
            while let Ok(next) = tokio::time::timeout(Duration::from_millis(500), self.responses.recv()).await {
                let response = next.expect("the stream is open").expect("the stream goes on");
                if is_progress(&response) {
                    assert_eq!(response.watch_id, -1, "{response:?}");
                    return (response.header.expect("a header").revision, before);
                }
                before.push(response);
            }
        }
    }

    /// Events of the next responses until there are as many as wanted.
    async fn take(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await;
            assert!(!response.events.is_empty(), "{response:?}");
            events.extend(self.show(&response));
        }
        events
    }

    /// The events of the next response, which must be all of one revision.
    async fn events(&mut self) -> Vec<String> {
        let response = self.next().await;
        assert!(!response.canceled && !response.created && !response.events.is_empty(), "{response:?}");
        self.show(&response)
    }

    /// Events as text: `put k=v @5 c3 v2 l7 <- old`, `delete k @6`.
    fn show(&self, response: &WatchResponse) -> Vec<String> {
        let header = response.header.as_ref().expect("a header").revision;
        response
            .events
            .iter()
            .map(|event| {
                let kv = event.kv.as_ref().expect("an event has its key");
                assert!(header >= kv.mod_revision, "header {header} is below its event {}", kv.mod_revision);
                let key = String::from_utf8_lossy(&kv.key);
                let key = key.strip_prefix(&self.prefix).unwrap_or(&key);
                let mut text = if event.r#type() == EventType::Put {
                    let lease = if kv.lease == 0 { String::new() } else { format!(" l{}", kv.lease) };
                    let value = String::from_utf8_lossy(&kv.value);
                    format!("put {key}={value} @{} c{} v{}{lease}", kv.mod_revision, kv.create_revision, kv.version)
                } else {
                    assert_eq!(
                        (kv.create_revision, kv.version, kv.lease, kv.value.len()),
                        (0, 0, 0, 0),
                        "a delete is bare"
                    );
                    format!("delete {key} @{}", kv.mod_revision)
                };
                if let Some(previous) = &event.prev_kv {
                    text += &format!(" <- {}@{}", String::from_utf8_lossy(&previous.value), previous.mod_revision);
                }
                text
            })
            .collect()
    }
}

/// A connection with windows so small that what is not read stays in the server. Streams do not wait for each other's.
async fn narrow(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(server.url.clone()).expect("our own url");
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(16 * 65_535);
    endpoint.connect().await.expect("the server listens")
}

/// A stream that is read only when asked, with so many equal watchers.
async fn unread(channel: &Channel, create: WatchCreateRequest, watchers: usize) -> tonic::Streaming<WatchResponse> {
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::iter(vec![create; watchers]).chain(tokio_stream::pending());
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let mut stream = client.watch(requests).await.expect("watch").into_inner();
    for _ in 0..watchers {
        assert!(read(&mut stream).await.created);
    }
    stream
}

async fn read(stream: &mut tonic::Streaming<WatchResponse>) -> WatchResponse {
    let response = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a response in time");
    response.expect("the stream goes on").expect("the stream is open")
}

/// Runs all at once; the outcomes in their order.
async fn together<T>(parts: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut parts: Vec<_> = parts.map(|part| (Box::pin(part), None)).collect();
    std::future::poll_fn(|cx| {
        for (part, outcome) in parts.iter_mut().filter(|(_, outcome)| outcome.is_none()) {
            if let Poll::Ready(value) = part.as_mut().poll(cx) {
                *outcome = Some(value);
            }
        }
        if parts.iter().all(|(_, outcome)| outcome.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    parts.into_iter().map(|(_, outcome)| outcome.expect("all are done")).collect()
}

fn modified(event: &Event) -> i64 {
    event.kv.as_ref().expect("an event has its key").mod_revision
}

fn is_progress(response: &WatchResponse) -> bool {
    response.events.is_empty() && !response.created && !response.canceled
}

fn put_op(request: PutRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(request)) }
}

fn delete_op(key: bytes::Bytes, range_end: bytes::Bytes) -> RequestOp {
    RequestOp { request: Some(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })) }
}

fn txn_op(success: Vec<RequestOp>) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(TxnRequest { success, ..Default::default() })) }
}

/// `wire!(name, |c| ..)`: a test on the shared server; `wire!(alone name, |c| ..)`: on a server of its own;
/// `wire!(with [flags] name, |c| ..)`: on one that is started with these flags.
macro_rules! wire {
    (with [$($flag:literal),*] $name:ident, |$client:ident| $body:block) => {
        wire!(@ $name, Server::start_with(&[$($flag),*]), $client, $body);
    };
    (alone $name:ident, |$client:ident| $body:block) => { wire!(@ $name, Server::start(), $client, $body); };
    ($name:ident, |$client:ident| $body:block) => { wire!(@ $name, Server::shared(), $client, $body); };
    (@ $name:ident, $server:expr, $client:ident, $body:block) => {
        #[test]
        fn $name() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                #[allow(unused_mut)]
                let mut $client = Client::on($server).await;
                $body
            });
        }
    };
}

#[path = "wire/auth.rs"]
mod auth;
#[path = "wire/cancel.rs"]
mod cancel;
#[path = "wire/compaction.rs"]
mod compaction;
#[path = "wire/create.rs"]
mod create;
#[path = "wire/events.rs"]
mod events;
#[path = "wire/filters.rs"]
mod filters;
#[path = "wire/fragment.rs"]
mod fragment;
#[path = "wire/gateway.rs"]
mod gateway;
#[path = "wire/kv.rs"]
mod kv;
#[path = "wire/load.rs"]
mod load;
#[path = "wire/members.rs"]
mod members;
#[path = "wire/prev_kv.rs"]
mod prev_kv;
#[path = "wire/progress.rs"]
mod progress;
#[path = "processes/proxy.rs"]
mod proxy;
#[path = "wire/recipes.rs"]
mod recipes;
#[path = "wire/socket.rs"]
mod socket;
#[path = "wire/stream.rs"]
mod stream;
#[path = "wire/txn.rs"]
mod txn;
