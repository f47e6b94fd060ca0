//! The watch loop: hubs hear what was applied and hand out history, and streams use them.
//!
//! A member has a hub for each runtime that serves clients, a *shard*: the streams that are opened there are its own, and nobody else
//! matches, queues or catches up for them. What is applied comes to it through its feed; whoever looks at a hub has it hear all of that
//! first ([`Shard::hub`]), so that for a client nothing is published later than it was acknowledged.
//!
//! One turn of catching up asks the hub what to read, reads it without the hub's lock, and hands it out; see [`crate::watch`] for why
//! nothing is lost in between. The store's lock is held only to look into memory: what lies in the backend is read from a
//! reader that was taken under it. So neither publishing nor applying ever waits for a watcher that is late.
//!
//! [`Shard::serve`] and [`run`] run wherever they are spawned, and end when they are dropped, or with the error that stops the member.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::watch_rights::Guard;
use crate::mvcc::change::SharedChanges;
use crate::mvcc::revision::RevisionKey;
use crate::mvcc::{History, Store};
use crate::storage;
use crate::storage::backend::Bucket;
use crate::types::{ClusterId, Index, KeyRange, MemberId, Revision, Term};
use crate::watch::{Bell, CatchUp, End, Feed, Hub, Outbox, Refusal, Round, Slice, Spec, Stats, StreamId};

/// Bytes of history read in one turn (and one revision more). Small enough to keep all watchers that are behind moving,
/// large enough that a history of a thousand small events comes in one response.
pub const SLICE_BYTES_MAX: usize = 256 << 10;
/// The same while others write, who wait for as long as it takes to send one.
const SHORT_SLICE_BYTES_MAX: usize = 64 << 10;
/// Revisions whose previous values are looked for at once, in an index that apply needs too.
const LINKED_PER_LOOK: usize = 32;
/// Turns made in one visit to the thread for it.
const TURNS_PER_VISIT: usize = 16;
/// How nice that thread is to all others, of 19: where every processor is busy it gets a tenth of one, and who has something to do for
/// a put never waits until it is through with its turn.
const NICENESS: i32 = 10;
/// While others write, a turn is followed by a rest so many times as long, up to a most: who is late by a million revisions can
/// wait better than a put. (Unless he gets no nearer that way.)
const RESTS_PER_TURN: u32 = 2;
const REST_MAX: Duration = Duration::from_millis(10);
/// Who is no further behind than this rests as well: he is late because he reads slowly.
const BEHIND_LITTLE: i64 = 10_000;
/// So long after somebody wrote, others are taken to write.
const WRITING_FOR: Duration = Duration::from_millis(100);
/// Notices that a hub hears before others run on its thread, and messages it offers to outboxes.
const NOTICES_PER_VISIT: usize = 1024;
const MESSAGES_PER_VISIT: u64 = 8192;
/// Election timeouts without a leader after which streams that need one are ended.
const LEADERLESS_TICKS_MAX: u32 = 3;
/// Election timeouts by which a member may be behind what it knows to be committed before those streams are.
const LAG_TICKS_MAX: usize = 5;

/// A hub, and the feed it hears.
pub struct Shard {
    hub: Mutex<Hub>,
    feed: Feed,
    record: Record,
}

/// Reads the encoded key-value of a place, as far as it is there. What fails stops the member.
pub type Record = Box<dyn Fn(RevisionKey) -> Option<Bytes> + Send + Sync>;

impl Shard {
    /// The hub of a feed that was made at the hub's revision.
    pub fn new(hub: Hub, feed: Feed, record: Record) -> Shard {
        Shard { hub: Mutex::new(hub), feed, record }
    }

    /// Has every stream look at its client's rights again, whatever else it waits for.
    pub fn rouse(&self) {
        let readers = self.lock().rouse();
        readers.into_iter().for_each(Waker::wake);
    }

    /// The hub, when it has heard everything that was told.
    pub fn hub(&self) -> MutexGuard<'_, Hub> {
        let mut hub = self.lock();
        while self.hear(&mut hub, usize::MAX) {}
        hub
    }

    /// Has the hub hear what it is told, whenever it is, for ever.
    pub async fn serve(&self) {
        loop {
            self.feed.filled().await;
            self.hear_some(NOTICES_PER_VISIT);
            tokio::task::yield_now().await;
        }
    }

    /// Has the hub hear some of what it was told, as long as that is little work.
    pub fn hear_some(&self, most: usize) {
        let mut hub = self.lock();
        let enough = hub.offered() + MESSAGES_PER_VISIT;
        for _ in 0..most {
            if !self.hear(&mut hub, 1) || hub.offered() >= enough {
                return;
            }
        }
    }

    /// Whether there is something it has not heard.
    pub fn has_news(&self) -> bool {
        !self.feed.is_empty()
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> Stats {
        self.lock().stats()
    }

    /// Whether there was anything to hear.
    fn hear(&self, hub: &mut Hub, most: usize) -> bool {
        let notices = self.feed.take(most);
        let some = !notices.is_empty();
        for notice in notices {
            hub.hear(notice, &mut |place| (self.record)(place));
        }
        if some {
            self.feed.needs(hub.needed());
        }
        some
    }

    /// The hub as it is. A panic under its lock has stopped the member, or is a failing test.
    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").finish_non_exhaustive()
    }
}

/// Where the store is: behind the state's lock in the server, in plain sight in tests.
pub trait StoreAccess {
    /// Looks at the store. What is done meanwhile must be short: apply may be waiting.
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T;
}

/// One round of catching up, with so much of history ([`SLICE_BYTES_MAX`]; less shows what happens when it is cut). Returns
/// whether there was anything to do; an error stops the member.
pub fn turn(shard: &Shard, state: &impl StoreAccess, slice_bytes: usize) -> storage::Result<bool> {
    Ok(serve_next(shard, state, slice_bytes)?.is_some())
}

/// The same, and who was served.
fn serve_next(shard: &Shard, state: &impl StoreAccess, slice_bytes: usize) -> storage::Result<Option<CatchUp>> {
    let Some(job) = shard.lock().next_catch_up() else { return Ok(None) };
    match read(&job, state, slice_bytes)? {
        Ok(slice) => hand_out(shard, &slice),
        // It is about to hear the same.
        Err(Removed { at }) => shard.lock().removed(at),
    }
    shard.feed.needs(shard.lock().needed());
    Ok(Some(job))
}

/// Hands a piece of history to everybody who stands inside it. The hub's lock is held to look, and to queue what is ready.
fn hand_out(shard: &Shard, slice: &Slice) {
    let mut round = Some(Round::default());
    while let Some(here) = round {
        let (orders, next) = shard.lock().orders(slice, here);
        round = next;
        for order in orders {
            let parcel = order.pack(slice);
            let readers = shard.lock().deliver(&parcel);
            readers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Catches up watchers whenever there are any, on the thread given.
pub async fn run<S>(shard: Arc<Shard>, state: Arc<S>, visits: Visits) -> storage::Result<()>
where
    S: StoreAccess + Send + Sync + 'static,
{
    let bell = shard.lock().bell();
    let mut pace = Pace::default();
    loop {
        bell.rung().await;
        let (shard, state, bell) = (shard.clone(), state.clone(), bell.clone());
        let (done, visited) = oneshot::channel();
        let visit = move || {
            // Nobody waits any more when the member is going down.
            let _ = done.send(visit(&shard, &*state, &bell, pace));
        };
        // Either fails only if the thread panicked.
        visits.0.send(Box::new(visit)).expect("the thread that catches up goes on");
        pace = visited.await.expect("the thread that catches up goes on")?;
    }
}

/// Some turns, with what rests belong to them.
fn visit(shard: &Shard, state: &impl StoreAccess, bell: &Bell, mut pace: Pace) -> storage::Result<Pace> {
    pace.begin(shard.lock().published());
    for _ in 0..TURNS_PER_VISIT {
        let began = cpu_time();
        let slice_bytes = pace.slice_bytes(Instant::now());
        let Some(job) = serve_next(shard, state, slice_bytes)? else { return Ok(pace) };
        // Mostly less than a millisecond, which is the least that the runtime's timers know.
        thread::sleep(pace.rest(&job, cpu_time().saturating_sub(began), Instant::now()));
    }
    bell.ring();
    Ok(pace)
}

/// A thread that visits when nobody else wants the processor, until this is dropped. One of its own: a thread that was nice once
/// cannot be asked to be less so.
#[derive(Debug)]
pub struct Visits(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Visits {
    /// Starts it.
    pub fn start() -> io::Result<Visits> {
        let (sender, receiver) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::Builder::new().name("catch-up".to_owned()).spawn(move || {
            // Of this thread alone, on Linux. Where it is not allowed, it is as the others are.
            let _ = rustix::process::nice(NICENESS);
            receiver.into_iter().for_each(|visit| visit());
        })?;
        Ok(Visits(sender))
    }
}

/// What the thread has used of a processor.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Says how much who catches up reads at once, and how long it rests then: the processors are for those who write, if there are any.
#[derive(Debug, Default)]
struct Pace {
    published: Revision,
    /// When it was last seen that somebody had written.
    written: Option<Instant>,
    /// By how much those who were served were behind at most, since the present visit began; and in the one before.
    behind: i64,
    behind_before: i64,
}

impl Pace {
    /// A visit begins. What was written while nobody was late does not count.
    fn begin(&mut self, published: Revision) {
        self.published = published;
        self.behind_before = mem::take(&mut self.behind);
    }

    /// After a turn that has taken so much of a processor. Who only falls further behind is not made to wait.
    fn rest(&mut self, served: &CatchUp, took: Duration, now: Instant) -> Duration {
        if mem::replace(&mut self.published, served.to) < served.to {
            self.written = Some(now);
        }
        self.behind = self.behind.max(served.to.0 - served.from.0);
        match self.others_write(now) && self.behind <= self.behind_before.max(BEHIND_LITTLE) {
            true => (took * RESTS_PER_TURN).min(REST_MAX),
            false => Duration::ZERO,
        }
    }

    fn slice_bytes(&self, now: Instant) -> usize {
        if self.others_write(now) { SHORT_SLICE_BYTES_MAX } else { SLICE_BYTES_MAX }
    }

    fn others_write(&self, now: Instant) -> bool {
        self.written.is_some_and(|written| now - written < WRITING_FOR)
    }
}

/// What was to be read has been removed.
struct Removed {
    at: Revision,
}

fn read(job: &CatchUp, state: &impl StoreAccess, bytes: usize) -> storage::Result<Result<Slice, Removed>> {
    let mut job = job.clone();
    let sets: Vec<SharedChanges> = match state.with_store(|store| store.history(job.from, bytes)) {
        History::Ready(sets) => sets,
        History::Behind(scan) => {
            // What memory holds is for the next turn.
            job.to = job.to.min(scan.to());
            let mut sets = scan.read(bytes)?;
            if job.prev_kv {
                for some in sets.chunks_mut(LINKED_PER_LOOK) {
                    state.with_store(|store| store.link(some));
                }
            }
            sets.into_iter().map(Arc::new).collect()
        }
        History::Compacted { at } => return Ok(Err(Removed { at })),
    };
    if job.prev_kv {
        read_previous(&sets, state)?;
    }
    Ok(Ok(Slice::new(&job, sets)))
}

/// Has every event of the sets encoded with the value it replaced, as far as that is not removed.
fn read_previous(sets: &[SharedChanges], state: &impl StoreAccess) -> storage::Result<()> {
    let (reader, retained) = state.with_store(|store| (store.reader(), store.retained()));
    for set in sets {
        for change in &set.changes {
            let previous = match change.replaced {
                Some(place) if set.revision.previous() >= retained => {
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

/// Decides when streams that need a leader are ended, because there is none, or because this member does not follow it.
#[derive(Debug, Default)]
pub struct Monitor {
    leaderless_ticks: u32,
    /// What was committed at the last ticks.
    committed: VecDeque<Index>,
    lags: bool,
}

impl Monitor {
    /// One election timeout has passed. How the streams are to end, if they are.
    pub fn tick(&mut self, has_leader: bool, committed: Index, applied: Index) -> Option<End> {
        self.leaderless_ticks = if has_leader { 0 } else { self.leaderless_ticks.saturating_add(1) };
        self.committed.push_back(committed);
        self.lags = self.committed.len() > LAG_TICKS_MAX && self.committed.pop_front().is_some_and(|was| was > applied);
        match self.leaderless_ticks >= LEADERLESS_TICKS_MAX {
            true => Some(End::NoLeader),
            false => self.lags.then_some(End::Lagging),
        }
    }

    /// Whether the member has not yet carried out what was committed all those ticks ago.
    pub fn lags(&self) -> bool {
        self.lags
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
    /// It has fallen so far behind that clients are better off elsewhere.
    pub lagging: bool,
}

/// When the last revisions were applied, so that it can be said how long their events took.
#[derive(Debug, Default)]
pub struct Timeline(Mutex<VecDeque<(Revision, Duration)>>);

/// Applications that are remembered. Who is told of older ones was late, and is not asked how long it took.
const TIMELINE_MAX: usize = 1024;

impl Timeline {
    /// Everything up to a revision has been applied.
    pub fn applied(&self, revision: Revision, now: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == TIMELINE_MAX {
            times.pop_front();
        }
        times.push_back((revision, now));
    }

    /// How long ago a revision was applied, if that is remembered.
    pub fn age(&self, revision: Revision, now: Duration) -> Option<Duration> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = times.partition_point(|(applied, _)| *applied < revision);
        // What comes before the first may be much older.
        let (_, applied) = times.get(at).filter(|_| at > 0)?;
        Some(now.saturating_sub(*applied))
    }
}

/// What the watch service knows of the server. Clones are the same.
#[derive(Clone)]
pub struct WatchHandle {
    shards: Arc<[Arc<Shard>]>,
    written: Arc<dyn Fn(Revision) + Send + Sync>,
    standing: Arc<dyn Fn() -> Standing + Send + Sync>,
    confirm: Arc<dyn Fn() -> Confirmation + Send + Sync>,
    guard: Arc<dyn Guard>,
    bounds: Bounds,
}

/// How many watchers there may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// On one stream; none: as many as it asks for.
    pub per_stream: Option<usize>,
    /// At this member, on all streams together; none: the same. Streams that are opened on different threads may go beyond it by a few
    /// when they create watchers at the same moment.
    pub in_all: Option<usize>,
}

/// Ends when everything that was committed before it was asked for is published here, or when that cannot be known soon.
pub type Confirmation = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// The shard of the streams that are opened on this thread.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Streams that are opened on this thread belong to this shard from now on; until then to the first.
pub fn own_shard(number: usize) {
    OWN.set(number);
}

impl WatchHandle {
    /// `standing` is asked for every portion of messages: it reads a few atomics. `confirm` asks a quorum, once for many watchers.
    /// `written` hears the newest revision of events that go to a connection together. `guard` looks at users, where they count.
    pub fn new(
        shards: Arc<[Arc<Shard>]>,
        written: Arc<dyn Fn(Revision) + Send + Sync>,
        standing: Arc<dyn Fn() -> Standing + Send + Sync>,
        confirm: Arc<dyn Fn() -> Confirmation + Send + Sync>,
        guard: Arc<dyn Guard>,
    ) -> WatchHandle {
        WatchHandle { shards, written, standing, confirm, guard, bounds: Bounds::default() }
    }

    /// The same with bounds.
    pub fn bounded(self, bounds: Bounds) -> WatchHandle {
        WatchHandle { bounds, ..self }
    }

    /// Opens a stream.
    pub fn open(&self) -> WatchStream {
        let shard = self.shards[OWN.get() % self.shards.len()].clone();
        // It hears what was told before: an end that is meant for those who were there is not for this one.
        let (id, outbox) = shard.hub().open_stream();
        WatchStream { shard, id, outbox, shards: self.shards.clone(), bounds: self.bounds }
    }

    /// Where this member stands now.
    pub fn standing(&self) -> Standing {
        (self.standing)()
    }

    /// Who may hear of what.
    pub fn guard(&self) -> &dyn Guard {
        &*self.guard
    }

    /// Events up to a revision go to a connection now.
    pub fn written(&self, revision: Revision) {
        (self.written)(revision);
    }

    /// Waits until "now" here is not behind what clients were told elsewhere.
    pub fn confirm(&self) -> Confirmation {
        (self.confirm)()
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> Stats {
        self.shards.iter().map(|shard| shard.stats()).sum()
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
    shard: Arc<Shard>,
    id: StreamId,
    outbox: Outbox,
    shards: Arc<[Arc<Shard>]>,
    bounds: Bounds,
}

impl WatchStream {
    /// What waits for the client.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Has the stream ended when the member is without a leader for too long.
    pub fn need_leader(&self) {
        self.shard.lock().need_leader(self.id);
    }

    /// Creates a watcher; the answer comes through the outbox.
    pub fn create(&self, spec: Spec) {
        match self.crowded() {
            None => self.with_hub(|hub| hub.create(self.id, spec)),
            Some(reason) => self.refuse(reason),
        }
    }

    /// Why one more watcher would be too many, if it would.
    fn crowded(&self) -> Option<Refusal> {
        let Bounds { per_stream, in_all } = self.bounds;
        if per_stream.is_some_and(|most| self.shard.lock().watchers_of(self.id) >= most) {
            return Some(Refusal::StreamFull);
        }
        let all = || self.shards.iter().map(|shard| shard.lock().watchers()).sum::<usize>();
        in_all.filter(|most| all() >= *most).map(|_| Refusal::MemberFull)
    }

    /// Answers that a watcher is not created.
    pub fn refuse(&self, reason: Refusal) {
        self.with_hub(|hub| hub.refuse(self.id, reason));
    }

    /// Cancels a watcher; the answer, if the watcher is known, comes through the outbox.
    pub fn cancel(&self, id: i64) {
        self.with_hub(|hub| hub.cancel(self.id, id));
    }

    /// Cancels watchers whose keys `may` does not let the client hear of any more. Their ids.
    pub fn revoke(&self, may: &dyn Fn(&KeyRange) -> bool, reason: &'static str) -> Vec<i64> {
        let mut revoked = Vec::new();
        self.with_hub(|hub| revoked = hub.revoke(self.id, may, reason));
        revoked
    }

    fn with_hub(&self, work: impl FnOnce(&mut Hub)) {
        let mut hub = self.shard.hub();
        work(&mut hub);
        self.shard.feed.needs(hub.needed());
    }

    /// Asks how far the whole stream is; the answer, if there is one, comes through the outbox.
    pub fn progress(&self) {
        self.shard.hub().progress(self.id);
    }

    /// The stream's progress ticker has ticked.
    pub fn tick_progress(&self) {
        self.shard.hub().tick_progress(self.id);
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        let mut hub = self.shard.lock();
        hub.close_stream(self.id);
        self.shard.feed.needs(hub.needed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_ended_after_three_timeouts_in_a_row_without_a_leader() {
        let mut monitor = Monitor::default();
        let ticks = [false, false, true, false, false, false, false, true];
        let ended = ticks.map(|has_leader| monitor.tick(has_leader, Index(9), Index(9)).is_some());
        assert_eq!(ended, [false, false, false, false, false, true, true, false]);
    }

    #[test]
    fn who_catches_up_makes_way_for_those_who_write() {
        let mut pace = Pace::default();
        let (start, took) = (Instant::now(), Duration::from_millis(1));
        let ms = |n: u64| start + Duration::from_millis(n);
        let served = |from, to| CatchUp { from: Revision(from), to: Revision(to), prev_kv: false };
        let rests = took * RESTS_PER_TURN;
        pace.begin(Revision(100_000));
        assert_eq!(pace.rest(&served(1, 100_000), took, ms(1)), Duration::ZERO, "nobody writes");
        assert_eq!(pace.slice_bytes(ms(1)), SLICE_BYTES_MAX);
        pace.begin(Revision(100_000));
        assert_eq!(pace.rest(&served(500, 100_001), took, ms(2)), rests);
        assert_eq!(pace.slice_bytes(ms(2)), SHORT_SLICE_BYTES_MAX);
        assert_eq!(pace.rest(&served(900, 100_001), took, ms(3)), rests, "a moment ago");
        assert_eq!(pace.rest(&served(901, 100_001), took * 60, ms(3)), REST_MAX, "a long turn");
        assert_eq!(pace.rest(&served(950, 100_001), took, ms(200)), Duration::ZERO);
        // Who is late is now later than before.
        pace.begin(Revision(200_000));
        assert_eq!(pace.rest(&served(1000, 200_001), took, ms(201)), Duration::ZERO);
        pace.begin(Revision(200_001));
        assert_eq!(pace.rest(&served(2000, 200_001), took, ms(202)), rests);
    }

    #[test]
    fn how_long_ago_is_known_of_what_was_applied_not_long_ago() {
        let timeline = Timeline::default();
        let s = Duration::from_secs;
        assert_eq!(timeline.age(Revision(5), s(1)), None);
        timeline.applied(Revision(5), s(1));
        timeline.applied(Revision(8), s(3));
        assert_eq!(timeline.age(Revision(5), s(4)), None, "perhaps it is older");
        assert_eq!([6, 8].map(|revision| timeline.age(Revision(revision), s(4))), [Some(s(1)); 2]);
        assert_eq!(timeline.age(Revision(9), s(4)), None);
        (0..TIMELINE_MAX as i64).for_each(|n| timeline.applied(Revision(10 + n), s(5)));
        assert_eq!(timeline.age(Revision(8), s(6)), None);
    }

    #[test]
    fn streams_are_ended_by_a_member_that_does_not_come_to_apply_what_it_knows() {
        let lags = |ahead: u64| -> Vec<bool> {
            let mut monitor = Monitor::default();
            let mut tick = |n: u64| monitor.tick(true, Index(100 + n), Index(100 + n - ahead)) == Some(End::Lagging);
            (0..8).map(&mut tick).collect()
        };
        // Always behind, but never by more than five timeouts.
        assert_eq!(lags(5), [false; 8]);
        assert_eq!(lags(6), [false, false, false, false, false, true, true, true]);
    }
}
