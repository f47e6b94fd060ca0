//! Clients that wait for the reply to their command.
//!
//! All wait equally long, so deadlines are a queue and a waiter costs no timer. When the leader is lost the outcome of what was
//! under way is unknown; it may still be committed by the next leader, so waiters get one more election timeout and then etcd's
//! error for it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::Error;
use crate::state::applied::{Refusal, Reply};

struct Waiter {
    reply: oneshot::Sender<Result<Reply, Error>>,
    leader_lost: bool,
}

/// Waiters by the number of their command.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: HashMap<u64, Waiter>,
    /// Deadlines in order. A number that is no longer waiting has been answered.
    deadlines: VecDeque<(Duration, u64)>,
    /// Deadlines of those whose leader was lost.
    shortened: VecDeque<(Duration, u64)>,
}

impl Waiters {
    /// Somebody waits for command `id` until `deadline`, which is not before that of anybody added earlier.
    pub(crate) fn add(&mut self, id: u64, deadline: Duration, reply: oneshot::Sender<Result<Reply, Error>>) {
        self.waiting.insert(id, Waiter { reply, leader_lost: false });
        self.deadlines.push_back((deadline, id));
    }

    /// Hands the outcome to whoever waits for it.
    pub(crate) fn complete(&mut self, id: u64, outcome: Result<Reply, Refusal>) {
        if let Some(waiter) = self.waiting.remove(&id) {
            // A client that has gone away does not care.
            let _ = waiter.reply.send(outcome.map_err(Error::Refused));
        }
    }

    /// Tells whoever waits for it that nothing will come of it.
    pub(crate) fn fail(&mut self, id: u64, error: Error) {
        if let Some(waiter) = self.waiting.remove(&id) {
            // As above.
            let _ = waiter.reply.send(Err(error));
        }
    }

    /// The leader was lost: whoever waits now waits no longer than until `deadline`, but for what `lasts`.
    pub(crate) fn leader_lost(&mut self, deadline: Duration, lasts: impl Fn(u64) -> bool) {
        let mut lost: Vec<u64> = Vec::new();
        for (id, waiter) in &mut self.waiting {
            if !std::mem::replace(&mut waiter.leader_lost, true) && !lasts(*id) {
                lost.push(*id);
            }
        }
        lost.sort_unstable();
        self.shortened.extend(lost.into_iter().map(|id| (deadline, id)));
    }

    /// Fails whoever has waited long enough.
    pub(crate) fn expire(&mut self, now: Duration) {
        for queue in [&mut self.shortened, &mut self.deadlines] {
            while let Some(&(deadline, id)) = queue.front() {
                let waiting = self.waiting.contains_key(&id);
                if waiting && deadline > now {
                    break;
                }
                queue.pop_front();
                if let Some(waiter) = self.waiting.remove(&id) {
                    let error = if waiter.leader_lost { Error::TimeoutLeaderLost } else { Error::Timeout };
                    let _ = waiter.reply.send(Err(error));
                }
            }
        }
    }

    /// Fails everybody.
    pub(crate) fn stop(&mut self) {
        for (_, waiter) in self.waiting.drain() {
            let _ = waiter.reply.send(Err(Error::Stopped));
        }
    }

    /// Whether somebody waits for command `id`.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lost_leader_shortens_the_wait_of_those_who_wait() {
        let mut waiters = Waiters::default();
        let (first, mut lost) = oneshot::channel();
        let (second, mut kept) = oneshot::channel();
        let (third, mut answered) = oneshot::channel();
        waiters.add(1, at(7), first);
        waiters.add(3, at(7), third);
        let (fourth, mut lasting) = oneshot::channel();
        waiters.add(4, at(7), fourth);
        waiters.leader_lost(at(2), |id| id == 4);
        waiters.add(2, at(8), second);
        waiters.complete(3, Ok(Reply::Done));
        waiters.expire(at(2));
        assert_eq!(lost.try_recv(), Ok(Err(Error::TimeoutLeaderLost)));
        assert_eq!(answered.try_recv(), Ok(Ok(Reply::Done)));
        assert!(lasting.try_recv().is_err() && waiters.is_waiting(4) && !waiters.is_waiting(1));
        waiters.expire(at(7));
        assert_eq!(lasting.try_recv(), Ok(Err(Error::TimeoutLeaderLost)));
        assert!(kept.try_recv().is_err());
        waiters.expire(at(8));
        assert_eq!(kept.try_recv(), Ok(Err(Error::Timeout)));
        assert_eq!(waiters.len(), 0);
    }
}
