//! What the apply loop has to tell the hubs, in order, until each hub comes to hear it.
//!
//! Telling takes as long as putting a pointer into a queue, whoever watches what: matching is done by the hub, on the thread that
//! serves its streams, after the writers have their replies. A hub hears everything that was told before it does anything for a
//! client, so what it has published is never behind a reply that anybody has got.
//!
//! The queue is bounded. A hub that does not come to hear for long finds, instead of the changes, up to which revision it has missed
//! them, as after a snapshot: its watchers read them from history.
//!
//! In the other direction a hub says from which revision on it still needs history: compaction waits for that, for a while.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::outbox::End;
use crate::mvcc::change::SharedChanges;
use crate::types::Revision;

/// Changes that wait for one hub, and the bytes of their records. Beyond either they are left to history.
pub const CHANGES_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 64 << 20;

/// Something a hub is to hear.
#[derive(Clone, Debug)]
pub enum Notice {
    /// What the next revision changed.
    Changed(SharedChanges),
    /// Compaction at a revision: who wants to begin before it is refused.
    Compacted(Revision),
    /// What lies before a revision is being removed: who still had to read it cannot go on.
    Removed(Revision),
    /// The store was replaced, or changes were left out: it stands at `revision` now, compacted at `compacted`.
    Restored {
        /// The last revision.
        revision: Revision,
        /// Nothing before it can be had; -1: nothing new is known about that.
        compacted: Revision,
    },
    /// Streams that ask to be ended then are to be.
    Ended(End),
}

/// The feeds of all hubs of a member. Clones are the same.
#[derive(Clone, Debug)]
pub struct Feeds(Arc<[Feed]>);

impl Feeds {
    /// For so many hubs of a store at a revision.
    pub fn new(count: usize, revision: Revision) -> Feeds {
        Feeds::limited(count, revision, CHANGES_MAX)
    }

    /// The same, with room for so many changes: little room shows what happens when it is used up.
    pub fn limited(count: usize, revision: Revision, changes_max: usize) -> Feeds {
        Feeds((0..count).map(|_| Feed::new(revision, changes_max)).collect())
    }

    /// That of one of the hubs.
    pub fn of(&self, hub: usize) -> Feed {
        self.0[hub].clone()
    }

    /// Tells every hub.
    pub fn tell(&self, notices: &[Notice]) {
        self.0.iter().for_each(|feed| feed.tell(notices));
    }

    /// The first revision whose history a hub may still need.
    pub fn needed(&self) -> Revision {
        let needed = self.0.iter().map(|feed| Revision(feed.shared.needed.load(Ordering::Acquire)));
        needed.min().expect("a member has a hub")
    }
}

/// What one hub is to hear. Clones are the same.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    needed: AtomicI64,
}

#[derive(Debug)]
struct Queue {
    notices: VecDeque<Notice>,
    /// How many of them are changes, and the bytes of these.
    changes: usize,
    bytes: usize,
    changes_max: usize,
    listener: Option<Waker>,
}

impl Feed {
    fn new(revision: Revision, changes_max: usize) -> Feed {
        let queue = Queue { notices: VecDeque::new(), changes: 0, bytes: 0, changes_max, listener: None };
        Feed { shared: Arc::new(Shared { queue: Mutex::new(queue), needed: AtomicI64::new(revision.next().0) }) }
    }

    fn tell(&self, notices: &[Notice]) {
        let mut queue = self.lock();
        for notice in notices {
            queue.push(notice.clone());
        }
        let listener = queue.listener.take();
        drop(queue);
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// The next notices, `most` of them.
    pub fn take(&self, most: usize) -> Vec<Notice> {
        let mut queue = self.lock();
        let count = queue.notices.len().min(most);
        let taken: Vec<Notice> = queue.notices.drain(..count).collect();
        for notice in &taken {
            if let Notice::Changed(set) = notice {
                queue.changes -= 1;
                queue.bytes -= set.bytes();
            }
        }
        taken
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.lock().notices.is_empty()
    }

    /// Returns when there is something to take. One listener.
    pub async fn filled(&self) {
        poll_fn(|cx| {
            let mut queue = self.lock();
            if !queue.notices.is_empty() {
                return Poll::Ready(());
            }
            queue.listener = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The hub says from where on it needs history.
    pub fn needs(&self, from: Revision) {
        self.shared.needed.store(from.0, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, notice: Notice) {
        match &notice {
            Notice::Changed(set) => {
                self.changes += 1;
                self.bytes += set.bytes();
                if self.changes > self.changes_max || self.bytes > BYTES_MAX {
                    return self.leave_out(set.revision);
                }
            }
            // What was told before is part of it.
            Notice::Restored { .. } => {
                (self.changes, self.bytes) = (0, 0);
                self.notices.retain(|before| !matches!(before, Notice::Changed(_)));
            }
            _ => {}
        }
        self.notices.push_back(notice);
    }

    /// Says of all changes up to `to` only that they were.
    fn leave_out(&mut self, to: Revision) {
        (self.changes, self.bytes) = (0, 0);
        let known = |notice: &Notice| match notice {
            Notice::Restored { compacted, .. } => *compacted,
            _ => Revision(-1),
        };
        let compacted = self.notices.iter().map(known).max().unwrap_or(Revision(-1));
        let rest = mem::take(&mut self.notices);
        self.notices.push_back(Notice::Restored { revision: to, compacted });
        self.notices.extend(rest.into_iter().filter(|n| !matches!(n, Notice::Changed(_) | Notice::Restored { .. })));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mvcc::change::{Change, ChangeKind, ChangeSet};

    fn changed(revision: i64, bytes: usize) -> Notice {
        let change = Change::new("k".into(), ChangeKind::Put, Bytes::from(vec![0; bytes]), None);
        Notice::Changed(Arc::new(ChangeSet { revision: Revision(revision), changes: vec![change] }))
    }

    fn show(notices: &[Notice]) -> String {
        let one = |notice: &Notice| match notice {
            Notice::Changed(set) => format!("{}", set.revision),
            Notice::Compacted(at) => format!("compacted {at}"),
            Notice::Removed(at) => format!("removed {at}"),
            Notice::Restored { revision, compacted } => format!("restored {revision} {compacted}"),
            Notice::Ended(_) => "ended".to_owned(),
        };
        notices.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn notices_come_in_order_and_what_is_too_much_is_left_to_history() {
        let feeds = Feeds::new(2, Revision(1));
        let feed = feeds.of(1);
        feeds.tell(&[changed(2, 5), Notice::Compacted(Revision(2)), changed(3, 5)]);
        assert_eq!(show(&feed.take(2)), "2, compacted 2");
        assert_eq!(show(&feed.take(9)), "3");
        assert_eq!(show(&feeds.of(0).take(9)), "2, compacted 2, 3");

        let restored = Notice::Restored { revision: Revision(10), compacted: Revision(7) };
        feeds.tell(&[changed(4, 5), Notice::Ended(End::NoLeader), restored, changed(11, 5)]);
        feeds.tell(&[Notice::Compacted(Revision(11)), changed(12, BYTES_MAX), changed(13, 5)]);
        assert_eq!(show(&feed.take(9)), "restored 12 7, ended, compacted 11, 13");
        for revision in 0..=CHANGES_MAX as i64 {
            feeds.tell(&[changed(14 + revision, 1)]);
        }
        let last = 14 + CHANGES_MAX as i64;
        assert_eq!(show(&feed.take(9)), format!("restored {last} -1"));
        assert_eq!(feed.lock().bytes, 0);
    }

    #[test]
    fn compaction_waits_for_the_hub_that_is_furthest_behind() {
        let feeds = Feeds::new(2, Revision(8));
        assert_eq!(feeds.needed(), Revision(9));
        feeds.of(0).needs(Revision(20));
        assert_eq!(feeds.needed(), Revision(9));
        feeds.of(1).needs(Revision(15));
        assert_eq!(feeds.needed(), Revision(15));
    }
}
