//! Bounds that a member is given, on connections of clients and on watchers, and one that it has: on what waits to be proposed.

mod processes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use everwatch::pb::etcdserverpb::PutRequest;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::watch_client::WatchClient;
use everwatch::pb::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use everwatch::pb::v3lockpb::LockRequest;
use everwatch::pb::v3lockpb::lock_client::LockClient;
use processes::{Cluster, PATIENCE, Process, READY, free_address};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use watch_request::RequestUnion;

fn alone(flags: &'static [&'static str], more: Vec<String>) -> (Cluster, Process) {
    let mut cluster = Cluster::new(1);
    (cluster.flags, cluster.more) = (flags, more);
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    (cluster, member)
}

/// The answer to a GET, or nothing from a connection that is closed.
fn version(connection: &mut TcpStream) -> String {
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    // A connection that was closed may say so at either.
    if connection.write_all(b"GET /version HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").is_ok() {
        let _ = connection.read_to_string(&mut answer);
    }
    answer
}

#[test]
fn a_connection_that_finds_no_place_is_closed_and_others_are_served() {
    let metrics = free_address();
    let more = vec![format!("--listen-metrics-urls=http://{metrics}")];
    let (_cluster, member) = alone(&["--max-client-connections=3", "--edge-threads=1"], more);
    let open = || TcpStream::connect(&member.client).expect("it listens");
    let mut held: Vec<TcpStream> = (0..3).map(|_| open()).collect();
    assert_eq!(version(&mut open()), "");
    member.says("as many as --max-client-connections allows");
    // Whoever looks after the member finds a place.
    let mut looked = TcpStream::connect(&metrics).expect("it listens");
    looked.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    looked.read_to_string(&mut text).unwrap();
    assert!(text.contains("everwatch_client_connections_refused_total 1\n"), "{text}");
    // Those who have a place keep it, and leave it to others.
    assert!(version(&mut held[0]).starts_with("HTTP/1.1 200"));
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while version(&mut open()).is_empty() {
        assert!(Instant::now() < deadline, "places are not given back");
    }
}

struct Stream {
    say: mpsc::UnboundedSender<WatchRequest>,
    hear: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: &Channel) -> Stream {
        let (say, said) = mpsc::unbounded_channel();
        let hear = WatchClient::new(channel.clone()).watch(UnboundedReceiverStream::new(said)).await.unwrap();
        Stream { say, hear: hear.into_inner() }
    }

    async fn ask(&mut self, request: RequestUnion) -> WatchResponse {
        self.say.send(WatchRequest { request_union: Some(request) }).unwrap();
        self.hear.message().await.unwrap().unwrap()
    }

    /// Why not, or nothing.
    async fn create(&mut self) -> String {
        let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
        let answer = self.ask(RequestUnion::CreateRequest(create)).await;
        assert!(answer.created && answer.canceled != answer.cancel_reason.is_empty(), "{answer:?}");
        answer.cancel_reason
    }
}

#[test]
fn a_watcher_that_would_be_too_many_is_cancelled_with_a_reason() {
    let (_cluster, member) = alone(&["--max-watchers-per-stream=2", "--max-watchers=3"], Vec::new());
    member.ask(async |channel| {
        let (mut one, mut other) = (Stream::open(&channel).await, Stream::open(&channel).await);
        assert_eq!([one.create().await, one.create().await], ["", ""]);
        assert_eq!(one.create().await, "everwatch: too many watchers on this stream");
        assert_eq!(other.create().await, "");
        assert_eq!(other.create().await, "everwatch: too many watchers at this member");
        // One that goes makes room.
        let cancelled = one.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })).await;
        assert!(cancelled.canceled);
        assert_eq!(other.create().await, "");
        drop(other);
        // It is noticed that a stream is gone, soon.
        let deadline = Instant::now() + PATIENCE;
        while !one.create().await.is_empty() {
            assert!(Instant::now() < deadline, "places are not given back");
        }
    });
}

#[test]
fn whoever_waits_for_a_lock_where_no_watcher_is_to_be_had_is_told_so() {
    let (_cluster, member) = alone(&["--max-watchers=1"], Vec::new());
    member.ask(async |channel| {
        assert_eq!(Stream::open(&channel).await.create().await, "");
        let mut locks = LockClient::new(channel.clone());
        let lock = || LockRequest { name: "lock".into(), lease: 0 };
        locks.lock(lock()).await.expect("nobody has it");
        let mut held = Stream::open(&channel).await;
        let deadline = Instant::now() + PATIENCE;
        while !held.create().await.is_empty() {
            assert!(Instant::now() < deadline, "places are not given back");
        }
        let waiting = tokio::time::timeout(PATIENCE, locks.lock(lock())).await.expect("it does not try for ever");
        let refused = waiting.expect_err("there is no watcher to be had");
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, "everwatch: too many watchers at this member"));
    });
}

#[test]
fn whoever_finds_no_room_among_what_waits_for_a_leader_is_refused_at_once() {
    let mut cluster = Cluster::new(2);
    cluster.flags = &["--max-request-bytes=41943040", "--election-timeout=3000"];
    let list = cluster.list(2);
    let [member, other] = [0, 1].map(|n| cluster.start_with(n, &list, "new"));
    for member in [&member, &other] {
        member.says(READY);
    }
    drop(other);
    let deadline = Instant::now() + PATIENCE;
    while !member.get("/metrics").contains("\netcd_server_has_leader 0\n") {
        assert!(Instant::now() < deadline, "one of two does not lead");
    }
    member.ask(async |channel| {
        // There is room for 256 MiB; whatever then comes last is too much.
        let value = bytes::Bytes::from(vec![0; 39 << 20]);
        let mut puts = JoinSet::new();
        for _ in 0..8 {
            let (mut kv, value) = (KvClient::new(channel.clone()), value.clone());
            puts.spawn(async move { kv.put(PutRequest { key: "k".into(), value, ..Default::default() }).await });
        }
        let refused = puts.join_next().await.unwrap().unwrap().expect_err("nobody leads");
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, "etcdserver: too many requests"));
        // The others had room, and wait until it is too late.
        let late = puts.join_next().await.unwrap().unwrap().expect_err("nobody leads");
        assert_eq!((late.code(), late.message()), (Code::Unavailable, "etcdserver: request timed out"));
    });
}

/// How often a client that floods the member with puts had to wait for one that puts now and then: until it had to, or for so many puts.
/// Before that, there is nobody to wait for.
fn waits_beside_a_flood(member: &Process, puts_max: usize) -> u64 {
    const CONNECTIONS: usize = 20;
    const PUTS_EACH: usize = 25;
    let waits = || {
        let metrics = member.get("/metrics");
        let (_, count) = metrics.split_once("\neverwatch_throttle_waits_total ").expect("it is counted");
        count.lines().next().unwrap().parse::<u64>().unwrap()
    };
    let put = async |kv: &mut KvClient<Channel>| kv.put(PutRequest { key: "k".into(), ..Default::default() }).await;
    member.ask(async |channel| {
        let (mut flood, answered) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..CONNECTIONS {
            let connection =
                Channel::from_shared(format!("http://{}", member.client)).unwrap().connect().await.unwrap();
            for _ in 0..PUTS_EACH {
                let (mut kv, answered) = (KvClient::new(connection.clone()), answered.clone());
                flood.spawn(async move {
                    loop {
                        put(&mut kv).await.expect("it may take its time");
                        answered.fetch_add(1, Relaxed);
                    }
                });
            }
        }
        let goes_on = async |rounds: usize| {
            for _ in 0..rounds {
                let (to, deadline) = (answered.load(Relaxed) + CONNECTIONS * PUTS_EACH, Instant::now() + PATIENCE);
                while answered.load(Relaxed) < to {
                    assert!(Instant::now() < deadline, "it does not go on");
                    tokio::task::yield_now().await;
                }
            }
        };
        goes_on(20).await;
        assert_eq!(waits(), 0, "among equals");
        let mut kv = KvClient::new(channel);
        for _ in 0..puts_max {
            put(&mut kv).await.expect("a put");
            if waits() > 0 {
                // It is held, not stopped.
                goes_on(5).await;
                break;
            }
        }
        flood.abort_all();
        while flood.join_next().await.is_some_and(|ended| ended.is_err_and(|error| error.is_cancelled())) {}
        assert!(flood.is_empty(), "one of its puts failed");
        waits()
    })
}

#[test]
fn who_floods_a_member_waits_where_others_would_have_to() {
    let (_cluster, member) = alone(&["--edge-threads=1"], Vec::new());
    assert!(waits_beside_a_flood(&member, 10_000) > 0);
    let (_cluster, member) = alone(&["--hold-busy-clients=false"], Vec::new());
    assert_eq!(waits_beside_a_flood(&member, 60), 0);
}

/// What a connection pings beside.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    /// A call that is under way.
    Call,
    /// One that is answered between every two pings.
    Answers,
}

/// Pings so often, one after the other, all of which are answered. What the member says if it hangs up then.
fn ping(member: &Process, times: usize, beside: Beside, hangs_up: bool) -> Option<String> {
    let address = member.client.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        let (mut send, mut connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        let mut pings = connection.ping_pong().expect("nobody else pings");
        let connection = tokio::spawn(connection);
        let mut put = || {
            let uri = format!("http://{address}/etcdserverpb.KV/Put");
            let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
            send.send_request(request.body(()).unwrap(), false).expect("it goes on")
        };
        let under_way = (beside == Beside::Call).then(&mut put);
        for number in 1..=times {
            if beside == Beside::Answers {
                let (answer, mut body) = put();
                body.send_data(vec![0; 5].into(), true).expect("it goes on");
                answer.await.expect("an answer");
            }
            // Where it hangs up after the last, that may be heard of before the answer.
            let answered = pings.ping(h2::Ping::opaque()).await.is_ok();
            assert!(answered || hangs_up && number == times, "ping {number} of {times}");
        }
        if !hangs_up {
            return None;
        }
        let ended = tokio::time::timeout(PATIENCE, connection).await.expect("it hangs up").unwrap();
        drop(under_way);
        Some(ended.expect_err("it says why").to_string())
    })
}

#[test]
fn a_client_that_pings_too_often_is_hung_up_on() {
    let (_cluster, member) = alone(&[], Vec::new());
    for beside in [Beside::Nothing, Beside::Call] {
        let said = ping(&member, 4, beside, true).unwrap();
        assert!(said.contains("too_many_pings"), "{said}");
    }
    ping(&member, 50, Beside::Answers, false);

    let (_cluster, member) = alone(&["--grpc-keepalive-min-time=1ns"], Vec::new());
    ping(&member, 50, Beside::Call, false);
    assert!(ping(&member, 4, Beside::Nothing, true).unwrap().contains("too_many_pings"), "none is due without a call");
}
