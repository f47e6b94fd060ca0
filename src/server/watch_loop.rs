//! The watch loop: reads history for watchers that are behind, and the half of the Handle that streams use.
//!
//! One turn asks the hub what to read, reads it without the hub's lock, and hands it out; see [`crate::watch`] for why
//! nothing is lost in between. The store's lock is held only to look into memory: what lies in the backend is read from a
//! reader that was taken under it. So neither publishing nor applying ever waits for a watcher that is late.
//!
//! The loop runs wherever [`run`] is spawned and ends when that is dropped, or with the error that stops the member.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mvcc::change::SharedChanges;
use crate::mvcc::{History, Store};
use crate::storage;
use crate::storage::backend::Bucket;
use crate::types::{ClusterId, MemberId, Revision, Term};
use crate::watch::{CatchUp, Hub, Outbox, Slice, Spec, Stats, StreamId};

/// Bytes of history read in one turn (and one revision more). Small enough to keep all watchers that are behind moving,
/// large enough that a history of a thousand small events comes in one response.
pub const SLICE_BYTES_MAX: usize = 1 << 20;
/// Turns made in one visit to the blocking threads.
const TURNS_PER_VISIT: usize = 64;
/// Election timeouts without a leader after which streams that need one are ended.
const LEADERLESS_TICKS_MAX: u32 = 3;

/// Where the store is: behind the state's lock in the server, in plain sight in tests.
pub trait StoreAccess {
    /// Looks at the store. What is done meanwhile must be short: apply may be waiting.
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T;
}

/// One round of catching up, with so much of history ([`SLICE_BYTES_MAX`]; less shows what happens when it is cut). Returns
/// whether there was anything to do; an error stops the member.
pub fn turn(hub: &Mutex<Hub>, state: &impl StoreAccess, slice_bytes: usize) -> storage::Result<bool> {
    let Some(job) = lock(hub).next_catch_up() else { return Ok(false) };
    match read(&job, state, slice_bytes)? {
        Ok(slice) => while lock(hub).caught_up(&slice) {},
        // The apply loop is about to say the same.
        Err(Compacted { at }) => lock(hub).compacted(at),
    }
    Ok(true)
}

/// Catches up watchers whenever there are any.
pub async fn run<S>(hub: Arc<Mutex<Hub>>, state: Arc<S>) -> storage::Result<()>
where
    S: StoreAccess + Send + Sync + 'static,
{
    let bell = lock(&hub).bell();
    loop {
        bell.rung().await;
        let (hub, state, bell) = (hub.clone(), state.clone(), bell.clone());
        let visit = tokio::task::spawn_blocking(move || -> storage::Result<()> {
            for _ in 0..TURNS_PER_VISIT {
                if !turn(&hub, &*state, SLICE_BYTES_MAX)? {
                    return Ok(());
                }
            }
            bell.ring();
            Ok(())
        });
        match visit.await {
            Ok(done) => done?,
            // The runtime is going down.
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// What was to be read has been compacted.
struct Compacted {
    at: Revision,
}

fn read(job: &CatchUp, state: &impl StoreAccess, bytes: usize) -> storage::Result<Result<Slice, Compacted>> {
    let mut job = job.clone();
    let sets: Vec<SharedChanges> = match state.with_store(|store| store.history(job.from, bytes)) {
        History::Ready(sets) => sets,
        History::Behind(scan) => {
            // What memory holds is for the next turn.
            job.to = job.to.min(scan.to());
            let mut sets = scan.read(bytes)?;
            state.with_store(|store| store.link(&mut sets));
            sets.into_iter().map(Arc::new).collect()
        }
        History::Compacted { at } => return Ok(Err(Compacted { at })),
    };
    if job.prev_kv {
        read_previous(&sets, state)?;
    }
    Ok(Ok(Slice::new(&job, sets)))
}

/// Has every event of the sets encoded with the value it replaced, as far as that is not compacted.
fn read_previous(sets: &[SharedChanges], state: &impl StoreAccess) -> storage::Result<()> {
    let (reader, compacted) = state.with_store(|store| (store.reader(), store.compacted()));
    for set in sets {
        for change in &set.changes {
            let previous = match change.replaced {
                Some(place) if set.revision.previous() >= compacted => {
                    match reader.get(Bucket::Key, &place.row(false))? {
                        Some(record) => Some(record),
                        // Not in the backend yet.
                        None => state.with_store(|store| store.record(place))?,
                    }
                }
                _ => None,
            };
            change.event_with_prev(set.revision, || previous);
        }
    }
    Ok(())
}

/// Decides when streams that need a leader are ended. Asked once per election timeout.
#[derive(Debug, Default)]
pub struct LeaderMonitor {
    leaderless_ticks: u32,
}

impl LeaderMonitor {
    /// One election timeout has passed. Whether to call [`Hub::leader_lost`].
    pub fn tick(&mut self, has_leader: bool) -> bool {
        self.leaderless_ticks = if has_leader { 0 } else { self.leaderless_ticks.saturating_add(1) };
        self.leaderless_ticks >= LEADERLESS_TICKS_MAX
    }
}

/// Who this member is and where it stands: what headers say, and what decides whether a stream may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The cluster.
    pub cluster: ClusterId,
    /// This member.
    pub member: MemberId,
    /// The term it is in.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<MemberId>,
    /// It does not vote.
    pub learner: bool,
}

/// What the watch service knows of the server. Clones are the same.
#[derive(Clone)]
pub struct WatchHandle {
    hub: Arc<Mutex<Hub>>,
    standing: Arc<dyn Fn() -> Standing + Send + Sync>,
    confirm: Arc<dyn Fn() -> Confirmation + Send + Sync>,
}

/// Ends when everything that was committed before it was asked for is published here, or when that cannot be known soon.
pub type Confirmation = Pin<Box<dyn Future<Output = ()> + Send>>;

impl WatchHandle {
    /// `standing` is asked for every message: it reads a few atomics. `confirm` asks a quorum, once for many watchers.
    pub fn new(
        hub: Arc<Mutex<Hub>>,
        standing: Arc<dyn Fn() -> Standing + Send + Sync>,
        confirm: Arc<dyn Fn() -> Confirmation + Send + Sync>,
    ) -> WatchHandle {
        WatchHandle { hub, standing, confirm }
    }

    /// Opens a stream.
    pub fn open(&self) -> WatchStream {
        let (id, outbox) = lock(&self.hub).open_stream();
        WatchStream { hub: self.hub.clone(), id, outbox }
    }

    /// Where this member stands now.
    pub fn standing(&self) -> Standing {
        (self.standing)()
    }

    /// Waits until "now" here is not behind what clients were told elsewhere.
    pub fn confirm(&self) -> Confirmation {
        (self.confirm)()
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> Stats {
        lock(&self.hub).stats()
    }
}

impl fmt::Debug for WatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchHandle").finish_non_exhaustive()
    }
}

/// An open stream: an outbox, and the right to create and cancel watchers. Dropping it frees all of them.
#[derive(Debug)]
pub struct WatchStream {
    hub: Arc<Mutex<Hub>>,
    id: StreamId,
    outbox: Outbox,
}

impl WatchStream {
    /// What waits for the client.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Has the stream ended when the member is without a leader for too long.
    pub fn need_leader(&self) {
        lock(&self.hub).need_leader(self.id);
    }

    /// Creates a watcher; the answer comes through the outbox.
    pub fn create(&self, spec: Spec) {
        lock(&self.hub).create(self.id, spec);
    }

    /// Cancels a watcher; the answer, if the watcher is known, comes through the outbox.
    pub fn cancel(&self, id: i64) {
        lock(&self.hub).cancel(self.id, id);
    }

    /// Asks how far the whole stream is; the answer, if there is one, comes through the outbox.
    pub fn progress(&self) {
        lock(&self.hub).progress(self.id);
    }

    /// The stream's progress ticker has ticked.
    pub fn tick_progress(&self) {
        lock(&self.hub).tick_progress(self.id);
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        lock(&self.hub).close_stream(self.id);
    }
}

/// The hub's lock. A panic under it has stopped the member, or is a failing test.
fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_ended_after_three_timeouts_in_a_row_without_a_leader() {
        let mut monitor = LeaderMonitor::default();
        let ticks = [false, false, true, false, false, false, false, true];
        let ended = ticks.map(|has_leader| monitor.tick(has_leader));
        assert_eq!(ended, [false, false, false, false, false, true, true, false]);
    }
}
