//! A snapshot on its way to a member: chunks left out, repeated, exchanged, cut, and with other rows in them, given to the
//! service that receives them. All or nothing: what is accepted is a complete file with exactly the rows that came, whose
//! end said so; what is not leaves nothing behind and tells nobody.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use everwatch::pb::everwatchpb as wire;
use everwatch::pb::everwatchpb::peer_client::PeerClient;
use everwatch::peer::{FromPeer, Learner, Place, Remaining, ServiceConfig, Transport, TransportConfig, peer_service};
use everwatch::raft::MessageType;
use everwatch::storage::backend::disk::DiskBackend;
use everwatch::storage::backend::{Backend, Bucket};
use everwatch::storage::{self, schema, snapshot};
use everwatch::throttle::Throttle;
use everwatch::types::{ClusterId, Index, MemberId};
use prost::Message;

use crate::engine::{Dice, Feed, mutated, outcome};
use crate::process::runtime;

const CLUSTER: ClusterId = ClusterId(0xc1);
const RECEIVER: MemberId = MemberId(2);
const SENDER: u64 = 1;

type Rows = BTreeMap<(u32, Bytes), Bytes>;

/// The end of a snapshot of these rows, as the format defines it.
fn end_of(rows: &[wire::SnapshotRow]) -> wire::SnapshotEnd {
    let mut crc = 0;
    for row in rows {
        let lengths = [row.key.len() as u64, row.value.len() as u64];
        for part in
            [&row.bucket.to_be_bytes()[..], &lengths[0].to_be_bytes(), &lengths[1].to_be_bytes(), &row.key, &row.value]
        {
            crc = crc32c::crc32c_append(crc, part);
        }
    }
    wire::SnapshotEnd { rows: rows.len() as u64, crc }
}

fn row(feed: &mut Feed<'_>) -> wire::SnapshotRow {
    let key = if feed.one_in(30) { Bytes::from_static(schema::IDENTITY) } else { feed.bytes(5).into() };
    let bucket = if feed.one_in(30) { feed.byte().into() } else { feed.below(6) as u32 + 1 };
    let len = feed.pick(&[0usize, 1, 10, 2000]);
    wire::SnapshotRow { bucket, key, value: vec![feed.byte(); len].into() }
}

fn offer(index: u64) -> wire::SnapshotOffer {
    let conf_state = wire::ConfState { voters: vec![1, 2], ..Default::default() };
    let message = wire::RaftMessage {
        kind: MessageType::MsgSnapshot as u32,
        to: RECEIVER.0,
        from: SENDER,
        term: 3,
        snapshot: Some(wire::SnapshotMeta { index, term: 3, conf_state: Some(conf_state) }),
        ..Default::default()
    };
    wire::SnapshotOffer { cluster_id: CLUSTER.0, message: Some(message), peer_urls: Vec::new(), hurried: false }
}

fn chunks(feed: &mut Feed<'_>, index: u64) -> Vec<wire::SnapshotChunk> {
    let mut chunks = vec![wire::SnapshotChunk { offer: Some(offer(index)), ..Default::default() }];
    let mut all = Vec::new();
    for _ in 0..feed.below(4) {
        let rows: Vec<wire::SnapshotRow> = (0..feed.below(5)).map(|_| row(feed)).collect();
        all.extend(rows.iter().cloned());
        chunks.push(wire::SnapshotChunk { rows, ..Default::default() });
    }
    let last = chunks.last_mut().expect("the offer");
    if feed.one_in(2) && last.offer.is_none() {
        last.end = Some(end_of(&all));
    } else {
        chunks.push(wire::SnapshotChunk { end: Some(end_of(&all)), ..Default::default() });
    }
    for _ in 0..feed.below(4) {
        let at = feed.below(chunks.len());
        let other = feed.below(chunks.len());
        match feed.below(9) {
            _ if chunks.is_empty() => {}
            0 => drop(chunks.remove(at)),
            1 => chunks.insert(other, chunks[at].clone()),
            2 => chunks.swap(at, other),
            3 => chunks[at].rows.push(row(feed)),
            4 => drop(chunks[at].rows.pop()),
            5 => chunks[at].rows.reverse(),
            6 => {
                if let Some(end) = &mut chunks[at].end {
                    if feed.one_in(2) { end.rows = end.rows.wrapping_sub(1) } else { end.crc ^= 1 << feed.below(32) }
                }
            }
            7 => {
                let bytes = mutated(&mut Dice::new(feed.u64()), &chunks[at].encode_to_vec(), &[], 20_000);
                if let Ok(chunk) = wire::SnapshotChunk::decode(bytes.as_slice()) {
                    chunks[at] = chunk;
                }
            }
            _ => chunks[at].offer = Some(offer(feed.number() as u64)),
        }
    }
    chunks
}

fn contents(path: &Path) -> Rows {
    let backend = DiskBackend::open(path).expect("a complete file");
    let reader = backend.reader().expect("a reader");
    let mut rows = Rows::new();
    for bucket in Bucket::ALL {
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.insert((bucket as u32, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
            true
        };
        reader.scan(bucket, &[], None, &mut visit).expect("rows");
    }
    rows
}

/// What was said to the owner of the raft node.
fn received(events: &Receiver<FromPeer>) -> Vec<(Index, Place)> {
    let mut received = Vec::new();
    for event in events.try_iter() {
        match event {
            FromPeer::SnapshotReceived { index, place, message } => {
                assert_eq!(message.get_snapshot().get_metadata().index, index.0);
                received.push((index, place));
            }
            FromPeer::StorageFailed(error) => panic!("the disk has no faults: {error}"),
            _ => {}
        }
    }
    received
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let index = feed.pick(&[7, 7, 7, 7, 1, 0, u64::MAX]);
    let chunks = chunks(&mut feed, index);
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let (deliver, events) = channel();
    let answer = runtime.block_on(async {
        let transport = Transport::new(TransportConfig {
            local: RECEIVER,
            dialer: everwatch::tls::Dialer::plain(),
            cluster: CLUSTER,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            deliver: Arc::new(move |event| drop(deliver.send(event))),
            snapshot_source: Arc::new(|| Err(storage::Error::Poisoned)),
            was_removed: Arc::new(|_| false),
            throttle: Arc::new(Throttle::new(true)),
            remote_patience: Duration::from_secs(30),
            snapshot_stall: Duration::from_secs(30),
        });
        transport.set_peers(vec![(MemberId(SENDER), Vec::new())]);
        let config = ServiceConfig {
            renew: Arc::new(|_| Box::pin(async { Vec::new() })),
            time_to_live: Arc::new(|_| Box::pin(async { Remaining::Unknown })),
            learner: Arc::new(|_| Box::pin(async { Learner::Unavailable })),
            members: Arc::new(|_| Box::pin(async { Default::default() })),
            history_hash: Arc::new(|_| Box::pin(async { None })),
            snapshots: snapshot::Folder { dir: dir.path().to_owned(), keys: None },
        };
        let mut client = PeerClient::new(peer_service(&transport, config));
        let answer = client.snapshot(tokio_stream::iter(chunks.clone())).await;
        transport.stop();
        answer
    });
    let received = received(&events);
    let files = std::fs::read_dir(dir.path()).expect("a directory").count();
    let status = match answer {
        Ok(_) => "accepted".to_owned(),
        Err(status) => {
            assert!(received.is_empty() && files == 0, "{status}: {} said, {files} files left", received.len());
            return outcome(crate::engine::gist(status.message()));
        }
    };
    assert_eq!((received.len(), files), (1, 1), "{status}");
    let at = received[0].0;
    let pending = snapshot::pending(dir.path()).expect("a directory");
    assert_eq!((pending.len(), pending[0].0), (1, at));

    let first = chunks.first().and_then(|chunk| chunk.offer.as_ref()).expect("an offer comes first");
    let meta = first.message.as_ref().and_then(|message| message.snapshot.as_ref()).expect("of a snapshot");
    assert_eq!((meta.index, first.cluster_id), (at.0, CLUSTER.0));
    let last = 1 + chunks[1..].iter().position(|chunk| chunk.end.is_some()).expect("an end");
    let came: Vec<wire::SnapshotRow> = chunks[1..=last].iter().flat_map(|chunk| chunk.rows.clone()).collect();
    assert_eq!(chunks[last].end, Some(end_of(&came)), "the end agrees");
    let mut rows: Rows = came.into_iter().map(|row| ((row.bucket, row.key), row.value)).collect();
    let identity = [CLUSTER.0.to_be_bytes(), RECEIVER.0.to_be_bytes()].concat();
    rows.insert((Bucket::Meta as u32, Bytes::from_static(schema::IDENTITY)), identity.into());
    assert_eq!(contents(&pending[0].1), rows);
    outcome((rows.len().min(8), chunks.len()))
}
