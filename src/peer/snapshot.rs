//! A whole state on its way from one member to another, on a stream of its own.
//!
//! ```text
//! offer (cluster id, MsgSnapshot whose metadata is that of the rows) · rows, about 64 KiB a chunk · end (count, CRC-32C)
//! ```
//!
//! Promises, sending: one `SnapshotSent` per MsgSnapshot, on every path; the metadata names exactly the rows that follow,
//! for both come from one reader; rows are read no faster than they go; what stands still is given up.
//! Receiving: `SnapshotReceived` only for a complete, checked and durable file; anything else leaves nothing behind; one
//! at a time, until it is settled, for there is one state to replace.
//!
//! Whoever joins can wait better than a put. So large states are read and written by threads that get a processor only while
//! nobody else wants it. Where there is none to spare that would not end, and the log behind the snapshot is not kept for ever:
//! what comes at less than [`LEISURELY_BYTES_PER_SECOND`] is given up, and whoever was sent a snapshot and needs another one soon
//! gets it as fast as it goes, *hurried*.
//!
//! The rows are those of every bucket, in the order of [`Bucket::ALL`], but for the row that names the member itself.
//! What to do with a received file is the business of the raft node's owner.

use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use ::raft::eraftpb::{Message, MessageType};
use bytes::Bytes;
use slog::{info, warn};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
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
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks read and not yet sent, or received and not yet written. Beyond this the reading side waits.
const CHUNKS_WAITING_MAX: usize = 4;

/// Bytes of rows that are read or written before a thread makes way for others: with less it is not worth while.
const AT_ONCE_BYTES: usize = 8 << 20;

/// How fast a snapshot has to come that is not hurried, on the average, and from when on. Slower, it is given up: there is no time
/// to spare, and the next one is hurried.
const LEISURELY_BYTES_PER_SECOND: u64 = 2 << 20;
const LEISURELY_FROM: Duration = Duration::from_secs(10);

/// How many times as long a thread rests as others kept it waiting, and at most.
const RESTS: u32 = 2;
const REST_MAX: Duration = Duration::from_millis(100);

/// For how long after a part of a snapshot has gone the next one for the same peer is hurried.
const HURRIED_WITHIN: Duration = Duration::from_secs(600);

/// The one place for a received snapshot. Who got it with [`FromPeer::SnapshotReceived`] drops it when the file has
/// been adopted or discarded; until then no other snapshot is received, which might be one of the same name.
#[derive(Debug)]
pub struct Place {
    #[expect(dead_code, reason = "it is held, not used")]
    permit: OwnedSemaphorePermit,
    /// The snapshot should not wait for others.
    pub hurried: bool,
}

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

    let before = *peer.snapshot_moved.lock().unwrap_or_else(PoisonError::into_inner);
    let hurried = before.is_some_and(|moved| moved.elapsed() < HURRIED_WITHIN);
    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let mut reading = on_thread("snapshot-read", {
        let shared = shared.clone();
        move || read(&shared, message, hurried, &chunks)
    })?;
    let (progress, moved) = watch::channel(0);
    let outgoing = Outgoing { waiting, peer: peer.clone(), progress };
    tokio::select! {
        answer = client.snapshot(outgoing) => match answer {
            Ok(_) => {}
            Err(status) => {
                let why = format!("{:?}: {}", status.code(), status.message());
                // If reading failed, that is why the peer refused what it got.
                let cause = reading.try_recv().ok().and_then(Result::err);
                return Err(cause.unwrap_or(why));
            }
        },
        () = standstill(moved.clone(), shared.snapshot_stall) => return Err("it stood still for too long".to_owned()),
        () = without_time_to_spare(moved), if !hurried => return Err("there is no time to spare for it".to_owned()),
    }
    reading.await.map_err(|_| "reading was ended".to_owned())?
}

/// Returns when nothing has moved for `stall`.
async fn standstill(mut moved: watch::Receiver<u64>, stall: Duration) {
    while let Ok(Ok(())) = timeout(stall, moved.changed()).await {}
    // The last chunk has gone, or nothing went in time. The first is not yet an answer.
    if moved.has_changed().is_err() {
        tokio::time::sleep(stall).await;
    }
}

/// Returns when too few bytes have gone to go on like this. What the receiver does after the last of them may take its time.
async fn without_time_to_spare(mut moved: watch::Receiver<u64>) {
    let began = Instant::now();
    while began.elapsed() < LEISURELY_FROM
        || *moved.borrow_and_update() >= began.elapsed().as_secs() * LEISURELY_BYTES_PER_SECOND
    {
        if let Ok(Err(_)) = timeout(Duration::from_secs(1), moved.changed()).await {
            // All have.
            std::future::pending::<()>().await;
        }
    }
}

/// A thread for one piece of work, which may make way for others, and then cannot take that back.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, String> {
    let (done, outcome) = oneshot::channel();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Who waited may have gone away.
        let _ = done.send(work());
    });
    thread.map(|_| outcome).map_err(|error| format!("no thread for it: {error}"))
}

/// Makes the present thread one that makes way for others when it has worked on so much, unless it is hurried.
struct Way {
    bytes: usize,
    hurried: bool,
    /// When the work began that is not done yet, by the clock and by what the thread has had of a processor.
    began: (Instant, Duration),
}

impl Way {
    fn new(hurried: bool) -> Way {
        Way { bytes: 0, hurried, began: (Instant::now(), cpu_time()) }
    }

    /// What it waited for is there.
    fn begin(&mut self) {
        self.began = (Instant::now(), cpu_time());
    }

    /// So much more was done since. Where others wanted the processors and the disk, they get still more of them now.
    fn done(&mut self, bytes: usize) {
        if self.hurried {
            return;
        }
        let before = self.bytes;
        self.bytes += bytes;
        if before >= AT_ONCE_BYTES {
            let kept_waiting = self.began.0.elapsed().saturating_sub(cpu_time() - self.began.1);
            thread::sleep((kept_waiting * RESTS).min(REST_MAX));
        } else if self.bytes >= AT_ONCE_BYTES {
            // It has a processor while nobody else wants it, and is interrupted at once when somebody does; a thread that is only
            // nicer than others is not. Where that is not allowed, it is as the others are.
            let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
        }
    }
}

/// What the present thread has had of a processor.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Reads the state and feeds it to the stream. Says why not, when it cannot; the index, when it came to the end.
fn read(
    shared: &Shared,
    message: Message,
    hurried: bool,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<Index, String> {
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
    let peer_urls = shared.own_urls();
    let offer = SnapshotOffer { cluster_id: shared.cluster.0, message: Some(message), peer_urls, hurried };
    let gone = || "the stream broke".to_owned();
    chunks.blocking_send(SnapshotChunk { offer: Some(offer), ..SnapshotChunk::default() }).map_err(|_| gone())?;

    let mut end = SnapshotEnd::default();
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut way = Way::new(hurried);
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
                way.done(std::mem::take(&mut bytes));
                let chunk = SnapshotChunk { rows: std::mem::take(&mut rows), ..SnapshotChunk::default() };
                open = chunks.blocking_send(chunk).is_ok();
                way.begin();
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
    /// Bytes that have gone.
    progress: watch::Sender<u64>,
}

impl Stream for Outgoing {
    type Item = SnapshotChunk;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SnapshotChunk>> {
        let next = self.waiting.poll_recv(cx);
        if let Poll::Ready(Some(chunk)) = &next {
            let bytes = size(chunk);
            self.peer.counters.sent_bytes.fetch_add(bytes, Relaxed);
            self.progress.send_modify(|gone| *gone += bytes);
            *self.peer.snapshot_moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
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
    let hurried = offer.hurried;
    let (peer, message, index) = accept(shared, offer)?;
    info!(shared.logger, "receiving snapshot"; "peer" => %peer.id, "index" => %index, "hurried" => hurried);

    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let writing = on_thread("snapshot-write", {
        let (shared, folder) = (shared.clone(), folder.clone());
        // The place is taken until the file is whole and settled, or gone, whatever becomes of the stream meanwhile.
        move || write(&shared, &folder, message, index, waiting, Place { permit, hurried })
    });
    let writing = writing.map_err(Status::resource_exhausted)?;
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
    match write_rows(shared, folder, index, place.hurried, chunks) {
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
    hurried: bool,
    mut chunks: mpsc::Receiver<SnapshotChunk>,
) -> Result<(), Broken> {
    let mut writer = SnapshotWriter::create(&folder.dir, index, folder.keys.as_ref())?;
    let mut seen = SnapshotEnd::default();
    let mut way = Way::new(hurried);
    let promised = loop {
        let chunk = chunks.blocking_recv().ok_or("the snapshot ended early")?;
        let bytes = size(&chunk) as usize;
        way.begin();
        for row in chunk.rows {
            let bucket = Bucket::from_number(row.bucket).filter(|bucket| belongs(*bucket, &row.key));
            let bucket = bucket.ok_or("a row that does not belong into a snapshot")?;
            count(&mut seen, row.bucket, &row.key, &row.value);
            writer.row(bucket, row.key, row.value)?;
        }
        if let Some(end) = chunk.end {
            break end;
        }
        way.done(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// When a snapshot is given up of which so many bytes go every second, up to a last one.
    async fn given_up_after(bytes: u64, seconds: u64) -> Option<u64> {
        let began = Instant::now();
        let (progress, moved) = watch::channel(0);
        let going = async move {
            for _ in 0..seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                progress.send_modify(|gone| *gone += bytes);
            }
            drop(progress);
            // The receiver is busy with it.
            tokio::time::sleep(Duration::from_secs(1000)).await;
        };
        tokio::select! {
            () = going => None,
            () = without_time_to_spare(moved) => Some(began.elapsed().as_secs()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_too_slowly_is_given_up_as_long_as_it_comes() {
        assert_eq!(given_up_after(0, 100).await, Some(LEISURELY_FROM.as_secs()));
        assert_eq!(given_up_after(LEISURELY_BYTES_PER_SECOND * 3 / 4, 100).await, Some(LEISURELY_FROM.as_secs()));
        assert_eq!(given_up_after(LEISURELY_BYTES_PER_SECOND * 5 / 4, 100).await, None);
        assert_eq!(given_up_after(1, LEISURELY_FROM.as_secs() - 1).await, None);
    }
}
