//! Peers that lack much of the leader's log: what is kept for them, and how much of it they get at a time.
//!
//! Promises:
//!   * what follows a snapshot that a peer was sent is needed until the peer has it, too, or the snapshot did not arrive. Raft itself
//!     forgets that there was one as soon as it has arrived, or is acknowledged, while all that was written since is still missing;
//!   * nothing is needed any longer by who has been silent for [`SILENT_TIMEOUTS`] election timeouts;
//!   * who lacks more than [`FAR_ENTRIES`] has few appends on their way to it: raft would put all that is missing into one turn of
//!     the leader, in which nobody else is served.

use std::collections::BTreeMap;

/// Election timeouts without a word after which a peer has to be sent another snapshot, if it comes to that.
const SILENT_TIMEOUTS: usize = 10;

/// Entries that a peer may lack and have caught up: no more than are always on their way.
const NEAR_ENTRIES: u64 = 64;

/// Entries beyond which a peer lacks much.
const FAR_ENTRIES: u64 = 1024;

/// Appends on their way to a peer, at most: to one that lacks much, and to others. Beyond this the leader waits for an acknowledgement.
const INFLIGHT_MAX_FAR: usize = 8;
pub(super) const INFLIGHT_MAX: usize = 256;

/// Appends that may be on their way to a peer that lacks so many entries.
pub(super) fn inflight_max(lacks: u64) -> usize {
    if lacks > FAR_ENTRIES { INFLIGHT_MAX_FAR } else { INFLIGHT_MAX }
}

/// Peers that were sent a snapshot and have not caught up yet.
#[derive(Default)]
pub(super) struct CatchUps(BTreeMap<u64, CatchUp>);

struct CatchUp {
    snapshot: u64,
    /// Ticks since it was heard.
    silent: usize,
}

impl CatchUps {
    /// The peer was sent a snapshot of this index.
    pub(super) fn sent(&mut self, peer: u64, snapshot: u64) {
        self.0.entry(peer).or_insert(CatchUp { snapshot, silent: 0 }).snapshot = snapshot;
    }

    /// It did not arrive.
    pub(super) fn failed(&mut self, peer: u64) {
        self.0.remove(&peer);
    }

    pub(super) fn heard(&mut self, peer: u64) {
        if let Some(catch_up) = self.0.get_mut(&peer) {
            catch_up.silent = 0;
        }
    }

    pub(super) fn tick(&mut self, election_ticks: usize) {
        self.0.retain(|_, catch_up| {
            catch_up.silent += 1;
            catch_up.silent <= SILENT_TIMEOUTS * election_ticks
        });
    }

    /// This member does not lead.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The index that the log must not be truncated beyond, by what each peer is known to have; `None` of those that are none any more.
    pub(super) fn needed(&mut self, last: u64, matched: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.0.retain(|&peer, catch_up| {
            matched(peer).is_some_and(|has| has < catch_up.snapshot || last.saturating_sub(has) > NEAR_ENTRIES)
        });
        self.0.iter().filter_map(|(&peer, catch_up)| Some(matched(peer)?.max(catch_up.snapshot))).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_snapshot_is_needed_until_it_is_there() {
        let mut catch_ups = CatchUps::default();
        catch_ups.sent(2, 100);
        catch_ups.sent(3, 50);
        let mut needed = |two: u64, three: Option<u64>, last: u64| {
            catch_ups.needed(last, |peer| if peer == 2 { Some(two) } else { three })
        };
        assert_eq!(needed(0, Some(0), 1000), Some(50));
        assert_eq!(needed(0, Some(70), 1000), Some(70));
        assert_eq!(needed(0, Some(1000 - NEAR_ENTRIES), 1000), Some(100), "member 3 has caught up");
        assert_eq!(needed(0, Some(0), 1000), Some(100), "for good");
        assert_eq!(needed(0, None, 100), Some(100), "near, but without the snapshot");
        assert_eq!(needed(100, None, 100), None);
    }

    #[test]
    fn nothing_is_needed_by_who_is_removed_or_silent_or_has_another_leader() {
        let mut catch_ups = CatchUps::default();
        catch_ups.sent(2, 100);
        assert_eq!(catch_ups.needed(1000, |_| None), None);
        catch_ups.sent(2, 100);
        for _ in 0..2 {
            (0..SILENT_TIMEOUTS * 10).for_each(|_| catch_ups.tick(10));
            assert_eq!(catch_ups.needed(1000, |_| Some(0)), Some(100));
            catch_ups.heard(2);
        }
        (0..=SILENT_TIMEOUTS * 10).for_each(|_| catch_ups.tick(10));
        assert_eq!(catch_ups.needed(1000, |_| Some(0)), None);
        catch_ups.sent(2, 100);
        catch_ups.clear();
        assert_eq!(catch_ups.needed(1000, |_| Some(0)), None);
    }
}
