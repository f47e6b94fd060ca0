//! How many writes of busy clients may be under way, while there are others that have little to do.
//!
//! A client that keeps two thousand puts under way has as many of them answered in a second as one that keeps fifty. But whoever comes
//! with a single put waits for what came before it. So there is a bound: while more writes are under way, connections that have many of
//! them are held. It is found as TCP finds how many packets to send. A write that took long makes it smaller by a part; while somebody is
//! held, each that did not makes it a little larger. What is long goes by the syncs of the log, and by what writes take that come when
//! there are hardly any others: a slow disk, or a peer that is far away, is nobody's fault.
//!
//! Nothing is bounded unless connections with few writes are served beside some with many, and have the lesser part by far: among
//! equals nobody would gain by it (who has few, `listen` finds out). Members tell each other, since all share one log: followers tell the
//! leader whether they have somebody to protect, and the leader tells all. Where nothing is answered, without a leader, nobody is held
//! for long.
//!
//! (etcd answers in the order in which requests come, and a client that floods it makes all others wait for hundreds of milliseconds.)
//!
//! ```text
//!  listen::turns ── room? ──▶ Throttle ◀── proposed, answered, turned, synced ── server
//!                                 ▲
//!                                 └── says, heard ── peer
//! ```
//!
//! Promises: nothing here waits but `Throttle::wait`, and that not for long; times come from the callers.

use std::cell::Cell;
use std::ops::Sub;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// As if there were no bound.
const UNBOUNDED: u64 = u64::MAX;
/// So many writes may be under way in any case.
const BOUND_MIN: u64 = 2;
/// A write may take so long, and besides twice as long as a sync of the log, or as a write takes at the least: it waits for what is under
/// way when it comes, and then for its own.
const SPARE: Duration = Duration::from_millis(1);
const TIMES: u32 = 2;
/// With so many under way it takes the least. It is remembered over so long a time, and as long again. Where the bound was higher for
/// all of that it is forgotten: the bound comes down, and it is seen once more.
const ALONE: u64 = 4;
const LEAST_OVER: Duration = Duration::from_secs(5);
/// Of the average of syncs, what the last one is.
const SYNC_PART: u64 = 16;
/// A write that took long leaves at least this part of what is under way, or of a bound below that, and takes at least that one off it.
const LEFT_PART: u64 = 4;
const TAKEN_PART: u64 = 8;
/// What one that did not take long adds to it, and one besides. A large bound settles where one in five takes long; with a larger part it
/// would be more.
const ADDED_PART: u64 = 32;
/// How often it is looked at who writes how much. For how many looks somebody is protected after one that gave a reason, and at most
/// after many of them: who is there for long is soon protected for long, and a look that was mistaken costs little.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 4;
const LOOKS_MAX: u32 = 20;
/// Connections with few writes are protected if they have one of so many, or less; and while they are, and others are held for them, if
/// they have not more than those.
const PROTECTED_PART: u64 = 5;
/// A write without an answer for so long measures nothing.
const LOST: Duration = Duration::from_secs(1);
/// How long somebody is held although nothing is answered.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// See the module. One per member.
#[derive(Debug)]
pub struct Throttle {
    /// Whether there is ever a bound.
    enabled: bool,
    bound: AtomicU64,
    /// Writes that wait in the core since its last turn, and those that came later.
    waiting: AtomicU64,
    proposed: AtomicU64,
    /// How many runtimes wait for room.
    holding: AtomicUsize,
    /// Somebody was held, since the bound was looked at.
    held: AtomicBool,
    room: Notify,
    /// How often somebody had to wait for room.
    waits: AtomicU64,
    /// Writes that connections with few, and those with many, began since it was looked at.
    of_few: AtomicU64,
    of_many: AtomicU64,
    /// For each of the latter, how many its connection has under way: the sum, and the average at the last look. In thousandths.
    many_have_sum: AtomicU64,
    many_have: AtomicU64,
    /// A peer has said that somebody is to be protected, since it was looked at.
    heard: AtomicBool,
    /// Somebody is to be protected here, or at a peer.
    here: AtomicBool,
    elsewhere: AtomicBool,
    leads: AtomicBool,
    /// What a sync takes on the average, in microseconds.
    sync_us: AtomicU64,
    /// No write is being measured.
    idle: AtomicBool,
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    write: Option<Write>,
    /// What writes took at the least since then, and before; zero where there was none that tells.
    least: [Duration; 2],
    least_since: Duration,
    looked: Duration,
    /// For how many looks somebody is protected yet.
    here: u32,
    elsewhere: u32,
}

/// The one that is measured.
#[derive(Debug)]
struct Write {
    number: u64,
    came: Duration,
    /// With hardly any others.
    alone: bool,
}

impl Throttle {
    /// Without a bound for the time being; if not `enabled`, for ever.
    pub fn new(enabled: bool) -> Throttle {
        Throttle {
            enabled,
            bound: AtomicU64::new(UNBOUNDED),
            waiting: AtomicU64::new(0),
            proposed: AtomicU64::new(0),
            holding: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            room: Notify::new(),
            waits: AtomicU64::new(0),
            of_few: AtomicU64::new(0),
            of_many: AtomicU64::new(0),
            many_have_sum: AtomicU64::new(0),
            many_have: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            here: AtomicBool::new(false),
            elsewhere: AtomicBool::new(false),
            leads: AtomicBool::new(false),
            sync_us: AtomicU64::new(0),
            idle: AtomicBool::new(true),
            measured: Mutex::default(),
        }
    }

    /// A write is on its way to the core. Numbers rise.
    pub(crate) fn proposed(&self, number: u64, now: impl FnOnce() -> Duration) {
        self.proposed.fetch_add(1, Relaxed);
        // One at a time is measured: a clock that is read for each would cost more than it tells.
        if self.idle.swap(false, Relaxed) {
            let write = Write { number, came: now(), alone: self.under_way() <= ALONE };
            self.measured().write = Some(write);
        }
    }

    /// All writes up to that number are carried out, and about to be answered.
    pub(crate) fn answered(&self, number: u64, now: Duration) {
        let mut measured = self.measured();
        let Some(write) = &measured.write else { return };
        let took = now.saturating_sub(write.came);
        if write.number > number && took < LOST {
            return;
        }
        if write.alone && took < LOST {
            measured.took_alone(took);
        }
        measured.write = None;
        self.idle.store(true, Relaxed);
        if self.enabled {
            self.adjust(&measured, took);
        }
    }

    /// Who begins how many writes, and whether somebody is to be protected.
    fn look(&self, now: Duration) {
        let measured = &mut *self.measured();
        measured.forget(now);
        if now.saturating_sub(measured.looked) >= LOOK {
            measured.looked = now;
            let (few, many) = (self.of_few.swap(0, Relaxed), self.of_many.swap(0, Relaxed));
            let many_have = self.many_have_sum.swap(0, Relaxed).checked_div(many);
            self.many_have.store(many_have.unwrap_or(0), Relaxed);
            let heard = self.heard.swap(false, Relaxed);
            let left =
                |reason: bool, left: u32| if reason { (left + LOOKS).min(LOOKS_MAX) } else { left.saturating_sub(1) };
            let part = if measured.here > 0 { 1 } else { PROTECTED_PART };
            measured.here = left(few > 0 && few * part <= many, measured.here);
            measured.elsewhere = left(heard, measured.elsewhere);
            self.here.store(measured.here > 0, Relaxed);
            self.elsewhere.store(measured.elsewhere > 0, Relaxed);
        }
    }

    fn adjust(&self, measured: &Measured, took: Duration) {
        let bound = self.bound.load(Relaxed);
        let held = self.held.swap(false, Relaxed);
        let sync = Duration::from_micros(self.sync_us.load(Relaxed));
        let long = SPARE + TIMES * sync.max(measured.least());
        let bound = if measured.here == 0 && measured.elsewhere == 0 {
            bound.saturating_mul(2)
        } else if took > long {
            // From what is under way: without a bound so far, or far below it, that is where it has to begin. What takes ten times too
            // long comes down in a few steps: whoever has just come would notice a tenth of a second.
            let from = bound.min(self.under_way());
            let fits = u128::from(from) * long.as_micros() / took.as_micros().max(1);
            let fits = u64::try_from(fits).unwrap_or(from);
            fits.min(from - from / TAKEN_PART).max(from / LEFT_PART).max(BOUND_MIN)
        } else if held {
            bound.saturating_add(bound / ADDED_PART + 1)
        } else {
            bound
        };
        self.bound.store(bound, Relaxed);
    }

    /// The core has had a turn, and so many writes wait in it. It has some, whether anybody writes or not.
    pub(crate) fn turned(&self, waiting: usize, now: Duration) {
        if self.enabled {
            self.look(now);
        }
        self.waiting.store(waiting as u64, Relaxed);
        self.proposed.store(0, Relaxed);
        // Either this sees that there is somebody, or he sees the room.
        fence(Ordering::SeqCst);
        if self.holding.load(Relaxed) > 0 && self.room() > 0 {
            self.room.notify_waiters();
        }
    }

    /// The log was synced.
    pub(crate) fn synced(&self, took: Duration) {
        let (before, took) = (self.sync_us.load(Relaxed), took.as_micros() as u64);
        let after = if before == 0 { took } else { before - before / SYNC_PART + took / SYNC_PART };
        self.sync_us.store(after, Relaxed);
    }

    /// Whether this member leads now.
    pub(crate) fn leads(&self, leads: bool) {
        self.leads.store(leads, Relaxed);
    }

    /// What peers are to be told: that somebody is to be protected.
    pub(crate) fn says(&self) -> bool {
        // Followers do not say what they were told, or it would never end.
        self.here.load(Relaxed) || (self.leads.load(Relaxed) && self.elsewhere.load(Relaxed))
    }

    /// A peer has said so.
    pub(crate) fn heard(&self) {
        self.heard.store(true, Relaxed);
    }

    /// So many writes began, on a connection that has few under way.
    pub(crate) fn began_by_few(&self, writes: usize) {
        self.of_few.fetch_add(writes as u64, Relaxed);
    }

    /// On one that has many: `under_way` on the average of time.
    pub(crate) fn began_by_many(&self, writes: usize, under_way: f32) {
        self.of_many.fetch_add(writes as u64, Relaxed);
        self.many_have_sum.fetch_add(writes as u64 * (under_way * 1000.0) as u64, Relaxed);
    }

    /// How many writes a connection with many has under way, on the average of time and of such writes at the last look. Without any of
    /// them 0.
    pub(crate) fn many_have(&self) -> f32 {
        self.many_have.load(Relaxed) as f32 / 1000.0
    }

    fn under_way(&self) -> u64 {
        self.waiting.load(Relaxed) + self.proposed.load(Relaxed)
    }

    /// For how many writes more there is room.
    pub(crate) fn room(&self) -> usize {
        let room = self.bound.load(Relaxed).saturating_sub(self.under_way());
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Somebody is held for want of room.
    pub(crate) fn holds(&self) {
        self.held.store(true, Relaxed);
    }

    /// Returns when there is room, or it is so late.
    pub(crate) async fn wait(&self, until: Instant) {
        self.waits.fetch_add(1, Relaxed);
        let mut room = pin!(self.room.notified());
        room.as_mut().enable();
        let _holding = Holding::of(self);
        fence(Ordering::SeqCst);
        if self.room() == 0 {
            let _ = timeout_at(until, room).await;
        }
    }

    /// Somebody was held for so long that he goes on without room. It is not for what is under way that nothing is answered.
    pub(crate) fn gives_up(&self) {
        self.bound.store(self.bound.load(Relaxed).saturating_mul(2), Relaxed);
    }

    /// How often somebody had to wait.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Relaxed)
    }

    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Measured {
    fn took_alone(&mut self, took: Duration) {
        let least = &mut self.least[0];
        *least = if least.is_zero() { took } else { took.min(*least) };
    }

    fn forget(&mut self, now: Duration) {
        if now.saturating_sub(self.least_since) >= LEAST_OVER {
            self.least = [Duration::ZERO, self.least[0]];
            self.least_since = now;
        }
    }

    /// Zero if it is not known.
    fn least(&self) -> Duration {
        self.least.into_iter().filter(|least| !least.is_zero()).min().unwrap_or_default()
    }
}

/// While it is there, somebody waits for room.
struct Holding<'a>(&'a Throttle);

impl Holding<'_> {
    fn of(throttle: &Throttle) -> Holding<'_> {
        throttle.holding.fetch_add(1, Relaxed);
        Holding(throttle)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.holding.fetch_sub(1, Relaxed);
    }
}

thread_local! {
    static HERE: Cell<Writes> = const { Cell::new(Writes { begun: 0, ended: 0 }) };
}

/// Writes that began and ended on a thread. Those between two moments are those of the connection that had its turn there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) begun: usize,
    pub(crate) ended: usize,
}

impl Writes {
    /// Up to now, on this thread.
    pub(crate) fn here() -> Writes {
        HERE.get()
    }
}

impl Sub for Writes {
    type Output = Writes;

    fn sub(self, earlier: Writes) -> Writes {
        Writes { begun: self.begun.wrapping_sub(earlier.begun), ended: self.ended.wrapping_sub(earlier.ended) }
    }
}

/// A write, until whoever waits for its answer has it or has gone.
#[derive(Debug)]
pub(crate) struct UnderWay(());

impl UnderWay {
    pub(crate) fn begin() -> UnderWay {
        let here = HERE.get();
        HERE.set(Writes { begun: here.begun.wrapping_add(1), ..here });
        UnderWay(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let here = HERE.get();
        HERE.set(Writes { ended: here.ended.wrapping_add(1), ..here });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A member's writes, one after another, and the time.
    struct Load {
        throttle: Throttle,
        now: Duration,
        number: u64,
        /// How many of those with few and of those with many began beside each.
        beside: (usize, usize),
    }

    impl Load {
        /// With syncs of a millisecond.
        fn of(few: usize, many: usize) -> Load {
            let throttle = Throttle::new(true);
            (0..200).for_each(|_| throttle.synced(MS));
            let mut writes = Load { throttle, now: Duration::ZERO, number: 0, beside: (few, many) };
            writes.look();
            writes
        }

        /// A write that is answered after that time, with so many under way.
        fn write(&mut self, took: Duration, under_way: usize) {
            self.throttle.began_by_few(self.beside.0);
            self.throttle.began_by_many(self.beside.1, 10.0);
            self.number += 1;
            self.throttle.turned(under_way - 1, self.now);
            self.throttle.proposed(self.number, || self.now);
            self.now += took;
            self.throttle.answered(self.number, self.now);
        }

        /// A short one, after which it was looked at who writes how much.
        fn look(&mut self) {
            self.now += LOOK;
            self.write(MS, 1);
        }

        fn bound(&self) -> u64 {
            self.throttle.bound.load(Relaxed)
        }
    }

    #[test]
    fn among_equals_nothing_is_bounded_however_long_it_takes() {
        for (few, many) in [(0, 1000), (1000, 0), (500, 500), (0, 0)] {
            let mut writes = Load::of(few, many);
            writes.write(100 * MS, 2000);
            assert_eq!(writes.bound(), UNBOUNDED, "{few} beside {many}");
        }
    }

    #[test]
    fn beside_somebody_with_few_the_bound_follows_what_writes_take() {
        let mut writes = Load::of(10, 1000);
        assert_eq!(writes.bound(), UNBOUNDED, "nothing was slow");
        writes.write(100 * MS, 800);
        assert_eq!((writes.bound(), writes.throttle.room()), (200, 0), "much too long");
        writes.write(100 * MS, 200);
        assert_eq!(writes.bound(), 50);
        (0..100).for_each(|_| writes.write(100 * MS, writes.bound() as usize));
        assert_eq!(writes.bound(), BOUND_MIN);
        // Two syncs and some are not long.
        writes.write(MS * 14 / 5, 8);
        assert_eq!(writes.bound(), BOUND_MIN, "nobody wants more");
        for _ in 0..100 {
            writes.throttle.holds();
            writes.write(MS * 14 / 5, 8);
        }
        assert!(writes.bound() > 10 * BOUND_MIN, "{}", writes.bound());
        // Beside syncs that take longer nothing is long that was not before.
        (0..200).for_each(|_| writes.throttle.synced(50 * MS));
        let before = writes.bound();
        writes.write(100 * MS, 100);
        assert_eq!(writes.bound(), before);
    }

    #[test]
    fn what_is_taken_off_the_bound_goes_by_how_long_a_write_took() {
        // Three milliseconds would not be long.
        for (took, left) in [(MS * 16 / 5, 700..=700), (6 * MS, 380..=400), (16 * MS, 200..=200)] {
            let mut writes = Load::of(10, 1000);
            writes.write(took, 800);
            assert!(left.contains(&writes.bound()), "{took:?} leaves {}", writes.bound());
        }
    }

    #[test]
    fn the_bound_goes_when_nobody_with_few_is_left() {
        let mut writes = Load::of(10, 1000);
        writes.write(100 * MS, 64);
        assert_eq!(writes.bound(), 16);
        writes.look();
        writes.beside = (0, 1000);
        (1..LOOKS).for_each(|_| writes.look());
        assert_eq!(writes.bound(), 16, "he may be back in a moment");
        (0..70).for_each(|_| writes.look());
        assert_eq!(writes.bound(), UNBOUNDED);
    }

    #[test]
    fn who_is_protected_may_have_more_for_others_are_held() {
        let mut writes = Load::of(0, 1000);
        for (beside, protects) in [((10, 49), false), ((10, 50), true), ((10, 10), true), ((10, 9), false)] {
            writes.beside = beside;
            (0..=LOOKS_MAX).for_each(|_| writes.look());
            assert_eq!(writes.throttle.says(), protects, "{beside:?}");
        }
    }

    #[test]
    fn it_is_looked_at_who_writes_however_long_a_write_takes_or_if_there_is_none() {
        let mut writes = Load::of(0, 0);
        writes.throttle.began_by_few(10);
        writes.throttle.began_by_many(1000, 10.0);
        let mut looks = || {
            writes.now += LOOK;
            writes.throttle.turned(0, writes.now);
            writes.throttle.says()
        };
        assert!(looks());
        assert_eq!((1..100).find(|_| !looks()), Some(LOOKS), "all have gone");
        writes.throttle.leads(true);
        writes.throttle.heard();
        assert!(looks(), "of another member");
    }

    #[test]
    fn what_writes_take_with_hardly_any_others_is_not_long() {
        // A peer is far away.
        let far = 5 * MS;
        let mut writes = Load::of(10, 1000);
        writes.throttle.sync_us.store(100, Relaxed);
        let forget = |writes: &mut Load| {
            for _ in 0..2 {
                writes.now += LEAST_OVER;
                writes.throttle.turned(800, writes.now);
            }
        };
        forget(&mut writes);
        writes.write(far, 800);
        assert!(writes.bound() < 800, "it is not known yet");
        (0..20).for_each(|_| writes.write(far, writes.bound() as usize));
        assert!(writes.bound() <= ALONE);
        for _ in 0..200 {
            writes.throttle.holds();
            writes.write(far, writes.bound() as usize);
        }
        assert!(writes.bound() > 300, "{}", writes.bound());
        let before = writes.bound();
        writes.write(3 * far, before as usize);
        assert!(writes.bound() < before);
        // Where it is always beside many others, it is looked for again.
        forget(&mut writes);
        writes.write(far, 800);
        assert!(writes.bound() < before / 2, "{}", writes.bound());
    }

    #[test]
    fn what_those_with_many_have_is_the_average_of_their_writes() {
        let mut writes = Load::of(0, 0);
        writes.throttle.began_by_many(30, 10.0);
        writes.throttle.began_by_many(10, 6.0);
        writes.look();
        assert_eq!(writes.throttle.many_have(), 9.0);
        writes.look();
        assert_eq!(writes.throttle.many_have(), 0.0);
    }

    #[test]
    fn it_can_be_switched_off() {
        let mut writes = Load { throttle: Throttle::new(false), ..Load::of(10, 1000) };
        writes.look();
        writes.write(100 * MS, 800);
        assert_eq!((writes.bound(), writes.throttle.says()), (UNBOUNDED, false));
    }

    #[test]
    fn members_protect_what_others_have_to_protect_and_only_the_leader_passes_it_on() {
        let (has, mut leads, mut follows) = (Load::of(10, 1000), Load::of(0, 1000), Load::of(0, 1000));
        assert!(has.throttle.says() && !leads.throttle.says());
        leads.throttle.leads(true);
        leads.throttle.heard();
        leads.look();
        assert!(leads.throttle.says());
        follows.throttle.heard();
        follows.look();
        assert!(!follows.throttle.says());
        follows.write(100 * MS, 800);
        assert_eq!(follows.bound(), 200);
        (0..LOOKS_MAX).for_each(|_| leads.look());
        assert!(!leads.throttle.says());
    }

    #[test]
    fn a_write_that_gets_lost_is_not_waited_for_for_ever() {
        let writes = Load::of(10, 1000);
        writes.throttle.proposed(7, || writes.now);
        writes.throttle.answered(6, writes.now + 500 * MS);
        assert!(!writes.throttle.idle.load(Relaxed), "it may come yet");
        writes.throttle.answered(6, writes.now + LOST);
        assert!(writes.throttle.idle.load(Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_goes_on_when_there_is_room_or_after_a_while() {
        let mut writes = Load::of(10, 1000);
        writes.write(100 * MS, 800);
        let began = Instant::now();
        let wait = || writes.throttle.wait(began + PATIENCE);
        let ((), (), ()) = tokio::join!(wait(), wait(), async {
            writes.throttle.turned(200, writes.now);
            assert_eq!(writes.throttle.holding.load(Relaxed), 2);
            writes.throttle.turned(199, writes.now);
        });
        assert_eq!((began.elapsed(), writes.throttle.holding.load(Relaxed)), (Duration::ZERO, 0), "both");
        writes.throttle.turned(200, writes.now);
        wait().await;
        assert_eq!(began.elapsed(), PATIENCE);
        writes.throttle.gives_up();
        assert_eq!(writes.bound(), 400, "the next is not held as soon");
    }
}
