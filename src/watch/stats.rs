//! What the hub counts, for the metrics.

use super::outbox::End;

/// Numbers for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub streams: usize,
    /// Watchers.
    pub watchers: usize,
    /// Watchers that are being caught up.
    pub slow_watchers: usize,
    /// Events put into outboxes so far.
    pub events_sent: u64,
    /// Events waiting in outboxes, each as often as it will be written.
    pub pending_events: usize,
    /// Their bytes, as they are in memory.
    pub queued_bytes: usize,
    /// Streams whose outboxes turned events away and have not been emptied since.
    pub lagging_streams: usize,
    /// Events put into outboxes that were read from history, and their bytes.
    pub caught_up: (u64, u64),
    /// Watchers that have ended, or were not created.
    pub cancels: Cancels,
}

/// Watchers by why they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancels {
    /// The client cancelled them.
    pub client: u64,
    /// Compaction took what they still had to read.
    pub compacted: u64,
    /// They were not created.
    pub refused: u64,
    /// Their client may not hear of their keys any more.
    pub revoked: u64,
    /// The member stopped.
    pub stopped: u64,
    /// The member was without a leader.
    pub no_leader: u64,
    /// The member was too far behind.
    pub lagging: u64,
}

impl Cancels {
    pub(super) fn ended(&mut self, end: End, watchers: usize) {
        *match end {
            End::Stopped => &mut self.stopped,
            End::NoLeader => &mut self.no_leader,
            End::Lagging => &mut self.lagging,
        } += watchers as u64;
    }
}

impl std::iter::Sum for Stats {
    fn sum<I: Iterator<Item = Stats>>(all: I) -> Stats {
        all.fold(Stats::default(), |a, b| Stats {
            streams: a.streams + b.streams,
            watchers: a.watchers + b.watchers,
            slow_watchers: a.slow_watchers + b.slow_watchers,
            events_sent: a.events_sent + b.events_sent,
            pending_events: a.pending_events + b.pending_events,
            queued_bytes: a.queued_bytes + b.queued_bytes,
            lagging_streams: a.lagging_streams + b.lagging_streams,
            caught_up: (a.caught_up.0 + b.caught_up.0, a.caught_up.1 + b.caught_up.1),
            cancels: Cancels {
                client: a.cancels.client + b.cancels.client,
                compacted: a.cancels.compacted + b.cancels.compacted,
                refused: a.cancels.refused + b.cancels.refused,
                revoked: a.cancels.revoked + b.cancels.revoked,
                stopped: a.cancels.stopped + b.cancels.stopped,
                no_leader: a.cancels.no_leader + b.cancels.no_leader,
                lagging: a.cancels.lagging + b.cancels.lagging,
            },
        })
    }
}
