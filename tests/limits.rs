//! Bounds that a member is given, on connections of clients and on watchers, and one that it has: on what waits to be proposed.

mod processes;

use std::io::{Read, Write};
use std::net::TcpStream;
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

/// A connection that pings, with a call `open` on it, or one that is answered `between` every two pings. How many
/// pings were answered, and what the member said when it hung up.
fn ping(member: &Process, times: usize, open: bool, between: bool) -> (usize, Option<String>) {
    let address = member.client.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        let (mut send, mut connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        let mut pings = connection.ping_pong().expect("nobody else pings");
        let mut connection = tokio::spawn(connection);
        let request = |path: &str| {
            let uri = format!("http://{address}/etcdserverpb.{path}");
            http::Request::post(uri)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap()
        };
        let watch = open.then(|| send.send_request(request("Watch/Watch"), false).expect("it goes on"));
        let mut answered = 0;
        for _ in 0..times {
            if between {
                let (answer, mut body) = send.send_request(request("KV/Put"), false).expect("it goes on");
                body.send_data(vec![0; 5].into(), true).expect("it goes on");
                answer.await.expect("an answer");
            }
            if pings.ping(h2::Ping::opaque()).await.is_err() {
                break;
            }
            answered += 1;
        }
        drop(watch);
        let said = match answered == times {
            true => None,
            false => Some((&mut connection).await.unwrap().expect_err("it was told why").to_string()),
        };
        connection.abort();
        (answered, said)
    })
}

#[test]
fn a_client_that_pings_too_often_is_hung_up_on() {
    let (_cluster, member) = alone(&[], Vec::new());
    for open in [false, true] {
        let (answered, said) = ping(&member, 50, open, false);
        let said = said.expect("it hung up");
        // The answer to the last may be on its way, and that to the call has come between two of them.
        assert!((3..=6).contains(&answered), "{answered} pings were answered");
        assert!(said.contains("too_many_pings"), "{said}");
    }
    assert_eq!(ping(&member, 50, false, true), (50, None), "answers are sent between them");

    let (_cluster, member) = alone(&["--grpc-keepalive-min-time=1ns"], Vec::new());
    assert_eq!(ping(&member, 50, true, false), (50, None), "they may come as fast as they can");
    assert!(ping(&member, 50, false, false).1.is_some(), "not where there is no call");
}
