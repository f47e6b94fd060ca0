//! Whose turn it is, among connections that have much to do.
//!
//! A runtime takes its tasks in the order in which they became ready. Beside two hundred connections with ten calls each, one with a
//! single call would wait for two thousand of them, several times until it is answered. Here a connection that had much to do in its
//! last turn waits until it is called. A few of those that wait are called at a time, when everybody else who is ready has had a
//! turn and the system was asked who has become so. Whoever has little to do is never behind more than these few.
//!
//! Nobody starves: a runtime comes back to whoever made way after a few dozen tasks, and a turn is as long as it would be without this.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::task::yield_now;

/// Calls that a connection may begin and end in a turn without having to wait for its next.
const FEW_CALLS: usize = 4;
/// Calls for which connections are called at a time, going by their last turns. With fewer at a time a turn of the core would be
/// about fewer of them, and cost as much.
const CALLS_AT_A_TIME: usize = 64;

/// Those that wait, on one runtime.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: Mutex<VecDeque<Waiting>>,
    came: Notify,
}

#[derive(Debug)]
struct Waiting {
    called: Arc<AtomicBool>,
    waker: Waker,
    /// Of its last turn.
    calls: usize,
}

impl Turns {
    /// Calls a few at a time, for ever.
    pub(super) async fn call(&self) {
        loop {
            let mut calls = 0;
            while calls < CALLS_AT_A_TIME
                && let Some(next) = self.next()
            {
                calls += next.calls;
                next.called.store(true, Relaxed);
                next.waker.wake();
            }
            match calls {
                0 => self.came.notified().await,
                _ => yield_now().await,
            }
        }
    }

    fn next(&self) -> Option<Waiting> {
        self.lock().pop_front()
    }

    /// For a connection.
    pub(super) fn turn(self: &Arc<Turns>) -> Turn {
        Turn { turns: self.clone(), called: Arc::default(), next: Next::AtOnce }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turns of a connection.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    called: Arc<AtomicBool>,
    next: Next,
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
                let mut waiting = self.turns.lock();
                waiting.push_back(Waiting { called: self.called.clone(), waker: cx.waker().clone(), calls });
                if waiting.len() == 1 {
                    self.turns.came.notify_one();
                }
            }
        }
        Poll::Pending
    }

    /// It has gone on, and so many calls began or ended.
    pub(super) fn over(&mut self, calls: usize) {
        self.next = if calls > FEW_CALLS { Next::WhenCalled(calls) } else { Next::AtOnce };
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A connection with so many calls in each of its turns, which notes in whose turn something was done.
    async fn connection(name: char, mut turn: Turn, calls: usize, turns: usize, notes: Arc<Mutex<String>>) {
        for _ in 0..turns {
            poll_fn(|cx| turn.poll(cx)).await;
            notes.lock().unwrap().push(name);
            turn.over(calls);
            // What it wrote is answered at once.
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_has_little_to_do_is_behind_few_of_those_that_have_much() {
        let (turns, notes) = (Arc::new(Turns::default()), Arc::new(Mutex::default()));
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
}
