//! Watches of a cluster of real processes: through our own client, which survives its member, and on bare streams, which show
//! what one member says. Other streams than watches are here for what they have in common with them.
//!
//! Tests are named after what they pin down; F and a number is the case in `tests/watch_cases.txt`. Nothing sleeps: a test waits
//! for an event, a word in a log or the end of a process.

mod processes;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::client::resume::News;
use everwatch::client::{Client, Heard, Keepalive, Want, Watch};
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::request_op::Request as Op;
use everwatch::pb::etcdserverpb::watch_client::WatchClient;
use everwatch::pb::etcdserverpb::watch_request::RequestUnion;
use everwatch::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse,
};
use everwatch::pb::mvccpb::KeyValue;
use everwatch::pb::v3electionpb::election_client::ElectionClient;
use everwatch::pb::v3electionpb::{CampaignRequest, LeaderRequest, LeaderResponse, ProclaimRequest};
use processes::{Cluster, PATIENCE, Process, READY};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

const KEY: &str = "watched";
const NO_LEADER: &str = "etcdserver: no leader";
/// A member that was away for longer than a few dozen entries is sent a snapshot.
const SHORT_LOG: &[&str] = &["--snapshot-count=20", "--snapshot-catchup-entries=5"];
/// Nobody is asked whether a change is wise: that takes seconds.
const NOT_STRICT: &[&str] = &["--strict-reconfig-check=false"];

fn founded() -> (Cluster, Vec<Process>, Runtime, Client) {
    founded_as(Cluster::new(3))
}

fn founded_as(mut cluster: Cluster) -> (Cluster, Vec<Process>, Runtime, Client) {
    cluster.more.push("--grpc-keepalive-min-time=100ms".to_owned());
    let members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // A member that stands still shall not be waited for long.
    let keepalive = Keepalive { interval: Duration::from_millis(500), timeout: Duration::from_secs(1) };
    // Connections live on the runtime.
    let client = runtime.block_on(async { Client::with_keepalive(&cluster.clients, 1, keepalive) }).expect("addresses");
    (cluster, members, runtime, client)
}

/// A cluster that can be cut, whose members are sent snapshots soon.
fn wired(flags: &'static [&'static str]) -> (Cluster, Vec<Process>, Runtime, Client) {
    let mut cluster = Cluster::wired(3);
    cluster.flags = flags;
    founded_as(cluster)
}

/// Who leads, as soon as all of these say the same.
fn leader(members: &[Process]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ids: Vec<(u64, u64)> = members.iter().map(Process::ids).collect();
        let known = ids.iter().position(|(own, _)| *own == ids[0].1);
        if let Some(leader) = known.filter(|_| ids.iter().all(|(_, leader)| *leader == ids[0].1)) {
            return leader;
        }
        assert!(Instant::now() < deadline, "nobody leads: {ids:?}");
    }
}

/// What is said of the first watcher next, whatever happens to its stream.
async fn news(watch: &mut Watch) -> News {
    loop {
        let heard = timeout(PATIENCE, watch.next()).await.expect("something is heard").expect("nobody refuses");
        if let Heard::Of(0, news) = heard.expect("the watcher exists") {
            return news;
        }
    }
}

/// Changes, until that of this version.
async fn follow(watch: &mut Watch, version: i64) -> Vec<KeyValue> {
    let mut seen: Vec<KeyValue> = Vec::new();
    while seen.last().is_none_or(|kv| kv.version < version) {
        match news(watch).await {
            News::Events(events) => seen.extend(events.into_iter().filter_map(|event| event.kv)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

async fn try_put(client: &Client, member: usize, key: &str, value: &str) -> Result<i64, Status> {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    let answer = KvClient::new(client.channel(member, 0)).put(put).await?.into_inner();
    Ok(answer.header.expect("there is one").revision)
}

/// Puts, by a member that may have to wait for a leader. What a put without an answer did is unknown.
async fn put(client: &Client, member: usize, key: &str, value: &str) -> i64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_put(client, member, key, value).await {
            Ok(revision) => return revision,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
    }
}

/// Has leadership handed to a member, asking again where that takes too long.
async fn lead(client: &Client, ids: &[u64], member: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = MaintenanceClient::new(client.channel(member, 0)).status(StatusRequest {}).await;
        let known = status.expect("it is there").into_inner().leader;
        if known == ids[member] {
            return;
        }
        if let Some(leader) = ids.iter().position(|id| *id == known) {
            let transfer = MoveLeaderRequest { target_id: ids[member] };
            let _ = MaintenanceClient::new(client.channel(leader, 0)).move_leader(transfer).await;
        }
        assert!(Instant::now() < deadline, "it does not lead");
    }
}

/// How often the key was written.
async fn version(client: &Client, member: usize) -> i64 {
    let range = RangeRequest { key: KEY.into(), ..Default::default() };
    let stored = KvClient::new(client.channel(member, 0)).range(range).await;
    stored.expect("a majority is there").into_inner().kvs[0].version
}

/// The control tool, watching.
struct Printing {
    process: Child,
    lines: Receiver<String>,
    /// Keys and values that it has printed.
    seen: Vec<(String, String)>,
}

impl Printing {
    fn start(arguments: &[&str]) -> Printing {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everwatchctl"));
        let mut process = command.args(arguments).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let (told, lines) = channel();
        // It ends with the process, or with the test.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Printing { process, lines, seen: Vec::new() }
    }

    fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("it goes on")
    }

    /// Reads on to the first put of a key.
    fn read_to(&mut self, key: &str) {
        while self.seen.last().is_none_or(|(last, _)| last != key) {
            assert_eq!(self.line(), "PUT");
            let event = (self.line(), self.line());
            self.seen.push(event);
        }
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_control_tool_prints_every_change_once_whatever_becomes_of_members() {
    let (cluster, mut members, runtime, client) = founded();
    let endpoints = format!("--endpoints={}", cluster.clients.join(","));
    let mut printing = Printing::start(&["watch", "--prefix", KEY, "--rev=1", &endpoints]);
    let key = |n: usize| format!("{KEY}/{n:02}");
    for n in 0..30 {
        // It begins with the first member and goes on with the second, and then with whoever is there. What follows is written
        // while there is nobody to tell it.
        if n == 10 {
            printing.read_to(&key(8));
            drop(members.remove(0));
        } else if n == 20 {
            members.insert(0, cluster.start(0));
            members[0].says(READY);
            printing.read_to(&key(18));
            drop(members.remove(1));
        }
        runtime.block_on(put(&client, 2, &key(n), &format!("value {n}")));
    }
    printing.read_to(&key(29));
    // A put that was not answered was tried again: there may be more than thirty.
    let history = runtime.block_on(async {
        let alone = Client::new(&cluster.clients[2..], 1).expect("an address");
        let mut watch = Watch::new(
            alone,
            [Want { key: KEY.into(), range_end: prefix(KEY).range_end, start_revision: 1, ..Want::default() }],
            0,
            0,
        );
        let mut history: Vec<(String, String)> = Vec::new();
        while history.last().is_none_or(|(last, _)| *last != key(29)) {
            if let News::Events(events) = news(&mut watch).await {
                let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).expect("text");
                history
                    .extend(events.into_iter().filter_map(|event| event.kv).map(|kv| (text(kv.key), text(kv.value))));
            }
        }
        history
    });
    assert!(history.len() >= 30);
    assert_eq!(printing.seen[..], history[..printing.seen.len().min(history.len())]);
}

/// Every key from this one on that begins with it.
fn prefix(key: &str) -> WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().expect("it is not empty") += 1;
    WatchCreateRequest { key: key.to_owned().into(), range_end: end.into(), ..Default::default() }
}

fn one(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

/// An event as (revision, text).
type Told = (i64, String);

/// A call that asks for a leader, or says that it does not, or says nothing of that.
fn asking<T>(message: T, hasleader: Option<&'static str>) -> Request<T> {
    let mut call = Request::new(message);
    if let Some(value) = hasleader {
        call.metadata_mut().insert("hasleader", MetadataValue::from_static(value));
    }
    call
}

/// What a stream says next.
async fn message<T>(responses: &mut Streaming<T>) -> Result<T, Status> {
    let next = timeout(PATIENCE, responses.message()).await.expect("something is heard");
    next.and_then(|response| response.ok_or_else(|| Status::ok("ended")))
}

/// What was refused, and how.
#[track_caller]
fn refusal<T>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.err().expect("a refusal");
    (status.code(), status.message().to_owned())
}

/// One Watch RPC at one member.
struct Stream {
    send: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: Channel, hasleader: Option<&'static str>) -> Result<Stream, Status> {
        let (send, requests) = mpsc::unbounded_channel();
        let call = asking(UnboundedReceiverStream::new(requests), hasleader);
        let responses = WatchClient::new(channel).watch(call).await?.into_inner();
        Ok(Stream { send, responses })
    }

    /// A stream at this member with these watchers, whose ids are their places.
    async fn of(client: &Client, member: usize, creates: impl IntoIterator<Item = WatchCreateRequest>) -> Stream {
        let mut stream = Stream::open(client.channel(member, 0), None).await.expect("it serves");
        for (id, create) in (0..).zip(creates) {
            assert_eq!(stream.create(create).await.0, id);
        }
        stream
    }

    fn ask(&self, request: RequestUnion) {
        self.send.send(WatchRequest { request_union: Some(request) }).expect("the stream is open");
    }

    fn ask_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    /// Creates a watcher: its id, and the revision of its member.
    async fn create(&mut self, create: WatchCreateRequest) -> (i64, i64) {
        self.ask(RequestUnion::CreateRequest(create));
        let response = self.next().await.expect("the stream goes on");
        assert!(response.created && !response.canceled, "{response:?}");
        (response.watch_id, response.header.expect("there is one").revision)
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        message(&mut self.responses).await
    }

    /// What its only watcher hears, up to this revision.
    async fn until(&mut self, last: i64) -> Vec<Told> {
        let mut told: Vec<Told> = Vec::new();
        while told.last().is_none_or(|(revision, _)| *revision < last) {
            told.extend(show(&self.next().await.expect("the stream goes on")));
        }
        told
    }

    /// With what the stream ends.
    async fn ends(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// Events as text, in order. A response without any is none of these.
fn show(response: &WatchResponse) -> Vec<Told> {
    assert!(!response.canceled, "{response:?}");
    let shown = response.events.iter().map(|event| {
        let kv = event.kv.as_ref().expect("it has one");
        let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
        (kv.mod_revision, format!("{:?} {key}={value} c{} v{}", event.r#type(), kv.create_revision, kv.version))
    });
    shown.collect()
}

/// Changes of many kinds, each at another member: puts of changing keys, transactions, deletions. The last revision.
async fn change(client: &Client, members: &[usize], times: usize) -> i64 {
    let mut last = 0;
    for n in 0..times {
        let mut kv = KvClient::new(client.channel(members[n % members.len()], 0));
        let key = |n: usize| Bytes::from(format!("k/{}", n % 5));
        let put = |n: usize| PutRequest { key: key(n), value: n.to_string().into(), ..Default::default() };
        let header = match n % 7 {
            5 => {
                let operations = [Op::RequestPut(put(n + 1)), Op::RequestPut(put(n))];
                let success = operations.map(|operation| RequestOp { request: Some(operation) }).to_vec();
                let txn = TxnRequest { success, ..Default::default() };
                kv.txn(txn).await.expect("a majority is there").into_inner().header
            }
            6 => {
                let delete = DeleteRangeRequest { key: "k/0".into(), range_end: "k/3".into(), prev_kv: false };
                kv.delete_range(delete).await.expect("a majority is there").into_inner().header
            }
            _ => kv.put(put(n)).await.expect("a majority is there").into_inner().header,
        };
        last = header.expect("there is one").revision;
    }
    last
}

/// Whether these are changes of all revisions between the two, in order.
fn complete(told: &[Told], first: i64, last: i64) {
    let mut revisions: Vec<i64> = told.iter().map(|(revision, _)| *revision).collect();
    assert!(revisions.is_sorted(), "{told:?}");
    revisions.dedup();
    assert_eq!(revisions, (first..=last).collect::<Vec<i64>>());
}

#[test]
fn now_is_not_behind_what_was_acknowledged_elsewhere() {
    let (_cluster, _members, runtime, client) = founded();
    runtime.block_on(async {
        for n in 0..200 {
            let (writer, watcher) = (n % 3, (n + 1 + n / 3 % 2) % 3);
            let acknowledged = try_put(&client, writer, KEY, "").await.expect("a majority is there");
            let want = Want { key: Bytes::from(KEY), ..Default::default() };
            match news(&mut Watch::new(client.clone(), [want], watcher, 0)).await {
                News::Created { revision } => assert!(revision >= acknowledged, "{n}: {revision}, not {acknowledged}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn f01_f17_members_tell_the_same_while_the_leader_changes() {
    let (_cluster, members, runtime, client) = founded();
    let ids: Vec<u64> = members.iter().map(|member| member.ids().0).collect();
    let mut leader = leader(&members);
    runtime.block_on(async {
        let mut streams = Vec::new();
        for member in 0..3 {
            streams.push(Stream::of(&client, member, [prefix("k/")]).await);
        }
        let before = put(&client, 0, "other", "").await;
        let mut last = change(&client, &[0, 1, 2], 100).await;
        for n in 0..20 {
            let target = (leader + 1 + n % 2) % 3;
            // Through the old leader, which keeps what it cannot propose meanwhile. What another forwards to it may be lost.
            let writer = leader;
            let writing = async {
                for n in 0..10 {
                    put(&client, writer, "k/9", &n.to_string()).await;
                }
            };
            tokio::join!(lead(&client, &ids, target), writing);
            leader = target;
            last = put(&client, n % 3, "k/9", "last").await;
        }
        let mut heard = Vec::new();
        for stream in &mut streams {
            heard.push(stream.until(last).await);
        }
        complete(&heard[0], before + 1, last);
        assert!(heard[0] == heard[1] && heard[1] == heard[2], "{heard:?}");
    });
}

#[test]
fn f02_a_stream_outlives_the_leader_of_its_member() {
    let (_cluster, mut members, runtime, client) = founded();
    let lost = leader(&members);
    let (served, other) = ((lost + 1) % 3, (lost + 2) % 3);
    runtime.block_on(async {
        let mut plain = Stream::of(&client, served, [one(KEY)]).await;
        let mut careful = Stream::open(client.channel(served, 0), Some("true")).await.expect("there is a leader");
        careful.create(one(KEY)).await;
        let first = put(&client, served, KEY, "").await;
        drop(members.remove(lost));
        let mut last = 0;
        for _ in 0..20 {
            last = put(&client, other, KEY, "").await;
        }
        complete(&plain.until(last).await, first, last);
        // An election that takes three timeouts ends it; otherwise it goes on as the other does.
        let mut heard = Vec::new();
        while heard.last().is_none_or(|(revision, _)| *revision < last) {
            match careful.next().await {
                Ok(response) => heard.extend(show(&response)),
                Err(status) => return assert_eq!((status.code(), status.message()), (Code::Unavailable, NO_LEADER)),
            }
        }
        complete(&heard, first, last);
    });
}

#[test]
fn f03_a_watch_goes_on_where_its_member_died_and_misses_and_repeats_nothing() {
    let (_cluster, mut members, runtime, client) = founded();
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client.clone(), [want], 0, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    (0..20).for_each(|_| members[1].put(KEY));
    let mut seen = runtime.block_on(follow(&mut watch, 10));

    drop(members.remove(0));
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..20 {
        // While there is no leader it is unknown what becomes of a put: the store says how many there were.
        while members[1].try_put(KEY).is_err() {
            assert!(Instant::now() < deadline, "nobody leads");
        }
    }
    let last = runtime.block_on(version(&client, 1));
    assert!(last >= 40);
    seen.extend(runtime.block_on(follow(&mut watch, last)));
    let versions: Vec<i64> = seen.iter().map(|kv| kv.version).collect();
    assert_eq!(versions, (1..=last).collect::<Vec<i64>>());
    assert!(seen.is_sorted_by(|a, b| a.mod_revision < b.mod_revision));
    // Nothing follows, and the stream is alive.
    watch.ask_progress();
    let progress = runtime.block_on(async { timeout(Duration::from_secs(60), news(&mut watch)).await });
    assert!(matches!(progress, Ok(News::Progress { .. })), "{progress:?}");
}

#[test]
fn a_watch_leaves_a_member_that_stands_still() {
    let (_cluster, members, runtime, client) = founded();
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client, [want], 0, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    members[0].signal("-STOP");
    let deadline = Instant::now() + PATIENCE;
    // Perhaps it led.
    while members[1].try_put(KEY).is_err() {
        assert!(Instant::now() < deadline, "nobody leads");
    }
    let seen = runtime.block_on(follow(&mut watch, 1));
    members[0].signal("-CONT");
    assert_eq!(seen[0].version, 1);
    assert_eq!(watch.repeated(), 0);
}

#[test]
fn f04_a_member_that_lags_takes_a_start_that_it_does_not_have_yet() {
    let (cluster, members, runtime, client) = wired(&[]);
    let lagging = (leader(&members) + 1) % 3;
    let others = [(lagging + 1) % 3, (lagging + 2) % 3];
    let mut before = runtime.block_on(Stream::of(&client, lagging, [one(KEY)]));
    // It is cut off; or it is heard, and hears nothing.
    for deaf in [false, true] {
        runtime.block_on(async {
            let known = put(&client, others[0], KEY, "").await;
            before.until(known).await;
            if deaf {
                others.iter().for_each(|other| cluster.wires().silence(*other, lagging));
            } else {
                cluster.wires().isolate(lagging);
            }
            let mut last = 0;
            for _ in 0..20 {
                last = put(&client, others[0], KEY, "").await;
            }
            let start = known + 10;
            let mut stream = Stream::open(client.channel(lagging, 0), None).await.expect("it serves what it has");
            let (_, created) = stream.create(WatchCreateRequest { start_revision: start, ..one(KEY) }).await;
            assert_eq!(created, known);
            stream.ask_progress();
            cluster.wires().heal();
            let mut heard = Vec::new();
            while heard.last().is_none_or(|(revision, _)| *revision < last) {
                let response = stream.next().await.expect("the stream goes on");
                assert!(response.header.as_ref().expect("there is one").revision >= start, "{response:?}");
                heard.extend(show(&response));
            }
            complete(&heard, start, last);
            before.until(last).await;
        });
    }
}

#[test]
fn f05_a_member_that_is_told_to_stop_lets_its_streams_go_as_unavailable() {
    let (cluster, mut members, runtime, _) = founded();
    let connected = runtime.block_on(async { Client::new(&cluster.clients, 10) }).expect("addresses");
    runtime.block_on(async {
        let mut streams = Vec::new();
        for n in 0..1000 {
            let mut stream = Stream::open(connected.channel(0, n), None).await.expect("it serves");
            stream.create(one(KEY)).await;
            streams.push(stream);
        }
        members[0].signal("-TERM");
        for stream in &mut streams {
            let status = stream.ends().await;
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_ne!(status.message(), NO_LEADER);
        }
    });
    let (code, last) = members.remove(0).ends();
    assert_eq!(code, Some(0), "{last}");
}

#[test]
fn f06_a_member_that_is_removed_lets_its_streams_go() {
    let mut cluster = Cluster::new(3);
    cluster.flags = NOT_STRICT;
    let (_cluster, mut members, runtime, client) = founded_as(cluster);
    let removed = (leader(&members) + 1) % 3;
    let left = (removed + 1) % 3;
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client.clone(), [want], removed, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    let mut bare = runtime.block_on(Stream::of(&client, removed, [one(KEY)]));
    (0..10).for_each(|_| members[left].put(KEY));
    let mut seen = runtime.block_on(follow(&mut watch, 1));
    let id = members[removed].ids().0;
    members[left].remove(id);
    let status = runtime.block_on(bare.ends());
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_ne!(status.message(), NO_LEADER);
    let (code, last) = members.remove(removed).ends();
    assert_eq!(code, Some(0), "{last}");
    runtime.block_on(async {
        for _ in 0..10 {
            put(&client, left, KEY, "").await;
        }
        let last = version(&client, left).await;
        seen.extend(follow(&mut watch, last).await);
        let versions: Vec<i64> = seen.iter().map(|kv| kv.version).collect();
        assert_eq!(versions, (1..=last).collect::<Vec<i64>>());
    });
}

/// Adds what each watcher hears, by its id, until all of these have heard of this revision.
async fn collect(stream: &mut Stream, heard: &mut [Vec<Told>], of: &[usize], last: i64) {
    while of.iter().any(|id| heard[*id].last().is_none_or(|(revision, _)| *revision < last)) {
        let response = stream.next().await.expect("the stream goes on");
        heard[usize::try_from(response.watch_id).expect("one of ours")].extend(show(&response));
    }
}

/// One transaction that changes what every watcher of [`many`] waits for.
async fn change_for_all(client: &Client, member: usize) -> i64 {
    let put = |key: &'static str| Op::RequestPut(PutRequest { key: key.into(), ..Default::default() });
    let success = ["k/1", "idle"].map(|key| RequestOp { request: Some(put(key)) }).to_vec();
    let answer = KvClient::new(client.channel(member, 0)).txn(TxnRequest { success, ..Default::default() }).await;
    answer.expect("a majority is there").into_inner().header.expect("there is one").revision
}

/// A key, a prefix, everything, and a key that nobody writes for long.
fn many() -> [WatchCreateRequest; 4] {
    let everything = WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    [one("k/1"), prefix("k/"), everything, one("idle")]
}

#[test]
fn f07_f08_watchers_of_a_member_that_takes_a_snapshot_hear_what_they_missed() {
    let (cluster, members, runtime, client) = wired(SHORT_LOG);
    let away = (leader(&members) + 1) % 3;
    let others = [(away + 1) % 3, (away + 2) % 3];
    runtime.block_on(async {
        // The same is asked of a member that stays.
        let mut streams = [Stream::of(&client, others[0], many()).await, Stream::of(&client, away, many()).await];
        let mut heard = vec![vec![Vec::new(); 5]; 2];
        let first = change(&client, &others, 1).await;
        let known = change(&client, &others, 10).await;
        let start_revision = known + 100;
        for (stream, heard) in streams.iter_mut().zip(&mut heard) {
            collect(stream, heard, &[1, 2], known).await;
            let future = WatchCreateRequest { start_revision, ..prefix("k/") };
            stream.ask(RequestUnion::CreateRequest(future));
            let created = stream.next().await.expect("the stream goes on");
            assert!(created.created && created.watch_id == 4, "{created:?}");
        }
        cluster.wires().isolate(away);
        change(&client, &others, 200).await;
        cluster.wires().heal_with_losses();
        members[away].says("snapshot adopted");
        change(&client, &others, 20).await;
        let last = change_for_all(&client, others[0]).await;
        for (stream, heard) in streams.iter_mut().zip(&mut heard) {
            collect(stream, heard, &[0, 1, 2, 3, 4], last).await;
            complete(&heard[2], first, last);
            complete(&heard[4], start_revision, last);
            assert_eq!(heard[3].len(), 1, "{heard:?}");
        }
        assert!(heard[0] == heard[1], "{heard:?}");
    });
}

#[test]
fn f09_a_compaction_that_was_missed_is_told_or_nothing_is_missing() {
    let (cluster, members, runtime, client) = wired(SHORT_LOG);
    let away = (leader(&members) + 1) % 3;
    let others = [(away + 1) % 3, (away + 2) % 3];
    runtime.block_on(async {
        let mut stayed = Stream::of(&client, others[0], many()).await;
        let mut missing = Stream::of(&client, away, many()).await;
        let known = change(&client, &others, 11).await;
        let mut heard = [const { vec![] }; 4];
        collect(&mut missing, &mut heard, &[1, 2], known).await;
        cluster.wires().isolate(away);
        change(&client, &others, 100).await;
        let compacted = change(&client, &others, 100).await - 50;
        let compact = CompactionRequest { revision: compacted, physical: true };
        KvClient::new(client.channel(others[0], 0)).compact(compact).await.expect("a majority is there");
        cluster.wires().heal_with_losses();
        members[away].says("snapshot adopted");
        let last = change_for_all(&client, others[0]).await;
        let mut whole = [const { vec![] }; 4];
        collect(&mut stayed, &mut whole, &[0, 1, 2, 3], last).await;
        let mut over = [false; 4];
        while over.contains(&false) {
            let response = missing.next().await.expect("the stream goes on");
            let id = usize::try_from(response.watch_id).expect("one of ours");
            if response.canceled {
                assert_eq!((response.compact_revision, response.events.len()), (compacted, 0));
                over[id] = true;
                continue;
            }
            assert!(!over[id], "it was over: {response:?}");
            heard[id].extend(show(&response));
            over[id] = heard[id].last().is_some_and(|(revision, _)| *revision == last);
        }
        // To the end or not, what was heard has no gap.
        for (heard, whole) in heard.iter().zip(&whole) {
            assert_eq!(heard[..], whole[..heard.len()]);
        }
    });
}

#[test]
fn f10_f11_only_who_asked_for_a_leader_is_let_go_by_a_member_without_one() {
    let (cluster, members, runtime, client) = wired(&[]);
    let alone = leader(&members);
    let other = (alone + 1) % 3;
    runtime.block_on(async {
        let mut careful = Stream::open(client.channel(alone, 0), Some("true")).await.expect("there is a leader");
        let mut patient = Vec::new();
        for value in [None, Some("false"), Some("True")] {
            patient.push(Stream::open(client.channel(alone, 0), value).await.expect("there is a leader"));
        }
        for stream in patient.iter_mut().chain([&mut careful]) {
            stream.create(one(KEY)).await;
        }
        cluster.wires().isolate(alone);
        let status = careful.ends().await;
        assert_eq!((status.code(), status.message()), (Code::Unavailable, NO_LEADER));
        let refused = Stream::open(client.channel(alone, 0), Some("true")).await.err().expect("it has no leader");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, NO_LEADER));
        patient.push(Stream::open(client.channel(alone, 0), Some("false")).await.expect("nobody asks for a leader"));
        patient[3].create(WatchCreateRequest { start_revision: 1, ..one(KEY) }).await;
        let first = put(&client, other, KEY, "1").await;
        let last = put(&client, other, KEY, "2").await;
        cluster.wires().heal();
        for stream in &mut patient {
            complete(&stream.until(last).await, first, last);
        }
    });
}

/// A stream of renewals at one member, and where to ask for them.
async fn keepalive(
    channel: Channel,
    hasleader: Option<&'static str>,
) -> Result<(mpsc::UnboundedSender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>), Status> {
    let (send, requests) = mpsc::unbounded_channel();
    let call = asking(UnboundedReceiverStream::new(requests), hasleader);
    Ok((send, LeaseClient::new(channel).lease_keep_alive(call).await?.into_inner()))
}

async fn observe(channel: Channel, hasleader: Option<&'static str>) -> Result<Streaming<LeaderResponse>, Status> {
    let call = asking(LeaderRequest { name: KEY.into() }, hasleader);
    Ok(ElectionClient::new(channel).observe(call).await?.into_inner())
}

#[test]
fn renewals_and_elections_are_let_go_as_well_where_who_follows_them_asked_for_a_leader() {
    let (cluster, members, runtime, client) = wired(&[]);
    let alone = leader(&members);
    let other = (alone + 1) % 3;
    runtime.block_on(async {
        let here = || client.channel(alone, 0);
        let grant = LeaseGrantRequest { ttl: 600, id: 0 };
        let id = LeaseClient::new(here()).lease_grant(grant).await.expect("it serves").into_inner().id;
        let campaign = CampaignRequest { name: KEY.into(), lease: id, value: "1".into() };
        let won = ElectionClient::new(here()).campaign(campaign).await.expect("nobody else stands").into_inner();
        let mut renewing = Vec::new();
        let mut observing = Vec::new();
        for value in [Some("true"), None, Some("false")] {
            let (send, mut responses) = keepalive(here(), value).await.expect("there is a leader");
            send.send(LeaseKeepAliveRequest { id }).expect("the stream is open");
            assert_eq!(message(&mut responses).await.expect("it goes on").ttl, 600);
            renewing.push((send, responses));
            let mut leaders = observe(here(), value).await.expect("there is a leader");
            assert_eq!(message(&mut leaders).await.expect("it goes on").kv.expect("a leader").value, "1");
            observing.push(leaders);
        }

        cluster.wires().isolate(alone);
        // One that is never asked for anything, and one whose client goes on asking.
        let no_leader = (Code::Unavailable, NO_LEADER.to_owned());
        let (careful, mut renewed) = renewing.remove(0);
        let _ = careful.send(LeaseKeepAliveRequest { id });
        assert_eq!(refusal(message(&mut renewed).await), no_leader);
        assert_eq!(refusal(message(&mut observing.remove(0)).await), no_leader);
        assert_eq!(refusal(keepalive(here(), Some("true")).await), no_leader);
        assert_eq!(refusal(observe(here(), Some("true")).await), no_leader);

        let proclaim = ProclaimRequest { leader: won.leader, value: "2".into() };
        put(&client, other, "elsewhere", "there is a leader").await;
        ElectionClient::new(client.channel(other, 0)).proclaim(proclaim).await.expect("it leads");
        cluster.wires().heal();
        for (send, responses) in &mut renewing {
            send.send(LeaseKeepAliveRequest { id }).expect("the stream is open");
            assert_eq!(message(responses).await.expect("it goes on").ttl, 600);
        }
        for leaders in &mut observing {
            assert_eq!(message(leaders).await.expect("it goes on").kv.expect("a leader").value, "2");
        }
    });
}

#[test]
fn f12_a_watch_survives_that_every_member_is_started_anew() {
    let (cluster, members, runtime, client) = founded();
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client.clone(), [want], 0, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    let (cluster, done) = (&cluster, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let restarts = scope.spawn(move || {
            let restart = |(n, member): (usize, Process)| {
                member.signal("-TERM");
                member.ends();
                let member = cluster.start(n);
                member.says(READY);
                member
            };
            let members: Vec<Process> = members.into_iter().enumerate().map(restart).collect();
            done.store(true, Ordering::SeqCst);
            members
        });
        let writing = async {
            for n in 0.. {
                let over = done.load(Ordering::SeqCst);
                // A member that is going may never answer.
                let write = put(&client, n % 3, KEY, if over { "last" } else { "" });
                if timeout(Duration::from_secs(5), write).await.is_ok() && over {
                    break;
                }
            }
        };
        let watching = async {
            let mut seen: Vec<KeyValue> = Vec::new();
            while seen.last().is_none_or(|kv| kv.value != "last") {
                match news(&mut watch).await {
                    News::Events(events) => seen.extend(events.into_iter().filter_map(|event| event.kv)),
                    other => panic!("{other:?}"),
                }
            }
            seen
        };
        let ((), seen) = runtime.block_on(async { tokio::join!(writing, watching) });
        let versions: Vec<i64> = seen.iter().map(|kv| kv.version).collect();
        assert_eq!(versions, (1..=versions.len() as i64).collect::<Vec<i64>>());
        drop(restarts.join().expect("they all come back"));
    });
}

#[test]
fn f13_a_learner_serves_no_watches_until_it_votes() {
    let mut cluster = Cluster::new(2);
    cluster.flags = NOT_STRICT;
    let voter = cluster.start_with(0, &cluster.list(1), "new");
    voter.says(READY);
    let id = voter.add(&cluster.peers[1], true);
    let learner = cluster.start_with(1, &cluster.list(2), "existing");
    learner.says(READY);
    let refused = learner.ask(async |channel| Stream::open(channel, None).await.err()).expect("it learns");
    let text = "etcdserver: rpc not supported for learner";
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, text));
    let deadline = Instant::now() + PATIENCE;
    while let Err(status) = voter.promote(id) {
        assert!(Instant::now() < deadline, "{status}");
    }
    learner.ask(async |channel| {
        let mut stream = loop {
            // It has to hear of it.
            match Stream::open(channel.clone(), None).await {
                Ok(stream) => break stream,
                Err(status) => assert!(Instant::now() < deadline, "{status}"),
            }
        };
        stream.create(one(KEY)).await;
        let put = PutRequest { key: KEY.into(), ..Default::default() };
        let answer = KvClient::new(channel).put(put).await.expect("it votes").into_inner();
        let at = answer.header.expect("there is one").revision;
        complete(&stream.until(at).await, at, at);
    });
}

#[test]
fn f14_what_the_leader_acknowledged_a_follower_tells() {
    let (_cluster, members, runtime, client) = founded();
    let leader = leader(&members);
    runtime.block_on(async {
        for n in 0..100 {
            let at = try_put(&client, leader, KEY, "").await.expect("it leads");
            let create = WatchCreateRequest { start_revision: at, ..one(KEY) };
            let mut stream = Stream::of(&client, (leader + 1 + n % 2) % 3, [create]).await;
            complete(&stream.until(at).await, at, at);
        }
    });
}

#[test]
fn f16_progress_of_a_follower_is_true() {
    let (_cluster, members, runtime, client) = founded();
    let leader = leader(&members);
    let follower = (leader + 1) % 3;
    runtime.block_on(async {
        let mut stream = Stream::of(&client, follower, [prefix("k/")]).await;
        let first = put(&client, leader, "k/", "").await;
        let (mut told, mut promised, mut promises) = (0, 0, 0);
        let mut last = first;
        for n in 0..300 {
            stream.ask_progress();
            last = put(&client, leader, "k/", &n.to_string()).await;
            stream.ask_progress();
            while let Ok(next) = timeout(Duration::ZERO, stream.responses.message()).await {
                let response = next.expect("the stream goes on").expect("it is open");
                let revision = response.header.as_ref().expect("there is one").revision;
                if response.events.is_empty() {
                    let status = MaintenanceClient::new(client.channel(follower, 0)).status(StatusRequest {}).await;
                    let applied = status.expect("it is there").into_inner().header.expect("there is one").revision;
                    assert!(promised <= revision && revision <= applied, "{promised}, {revision} of {applied}");
                    // Every revision is one that it is told of.
                    assert!(told >= revision || revision < first, "{revision} promised, {told} told");
                    (promised, promises) = (revision, promises + 1);
                }
                for (at, _) in show(&response) {
                    assert!(at == told + 1 || told == 0 && at == first, "{at} after {told}");
                    told = at;
                }
            }
        }
        while told < last || promised < last {
            stream.ask_progress();
            let response = stream.next().await.expect("the stream goes on");
            promised = response.header.as_ref().expect("there is one").revision;
            told = show(&response).last().map_or(told, |(at, _)| *at);
            promises += 1;
            assert!(!response.events.is_empty() || told >= promised, "{promised} promised, {told} told");
        }
        assert!(promises > 0);
    });
}

#[test]
fn f18_a_follower_that_stood_still_tells_all_of_it() {
    let (cluster, members, runtime, client) = founded();
    let leader = leader(&members);
    let (still, other) = ((leader + 1) % 3, (leader + 2) % 3);
    runtime.block_on(async {
        let mut watched = Stream::of(&client, other, [prefix("k/")]).await;
        // It shall wait for as long as the member stands still.
        let patience = Keepalive { interval: PATIENCE, timeout: PATIENCE };
        let patient = Client::with_keepalive(&cluster.clients, 1, patience).expect("addresses");
        let mut stream = Stream::of(&patient, still, [prefix("k/")]).await;
        let first = change(&client, &[leader], 1).await;
        members[still].signal("-STOP");
        let last = change(&client, &[leader, other], 300).await;
        let wanted = watched.until(last).await;
        stream.ask_progress();
        members[still].signal("-CONT");
        let mut heard = Vec::new();
        while heard.last().is_none_or(|(revision, _)| *revision < last) {
            let response = stream.next().await.expect("the stream goes on");
            heard.extend(show(&response));
            let (told, promised) =
                (heard.last().map_or(0, |(at, _): &Told| *at), response.header.expect("one").revision);
            assert!(!response.events.is_empty() || promised < first || told >= promised, "{promised}, told {told}");
        }
        complete(&heard, first, last);
        assert_eq!(heard, wanted);
    });
}
