//! Members of one process that talk over loopback. Each lives on a runtime of its own, so that it can die as a process
//! does; the tests wait for what members deliver, never for time to pass.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::raft::eraftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tonic::Code;

use super::*;
use crate::pb::everwatchpb as wire;
use crate::pb::everwatchpb::peer_client::PeerClient;
use crate::storage::backend::disk::DiskBackend;
use crate::storage::backend::{Backend, Bucket};
use crate::storage::schema;
use crate::throttle::Throttle;
use crate::tls::Dialer;
use crate::types::{ClusterId, LeaseId};

const CLUSTER: ClusterId = ClusterId(77);
const A: MemberId = MemberId(1);
const B: MemberId = MemberId(2);
const PATIENCE: Duration = Duration::from_secs(30);

type Rows = BTreeMap<(Bucket, Bytes), Bytes>;

/// One member: a transport and a listening service.
struct Member {
    id: MemberId,
    address: SocketAddr,
    transport: Arc<Transport>,
    events: Receiver<FromPeer>,
    alive: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a member is made of, where it matters.
#[derive(Clone)]
struct Parts {
    state: Arc<dyn Fn() -> storage::Result<Table> + Send + Sync>,
    dir: PathBuf,
    renew: Arc<dyn Fn(Vec<LeaseId>) -> BoxFuture<Vec<Renewal>> + Send + Sync>,
    removed: Vec<MemberId>,
    throttle: Arc<Throttle>,
    remote_patience: Duration,
    stall: Duration,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts {
            state: Arc::new(|| Err(storage::Error::Poisoned)),
            dir: PathBuf::from("/nowhere"),
            renew: Arc::new(|ids| Box::pin(async move { ids.iter().map(|id| Renewal::Ttl(id.0)).collect() })),
            removed: Vec::new(),
            throttle: Arc::new(Throttle::new(true)),
            remote_patience: PATIENCE,
            stall: PATIENCE,
        }
    }
}

impl Member {
    fn start(id: MemberId, address: &str, parts: Parts) -> Member {
        let (deliver, events) = channel();
        let (alive, died) = oneshot::channel();
        let (started, start) = channel();
        let listener = TcpListener::bind(address).expect("the port is free");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let thread = std::thread::spawn(move || {
            // Both kinds have to do.
            let mut runtime = match id {
                A => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let transport = Arc::new(transport(id, deliver, &parts));
                let config = ServiceConfig {
                    renew: parts.renew,
                    time_to_live: Arc::new(|id| {
                        Box::pin(async move {
                            match id.0 {
                                0 => Remaining::Unknown,
                                ttl => Remaining::Left { ttl, granted_ttl: 60 },
                            }
                        })
                    }),
                    learner: Arc::new(|id| {
                        Box::pin(async move {
                            match id {
                                A => Learner::Behind,
                                B => Learner::Unobjectionable,
                                _ => Learner::Unavailable,
                            }
                        })
                    }),
                    members: Arc::new(move |asker| {
                        let table = vec![wire::MemberRecord { id: id.0, ..Default::default() }];
                        let standing = asker.map_or(wire::Standing::Unsure, |_| wire::Standing::HasRun) as i32;
                        let (cluster_id, member_id) = (CLUSTER.0, id.0);
                        let answer = wire::MembersResponse { members: table, cluster_id, standing, member_id };
                        Box::pin(async { answer })
                    }),
                    history_hash: Arc::new(|_| Box::pin(async { None })),
                    snapshots: storage::snapshot::Folder { dir: parts.dir, keys: None },
                };
                let service = peer_service(&transport, config);
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                started.send(transport).expect("the test waits");
                tokio::select! {
                    _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming) => {}
                    _ = died => {}
                }
            });
            // Connections die with their member.
            runtime.shutdown_background();
        });
        let transport = start.recv_timeout(PATIENCE).expect("it starts");
        Member { id, address, transport, events, alive: Some(alive), thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it in the middle of whatever it does.
    fn die(&mut self) {
        self.alive.take();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it dies in peace");
        }
    }

    /// The next thing delivered.
    fn event(&self) -> FromPeer {
        self.events.recv_timeout(PATIENCE).expect("something happens")
    }

    /// The next message delivered; that somebody cannot be reached is passed over.
    fn message(&self) -> Message {
        loop {
            match self.event() {
                FromPeer::Message(message) => return message,
                FromPeer::Unreachable(_) => {}
                other => panic!("{other:?} is no message"),
            }
        }
    }

    /// How the next snapshot went; everything else is passed over.
    fn snapshot_received(&self) -> (Message, Index, Place) {
        loop {
            match self.event() {
                FromPeer::SnapshotReceived { message, index, place } => return (message, index, place),
                FromPeer::Message(greeting) => assert_eq!(greeting.commit, 0),
                other => panic!("{other:?}"),
            }
        }
    }

    fn snapshot_sent(&self) -> bool {
        loop {
            if let FromPeer::SnapshotSent { ok, .. } = self.event() {
                return ok;
            }
        }
    }

    /// Makes the members known to each other and waits until messages from this one get through.
    fn connect(&self, to: &Member) {
        to.transport.set_peers(vec![(self.id, vec![self.url()])]);
        self.transport.set_peers(vec![(self.id, vec![self.url()]), (to.id, vec![to.url()])]);
        self.reach(to);
    }

    /// Sends greetings until one arrives. More of them may arrive later.
    fn reach(&self, to: &Member) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no connection");
            self.transport.send(vec![heartbeat(self.id, to.id, 0)]);
            if to.events.recv_timeout(Duration::from_millis(20)).is_ok() {
                return while self.events.try_recv().is_ok() {};
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.die();
    }
}

fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

fn transport(local: MemberId, events: Sender<FromPeer>, parts: &Parts) -> Transport {
    let state = parts.state.clone();
    Transport::new(TransportConfig {
        local,
        cluster: CLUSTER,
        logger: logger(),
        dialer: Dialer::plain(),
        deliver: Arc::new(move |event| {
            // A test that has seen enough no longer listens.
            let _ = events.send(event);
        }),
        snapshot_source: Arc::new(move || Ok((Arc::new(state()?) as Arc<dyn Reader>, meta(9)))),
        was_removed: {
            let removed = parts.removed.clone();
            Arc::new(move |id| removed.contains(&id))
        },
        throttle: parts.throttle.clone(),
        remote_patience: parts.remote_patience,
        snapshot_stall: parts.stall,
    })
}

fn heartbeat(from: MemberId, to: MemberId, commit: u64) -> Message {
    Message { msg_type: MessageType::MsgHeartbeat, from: from.0, to: to.0, commit, ..Message::default() }
}

fn append(from: MemberId, to: MemberId, index: u64, bytes: usize) -> Message {
    let entry = Entry { data: Bytes::from(vec![7; bytes]), ..Entry::default() };
    let mut message = heartbeat(from, to, 0);
    message.msg_type = MessageType::MsgAppend;
    message.index = index;
    message.entries = vec![entry].into();
    message
}

/// What raft says when it wants the state at `index` sent.
fn offer(from: MemberId, to: MemberId, index: u64) -> Message {
    let mut message = heartbeat(from, to, 0);
    message.msg_type = MessageType::MsgSnapshot;
    let mut snapshot = Snapshot::default();
    snapshot.set_metadata(SnapshotMetadata { index, term: 1, ..SnapshotMetadata::default() });
    message.set_snapshot(snapshot);
    message
}

fn meta(index: u64) -> SnapshotMeta {
    let conf_state = wire::ConfState { voters: vec![1, 2], ..wire::ConfState::default() };
    SnapshotMeta { index, term: 3, conf_state: Some(conf_state) }
}

/// A reader over a map, which may stop half-way.
struct Table {
    rows: Arc<Rows>,
    halt: Option<Halt>,
}

/// Says when half of the rows have been read, and waits there.
#[derive(Clone)]
struct Halt {
    reached: Sender<()>,
    go_on: Arc<Mutex<Receiver<()>>>,
}

impl Reader for Table {
    fn get(&self, bucket: Bucket, key: &[u8]) -> storage::Result<Option<Bytes>> {
        Ok(self.rows.get(&(bucket, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(
        &self,
        wanted: Bucket,
        from: &[u8],
        _: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> storage::Result<()> {
        let from = (wanted, Bytes::copy_from_slice(from));
        let rows = self.rows.range(from..).take_while(|((bucket, _), _)| *bucket == wanted);
        for (n, ((_, key), value)) in rows.enumerate() {
            if let Some(halt) = &self.halt
                && n == self.rows.len() / 2
            {
                let _ = halt.reached.send(());
                let _ = halt.go_on.lock().expect("a lock").recv();
            }
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

fn table(rows: u64) -> Arc<dyn Fn() -> storage::Result<Table> + Send + Sync> {
    let rows = Arc::new(many_rows(rows));
    Arc::new(move || Ok(Table { rows: rows.clone(), halt: None }))
}

/// Everything in a snapshot file.
fn contents(path: &Path) -> Rows {
    let backend = DiskBackend::open(path).expect("a backend");
    let reader = backend.reader().expect("a reader");
    let mut rows = Rows::new();
    for bucket in Bucket::ALL {
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.insert((bucket, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
            true
        };
        reader.scan(bucket, &[], None, &mut visit).expect("rows");
    }
    rows
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("a directory").count()
}

fn many_rows(count: u64) -> Rows {
    let mut rows: Rows = (0..count)
        .map(|n| ((Bucket::Key, schema::u64_row(n)), Bytes::from(vec![n as u8; (n % 97) as usize])))
        .collect();
    rows.insert((Bucket::Lease, schema::u64_row(5)), Bytes::from_static(b"lease"));
    rows.insert((Bucket::Alarm, schema::u64_row(6)), Bytes::new());
    rows.insert((Bucket::Meta, Bytes::from_static(schema::REVISION)), schema::u64_row(8));
    rows.insert((Bucket::Meta, Bytes::from_static(schema::IDENTITY)), Bytes::from_static(b"me"));
    rows
}

/// Runs a client of the service that we did not start as a member.
fn as_stranger<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("an answer in time") })
}

#[test]
fn messages_of_a_lane_arrive_in_order_and_once() {
    let (a, b) = (Member::start(A, "127.0.0.1:0", Parts::default()), Member::start(B, "127.0.0.1:0", Parts::default()));
    a.connect(&b);
    let (mut log, mut beat) = (0, 0);
    for _ in 0..20 {
        // Never more than may wait, so that nothing is dropped.
        let burst = (1..=200).flat_map(|n| [append(A, B, log + n, 300), heartbeat(A, B, beat + n)]);
        a.transport.send(burst.collect());
        let end = (log + 200, beat + 200);
        while (log, beat) != end {
            let message = b.message();
            match message.msg_type {
                MessageType::MsgAppend => {
                    assert_eq!((message.index, message.entries[0].data.len()), (log + 1, 300));
                    log += 1;
                }
                // Greetings of the beginning.
                _ if message.commit == 0 => {}
                _ => {
                    assert_eq!(message.commit, beat + 1);
                    beat += 1;
                }
            }
        }
    }
    assert!(a.events.try_recv().is_err(), "nothing was dropped");
    let status = &a.transport.peers()[0];
    assert!(status.id == B && status.counters.sent_bytes.load(Relaxed) > 4000 * 300);
    assert!(b.transport.peers()[0].counters.received_bytes.load(Relaxed) > 4000 * 300);
}

#[test]
fn a_message_never_arrives_twice_though_the_peer_restarts() {
    let a = Member::start(A, "127.0.0.1:0", Parts::default());
    let mut b = Member::start(B, "127.0.0.1:0", Parts::default());
    a.connect(&b);
    let (mut sent, mut last, mut arrived) = (0, 0, 0);
    for life in 0..3 {
        let (mut received, deadline) = (0, Instant::now() + PATIENCE);
        while received < 200 {
            assert!(Instant::now() < deadline, "no messages in life {life}");
            a.transport.send((1..=5).map(|n| append(A, B, sent + n, 100)).collect());
            sent += 5;
            while let Ok(FromPeer::Message(message)) = b.events.recv_timeout(Duration::from_millis(1)) {
                if message.msg_type == MessageType::MsgAppend {
                    assert!(message.index > last, "{} after {last}", message.index);
                    (last, received, arrived) = (message.index, received + 1, arrived + 1);
                }
            }
        }
        let address = b.address.to_string();
        // Dies with a burst on its way; what it still took counts.
        a.transport.send((1..=50).map(|n| append(A, B, sent + n, 100)).collect());
        sent += 50;
        while a.events.try_recv().is_ok() {}
        b.die();
        assert!(matches!(a.event(), FromPeer::Unreachable(B)), "raft is told that something may be lost");
        for event in b.events.try_iter() {
            if let FromPeer::Message(message) = event
                && message.msg_type == MessageType::MsgAppend
            {
                assert!(message.index > last, "{} after {last}", message.index);
                (last, arrived) = (message.index, arrived + 1);
            }
        }
        b = Member::start(B, &address, Parts::default());
        b.transport.set_peers(vec![(A, vec![a.url()])]);
    }
    assert!(arrived < sent, "what was sent to the dead is lost");
}

#[test]
fn a_peer_that_takes_nothing_costs_a_bounded_queue_and_goes_with_the_transport() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let a = Member::start(A, "127.0.0.1:0", Parts::default());
    a.transport.send(vec![heartbeat(A, B, 0)]);
    assert!(matches!(a.event(), FromPeer::Unreachable(B)), "nobody of that name");
    // The first URL leads nowhere, which costs a turn.
    let nowhere = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let there = listener.local_addr().expect("bound");
    a.transport.set_peers(vec![(B, vec![format!("http://{nowhere}"), format!("http://{there}")])]);
    let (mut stuck, _) = listener.accept().expect("it dials the second");
    let deadline = Instant::now() + PATIENCE;
    loop {
        a.transport.send(vec![heartbeat(A, B, 0)]);
        if a.events.recv_timeout(Duration::from_millis(5)).is_err() {
            break;
        }
        assert!(Instant::now() < deadline, "no connection");
    }
    let mut sent = 0;
    while a.events.try_recv().is_err() {
        a.transport.send(vec![append(A, B, 1, 1 << 20)]);
        sent += 1;
        assert!(sent < 100, "more than the bound waits");
    }
    assert!(sent > 20, "dropped too early, after {sent}");
    assert!(
        a.transport.peers()[0].active_since.is_none()
            && a.transport.peers()[0].counters.sent_failures.load(Relaxed) > 0
    );
    // Its runtime still runs; only the transport goes, and with it the connection.
    a.transport.stop();
    stuck.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut sink = vec![0; 1 << 16];
    let end = loop {
        match stuck.read(&mut sink) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error.kind()),
        }
    };
    assert!(end != Some(std::io::ErrorKind::WouldBlock), "the connection outlives the transport");
}

#[test]
fn a_member_that_is_yet_to_be_founded_hears_whom_the_others_know() {
    let b = Member::start(B, "127.0.0.1:0", Parts::default());
    as_stranger(async {
        let gone = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let urls = [format!("http://{gone}"), b.url(), "nonsense".to_owned()];
        let dialer = Dialer::plain();
        let ask = |cluster: u64, asker: MemberId| {
            ask_members(&urls, &dialer, wire::MembersRequest { cluster_id: cluster, asker: asker.0 })
        };
        let answer = ask(CLUSTER.0, A).await.expect("one of the URLs is right");
        assert_eq!((answer.cluster_id, answer.standing()), (CLUSTER.0, wire::Standing::HasRun));
        let answer = ask(0, MemberId(0)).await.expect("the cluster need not be known");
        assert_eq!((answer.members[0].id, answer.standing()), (B.0, wire::Standing::Unsure));
        assert_eq!(ask(78, A).await, None, "of another cluster");
        assert_eq!(ask_members(&urls[..1], &Dialer::plain(), wire::MembersRequest::default()).await, None);
    });
}

#[test]
fn what_is_not_from_a_member_to_this_member_is_refused() {
    let (a, b) = (Member::start(A, "127.0.0.1:0", Parts::default()), Member::start(B, "127.0.0.1:0", Parts::default()));
    a.connect(&b);
    drop(a);
    while b.events.try_recv().is_ok() {}
    let batch = |message: Message| wire::MessageBatch {
        cluster_id: CLUSTER.0,
        from: A.0,
        to: B.0,
        messages: vec![codec::to_wire(heartbeat(A, B, 1)), codec::to_wire(message)],
        peer_urls: Vec::new(),
        protects: false,
    };
    let good = || batch(heartbeat(A, B, 2));
    let unknown = wire::RaftMessage { kind: 42, from: A.0, to: B.0, ..Default::default() };
    let cases = [
        (wire::MessageBatch { cluster_id: 78, ..good() }, Code::FailedPrecondition, "cluster ID mismatch"),
        (wire::MessageBatch { from: 9, ..good() }, Code::FailedPrecondition, "unknown member"),
        (wire::MessageBatch { to: 9, ..good() }, Code::FailedPrecondition, "member ID mismatch"),
        (batch(heartbeat(MemberId(3), B, 2)), Code::InvalidArgument, "another member's name"),
        (batch(heartbeat(A, MemberId(3), 2)), Code::InvalidArgument, "another member"),
        (batch(offer(A, B, 5)), Code::InvalidArgument, "a snapshot among messages"),
        (wire::MessageBatch { messages: vec![unknown], ..good() }, Code::InvalidArgument, "unknown kind"),
    ];
    as_stranger(async {
        let mut client = PeerClient::connect(b.url()).await.expect("it listens");
        for (batch, code, text) in cases {
            let status = client.messages(tokio_stream::iter([batch])).await.expect_err(text);
            assert!(status.code() == code && status.message().contains(text), "{text}: {status}");
        }
        let wrong = wire::RenewRequest { cluster_id: 78, ids: vec![1] };
        assert_eq!(client.renew(wrong).await.expect_err("another cluster").code(), Code::FailedPrecondition);
        assert!(!b.events.try_iter().any(|event| matches!(event, FromPeer::Message(_))), "nothing of it was delivered");
        client.messages(tokio_stream::iter([good()])).await.expect("a good batch");
    });
    assert_eq!((b.message().commit, b.message().commit), (1, 2));
}

/// Waits until something holds that nobody says.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// What a sender says first on a stream of messages.
fn greeting(from: MemberId, peer_urls: &[String]) -> wire::MessageBatch {
    let messages = vec![codec::to_wire(heartbeat(from, B, 5))];
    wire::MessageBatch {
        cluster_id: CLUSTER.0,
        from: from.0,
        to: B.0,
        messages,
        peer_urls: peer_urls.to_vec(),
        protects: false,
    }
}

#[test]
fn a_sender_that_is_not_in_the_table_yet_is_answered_where_it_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let a = Member::start(A, "127.0.0.1:0", Parts { state: table(10), ..Parts::default() });
    let b = Member::start(B, "127.0.0.1:0", Parts { dir: dir.path().to_owned(), ..Parts::default() });
    a.transport.set_peers(vec![(A, vec![a.url()]), (B, vec![b.url()])]);
    a.reach(&b);
    until("an answer", || {
        b.transport.send(vec![heartbeat(B, A, 0)]);
        matches!(a.events.recv_timeout(Duration::from_millis(20)), Ok(FromPeer::Message(_)))
    });
    assert!(b.transport.peers().is_empty(), "the table has nobody");
    // Its snapshots, too.
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(a.snapshot_sent());

    // Now the table has it, and its word counts.
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", elsewhere.local_addr().expect("bound"));
    b.transport.set_peers(vec![(A, vec![url.clone()])]);
    elsewhere.accept().expect("it is dialled there");
    let known = b.transport.shared.peer(A).expect("it is there");
    assert!(!known.is_remote() && b.transport.peers().len() == 1);
    // Whatever a new stream says.
    let streams = *known.inbound.borrow();
    a.transport.set_peers(vec![]);
    a.transport.set_peers(vec![(A, vec![a.url()]), (B, vec![b.url()])]);
    until("a new stream", || *known.inbound.borrow() > streams);
    assert_eq!(*known.urls.borrow(), [url]);

    // No longer in the table, and not removed.
    b.transport.set_peers(vec![]);
    until("it comes back", || b.transport.shared.peer(A).is_some_and(|peer| peer.is_remote()));
    assert_eq!(*b.transport.shared.peer(A).expect("it is there").urls.borrow(), [a.url()]);
}

#[test]
fn a_member_hears_whether_another_has_clients_to_protect() {
    let looks = |throttle: &Throttle, second| {
        throttle.turned(0, Duration::from_secs(second));
    };
    let hears = |protects: bool| {
        let [ours, theirs] = [(); 2].map(|()| Arc::new(Throttle::new(true)));
        let a = Member::start(A, "127.0.0.1:0", Parts { throttle: theirs.clone(), ..Parts::default() });
        let b = Member::start(B, "127.0.0.1:0", Parts { throttle: ours.clone(), ..Parts::default() });
        theirs.began_by_few(protects.into());
        theirs.began_by_many(10, 10.0);
        looks(&theirs, 1);
        b.connect(&a);
        a.reach(&b);
        // What a leader has heard it passes on.
        ours.leads(true);
        looks(&ours, 1);
        ours.says()
    };
    assert!(hears(true));
    assert!(!hears(false));
}

#[test]
fn a_sender_that_was_removed_is_told_so() {
    let a = Member::start(A, "127.0.0.1:0", Parts::default());
    let b = Member::start(B, "127.0.0.1:0", Parts { removed: vec![A], ..Parts::default() });
    a.transport.set_peers(vec![(A, vec![a.url()]), (B, vec![b.url()])]);
    until("it is told", || matches!(a.event(), FromPeer::ToldRemoved(B)));
    assert!(b.events.try_recv().is_err() && b.transport.shared.peer(A).is_none());
    // While it is still in the table it may say what is left to say.
    a.connect(&b);
    b.transport.set_peers(vec![]);
    until("it is told again", || matches!(a.event(), FromPeer::ToldRemoved(B)));
}

#[test]
fn strangers_are_few_say_where_they_are_and_go_when_nothing_is_heard() {
    let patience = Duration::from_millis(50);
    let b = Member::start(B, "127.0.0.1:0", Parts { remote_patience: patience, ..Parts::default() });
    let urls = ["http://127.0.0.1:1".to_owned()];
    let stranger = |n: usize| MemberId(100 + n as u64);
    let remotes = || (0..20).filter(|n| b.transport.shared.peer(stranger(*n)).is_some()).count();
    as_stranger(async {
        let mut client = PeerClient::connect(b.url()).await.expect("it listens");
        for (from, urls, text) in [
            (stranger(0), &[][..], "unknown member"),
            (stranger(0), &["http://h:1/x".to_owned()], "no peer URLs"),
            // A file is of one machine.
            (stranger(0), &["unix:///x".to_owned()], "no peer URLs"),
            (stranger(0), &vec![urls[0].clone(); 100], "no peer URLs"),
            (MemberId(0), &urls, "unknown member"),
            (B, &urls, "unknown member"),
        ] {
            let status = client.messages(tokio_stream::iter([greeting(from, urls)])).await.expect_err(text);
            assert!(status.message().contains(text), "{text}: {status}");
            assert!(b.transport.shared.peer(from).is_none());
        }
        let mut wrong = greeting(stranger(0), &urls);
        wrong.to = 9;
        client.messages(tokio_stream::iter([wrong])).await.expect_err("for somebody else");
        assert_eq!((remotes(), b.events.try_iter().count()), (0, 0));

        // Streams that stay open.
        let (mut open, mut streams) = (Vec::new(), tokio::task::JoinSet::new());
        for n in 0..remote::REMOTES_MAX {
            let (say, said) = tokio::sync::mpsc::channel(1);
            say.send(greeting(stranger(n), &urls)).await.expect("there is room");
            open.push(say);
            let mut client = client.clone();
            streams.spawn(async move { client.messages(tokio_stream::wrappers::ReceiverStream::new(said)).await });
        }
        let deadline = Instant::now() + PATIENCE;
        while remotes() < remote::REMOTES_MAX {
            assert!(Instant::now() < deadline, "they are not heard");
            tokio::task::yield_now().await;
        }
        let one_more = || tokio_stream::iter([greeting(stranger(15), &urls)]);
        let status = client.messages(one_more()).await.expect_err("one too many");
        assert_eq!(status.code(), Code::ResourceExhausted);
        tokio::time::timeout(3 * patience, streams.join_next()).await.expect_err("their time is not over");
        assert_eq!(remotes(), remote::REMOTES_MAX);

        drop(open);
        while remotes() > 0 {
            assert!(Instant::now() < deadline, "they are kept");
            tokio::task::yield_now().await;
        }
        client.messages(one_more()).await.expect("there is room again");
        let on_file = |number| tokio_stream::iter([greeting(stranger(number), &["unix:///x".to_owned()])]);
        b.transport.set_peers(vec![(B, vec!["unix:///b".to_owned(), b.url()])]);
        client.messages(on_file(17)).await.expect_err("it may be anywhere");
        b.transport.set_peers(vec![(B, vec!["unix:///b".to_owned()])]);
        client.messages(on_file(16)).await.expect("it is on a machine with this one");
    });
}

#[test]
fn noise_on_the_port_disturbs_nobody() {
    let (a, b) = (Member::start(A, "127.0.0.1:0", Parts::default()), Member::start(B, "127.0.0.1:0", Parts::default()));
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for preface in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(b.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(preface).and_then(|()| stream.write_all(&noise)).expect("it takes bytes");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    a.connect(&b);
}

#[test]
fn a_snapshot_arrives_as_it_was_read_under_the_name_of_what_was_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let a = Member::start(A, "127.0.0.1:0", Parts { state: table(50_000), ..Parts::default() });
    let b = Member::start(B, "127.0.0.1:0", Parts { dir: dir.path().to_owned(), ..Parts::default() });
    a.connect(&b);
    // Raft offers 7; the reader stands at 9.
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(a.snapshot_sent());
    let (message, index, place) = b.snapshot_received();
    let meta = message.get_snapshot().get_metadata();
    assert_eq!((index, meta.index, meta.term, &meta.get_conf_state().voters[..]), (Index(9), 9, 3, &[1, 2][..]));
    assert_eq!((message.from, message.to, message.msg_type), (A.0, B.0, MessageType::MsgSnapshot));

    let found = storage::snapshot::pending(dir.path()).expect("a directory");
    assert_eq!((found.len(), found[0].0), (1, Index(9)));
    let mut expected = many_rows(50_000);
    let identity = [CLUSTER.0.to_be_bytes(), B.0.to_be_bytes()].concat();
    expected.insert((Bucket::Meta, Bytes::from_static(schema::IDENTITY)), identity.into());
    assert!(contents(&found[0].1) == expected);

    a.transport.send(vec![offer(A, B, 7)]);
    assert!(!a.snapshot_sent(), "the first is not settled");
    assert!(!place.hurried);
    drop(place);
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(a.snapshot_sent(), "now it is");
    assert!(b.snapshot_received().2.hurried, "there was one a moment ago");
}

#[test]
fn a_snapshot_that_cannot_be_sent_is_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    let stall = Duration::from_millis(200);
    let a = Member::start(A, "127.0.0.1:0", Parts { state: table(20_000), stall, ..Parts::default() });
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(!a.snapshot_sent(), "to a stranger");
    let mut listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nowhere = listener.local_addr().expect("bound");
    a.transport.set_peers(vec![(B, vec![format!("http://{nowhere}")])]);
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(!a.snapshot_sent(), "to one that takes nothing");
    listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    a.transport.set_peers(vec![(B, vec![format!("http://{nowhere}")])]);
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(!a.snapshot_sent(), "to nowhere");
    drop(listener);

    let b = Member::start(B, "127.0.0.1:0", Parts { dir: dir.path().to_owned(), ..Parts::default() });
    a.connect(&b);
    a.transport.send(vec![offer(A, B, 10)]);
    assert!(!a.snapshot_sent(), "the reader is behind what raft offered");
    let poor = Member::start(MemberId(3), "127.0.0.1:0", Parts::default());
    poor.connect(&b);
    poor.transport.send(vec![offer(poor.id, B, 7)]);
    assert!(matches!(poor.event(), FromPeer::StorageFailed(_)), "its disk fails");
    assert!(!poor.snapshot_sent());
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn a_snapshot_broken_on_its_way_is_reported_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (reached, halts) = channel();
    let (go_on, gate) = channel();
    let halt = Halt { reached, go_on: Arc::new(Mutex::new(gate)) };
    let rows = Arc::new(many_rows(10_000));
    let state = Arc::new(move || Ok(Table { rows: rows.clone(), halt: Some(halt.clone()) }));
    let a = Member::start(A, "127.0.0.1:0", Parts { state, ..Parts::default() });
    let start = |address: &str, stall| {
        Member::start(B, address, Parts { dir: dir.path().to_owned(), stall, ..Parts::default() })
    };

    // The receiver does not wait for ever, and its place is free again.
    let mut b = start("127.0.0.1:0", Duration::from_secs(1));
    a.connect(&b);
    for _ in 0..2 {
        a.transport.send(vec![offer(A, B, 7)]);
        halts.recv_timeout(PATIENCE).expect("half-way");
        assert!(!a.snapshot_sent(), "given up");
        assert_eq!(files(dir.path()), 0);
        go_on.send(()).expect("it waits");
    }
    let address = b.address.to_string();
    b.die();

    // One at a time; and the receiver may die.
    let mut b = start(&address, PATIENCE);
    b.transport.set_peers(vec![(A, vec![a.url()])]);
    a.reach(&b);
    a.transport.send(vec![offer(A, B, 7)]);
    halts.recv_timeout(PATIENCE).expect("half-way");
    a.transport.send(vec![offer(A, B, 7)]);
    assert!(!a.snapshot_sent(), "one at a time");
    b.die();
    assert!(!a.snapshot_sent(), "the receiver died");
    drop(go_on);
    assert!(storage::snapshot::pending(dir.path()).expect("a directory").is_empty());
}

#[test]
fn a_snapshot_is_believed_only_when_its_end_agrees() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (
        Member::start(A, "127.0.0.1:0", Parts::default()),
        Member::start(B, "127.0.0.1:0", Parts { dir: dir.path().to_owned(), ..Parts::default() }),
    );
    a.connect(&b);
    while b.events.try_recv().is_ok() {}
    let mut message = codec::to_wire(offer(A, B, 7));
    message.snapshot = Some(meta(7));
    let first = |cluster_id| wire::SnapshotChunk {
        offer: Some(wire::SnapshotOffer {
            cluster_id,
            message: Some(message.clone()),
            peer_urls: Vec::new(),
            hurried: false,
        }),
        ..Default::default()
    };
    let rows = |bucket: u32, key: &'static [u8], end: Option<(u64, u32)>| wire::SnapshotChunk {
        rows: vec![wire::SnapshotRow { bucket, key: key.into(), value: Bytes::new() }],
        end: end.map(|(rows, crc)| wire::SnapshotEnd { rows, crc }),
        ..Default::default()
    };
    let streams = [
        (vec![first(78)], "cluster ID mismatch"),
        (vec![rows(1, b"k", None)], "no offer"),
        (vec![first(CLUSTER.0), rows(1, b"k", None)], "ended early"),
        (vec![first(CLUSTER.0), rows(1, b"k", Some((2, 0)))], "were promised"),
        (vec![first(CLUSTER.0), rows(1, b"k", Some((1, 0)))], "were promised"),
        (vec![first(CLUSTER.0), rows(9, b"k", Some((1, 0)))], "does not belong"),
        (vec![first(CLUSTER.0), rows(6, schema::IDENTITY, Some((1, 0)))], "does not belong"),
    ];
    as_stranger(async {
        let mut client = PeerClient::connect(b.url()).await.expect("it listens");
        for (chunks, text) in streams {
            let status = client.snapshot(tokio_stream::iter(chunks)).await.expect_err(text);
            assert!(status.message().contains(text), "{text}: {status}");
            assert_eq!(files(dir.path()), 0, "{text}");
        }
    });
    assert!(b.events.try_recv().is_err(), "nothing was delivered");
}

#[test]
fn keepalives_that_wait_travel_together() {
    let (calls, called) = channel();
    let gate = Arc::new(Semaphore::new(0));
    let renew = {
        let (gate, seen) = (gate.clone(), AtomicUsize::new(0));
        Arc::new(move |ids: Vec<LeaseId>| {
            let first = seen.fetch_add(1, SeqCst) == 0;
            calls.send(ids.len()).expect("the test listens");
            let gate = gate.clone();
            Box::pin(async move {
                if first {
                    gate.acquire().await.expect("it opens").forget();
                }
                let answer = |id: &LeaseId| match id.0 {
                    0 => Renewal::Unknown,
                    1 => Renewal::Unavailable,
                    ttl => Renewal::Ttl(ttl),
                };
                ids.iter().map(answer).collect()
            }) as BoxFuture<Vec<Renewal>>
        })
    };
    let a = Member::start(A, "127.0.0.1:0", Parts::default());
    let b = Member::start(B, "127.0.0.1:0", Parts { renew, ..Parts::default() });
    a.connect(&b);
    let t = &a.transport;
    as_stranger(async {
        assert_eq!(t.renew(MemberId(9), LeaseId(1)).await, Err(forward::Error::Unreachable));
        type Asking<'a> = Pin<Box<dyn Future<Output = Result<Renewal, forward::Error>> + 'a>>;
        let asked_once = async |future: &mut Asking<'_>| {
            let waits = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
            assert!(waits);
        };
        let mut first: Asking<'_> = Box::pin(t.renew(B, LeaseId(7)));
        asked_once(&mut first).await;
        assert_eq!(called.recv_timeout(PATIENCE), Ok(1));
        let mut waiting: Vec<Asking<'_>> = (0..500).map(|id| Box::pin(t.renew(B, LeaseId(id))) as Asking<'_>).collect();
        for future in &mut waiting {
            asked_once(future).await;
        }
        gate.add_permits(1);
        assert_eq!(first.await, Ok(Renewal::Ttl(7)));
        for (id, future) in waiting.into_iter().enumerate() {
            let expected = [Renewal::Unknown, Renewal::Unavailable].get(id).copied();
            assert_eq!(future.await, Ok(expected.unwrap_or(Renewal::Ttl(id as i64))));
        }
        assert_eq!((called.try_recv(), called.try_recv().is_err()), (Ok(500), true));
        assert_eq!(t.time_to_live(B, LeaseId(0)).await, Ok(Remaining::Unknown));
        assert_eq!(t.time_to_live(B, LeaseId(8)).await, Ok(Remaining::Left { ttl: 8, granted_ttl: 60 }));
        assert_eq!(t.learner(B, A).await, Ok(Learner::Behind));
        assert_eq!(t.learner(B, B).await, Ok(Learner::Unobjectionable));
        assert_eq!(t.learner(B, MemberId(9)).await, Ok(Learner::Unavailable));

        // Those who wait when the leader leaves are told.
        let mut lost: Asking<'_> = Box::pin(t.renew(B, LeaseId(5)));
        asked_once(&mut lost).await;
        t.set_peers(vec![]);
        let answer = lost.await;
        assert!(matches!(answer, Err(forward::Error::Unreachable) | Ok(Renewal::Ttl(5))), "{answer:?}");
    });
}
