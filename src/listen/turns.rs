//! Whose turn it is, among connections that have much to do.
//!
//! A runtime takes its tasks in the order in which they became ready. Beside two hundred connections with ten calls each, one with a
//! single call would wait for two thousand of them, several times until it is answered. Here a connection that had much to do in its
//! last turn waits until it is called. A few of those that wait are called at a time, when everybody else who is ready has had a
//! turn and the system was asked who has become so. Whoever has little to do is never behind more than these few.
//!
//! A connection that has many writes under way waits longer, where [`Throttle`] has no room for more: it is *held*. How many it has
//! after that says little, since they have gathered meanwhile, whoever it is: little by little it is taken for one with few again, until
//! its next turn shows what it is.
//!
//! What is many for a moment may be few in a second: of whoever writes seldom many are under way, too, as long as each takes long. So a
//! connection is compared with those that have many, over a second. One that has just come begins with nothing, and has a good half of
//! that time until it is as they are. Equals come out alike, however the one or the other is late with its next writes.
//!
//! Nobody starves: a runtime comes back to whoever made way after a few dozen tasks, and a turn is as long as it would be without this.

use std::collections::VecDeque;
use std::future::pending;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::throttle::{PATIENCE, Throttle, Writes};

/// Calls that a connection may begin and end in a turn without having to wait for its next.
const FEW_CALLS: usize = 4;
/// Writes that a connection may have under way, on the average of its turns with any, without ever being held.
const MANY_WRITES: f32 = 8.0;
/// Of what those with many have on the average of about so long, the part that one with few has at most; and what they have when they
/// have been there for long enough to compare with.
const FEW_PART: f32 = 1.0 / 2.0;
const MEMORY: Duration = Duration::from_secs(1);
const MANY_KNOWN: f32 = 2.0;
/// The average does not rise above this, so that it is not long in coming down.
const AVERAGE_MAX: f32 = 10.0;
/// Of the average, what the last turn is (of the first turns, all count alike), and what is taken off it after a turn that was long
/// waited for.
const TURN_PART: f32 = 1.0 / 8.0;
const HELD_PART: f32 = 1.0 / 32.0;
/// In so long much may gather.
const LONG: Duration = Duration::from_millis(10);
/// Calls for which connections are called at a time, going by their last turns. With fewer at a time a turn of the core would be
/// about fewer of them, and cost as much.
const CALLS_AT_A_TIME: usize = 64;

/// Those that wait, on one runtime.
#[derive(Debug)]
pub(super) struct Turns {
    queues: Mutex<Queues>,
    throttle: Arc<Throttle>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    /// For everybody else to have had a turn.
    turn: VecDeque<Waiting>,
    /// For room, too.
    held: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    called: Arc<AtomicBool>,
    waker: Waker,
    /// Of its last turn.
    calls: usize,
}

impl Turns {
    pub(super) fn new(throttle: Arc<Throttle>) -> Turns {
        Turns { queues: Mutex::default(), throttle, came: Notify::new() }
    }

    /// Calls a few at a time, for ever.
    pub(super) async fn call(&self) {
        // Until when those that are held wait although none of them is called.
        let mut patience = None;
        loop {
            let others = self.call_some(CALLS_AT_A_TIME, |queues| &mut queues.turn);
            let room = self.throttle.room();
            let mut held = self.call_some(CALLS_AT_A_TIME.min(room), |queues| &mut queues.held);
            if held || self.lock().held.is_empty() {
                patience = None;
            } else if patience.is_some_and(|until| until <= Instant::now()) {
                self.throttle.gives_up();
                held = self.call_some(CALLS_AT_A_TIME, |queues| &mut queues.held);
                patience = None;
            }
            if !self.lock().held.is_empty() {
                patience.get_or_insert_with(|| Instant::now() + PATIENCE);
                if room < CALLS_AT_A_TIME {
                    self.throttle.holds();
                }
            }
            if others || held {
                yield_now().await;
                continue;
            }
            let room = async {
                match patience {
                    Some(until) => self.throttle.wait(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.came.notified() => {}
                () = room => {}
            }
        }
    }

    /// Calls those that are first in a queue, for about so many calls. Whether there were any.
    fn call_some(&self, calls_max: usize, queue: impl Fn(&mut Queues) -> &mut VecDeque<Waiting>) -> bool {
        let mut calls = 0;
        while calls < calls_max
            && let Some(next) = queue(&mut self.lock()).pop_front()
        {
            calls += next.calls;
            next.called.store(true, Relaxed);
            next.waker.wake();
        }
        calls > 0
    }

    /// For a connection.
    pub(super) fn turn(self: &Arc<Turns>) -> Turn {
        Turn {
            turns: self.clone(),
            called: Arc::default(),
            next: Next::AtOnce,
            writes: 0,
            average: 0.0,
            lately: 0.0,
            counted: Instant::now(),
            turns_seen: 0,
            waits_since: None,
            held: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turns of a connection.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    called: Arc<AtomicBool>,
    next: Next,
    /// Writes under way.
    writes: usize,
    /// The most in a turn with any, on the average.
    average: f32,
    /// Those under way, and those that it waited with, on the average of time: up to then, but for when it was held.
    lately: f32,
    counted: Instant,
    /// So many turns with any, since it is there.
    turns_seen: u32,
    /// Since when it waits to be called, and whether for room, too.
    waits_since: Option<Instant>,
    held: bool,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    AtOnce,
    /// After a turn with so many calls.
    WhenCalled(usize),
    /// It is among those that wait.
    Waiting,
}

impl Turn {
    /// Ready when the connection may go on. Its task is woken then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.next {
            Next::AtOnce => return Poll::Ready(()),
            Next::Waiting if self.called.swap(false, Relaxed) => return Poll::Ready(()),
            Next::Waiting => {}
            Next::WhenCalled(calls) => {
                self.next = Next::Waiting;
                self.held = self.has_many();
                self.waits_since = Some(Instant::now());
                let mut queues = self.turns.lock();
                let queue = if self.held { &mut queues.held } else { &mut queues.turn };
                queue.push_back(Waiting { called: self.called.clone(), waker: cx.waker().clone(), calls });
                if queue.len() == 1 {
                    self.turns.came.notify_one();
                }
            }
        }
        Poll::Pending
    }

    /// It has gone on, and so many calls began or ended, and these writes.
    pub(super) fn over(&mut self, calls: usize, writes: Writes) {
        let (now, most) = (Instant::now(), self.writes + writes.begun);
        let had = mem::replace(&mut self.writes, most.saturating_sub(writes.ended));
        let waited = self.waits_since.take().map_or(Duration::ZERO, |since| now - since);
        let passed = now - mem::replace(&mut self.counted, now);
        if self.held && waited > LONG {
            self.average -= self.average * HELD_PART;
        } else {
            if writes.begun + writes.ended > 0 {
                self.turns_seen = self.turns_seen.saturating_add(1);
                let part = TURN_PART.max(1.0 / self.turns_seen as f32);
                self.average = (self.average + (most as f32 - self.average) * part).min(AVERAGE_MAX);
            }
            for (writes, time) in [(had, passed.saturating_sub(waited)), (most, waited)] {
                self.lately += (writes as f32 - self.lately) * time.div_duration_f32(time + MEMORY);
            }
        }
        let many = self.has_many();
        if many {
            self.turns.throttle.began_by_many(writes.begun, self.lately);
        } else if self.average <= MANY_WRITES && self.had_few() {
            self.turns.throttle.began_by_few(writes.begun);
        }
        // Who waits counts as one call at least, or all could be called at once.
        self.next = if many || calls > FEW_CALLS { Next::WhenCalled(calls.max(1)) } else { Next::AtOnce };
    }

    fn has_many(&self) -> bool {
        self.average > MANY_WRITES && !self.had_few()
    }

    /// Compared with those that have many.
    fn had_few(&self) -> bool {
        let many = self.turns.throttle.many_have();
        many >= MANY_KNOWN && self.lately <= many * FEW_PART
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn turns(throttle: &Arc<Throttle>) -> Arc<Turns> {
        Arc::new(Turns::new(throttle.clone()))
    }

    /// A connection with so many calls in each of its turns, which notes in whose turn something was done.
    async fn connection(name: char, mut turn: Turn, calls: usize, turns: usize, notes: Arc<Mutex<String>>) {
        for _ in 0..turns {
            poll_fn(|cx| turn.poll(cx)).await;
            notes.lock().unwrap().push(name);
            turn.over(calls, Writes::default());
            // What it wrote is answered at once.
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_has_little_to_do_is_behind_few_of_those_that_have_much() {
        let (turns, notes) = (turns(&Arc::new(Throttle::new(true))), Arc::new(Mutex::default()));
        let serving = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.call().await })
        };
        let spawn =
            |name, calls, rounds| tokio::spawn(connection(name, turns.turn(), calls, rounds, Arc::clone(&notes)));
        let mut all: Vec<_> = ('A'..='Z').map(|name| spawn(name, CALLS_AT_A_TIME / 4, 20)).collect();
        all.push(spawn('.', FEW_CALLS, 50));
        for one in all {
            one.await.unwrap();
        }
        serving.abort();
        let notes = std::mem::take(&mut *notes.lock().unwrap());
        let quiet: Vec<_> = notes.match_indices('.').map(|(at, _)| at).collect();
        assert_eq!(notes.len(), 26 * 20 + 50);
        // After their first turns, which they have as anybody else.
        assert!(quiet.windows(2).skip(2).all(|pair| pair[1] - pair[0] <= 9), "{notes}");
    }

    /// Turns in which so many writes begin, each followed by one in which they end; whether the connection counts as one with many then.
    fn after(turn: &mut Turn, turns: usize, writes: usize) -> bool {
        for _ in 0..turns {
            turn.over(writes, Writes { begun: writes, ended: 0 });
            turn.over(writes, Writes { begun: 0, ended: writes });
        }
        turn.has_many()
    }

    #[tokio::test]
    async fn who_has_many_writes_under_way_is_known_by_most_of_its_turns() {
        let turns = turns(&Arc::new(Throttle::new(true)));
        let mut turn = turns.turn();
        assert!(!after(&mut turn, 100, 4));
        // What came during a pause.
        assert!(!after(&mut turn, 1, 16));
        assert!(!after(&mut turn, 100, 4));
        assert!(after(&mut turn, 10, 10));
        assert!(!after(&mut turn, 10, 1));
        // However few begin in each.
        (0..20).for_each(|_| turn.over(1, Writes { begun: 1, ended: 0 }));
        (0..20).for_each(|_| turn.over(2, Writes { begun: 1, ended: 1 }));
        assert!(turn.has_many());
        // Turns without a write say nothing.
        (0..100).for_each(|_| turn.over(2, Writes::default()));
        assert!(turn.has_many());
    }

    /// A look at who began how many writes, beside connections that have so many under way.
    fn look(throttle: &Throttle, second: u32, many_have: f32) {
        throttle.began_by_many(1000, many_have);
        throttle.turned(100, SECOND * second);
        throttle.proposed(second.into(), || Duration::ZERO);
        throttle.answered(second.into(), SECOND / 2);
    }

    /// How many turns of ten milliseconds with so many writes under way in each, up to a thousand, give a reason to protect the
    /// connection, and after how many it is one with many.
    async fn turns_as(writes: usize, many_have: f32) -> (usize, Option<u32>) {
        let throttle = Arc::new(Throttle::new(true));
        let mut turn = turns(&throttle).turn();
        look(&throttle, 1, many_have);
        let (mut reasons, mut many) = (0, None);
        for number in 1..=1000 {
            turn.over(1, Writes { begun: writes, ended: 0 });
            tokio::time::advance(LONG).await;
            turn.over(1, Writes { begun: 0, ended: writes });
            many = many.or(turn.has_many().then_some(number));
            look(&throttle, 1 + number, many_have);
            // What was protected before is for a while.
            reasons += usize::from(throttle.says());
        }
        (reasons, many)
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_few_is_known_by_those_that_have_many() {
        assert_eq!(turns_as(1, 10.0).await, (1000, None));
        assert_eq!(turns_as(4, 10.0).await, (1000, None));
        let (reasons, many) = turns_as(7, 10.0).await;
        assert!((100..200).contains(&reasons) && many.is_none(), "after a second it is as they are: {reasons}");
        // Of those that have not been there for long nothing is known yet.
        assert_eq!(turns_as(1, 1.5).await, (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_has_a_while_in_which_many_are_none() {
        let (reasons, many) = turns_as(10, 10.0).await;
        assert_eq!(reasons, 0, "it may be one of them");
        assert!(many.is_some_and(|turns| (50..100).contains(&turns)), "{many:?}");
        assert_eq!(turns_as(10, 1.5).await, (0, Some(1)), "where nothing is known, at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_that_is_late_now_and_then_is_not_one_with_few() {
        let throttle = Arc::new(Throttle::new(true));
        let mut turn = turns(&throttle).turn();
        look(&throttle, 1, 8.0);
        for second in 2..100 {
            for writes in [10, 10, 10, 10, 10, 1, 1, 1, 1, 1] {
                turn.over(1, Writes { begun: writes, ended: 0 });
                tokio::time::advance(LONG * 2).await;
                turn.over(1, Writes { begun: 0, ended: writes });
            }
            look(&throttle, second, 8.0);
            // It is new in the first ones, and protected for some looks after them.
            assert!(second < 30 || !throttle.says(), "after {second} rounds: {turn:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_many_writes_is_held_without_room_and_others_are_not() {
        let throttle = Arc::new(Throttle::new(true));
        let turns = turns(&throttle);
        let (mut many, mut few) = (turns.turn(), turns.turn());
        for _ in 0..100 {
            many.over(1, Writes { begun: 10, ended: 0 });
            tokio::time::advance(LONG).await;
            many.over(1, Writes { begun: 0, ended: 10 });
        }
        few.over(FEW_CALLS + 1, Writes::default());
        throttle.began_by_few(1);
        look(&throttle, 1, 10.0);
        let calling = tokio::spawn({
            let turns = turns.clone();
            async move { turns.call().await }
        });
        let mut goes_on = || poll_fn(|cx| many.poll(cx)).now_or_never().is_some();
        for _ in 0..3 {
            assert!(!goes_on());
            poll_fn(|cx| few.poll(cx)).await;
            few.over(FEW_CALLS + 1, Writes::default());
        }
        throttle.turned(1, SECOND);
        while !goes_on() {
            yield_now().await;
        }
        calling.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_held_for_long_where_nothing_is_answered_however_many_others_come() {
        let throttle = Arc::new(Throttle::new(true));
        let turns = turns(&throttle);
        let mut many = turns.turn();
        after(&mut many, 10, 10);
        throttle.began_by_few(1);
        look(&throttle, 1, 10.0);
        look(&throttle, 2, 1.0);
        assert!(many.has_many() && throttle.room() == 0);
        let began = Instant::now();
        assert!(poll_fn(|cx| many.poll(cx)).now_or_never().is_none());
        let others = async {
            let mut other = turns.turn();
            for _ in 0..100 {
                other.over(FEW_CALLS + 1, Writes::default());
                poll_fn(|cx| other.poll(cx)).await;
                tokio::time::advance(PATIENCE / 10).await;
            }
        };
        tokio::select! {
            () = turns.call() => {}
            () = others => {}
            () = poll_fn(|cx| many.poll(cx)) => {}
        }
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_grows_while_somebody_is_held() {
        let throttle = Arc::new(Throttle::new(true));
        let turns = turns(&throttle);
        let mut many = turns.turn();
        after(&mut many, 10, 10);
        throttle.began_by_few(1);
        look(&throttle, 1, 10.0);
        look(&throttle, 2, 1.0);
        // A write that takes no time; by how much it makes the bound larger.
        let grows = |number| {
            throttle.turned(0, SECOND * 2);
            let before = throttle.room();
            throttle.turned(100, SECOND * 2);
            throttle.proposed(number, || SECOND * 2);
            throttle.answered(number, SECOND * 2);
            throttle.turned(0, SECOND * 2);
            let after = throttle.room();
            throttle.turned(100, SECOND * 2);
            after - before
        };
        assert_eq!(grows(3), 0, "nobody wants more");
        assert!(poll_fn(|cx| many.poll(cx)).now_or_never().is_none());
        assert!(turns.call().now_or_never().is_none());
        assert!(grows(4) > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_has_is_an_average_of_time() {
        let turns = turns(&Arc::new(Throttle::new(true)));
        let mut turn = turns.turn();
        // Many at once, but seldom.
        for _ in 0..10 {
            tokio::time::advance(10 * SECOND).await;
            turn.over(20, Writes { begun: 20, ended: 0 });
            tokio::time::advance(LONG).await;
            turn.over(20, Writes { begun: 0, ended: 20 });
        }
        assert!(turn.lately < 1.0, "{turn:?}");
        // What it had to wait for its turn with it had all the while.
        for _ in 0..500 {
            turn.waits_since = Some(Instant::now());
            tokio::time::advance(LONG).await;
            turn.over(20, Writes { begun: 20, ended: 20 });
        }
        assert!(turn.lately > 19.0, "{turn:?}");
    }

    #[test]
    fn who_was_held_for_long_is_taken_for_one_with_few_in_the_end() {
        let turns = turns(&Arc::new(Throttle::new(true)));
        let mut turn = turns.turn();
        assert!(after(&mut turn, 100, 50));
        let mut held = 0;
        while turn.has_many() {
            (turn.held, turn.waits_since) = (true, Instant::now().checked_sub(2 * LONG));
            turn.over(50, Writes { begun: 50, ended: 50 });
            held += 1;
        }
        assert!((5..15).contains(&held), "{held}");
        assert!(after(&mut turn, 1, 50), "it is one with many");
    }
}
