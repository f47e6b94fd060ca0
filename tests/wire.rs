//! What a client sees on the wire, asked of a real server process: watches above all, and the basics of KV and leases.
//!
//! Tests are named after what they pin down and grouped by a letter: S stream, C create, N cancel, E events, T txn,
//! X filters, V prev_kv, P progress, K compaction, M members. Each uses keys of its own. Tests that care about the store's revision
//! have a server to themselves, the others share one. Nothing sleeps: that something does *not* arrive is shown by a
//! marker written afterwards which arrives first.
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
        let (send, requests) = mpsc::unbounded_channel();
        let (tell, responses) = mpsc::unbounded_channel();
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        // etcd sends response headers with the first response only, so the call is awaited beside the test.
        tokio::spawn(async move {
            match client.watch(UnboundedReceiverStream::new(requests)).await {
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

// ---- KV and leases -------------------------------------------------------------------------------------------------

wire!(alone kv_revisions_versions_and_prev_kv, |c| {
    assert_eq!(c.revision().await, 1);
    assert_eq!(c.put("a", "1").await, 2);
    let response = c.kv.put(PutRequest { prev_kv: true, ..c.put_request("a", "2") }).await.expect("put").into_inner();
    let previous = response.prev_kv.expect("it was asked for");
    assert_eq!((previous.create_revision, previous.mod_revision, previous.version), (2, 2, 1));
    assert_eq!(c.delete("none").await, 3, "deleting nothing is no revision");
    assert_eq!(c.delete("a").await, 4);
});

wire!(kv_errors_carry_etcds_code_and_text, |c| {
    let status = c.kv.put(PutRequest::default()).await.expect_err("no key");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    let status = c.kv.put(PutRequest { lease: 404, ..c.put_request("a", "1") }).await.expect_err("no lease");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let future = RangeRequest { key: c.key("a"), revision: 1 << 60, ..Default::default() };
    let status = c.kv.range(future).await.expect_err("future");
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(status.message(), "etcdserver: mvcc: required revision is a future revision");
});

wire!(kv_compare_and_swap, |c| {
    let created = c.put("a", "1").await;
    let compare = |revision| Compare {
        target: pb::compare::CompareTarget::Mod as i32,
        key: c.prefix.clone().into_bytes().into_iter().chain(*b"a").collect::<Vec<_>>().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    for (revision, succeeds) in [(created, true), (created, false)] {
        let request = TxnRequest {
            compare: vec![compare(revision)],
            success: vec![put_op(c.put_request("a", "2"))],
            ..Default::default()
        };
        assert_eq!(c.kv.clone().txn(request).await.expect("txn").into_inner().succeeded, succeeds);
    }
});

wire!(lease_revoke_deletes_keys_and_is_then_unknown, |c| {
    let lease = c.grant(60).await;
    c.send_put(PutRequest { lease, ..c.put_request("a", "1") }).await;
    c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke");
    let gone = RangeRequest { key: c.key("a"), ..Default::default() };
    assert_eq!(c.kv.range(gone).await.expect("range").into_inner().count, 0);
    let status = c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect_err("gone");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
});

wire!(keepalives_of_one_stream_are_answered_in_their_order, |c| {
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(c.grant(60).await);
        // Nobody has this one.
        ids.push(1);
    }
    let requests = tokio_stream::iter(ids.clone().into_iter().map(|id| pb::LeaseKeepAliveRequest { id }));
    let mut renewals = c.lease.lease_keep_alive(requests).await.expect("keep alive").into_inner();
    for id in ids {
        let renewal = renewals.message().await.expect("renewal").expect("one answer each");
        assert_eq!((renewal.id, renewal.ttl), (id, if id == 1 { 0 } else { 60 }));
    }
    assert!(renewals.message().await.expect("end").is_none());
});

wire!(a_client_we_did_not_write_puts_gets_and_watches, |c| {
    let mut client = etcd_client::Client::connect([c.server.url.clone()], None).await.expect("connect");
    let key = c.key("a").to_vec();
    let mut watch = client.watch(key.clone(), None).await.expect("watch");
    client.put(key.clone(), "1", None).await.expect("put");
    let response = client.get(key, None).await.expect("get");
    assert_eq!(response.kvs()[0].value(), b"1");
    loop {
        let message = watch.message().await.expect("watch").expect("watch goes on");
        if let Some(event) = message.events().first() {
            assert_eq!(event.kv().expect("kv").value(), b"1");
            break;
        }
    }
});

// ---- S: the stream -------------------------------------------------------------------------------------------------

wire!(s02_an_empty_request_is_ignored, |c| {
    let mut stream = c.stream();
    stream.request(None);
    stream.create_as(c.one("k"), 0).await;
});

wire!(s03_events_flow_after_half_close, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.send = None;
    let at = c.put("k", "1").await;
    assert_eq!(stream.events().await, [format!("put k=1 @{at} c{at} v1")]);
});

wire!(s04_streams_of_one_connection_are_independent, |c| {
    let (mut first, mut second) = (c.stream(), c.stream());
    first.create_as(c.one("k"), 0).await;
    second.create_as(c.one("k"), 0).await;
    c.put("k", "1").await;
    assert_eq!(first.events().await, second.events().await);
});

wire!(alone s05_watchers_of_a_client_that_dies_are_forgotten, |c| {
    const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";
    let before = c.server.metric(WATCHERS);
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (server, key) = (c.server.clone(), c.key("k"));
    let opened = dying.spawn(async move {
        let channel = Client::connect(&server).await;
        let mut streams = Vec::new();
        for _ in 0..1000 {
            let create = WatchCreateRequest { key: key.clone(), ..Default::default() };
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            let requests = tokio_stream::once(request).chain(tokio_stream::pending());
            let mut stream = WatchClient::new(channel.clone()).watch(requests).await.expect("watch").into_inner();
            assert!(stream.message().await.expect("the stream goes on").expect("created").created);
            streams.push(stream);
        }
        streams
    });
    let streams = opened.await.expect("no panic");
    assert!(c.server.metric(WATCHERS) >= before + 1000.0);
    // Its sockets are closed with nothing said.
    dying.shutdown_background();
    drop(streams);
    let deadline = Instant::now() + PATIENCE;
    while c.server.metric(WATCHERS) > before {
        assert!(Instant::now() < deadline, "the watchers of a dead client are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    c.put("k", "1").await;
});

wire!(alone s06_streams_that_come_and_go_disturb_nobody, |c| {
    let mut control = c.stream();
    control.create_as(c.everything(), 0).await;
    let disturbers = (0..8_u64).map(|seed| {
        let (channel, key) = (c.channel.clone(), c.key("k"));
        tokio::spawn(async move {
            let mut dice = seed;
            let mut roll = move |sides: u64| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % sides
            };
            for _ in 0..40 {
                let (send, requests) = mpsc::unbounded_channel();
                for _ in 0..roll(20) {
                    let union = match roll(4) {
                        0 => RequestUnion::CancelRequest(WatchCancelRequest { watch_id: roll(8) as i64 }),
                        1 => RequestUnion::ProgressRequest(WatchProgressRequest {}),
                        _ => RequestUnion::CreateRequest(WatchCreateRequest {
                            key: key.clone(),
                            start_revision: roll(3) as i64,
                            prev_kv: roll(2) == 0,
                            ..Default::default()
                        }),
                    };
                    send.send(WatchRequest { request_union: Some(union) }).expect("it is open");
                }
                let (responses, patience) = (roll(10), Duration::from_millis(1 + roll(30)));
                let watch = async {
                    let mut client = WatchClient::new(channel.clone());
                    let mut stream = client.watch(UnboundedReceiverStream::new(requests)).await?.into_inner();
                    for _ in 0..responses {
                        stream.message().await?;
                    }
                    Ok::<_, Status>(())
                };
                // Left in the middle of whatever it was in: etcd answers an empty stream with nothing at all.
                if let Ok(over) = tokio::time::timeout(patience, watch).await {
                    over.expect("no stream breaks");
                }
            }
        })
    });
    let disturbers: Vec<_> = disturbers.collect();
    let mut written = Vec::new();
    while written.len() < 300 || disturbers.iter().any(|disturber| !disturber.is_finished()) {
        written.push(c.put("k", "v").await);
    }
    for disturber in disturbers {
        disturber.await.expect("no panic");
    }
    let said = c.before_marker(&mut control).await;
    assert_eq!(said.iter().flat_map(|r| &r.events).map(modified).collect::<Vec<_>>(), written);
});

wire!(s07_a_stream_that_its_client_ends_harms_nothing, |c| {
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(c.one("k"))) };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(c.channel.clone()).watch(requests).await.expect("watch").into_inner();
    assert!(stream.message().await.expect("the stream goes on").expect("created").created);
    // The call is cancelled, not half-closed.
    drop(stream);
    let mut other = c.stream();
    other.create_as(c.one("k"), 0).await;
    c.put("k", "1").await;
    assert_eq!(other.events().await.len(), 1);
});

wire!(s08_answers_come_in_the_order_of_the_requests, |c| {
    let mut stream = c.stream();
    for _ in 0..100 {
        stream.ask(c.one("k"));
    }
    for id in 0..100 {
        assert_eq!(stream.next().await.watch_id, id);
    }
});

wire!(s09_created_precedes_history, |c| {
    let start_revision = c.put("k", "1").await;
    let mut stream = c.stream();
    for _ in 0..2 {
        stream.ask(WatchCreateRequest { start_revision, ..c.one("k") });
    }
    let (mut created, mut told) = ([false; 2], [0; 2]);
    while told != [1, 1] {
        let response = stream.next().await;
        let id = usize::try_from(response.watch_id).expect("0 or 1");
        created[id] |= response.created;
        assert!(created[id], "an event before created: {response:?}");
        told[id] += response.events.len();
    }
    c.assert_quiet(&mut stream).await;
});

// ---- C: create -----------------------------------------------------------------------------------------------------

wire!(alone c01_created_names_the_revision, |c| {
    let revision = c.put("other", "1").await;
    assert_eq!(c.stream().create_as(c.one("k"), 0).await, revision);
});

wire!(c02_c03_c05_c07_ids_are_given_in_order_and_skip_those_in_use, |c| {
    let mut stream = c.stream();
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..c.one("k") };
    stream.create_as(with_id(0), 0).await;
    stream.create_as(with_id(7), 7).await;
    stream.create_as(with_id(2), 2).await;
    stream.create_as(with_id(0), 1).await;
    stream.create_as(with_id(0), 3).await;
    stream.cancel(3).await;
    stream.create_as(with_id(0), 4).await;
});

wire!(c04_a_duplicate_id_is_refused_and_hurts_nobody, |c| {
    let mut stream = c.stream();
    let seven = WatchCreateRequest { watch_id: 7, ..c.one("k") };
    stream.create_as(seven.clone(), 7).await;
    stream.create_refused(seven, "mvcc: duplicate watch ID provided on the WatchStream").await;
    c.put("k", "1").await;
    assert_eq!(c.events_of(&mut stream, 7).await.len(), 1);
});

wire!(c06_an_id_is_free_after_its_cancel, |c| {
    let mut stream = c.stream();
    let five = WatchCreateRequest { watch_id: 5, ..c.one("k") };
    stream.create_as(five.clone(), 5).await;
    stream.cancel(5).await;
    stream.create_as(five, 5).await;
    c.put("k", "1").await;
    assert_eq!(c.events_of(&mut stream, 5).await.len(), 1);
});

wire!(c08_an_empty_range_is_refused, |c| {
    let mut stream = c.stream();
    for (key, end) in [("b", "a"), ("a", "a")] {
        let create = WatchCreateRequest { range_end: c.key(end), ..c.one(key) };
        stream.create_refused(create, "mvcc: watcher range is empty").await;
    }
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone c09_c10_c11_c22_open_ranges_and_the_empty_key, |c| {
    let mut stream = c.stream();
    let ranges: [(&'static [u8], &'static [u8]); 4] = [(b"", b""), (b"", b"\0"), (b"m", b"\0"), (b"\xff", b"\0")];
    for (id, (key, range_end)) in (0..).zip(ranges) {
        stream.create_as(WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }, id).await;
    }
    for key in [b"\0" as &[u8], b"l", b"m", b"z", b"\xfe", b"\xff\x00"] {
        c.put_raw(key).await;
    }
    let said = c.before_marker(&mut stream).await;
    let count = |id| said.iter().filter(|r| r.watch_id == id).flat_map(|r| &r.events)
        .filter(|e| !e.kv.as_ref().expect("kv").key.starts_with(b"~")).count();
    assert_eq!([count(0), count(1), count(2), count(3)], [1, 6, 4, 1]);
});

wire!(c12_c21_half_open_ranges, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { range_end: c.key("fop"), ..c.one("foo") }, 0).await;
    for key in ["foo", "foo1", "fo", "fop"] {
        c.put(key, "").await;
    }
    let events = c.events_of(&mut stream, 0).await;
    assert_eq!(events.iter().map(|e| &e[..8]).collect::<Vec<_>>(), ["put foo=", "put foo1"]);
});

wire!(c13_a_negative_start_is_refused, |c| {
    if is_etcd() {
        return; // refused since etcd 3.5.24
    }
    let mut stream = c.stream();
    stream.create_refused(WatchCreateRequest { start_revision: -1, ..c.one("k") }, COMPACTED).await;
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone c14_a_future_start_waits_for_its_revision, |c| {
    let revision = c.revision().await;
    let mut stream = c.stream();
    let create = WatchCreateRequest { start_revision: revision + 5, ..c.one("k") };
    assert_eq!(stream.create_as(create, 0).await, revision);
    for value in 1..=5 {
        c.put("k", &value.to_string()).await;
    }
    let response = stream.next().await;
    assert_eq!(response.header.as_ref().expect("header").revision, revision + 5);
    assert_eq!(stream.show(&response), [format!("put k=5 @{} c{} v5", revision + 5, revision + 1)]);
});

wire!(c15_history_comes_in_order, |c| {
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.put("k", "3").await];
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.one("k") }, 0).await;
    let wanted = [1, 2, 3].map(|n| format!("put k={n} @{} c{} v{n}", at[n - 1], at[0]));
    assert_eq!(stream.take(3).await, wanted);
});

wire!(alone c16_c17_c18_now_next_and_last, |c| {
    let last = c.put("k", "1").await;
    let mut stream = c.stream();
    for (id, start_revision) in [(0, 0), (1, last + 1), (2, last)] {
        stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, id).await;
    }
    stream.take(1).await;
    c.put("k", "2").await;
    let said = c.before_marker(&mut stream).await;
    let mut ids: Vec<i64> = said.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
});

wire!(c19_the_farthest_future_is_accepted, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: i64::MAX - 2, ..c.one("k") }, 0).await;
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(c20_equal_watchers_all_hear, |c| {
    let mut stream = c.stream();
    for id in 0..100 {
        stream.create_as(c.one("k"), id).await;
    }
    c.put("k", "1").await;
    let mut ids: Vec<i64> = c.before_marker(&mut stream).await.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
});

wire!(c23_unknown_filters_are_ignored, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { filters: vec![9], ..c.one("k") }, 0).await;
    c.put("k", "1").await;
    c.delete("k").await;
    assert_eq!(c.events_of(&mut stream, 0).await.len(), 2);
});

wire!(c24_a_key_of_a_mebibyte, |c| {
    let key: bytes::Bytes = vec![b'k'; 1 << 20].into();
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { key: key.clone(), ..Default::default() }, 0).await;
    c.send_put(PutRequest { key, ..Default::default() }).await;
    assert_eq!(stream.next().await.events.len(), 1);
});

// ---- N: cancel -----------------------------------------------------------------------------------------------------

wire!(n01_n02_n03_cancel_answers_once_and_silences, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.cancel(0).await;
    stream.ask_cancel(0);
    stream.ask_cancel(99);
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(n04_cancel_does_not_disturb_others, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("k"), 1).await;
    let mut written = Vec::new();
    for n in 0..200 {
        written.push(c.put("k", "").await);
        if n == 100 {
            stream.ask_cancel(1);
        }
    }
    let said = c.before_marker(&mut stream).await;
    let heard: Vec<i64> = said.iter().filter(|r| r.watch_id == 0).flat_map(|r| &r.events).map(modified).collect();
    assert_eq!(heard, written);
});

wire!(n05_cancel_right_behind_create, |c| {
    c.put("k", "1").await;
    let mut stream = c.stream();
    stream.ask(c.one("k"));
    stream.ask_cancel(0);
    assert!(stream.next().await.created);
    assert!(stream.next().await.canceled);
    c.put("k", "2").await;
    c.assert_quiet(&mut stream).await;
});

wire!(n06_a_reused_id_hears_nothing_of_its_predecessor, |c| {
    if is_etcd() {
        return; // etcd may deliver late events of the cancelled watcher
    }
    for _ in 0..300 {
        c.put("k", "1").await;
    }
    let mut stream = c.stream();
    stream.ask(WatchCreateRequest { watch_id: 3, start_revision: 1, ..c.one("k") });
    stream.ask_cancel(3);
    stream.ask(WatchCreateRequest { watch_id: 3, ..c.one("k") });
    stream.until(|r| r.canceled).await;
    let created = stream.next().await;
    assert!(created.created, "{created:?}");
    c.assert_quiet(&mut stream).await;
});

wire!(n07_a_stream_without_watchers_stays_open, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.cancel(0).await;
    stream.create_as(c.one("k"), 1).await;
    c.put("k", "1").await;
    assert_eq!(stream.events().await.len(), 1);
});

// ---- E: events -----------------------------------------------------------------------------------------------------

wire!(alone e01_to_e07_puts_and_deletes, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    assert_eq!(c.delete("k").await, 1, "deleting nothing is no revision and no event");
    c.put("k", "1").await;
    c.put("k", "1").await;
    c.send_put(PutRequest { ignore_value: true, ..c.put_request("k", "") }).await;
    c.put("k", "").await;
    c.delete("k").await;
    c.put("k", "new").await;
    let wanted = ["put k=1 @2 c2 v1", "put k=1 @3 c2 v2", "put k=1 @4 c2 v3", "put k= @5 c2 v4", "delete k @6", "put k=new @7 c7 v1"];
    for event in wanted {
        let response = stream.next().await;
        assert_eq!(stream.show(&response), [event]);
        assert_eq!(response.header.expect("header").revision, modified(&response.events[0]));
    }
});

wire!(alone e08_v08_expiry_is_one_revision_in_key_order, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, ..c.everything() }, 0).await;
    let lease = c.grant(1).await;
    c.send_put(PutRequest { lease, ..c.put_request("b", "1") }).await;
    c.send_put(PutRequest { lease, ..c.put_request("a", "1") }).await;
    assert_eq!(stream.take(2).await, [format!("put b=1 @2 c2 v1 l{lease}"), format!("put a=1 @3 c3 v1 l{lease}")]);
    let response = stream.next().await;
    assert_eq!(stream.show(&response), ["delete a @4 <- 1@3", "delete b @4 <- 1@2"]);
    assert!(response.events.iter().all(|e| e.prev_kv.as_ref().expect("asked for").lease == lease));
    assert_eq!(c.revision().await, 4);
});

wire!(alone e09_revoke_of_a_lease_without_keys_is_no_event, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let lease = c.grant(60).await;
    c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke");
    assert_eq!(c.revision().await, 1);
    c.assert_quiet(&mut stream).await;
});

wire!(e10_a_range_deletion_is_one_revision_in_key_order, |c| {
    for key in ["c", "a", "b"] {
        c.put(key, "1").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let at = c.delete_all().await;
    assert_eq!(stream.events().await, ["a", "b", "c"].map(|key| format!("delete {key} @{at}")));
});

wire!(alone e12_what_changes_no_key_is_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let at = c.put("k", "1").await;
    assert_eq!(stream.events().await.len(), 1);
    let lease = c.grant(60).await;
    let once = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
    let mut renewals = c.lease.lease_keep_alive(once).await.expect("keep alive").into_inner();
    assert_eq!(renewals.message().await.expect("the stream goes on").expect("an answer").ttl, 60);
    c.compact(at).await;
    pb::cluster_client::ClusterClient::new(c.channel.clone())
        .member_list(pb::MemberListRequest::default())
        .await
        .expect("member list");
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(c.channel.clone());
    maintenance.status(pb::StatusRequest::default()).await.expect("status");
    maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("hash");
    maintenance.alarm(pb::AlarmRequest::default()).await.expect("alarm");
    c.assert_quiet(&mut stream).await;
    assert_eq!(c.revision().await, at + 1, "the marker alone");
});

wire!(e13_a_thousand_puts_are_a_thousand_events, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let mut written = Vec::new();
    for n in 0..1000 {
        written.push(c.put(&format!("k{}", n % 7), "v").await);
    }
    let said = c.before_marker(&mut stream).await;
    assert_eq!(said.iter().flat_map(|r| &r.events).map(modified).collect::<Vec<_>>(), written);
});

wire!(e14_other_keys_are_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k1"), 0).await;
    c.put("k2", "1").await;
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(e16_a_value_of_a_mebibyte_arrives_whole, |c| {
    let value: bytes::Bytes =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>().into();
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    c.send_put(PutRequest { value: value.clone(), ..c.put_request("k", "") }).await;
    assert!(stream.next().await.events[0].kv.as_ref().expect("kv").value == value);
});

// ---- T: transactions -----------------------------------------------------------------------------------------------

wire!(t01_t02_t08_a_transaction_is_one_response_live_and_from_history, |c| {
    c.put("c", "1").await;
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    stream.create_as(c.one("b"), 1).await;
    let ops = vec![put_op(c.put_request("b", "1")), put_op(c.put_request("a", "1")), delete_op(c.key("c"), "".into())];
    let at = c.txn(ops).await.expect("txn");
    let whole = [format!("put b=1 @{at} c{at} v1"), format!("put a=1 @{at} c{at} v1"), format!("delete c @{at}")];
    let said = c.before_marker(&mut stream).await;
    assert_eq!(said.len(), 2, "{said:?}");
    for response in &said {
        let wanted = if response.watch_id == 0 { &whole[..] } else { &whole[..1] };
        assert_eq!(stream.show(response), wanted);
    }
    let mut late = c.stream();
    late.create_as(WatchCreateRequest { start_revision: at, ..c.everything() }, 0).await;
    assert_eq!(late.events().await, whole);
});

wire!(alone t03_t04_only_what_happened_is_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let compare = Compare { key: c.key("none"), target_union: Some(pb::compare::TargetUnion::Version(9)), ..Default::default() };
    let request = TxnRequest {
        compare: vec![compare.clone()],
        success: vec![put_op(c.put_request("then", ""))],
        failure: vec![put_op(c.put_request("else", ""))],
    };
    c.kv.txn(request).await.expect("txn");
    assert_eq!(stream.events().await, ["put else= @2 c2 v1"]);
    let idle = TxnRequest { compare: vec![compare], success: vec![put_op(c.put_request("then", ""))], failure: vec![] };
    c.kv.txn(idle).await.expect("txn");
    let nothing = c.txn(vec![delete_op(c.key("none"), "".into())]).await.expect("txn");
    assert_eq!(nothing, 2);
    c.assert_quiet(&mut stream).await;
});

wire!(t05_t06_nested_and_ranges_keep_their_place, |c| {
    for key in ["z", "x", "y"] {
        c.put(key, "1").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = vec![
        put_op(c.put_request("m", "")),
        txn_op(vec![put_op(c.put_request("b", ""))]),
        delete_op(c.key("x"), c.key("zz")),
        put_op(c.put_request("a", "")),
    ];
    c.txn(ops).await.expect("txn");
    let order: Vec<String> =
        stream.events().await.iter().map(|e| e.split('@').next().expect("first").trim().to_owned()).collect();
    assert_eq!(order, ["put m=", "put b=", "delete x", "delete y", "delete z", "put a="]);
});

wire!(t07_the_largest_transaction_is_one_response, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = |count| (0..count).map(|n| put_op(c.put_request(&format!("{n:03}"), ""))).collect::<Vec<_>>();
    let (fits, over) = (ops(128), ops(129));
    c.txn(fits).await.expect("txn");
    assert_eq!(stream.events().await.len(), 128);
    let status = c.txn(over).await.expect_err("too many");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: too many operations in txn request")
    );
});

wire!(t09_a_duplicate_key_is_refused_and_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = vec![put_op(c.put_request("a", "1")), put_op(c.put_request("a", "2"))];
    let status = c.txn(ops).await.expect_err("duplicate");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
    );
    c.assert_quiet(&mut stream).await;
});

// ---- X: filters ----------------------------------------------------------------------------------------------------

wire!(x01_to_x05_filters_live_and_from_history, |c| {
    c.put("b", "1").await;
    let mut live = c.stream();
    let filtered = |filters: &[i32]| WatchCreateRequest { filters: filters.to_vec(), ..c.everything() };
    for (id, filters) in [(0, &[0][..]), (1, &[1]), (2, &[0, 1])] {
        live.create_as(filtered(filters), id).await;
    }
    let ops = vec![put_op(c.put_request("a", "1")), delete_op(c.key("b"), "".into())];
    let start_revision = c.txn(ops).await.expect("txn");
    let wanted =
        [vec![format!("delete b @{start_revision}")], vec![format!("put a=1 @{start_revision} c{start_revision} v1")]];
    let said = c.before_marker(&mut live).await;
    let mut told: Vec<(i64, Vec<String>)> = said.iter().map(|r| (r.watch_id, live.show(r))).collect();
    told.sort();
    assert_eq!(told, [(0, wanted[0].clone()), (1, wanted[1].clone())]);
    for (filters, wanted) in [([0], &wanted[0]), ([1], &wanted[1])] {
        let create = WatchCreateRequest { start_revision, filters: filters.to_vec(), ..c.everything() };
        let mut late = c.stream();
        late.create_as(create, 0).await;
        assert_eq!(&late.events().await, wanted);
    }
});

wire!(alone x06_progress_passes_filtered_traffic, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { filters: vec![0, 1], ..c.everything() }, 0).await;
    let at = c.put("k", "1").await;
    let (revision, before) = stream.progress().await;
    assert_eq!((revision, before.len()), (at, 0));
});

// ---- V: prev_kv ----------------------------------------------------------------------------------------------------

wire!(v01_to_v04_prev_kv_only_for_those_who_asked, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, ..c.everything() }, 0).await;
    stream.create_as(c.everything(), 1).await;
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.delete("k").await];
    let said = c.before_marker(&mut stream).await;
    let of = |id| said.iter().filter(|r| r.watch_id == id).flat_map(|r| stream.show(r)).collect::<Vec<_>>();
    let [r1, r2, r3] = at;
    assert_eq!(
        of(1),
        [format!("put k=1 @{r1} c{r1} v1"), format!("put k=2 @{r2} c{r1} v2"), format!("delete k @{r3}")]
    );
    assert_eq!(
        of(0),
        [
            format!("put k=1 @{r1} c{r1} v1"),
            format!("put k=2 @{r2} c{r1} v2 <- 1@{r1}"),
            format!("delete k @{r3} <- 2@{r2}")
        ]
    );
});

wire!(v05_prev_kv_from_history, |c| {
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.put("k", "3").await];
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, start_revision: at[0], ..c.one("k") }, 0).await;
    let [r1, r2, r3] = at;
    assert_eq!(
        stream.take(3).await,
        [
            format!("put k=1 @{r1} c{r1} v1"),
            format!("put k=2 @{r2} c{r1} v2 <- 1@{r1}"),
            format!("put k=3 @{r3} c{r1} v3 <- 2@{r2}")
        ]
    );
});

wire!(alone v06_prev_kv_below_the_compaction_is_absent_or_right, |c| {
    let first = c.put("k", "1").await;
    let start_revision = c.put("k", "2").await;
    c.compact(start_revision).await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, start_revision, ..c.one("k") }, 0).await;
    let bare = format!("put k=2 @{start_revision} c{first} v2");
    let event = stream.take(1).await.remove(0);
    assert!(event == bare || event == format!("{bare} <- 1@{first}"), "{event}");
});

wire!(v07_a_put_that_is_filtered_is_not_told_with_prev_kv_either, |c| {
    c.put("k", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, filters: vec![0], ..c.one("k") }, 0).await;
    c.txn(vec![put_op(c.put_request("k", "2"))]).await.expect("txn");
    c.assert_quiet(&mut stream).await;
});

// ---- P: progress ---------------------------------------------------------------------------------------------------

wire!(alone p01_progress_on_request, |c| {
    let at = c.put("other", "1").await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("l"), 1).await;
    let (revision, before) = stream.progress().await;
    assert_eq!((revision, before.len()), (at, 0));
    c.assert_quiet(&mut stream).await;
});

wire!(alone p02_one_answer_to_one_question, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("l"), 1).await;
    stream.progress().await;
    for _ in 0..3 {
        stream.ask_progress();
        let response = stream.next().await;
        assert!(is_progress(&response) && response.watch_id == -1, "{response:?}");
        c.assert_quiet(&mut stream).await;
    }
});

wire!(p03_p12_progress_never_overtakes_an_event_and_never_falls, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let (mut told, mut promised) = (0, 0);
    for _ in 0..200 {
        let written = c.put("k", "v").await;
        stream.ask_progress();
        while told < written {
            let response = stream.next().await;
            let revision = response.header.as_ref().expect("header").revision;
            if is_progress(&response) {
                assert!(revision >= promised && (revision < written || told >= written), "{revision} before {written}");
                promised = revision;
            }
            told = response.events.last().map_or(told, modified);
        }
    }
});

wire!(p04_progress_of_a_stream_without_watchers, |c| {
    if is_etcd() {
        return; // silent since etcd 3.5.8; before, any request was answered at once
    }
    let mut stream = c.stream();
    stream.ask_progress();
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone p05_progress_of_a_watcher_that_starts_now, |c| {
    let start_revision = c.put("other", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(alone p06_p07_no_progress_before_a_future_start, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.22
    }
    let start_revision = c.revision().await + 6;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
    stream.ask_progress();
    c.put("other", "1").await;
    let said = c.before_marker(&mut stream).await;
    assert!(said.iter().all(|r| r.header.as_ref().expect("header").revision >= start_revision), "{said:?}");
    while c.put("other", "2").await < start_revision {}
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(alone p07_a_synced_watcher_does_not_speak_for_one_in_the_future, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.22
    }
    let start_revision = c.revision().await + 3;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 1).await;
    stream.ask_progress();
    c.put("other", "1").await;
    let of_stream = |r: &WatchResponse| is_progress(r) && r.watch_id == -1;
    let said = c.before_marker(&mut stream).await;
    assert!(!said.iter().any(of_stream), "{said:?}");
    while c.put("other", "2").await < start_revision {}
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(with ["--experimental-watch-progress-notify-interval=500ms"] p08_periodic_progress_is_spread, |c| {
    let revision = c.put("other", "1").await;
    let opened = Instant::now();
    let mut streams: Vec<Stream> = (0..20).map(|_| c.stream()).collect();
    for stream in &mut streams {
        stream.create_as(WatchCreateRequest { progress_notify: true, watch_id: 7, ..c.one("k") }, 7).await;
    }
    // What arrives together once may be this machine's doing; what is never apart is the server's.
    for _ in 0..5 {
        let heard = streams.iter_mut().map(async |stream: &mut Stream| {
            let response = stream.next().await;
            assert!(is_progress(&response) && response.watch_id == 7, "{response:?}");
            assert_eq!(response.header.expect("a header").revision, revision);
            opened.elapsed()
        });
        let heard = together(heard).await;
        let (first, last) = (heard.iter().min().expect("20"), heard.iter().max().expect("20"));
        assert!(*first >= Duration::from_millis(500), "told before the interval was over: {first:?}");
        if *last - *first >= Duration::from_millis(10) {
            return;
        }
    }
    panic!("20 streams are always told at the same moment");
});

wire!(with ["--experimental-watch-progress-notify-interval=200ms"] p09_periodic_progress_is_for_those_who_asked, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { progress_notify: true, ..c.one("k") }, 1).await;
    for _ in 0..5 {
        let response = stream.next().await;
        assert!(is_progress(&response) && response.watch_id == 1, "{response:?}");
    }
});

wire!(with ["--experimental-watch-progress-notify-interval=1s"] p10_no_periodic_progress_beside_events, |c| {
    let interval = Duration::from_secs(1);
    for _ in 0..5 {
        let mut stream = c.stream();
        stream.create_as(WatchCreateRequest { progress_notify: true, ..c.one("k") }, 0).await;
        let (begun, mut earlier, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut progress = 0;
        while begun.elapsed() < 5 * interval / 2 {
            let now = Instant::now();
            c.put("k", "1").await;
            longest = longest.max(earlier.elapsed());
            earlier = now;
            while let Ok(response) = stream.responses.try_recv() {
                progress += usize::from(is_progress(&response.expect("the stream goes on")));
            }
        }
        // Only if the machine let us write often enough has the server no reason to speak.
        if longest < interval {
            assert_eq!(progress, 0);
            return stream.until(is_progress).await.clear();
        }
    }
    panic!("this machine is too busy to write once a second");
});

wire!(p11_no_progress_before_all_of_history, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.8
    }
    for n in 0..1001 {
        c.put(&format!("k{n}"), "v").await;
    }
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.everything() }, 0).await;
    let (_, before) = stream.progress().await;
    assert_eq!(before.iter().map(|r| r.events.len()).sum::<usize>(), 1001);
});

wire!(p14_progress_after_the_only_late_watcher_is_cancelled, |c| {
    for n in 0..1001 {
        c.put(&format!("k{n}"), "v").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.ask(WatchCreateRequest { start_revision: 1, ..c.everything() });
    stream.ask_cancel(1);
    stream.until(|r| r.canceled).await;
    let revision = c.revision().await;
    assert!(stream.progress().await.0 >= revision);
});

wire!(alone p15_progress_in_spite_of_a_watcher_the_compaction_ended, |c| {
    if is_etcd() {
        return; // etcd stays silent until the client cancels the ended watcher
    }
    c.put("k", "1").await;
    let at = c.put("k", "2").await;
    c.compact(at).await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.one("k") }, 1).await;
    stream.until(|r| r.canceled).await;
    assert_eq!(stream.progress().await.0, at);
});

// ---- K: compaction -------------------------------------------------------------------------------------------------

wire!(alone k01_k02_k03_k07_starts_around_the_compaction, |c| {
    for value in 2..=10 {
        c.put("k", &value.to_string()).await;
    }
    c.compact(5).await;
    let mut stream = c.stream();
    let from = |start_revision| WatchCreateRequest { start_revision, ..c.one("k") };
    stream.create_as(from(0), 0).await;
    for (id, start) in [(1, 3), (2, 4)] {
        stream.create_as(from(start), id).await;
        let end = stream.next().await;
        assert_eq!((end.watch_id, end.created, end.canceled, end.compact_revision, end.events.len()), (id, false, true, 5, 0));
        assert_eq!(end.cancel_reason, "");
    }
    stream.create_as(from(5), 3).await;
    assert_eq!(stream.take(6).await[0], "put k=5 @5 c2 v4");
    c.put("k", "11").await;
    let said = c.before_marker(&mut stream).await;
    let mut ids: Vec<i64> = said.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 3]);
});

wire!(alone k04_compaction_does_not_touch_a_watcher_that_keeps_up, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let at = c.put("k", "1").await;
    c.compact(at).await;
    c.put("k", "2").await;
    assert_eq!(stream.take(2).await.len(), 2);
    c.assert_quiet(&mut stream).await;
});

wire!(alone k05_k06_a_deletion_at_the_compaction_is_told_even_after_a_crash, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.16
    }
    for value in ["1", "2", "3"] {
        c.put("k", value).await;
    }
    let start_revision = c.delete("k").await;
    let again = c.put("k", "4").await;
    c.compact(start_revision).await;
    let wanted = [format!("delete k @{start_revision}"), format!("put k=4 @{again} c{again} v1")];
    for crash in [false, true] {
        if crash {
            c.server.crash_and_restart();
            c.reconnect().await;
        }
        let mut stream = c.stream();
        stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
        assert_eq!(stream.take(2).await, wanted);
    }
});

wire!(alone k08_keys_last_changed_before_the_compaction_are_not_told, |c| {
    c.put("old", "1").await;
    c.put("k", "1").await;
    let start_revision = c.put("k", "2").await;
    c.compact(start_revision).await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.everything() }, 0).await;
    assert_eq!(stream.take(1).await, ["put k=2 @4 c3 v2"]);
    c.assert_quiet(&mut stream).await;
});

wire!(alone k09_a_future_start_beyond_the_compaction, |c| {
    let at = c.put("k", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: at + 2, ..c.one("k") }, 0).await;
    c.compact(at).await;
    c.put("k", "2").await;
    c.put("k", "3").await;
    assert_eq!(stream.take(1).await, [format!("put k=3 @{} c{at} v3", at + 2)]);
});

wire!(alone k10_a_paused_reader_misses_nothing_silently, |c| {
    // A window so small that what is not read stays in the server.
    let endpoint = Channel::from_shared(c.server.url.clone()).expect("our own url");
    let channel = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535).connect().await;
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(c.one("k"))) };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(channel.expect("connect")).watch(requests).await.expect("watch").into_inner();
    assert!(stream.message().await.expect("the stream goes on").expect("created").created);
    let (value, mut last) = ("v".repeat(8 << 10), 0);
    for n in 1..=2000 {
        last = c.put("k", &value).await;
        if n > 100 && n % 50 == 0 {
            c.compact(last - 100).await;
        }
    }
    let (mut told, mut version) = (0, 0);
    while told < last {
        let response = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a response in time");
        let response = response.expect("the stream goes on").expect("the stream is open");
        if response.canceled {
            assert!(response.compact_revision > told + 1, "ended for want of what was there: {response:?}, {told}");
            return;
        }
        for event in &response.events {
            let kv = event.kv.as_ref().expect("kv");
            assert_eq!(kv.version, version + 1, "a silent gap");
            (told, version) = (kv.mod_revision, kv.version);
        }
    }
});

wire!(alone k11_logical_compaction_is_visible_at_once, |c| {
    for _ in 0..5 {
        c.put("k", "1").await;
    }
    c.kv.compact(CompactionRequest { revision: 5, physical: false }).await.expect("compact");
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 2, ..c.one("k") }, 0).await;
    assert_eq!(stream.next().await.compact_revision, 5);
    let old = RangeRequest { key: c.key("k"), revision: 4, ..Default::default() };
    let status = c.kv.range(old).await.expect_err("compacted");
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, COMPACTED));
});

/// What a call was refused with.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

/// What the cluster service tells a single member's client.
struct Members(ClusterClient<Channel>);

impl Members {
    fn add(&self, url: &str, is_learner: bool) -> impl Future<Output = Result<pb::MemberAddResponse, Status>> {
        let request = MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
        let mut client = self.0.clone();
        async move { client.member_add(request).await.map(tonic::Response::into_inner) }
    }

    async fn remove(&self, id: u64) -> Result<pb::MemberRemoveResponse, Status> {
        self.0.clone().member_remove(MemberRemoveRequest { id }).await.map(tonic::Response::into_inner)
    }

    async fn promote(&self, id: u64) -> Result<pb::MemberPromoteResponse, Status> {
        self.0.clone().member_promote(MemberPromoteRequest { id }).await.map(tonic::Response::into_inner)
    }

    async fn update(&self, id: u64, url: &str) -> Result<pb::MemberUpdateResponse, Status> {
        let request = MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
        self.0.clone().member_update(request).await.map(tonic::Response::into_inner)
    }

    /// Ids, peer URLs and who learns.
    async fn list(&self) -> Vec<(u64, Vec<String>, bool)> {
        let response = self.0.clone().member_list(MemberListRequest { linearizable: true }).await;
        let members = response.expect("a list").into_inner().members;
        members.into_iter().map(|member| (member.id, member.peer_ur_ls, member.is_learner)).collect()
    }
}

#[tokio::test]
async fn m1_members_are_changed_and_refused_as_etcd_does() {
    let server = Server::start();
    let mut client = Client::on(server.clone()).await;
    let members = Members(ClusterClient::new(client.channel.clone()));
    let own = members.list().await[0].0;
    let not_found = (Code::NotFound, "etcdserver: member not found".to_owned());

    let bad_urls = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
    for bad in ["127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/path"] {
        assert_eq!(refusal(members.add(bad, false).await), bad_urls, "{bad}");
    }
    let too_few = "etcdserver: re-configuration failed due to not enough started members".to_owned();
    assert_eq!(refusal(members.remove(own).await), (Code::Unknown, too_few));
    let no_learner = (Code::FailedPrecondition, "etcdserver: can only promote a learner member".to_owned());
    assert_eq!(refusal(members.promote(own).await), no_learner);
    assert_eq!(refusal(members.promote(7).await), not_found);
    assert_eq!(refusal(members.remove(7).await), not_found);
    assert_eq!(refusal(members.update(7, "http://127.0.0.1:9").await), not_found);

    let url = free_url();
    let added = members.add(&url, true).await.expect("a learner is added");
    let learner = added.member.expect("it is told");
    assert_eq!((&learner.peer_ur_ls, learner.is_learner, &learner.name[..]), (&vec![url.clone()], true, ""));
    assert_eq!((added.members.len(), added.header.expect("a header").revision), (2, 0));
    let taken = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".to_owned());
    assert_eq!(refusal(members.add(&url, false).await), taken);
    assert_eq!(refusal(members.update(own, &url).await), taken);
    let too_many = (Code::FailedPrecondition, "etcdserver: too many learner members in cluster".to_owned());
    assert_eq!(refusal(members.add("http://127.0.0.1:9", true).await), too_many);
    let behind = "etcdserver: can only promote a learner member which is in sync with leader".to_owned();
    assert_eq!(refusal(members.promote(learner.id).await), (Code::FailedPrecondition, behind));

    let moved = free_url();
    members.update(learner.id, &moved).await.expect("a member moves");
    let mut table = vec![(own, vec![server.peer.clone()], false), (learner.id, vec![moved], true)];
    table.sort();
    assert_eq!(members.list().await, table);
    client.put("a", "written while there is a learner that does not run").await;

    server.crash_and_restart();
    client.reconnect().await;
    let members = Members(ClusterClient::new(client.channel.clone()));
    assert_eq!(members.list().await, table);
    assert_eq!(members.remove(learner.id).await.expect("it leaves").members.len(), 1);
    assert_eq!(refusal(members.remove(learner.id).await), not_found);
    assert_eq!(refusal(members.promote(learner.id).await), not_found);
    client.put("b", "written by the only member").await;
}

impl Server {
    /// Two members that found a cluster together.
    fn pair() -> [Arc<Server>; 2] {
        let addresses = [0, 1].map(|_| (free_url(), free_url()));
        let cluster = format!("m0={},m1={}", addresses[0].1, addresses[1].1);
        let cluster: &'static str = Box::leak(cluster.into_boxed_str());
        let mut names = ["m0", "m1"].into_iter();
        addresses.map(|(url, peer)| {
            let name = names.next().expect("as many names as members");
            let flags: &'static [&'static str] = Box::leak(Box::new(["--name", name, "--initial-cluster", cluster]));
            let data = tempfile::tempdir().expect("a temporary directory");
            let child = Server::spawn(&url, &peer, data.path(), flags);
            Arc::new(Server { child: Mutex::new(child), url, peer, data, flags })
        })
    }

    /// Whether the process ends by itself, and well.
    async fn stops(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.lock().expect("no test panicked in here").try_wait().expect("the process is ours");
            match ended {
                Some(status) => return status.success(),
                None if Instant::now() > deadline => return false,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Removes the member with the peer URL of `leaving`, asked at `asked`. The second left is asked to write.
async fn remove_one_of_two(asked: usize, leaving: usize) {
    let servers = Server::pair();
    let mut clients = [Client::on(servers[0].clone()).await, Client::on(servers[1].clone()).await];
    clients[0].put("a", "written by two").await;
    let members = Members(ClusterClient::new(clients[asked].channel.clone()));
    let table = members.list().await;
    let own = |(_, peer, _): &&(u64, Vec<String>, bool)| peer[0] == servers[leaving].peer;
    let id = table.iter().find(own).expect("it is a member").0;
    let unhealthy = (Code::Unavailable, "etcdserver: unhealthy cluster".to_owned());
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Members have to be connected for a while before they may be removed.
        match members.remove(id).await {
            Ok(answer) => break assert_eq!(answer.members.len(), 1),
            Err(status) => assert_eq!((status.code(), status.message().to_owned()), unhealthy),
        }
        assert!(Instant::now() < deadline, "the members stay unhealthy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(servers[leaving].stops().await, "the removed member stops by itself");
    let left = &mut clients[1 - leaving];
    left.reconnect().await;
    assert_eq!(Members(ClusterClient::new(left.channel.clone())).list().await.len(), 1);
    left.put("b", "written by the one that is left").await;

    // Started again, it knows.
    servers[leaving].crash_and_restart();
    assert!(servers[leaving].stops().await, "it stops again");
}

#[tokio::test]
async fn m2_a_member_removed_through_the_other_stops() {
    remove_one_of_two(0, 1).await;
}

#[tokio::test]
async fn m3_a_member_that_removes_itself_stops() {
    remove_one_of_two(0, 0).await;
}
