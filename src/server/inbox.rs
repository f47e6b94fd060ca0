//! What waits for the core's next turn. Everybody may put something in; the core takes all of it at once, so that load
//! makes batches and nobody is woken once per request.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::error::Error;
use crate::peer::{FromPeer, Learner, Remaining, Renewal};
use crate::state::StateMachine;
use crate::state::applied::Reply;
use crate::state::command::Change;
use crate::storage::backend::Reader;
use crate::types::{Index, LeaseId, MemberId};

/// One thing for the core to deal with.
pub(crate) enum Event {
    /// A command, encoded for a proposal, and who waits for its reply.
    Propose {
        /// The number the command carries.
        id: u64,
        /// As `state::command::encode_command` wrote it.
        command: Bytes,
        /// Whoever asked.
        reply: oneshot::Sender<Result<Reply, Error>>,
    },
    /// A change of members, and who waits for its reply.
    Reconfigure {
        /// The number the change carries.
        id: u64,
        /// What is to change.
        change: Change,
        /// Whoever asked.
        reply: oneshot::Sender<Result<Reply, Error>>,
    },
    /// Somebody wants to read what is committed by now.
    Linearize(oneshot::Sender<Result<(), Error>>),
    /// Somebody renews leases, on behalf of clients here or elsewhere.
    Renew {
        /// Which.
        ids: Vec<LeaseId>,
        /// One answer per id, in their order.
        reply: oneshot::Sender<Vec<Renewal>>,
    },
    /// Somebody asks what is left of a lease.
    TimeToLive {
        /// Which.
        id: LeaseId,
        /// Whoever asked.
        reply: oneshot::Sender<Remaining>,
    },
    /// Somebody asks whether a member that is to be promoted has the log.
    Learner {
        /// Which.
        id: MemberId,
        /// Whoever asked.
        reply: oneshot::Sender<Learner>,
    },
    /// Somebody waits until no compaction has rows left to remove and the removals are on disk.
    AwaitCompaction(oneshot::Sender<()>),
    /// The transport has news.
    Peer(FromPeer),
    /// The log holds everything up to and including this output of raft.
    Persisted(u64),
    /// The backend committed everything up to this index.
    Flushed {
        /// The state on disk.
        reader: std::sync::Arc<dyn Reader>,
    },
    /// What the backend was asked to flush is on disk.
    FlushDone,
    /// A snapshot replaced the backend.
    Installed {
        /// The output of raft that brought it.
        number: u64,
        /// The state it describes.
        state: Box<StateMachine>,
        /// The index it stands at.
        index: Index,
    },
    /// This member should lead, or whoever is best suited of the others.
    HandOver(Option<MemberId>),
    /// Time for the member to go down.
    Stop,
}

/// The core's mailbox.
#[derive(Default)]
pub(crate) struct Inbox {
    events: Mutex<Vec<Event>>,
    filled: Notify,
}

impl Inbox {
    /// Leaves something for the next turn. It is bounded by what may wait: every client waits for its own reply, the log and
    /// the backend have one thing under way each, and the transport drops what it cannot place.
    pub(crate) fn put(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        // The core takes everything: only the first of a batch has to wake it.
        let first = events.len() == 1;
        // Who wakes often makes way at once, and with the lock that would be twice.
        drop(events);
        if first {
            self.filled.notify_one();
        }
    }

    /// Everything that waits, without waiting. `into` is empty and gives its room to the next batch.
    pub(crate) fn take(&self, into: &mut Vec<Event>) {
        std::mem::swap(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner), into);
    }

    /// Returns when something has been put in since the last `take`.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Wakes the core although nothing came in: it left work for itself.
    pub(crate) fn again(&self) {
        self.filled.notify_one();
    }
}
