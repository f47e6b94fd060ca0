//! A whole state on its way from one member to another, on a stream of its own.
//!
//! ```text
//! offer (cluster id, MsgSnapshot whose metadata is that of the rows) · rows, about 256 KiB a chunk · end (count, CRC-32C)
//! ```
//!
//! Promises, sending: one `SnapshotSent` per MsgSnapshot, on every path; the metadata names exactly the rows that follow,
//! for both come from one reader; rows are read no faster than they go; what stands still is given up.
//! Receiving: `SnapshotReceived` only for a complete, checked and durable file; anything else leaves nothing behind; one
//! at a time, until it is settled, for there is one state to replace.
//!
//! The rows are those of every bucket, in the order of [`Bucket::ALL`], but for the row that names the member itself.
//! What to do with a received file is the business of the raft node's owner.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::task::{Context, Poll};
use std::time::Duration;

use ::raft::eraftpb::{Message, MessageType};
use bytes::Bytes;
use slog::{info, warn};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::transport::{Peer, Shared, connect};
use super::{FromPeer, codec};
use crate::pb::everwatchpb::{SnapshotChunk, SnapshotEnd, SnapshotOffer, SnapshotRow};
use crate::storage;
use crate::storage::backend::Bucket;
use crate::storage::schema;
use crate::storage::snapshot::{Folder, SnapshotWriter};
use crate::types::{Index, MemberId};

/// A chunk is closed when its rows have grown to this.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks read and not yet sent, or received and not yet written. Beyond this the reading side waits.
const CHUNKS_WAITING_MAX: usize = 4;

/// The one place for a received snapshot. Who got it with [`FromPeer::SnapshotReceived`] drops it when the file has
/// been adopted or discarded; until then no other snapshot is received, which might be one of the same name.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held, not used")] OwnedSemaphorePermit);

/// Starts to send the reader's state in place of what `message` offers. Returns at once.
pub(super) fn send(shared: &Arc<Shared>, peer: &Arc<Peer>, message: Message) {
    if peer.sending_snapshot.swap(true, AcqRel) {
        (shared.deliver)(FromPeer::SnapshotSent { to: peer.id, ok: false });
        return;
    }
    let outcome = Outcome { shared: shared.clone(), peer: peer.clone(), ok: false };
    peer.spawn(shared, async move {
        // Moved in whole, so that it also speaks when the task is dropped before it ran.
        let mut outcome = outcome;
        match send_rows(&outcome.shared, &outcome.peer, message).await {
            Ok(index) => {
                info!(outcome.shared.logger, "sent snapshot"; "peer" => %outcome.peer.id, "index" => %index);
                outcome.ok = true;
            }
            Err(why) => {
                warn!(outcome.shared.logger, "could not send snapshot"; "peer" => %outcome.peer.id, "why" => why);
            }
        }
    });
}

/// Reports how the sending ended, however it ended.
struct Outcome {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    ok: bool,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let counters = &self.peer.counters;
        if self.ok {
            counters.snapshots_sent.fetch_add(1, Relaxed);
        } else {
            counters.snapshots_not_sent.fetch_add(1, Relaxed);
            counters.sent_failures.fetch_add(1, Relaxed);
        }
        // First, for the report may bring the next one.
        self.peer.sending_snapshot.store(false, Release);
        (self.shared.deliver)(FromPeer::SnapshotSent { to: self.peer.id, ok: self.ok });
    }
}

async fn send_rows(shared: &Arc<Shared>, peer: &Arc<Peer>, message: Message) -> Result<Index, String> {
    let urls = peer.urls.borrow().clone();
    let mut connection = Err("it has no URL".to_owned());
    for url in urls {
        connection = connect(&url, &shared.dialer).await;
        if connection.is_ok() {
            break;
        }
    }
    // Closed at the end of this function, which also ends a reading thread that still waits for room.
    let connection = connection?;
    let mut client = connection.client.clone();

    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let reading = tokio::task::spawn_blocking({
        let shared = shared.clone();
        move || read(&shared, message, &chunks)
    });
    let (progress, moved) = watch::channel(());
    let outgoing = Outgoing { waiting, peer: peer.clone(), progress };
    tokio::select! {
        answer = client.snapshot(outgoing) => match answer {
            Ok(_) => {}
            Err(status) => {
                let why = format!("{:?}: {}", status.code(), status.message());
                // If reading failed, that is why the peer refused what it got.
                let cause = if reading.is_finished() { reading.await.ok().and_then(Result::err) } else { None };
                return Err(cause.unwrap_or(why));
            }
        },
        () = standstill(moved, shared.snapshot_stall) => return Err("it stood still for too long".to_owned()),
    }
    reading.await.map_err(|_| "reading was ended".to_owned())?
}

/// Returns when nothing has moved for `stall`.
async fn standstill(mut moved: watch::Receiver<()>, stall: Duration) {
    while let Ok(Ok(())) = timeout(stall, moved.changed()).await {}
    // The last chunk has gone, or nothing went in time. The first is not yet an answer.
    if moved.has_changed().is_err() {
        tokio::time::sleep(stall).await;
    }
}

/// Reads the state and feeds it to the stream. Says why not, when it cannot; the index, when it came to the end.
fn read(shared: &Shared, message: Message, chunks: &mpsc::Sender<SnapshotChunk>) -> Result<Index, String> {
    let failed = |error: storage::Error| {
        let why = error.to_string();
        (shared.deliver)(FromPeer::StorageFailed(error));
        why
    };
    let (reader, meta) = (shared.snapshot_source)().map_err(failed)?;
    let asked = message.get_snapshot().get_metadata().index;
    if meta.index < asked {
        return Err(format!("the backend stands at {}, before the {asked} that raft offered", meta.index));
    }
    let index = Index(meta.index);
    let mut message = codec::to_wire(message);
    message.snapshot = Some(meta);
    let offer = SnapshotOffer { cluster_id: shared.cluster.0, message: Some(message), peer_urls: shared.own_urls() };
    let gone = || "the stream broke".to_owned();
    chunks.blocking_send(SnapshotChunk { offer: Some(offer), ..SnapshotChunk::default() }).map_err(|_| gone())?;

    let mut end = SnapshotEnd::default();
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut open = true;
    for bucket in Bucket::ALL {
        let mut visit = |key: &[u8], value: &[u8]| {
            if !belongs(bucket, key) {
                return true;
            }
            bytes += key.len() + value.len();
            count(&mut end, bucket as u32, key, value);
            rows.push(SnapshotRow {
                bucket: bucket as u32,
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            });
            if bytes >= CHUNK_BYTES {
                bytes = 0;
                let chunk = SnapshotChunk { rows: std::mem::take(&mut rows), ..SnapshotChunk::default() };
                open = chunks.blocking_send(chunk).is_ok();
            }
            open
        };
        reader.scan(bucket, &[], None, &mut visit).map_err(failed)?;
        if !open {
            return Err(gone());
        }
    }
    let last = SnapshotChunk { rows, end: Some(end), ..SnapshotChunk::default() };
    chunks.blocking_send(last).map_err(|_| gone())?;
    Ok(index)
}

/// Whether a row is part of the state, rather than of the member that holds it.
fn belongs(bucket: Bucket, key: &[u8]) -> bool {
    bucket != Bucket::Meta || key != schema::IDENTITY
}

/// Adds a row to what the end says of all rows: lengths are covered too, so that bytes cannot move between rows.
fn count(end: &mut SnapshotEnd, bucket: u32, key: &[u8], value: &[u8]) {
    let mut head = [0; 20];
    head[..4].copy_from_slice(&bucket.to_be_bytes());
    head[4..12].copy_from_slice(&(key.len() as u64).to_be_bytes());
    head[12..].copy_from_slice(&(value.len() as u64).to_be_bytes());
    end.rows += 1;
    for part in [&head[..], key, value] {
        end.crc = crc32c::crc32c_append(end.crc, part);
    }
}

/// The chunks as the stream asks for them.
struct Outgoing {
    waiting: mpsc::Receiver<SnapshotChunk>,
    peer: Arc<Peer>,
    progress: watch::Sender<()>,
}

impl Stream for Outgoing {
    type Item = SnapshotChunk;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SnapshotChunk>> {
        let next = self.waiting.poll_recv(cx);
        if let Poll::Ready(Some(chunk)) = &next {
            self.peer.counters.sent_bytes.fetch_add(size(chunk), Relaxed);
            self.progress.send_replace(());
        }
        next
    }
}

fn size(chunk: &SnapshotChunk) -> u64 {
    chunk.rows.iter().map(|row| (row.key.len() + row.value.len()) as u64).sum()
}

/// Takes a snapshot from a stream. Returns when it is durable and delivered, or gone.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    folder: &Folder,
    permit: OwnedSemaphorePermit,
    stream: &mut Streaming<SnapshotChunk>,
) -> Result<(), Status> {
    let offer = next(shared, stream).await?.offer.ok_or_else(|| Status::invalid_argument("no offer"))?;
    let (peer, message, index) = accept(shared, offer)?;
    info!(shared.logger, "receiving snapshot"; "peer" => %peer.id, "index" => %index);

    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let writing = tokio::task::spawn_blocking({
        let (shared, folder) = (shared.clone(), folder.clone());
        // The place is taken until the file is whole and settled, or gone, whatever becomes of the stream meanwhile.
        move || write(&shared, &folder, message, index, waiting, Place(permit))
    });
    let streamed = forward(shared, &peer, stream, chunks).await;
    let written = writing.await.unwrap_or_else(|_| Err("writing was ended".to_owned()));
    let result = match (streamed, written) {
        (_, Ok(())) => Ok(()),
        (Err(status), Err(_)) => Err(status),
        (Ok(()), Err(why)) => Err(Status::aborted(why)),
    };
    match &result {
        Ok(()) => {
            peer.counters.snapshots_received.fetch_add(1, Relaxed);
            info!(shared.logger, "received snapshot"; "peer" => %peer.id, "index" => %index);
        }
        Err(status) => {
            peer.counters.snapshots_not_received.fetch_add(1, Relaxed);
            peer.counters.received_failures.fetch_add(1, Relaxed);
            warn!(shared.logger, "discarded a snapshot"; "peer" => %peer.id, "index" => %index,
                "why" => status.message());
        }
    }
    result
}

/// The next chunk; an error when there is none, or none in time.
async fn next(shared: &Shared, stream: &mut Streaming<SnapshotChunk>) -> Result<SnapshotChunk, Status> {
    let chunk = timeout(shared.snapshot_stall, stream.message()).await;
    let chunk = chunk.map_err(|_| Status::deadline_exceeded("the snapshot stood still for too long"))??;
    chunk.ok_or_else(|| Status::invalid_argument("the snapshot ended early"))
}

/// Hands chunks to the writing thread, up to the one with the end.
async fn forward(
    shared: &Shared,
    peer: &Peer,
    stream: &mut Streaming<SnapshotChunk>,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<(), Status> {
    loop {
        let chunk = next(shared, stream).await?;
        peer.counters.received_bytes.fetch_add(size(&chunk), Relaxed);
        let last = chunk.end.is_some();
        // The thread hangs up when it has found something wrong, and says what.
        if chunks.send(chunk).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Checks who offers what to whom.
fn accept(shared: &Arc<Shared>, offer: SnapshotOffer) -> Result<(Arc<Peer>, Message, Index), Status> {
    if offer.cluster_id != shared.cluster.0 {
        return Err(Status::failed_precondition("cluster ID mismatch"));
    }
    let message = offer.message.ok_or_else(|| Status::invalid_argument("an offer without a message"))?;
    let message = codec::from_wire(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if message.msg_type != MessageType::MsgSnapshot || message.to != shared.local.0 {
        return Err(Status::invalid_argument("not a snapshot for this member"));
    }
    let meta = message.get_snapshot().get_metadata();
    let index = Index(meta.index);
    if meta.index == 0 || meta.term == 0 || meta.get_conf_state().voters.is_empty() {
        return Err(Status::invalid_argument("a snapshot of nothing"));
    }
    let peer = shared.sender(MemberId(message.from), offer.peer_urls)?;
    Ok((peer, message, index))
}

/// Writes, checks, finishes and delivers; whatever fails leaves nothing behind.
fn write(
    shared: &Shared,
    folder: &Folder,
    message: Message,
    index: Index,
    chunks: mpsc::Receiver<SnapshotChunk>,
    place: Place,
) -> Result<(), String> {
    let failed = |error: storage::Error| {
        let why = error.to_string();
        (shared.deliver)(FromPeer::StorageFailed(error));
        why
    };
    match write_rows(shared, folder, index, chunks) {
        Ok(()) => {
            // From this thread, so that no break of the stream comes between the file and its news.
            (shared.deliver)(FromPeer::SnapshotReceived { message, index, place });
            Ok(())
        }
        Err(broken) => {
            // Only we are writing one: we have the place. A complete one of the same index is not touched.
            storage::snapshot::discard_unfinished(&folder.dir).map_err(failed)?;
            match broken {
                Broken::Stream(why) => Err(why),
                Broken::Storage(error) => Err(failed(error)),
            }
        }
    }
}

/// Why a snapshot was not received.
enum Broken {
    /// What came is not a snapshot, or not all of it.
    Stream(String),
    /// This member's disk failed.
    Storage(storage::Error),
}

impl From<storage::Error> for Broken {
    fn from(error: storage::Error) -> Broken {
        Broken::Storage(error)
    }
}

impl From<&str> for Broken {
    fn from(why: &str) -> Broken {
        Broken::Stream(why.to_owned())
    }
}

fn write_rows(
    shared: &Shared,
    folder: &Folder,
    index: Index,
    mut chunks: mpsc::Receiver<SnapshotChunk>,
) -> Result<(), Broken> {
    let mut writer = SnapshotWriter::create(&folder.dir, index, folder.keys.as_ref())?;
    let mut seen = SnapshotEnd::default();
    let promised = loop {
        let chunk = chunks.blocking_recv().ok_or("the snapshot ended early")?;
        for row in chunk.rows {
            let bucket = Bucket::from_number(row.bucket).filter(|bucket| belongs(*bucket, &row.key));
            let bucket = bucket.ok_or("a row that does not belong into a snapshot")?;
            count(&mut seen, row.bucket, &row.key, &row.value);
            writer.row(bucket, row.key, row.value)?;
        }
        if let Some(end) = chunk.end {
            break end;
        }
    };
    if promised != seen {
        let (rows, crc) = (promised.rows, promised.crc);
        let why = format!("{rows} rows ({crc:08x}) were promised, {} ({:08x}) came", seen.rows, seen.crc);
        return Err(Broken::Stream(why));
    }
    // The file becomes this member's: the row that says so is the only one that does not come from the leader.
    let identity = [shared.cluster.0.to_be_bytes(), shared.local.0.to_be_bytes()].concat();
    writer.row(Bucket::Meta, Bytes::from_static(schema::IDENTITY), identity.into())?;
    writer.finish()?;
    Ok(())
}
