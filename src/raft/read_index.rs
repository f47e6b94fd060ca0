//! The contexts of linearizable reads: how a question to the leader and its answer find each other.
//!
//! The leader proves that it still leads by a round of heartbeats that carry the context, and it counts answers by
//! context alone. If a context came twice, late answers to the first round would count for the second, and a leader
//! that has been deposed meanwhile would answer from the past. Hence: a context is made fresh for every question
//! ([`ReadContexts`]), and a leader refuses one that it has met ([`SeenContexts`]).

use std::collections::{BTreeMap, VecDeque};

use crate::types::MemberId;

/// Names one question for the index up to which everything is committed: who asked, in which life, how many before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadContext {
    /// The member that asked.
    pub member: MemberId,
    /// Drawn at the start of its process.
    pub boot: u64,
    /// Grows with every question of that life.
    pub counter: u64,
}

impl ReadContext {
    /// Bytes of a context on the wire.
    pub(super) const LEN: usize = 24;

    /// Member, boot, counter; each big endian.
    pub(super) fn encode(self) -> [u8; ReadContext::LEN] {
        let mut bytes = [0; ReadContext::LEN];
        bytes[..8].copy_from_slice(&self.member.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.boot.to_be_bytes());
        bytes[16..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    /// Reads a context back. `None` when the bytes are not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<ReadContext> {
        let (member, rest) = bytes.split_first_chunk()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let counter = rest.try_into().ok()?;
        Some(ReadContext {
            member: MemberId(u64::from_be_bytes(*member)),
            boot: u64::from_be_bytes(*boot),
            counter: u64::from_be_bytes(counter),
        })
    }
}

/// Makes this member's contexts, each once.
pub(super) struct ReadContexts {
    last: ReadContext,
    /// The newest one that was put to raft.
    used: u64,
}

impl ReadContexts {
    pub(super) fn new(member: MemberId, boot: u64) -> ReadContexts {
        ReadContexts { last: ReadContext { member, boot, counter: 0 }, used: 0 }
    }

    /// One that nobody has seen.
    pub(super) fn fresh(&mut self) -> ReadContext {
        self.last.counter += 1;
        self.last
    }

    /// Whether `context` is ours and was not used before; from now on it is used.
    pub(super) fn spend(&mut self, context: ReadContext) -> bool {
        let fresh = self.is_ours(context) && context.counter > self.used && context.counter <= self.last.counter;
        if fresh {
            self.used = context.counter;
        }
        fresh
    }

    /// Whether this life of this member made it.
    pub(super) fn is_ours(&self, context: ReadContext) -> bool {
        context.member == self.last.member && context.boot == self.last.boot
    }
}

/// The newest context met from each life of each peer.
#[derive(Default)]
pub(super) struct SeenContexts {
    lives: BTreeMap<MemberId, VecDeque<(u64, u64)>>,
}

/// Lives remembered per member, newest first. A question that outlives this many restarts of the member that asked it
/// would be taken for a new one.
const LIVES_MAX: usize = 16;

impl SeenContexts {
    /// Whether `context` is newer than all of its life before; if so, it is the newest from now on.
    pub(super) fn admit(&mut self, context: ReadContext) -> bool {
        let lives = self.lives.entry(context.member).or_default();
        match lives.iter_mut().find(|(boot, _)| *boot == context.boot) {
            Some((_, newest)) if *newest >= context.counter => false,
            Some((_, newest)) => {
                *newest = context.counter;
                true
            }
            None => {
                lives.push_front((context.boot, context.counter));
                lives.truncate(LIVES_MAX);
                true
            }
        }
    }

    /// Forgets members that are not in `members` any more, so that changes of the cluster do not pile up.
    pub(super) fn retain(&mut self, is_member: impl Fn(MemberId) -> bool) {
        self.lives.retain(|id, _| is_member(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(boot: u64, counter: u64) -> ReadContext {
        ReadContext { member: MemberId(3), boot, counter }
    }

    #[test]
    fn contexts_read_back_and_nothing_else_does() {
        let bytes = context(7, 9).encode();
        assert_eq!(ReadContext::decode(&bytes), Some(context(7, 9)));
        assert_eq!(ReadContext::decode(&bytes[1..]), None);
        assert_eq!(ReadContext::decode(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_context_is_admitted_once_even_after_a_restart_of_its_member() {
        let mut seen = SeenContexts::default();
        assert!(seen.admit(context(1, 5)) && !seen.admit(context(1, 5)) && !seen.admit(context(1, 4)));
        assert!(seen.admit(context(2, 1)));
        assert!(!seen.admit(context(1, 5)) && !seen.admit(context(2, 1)));
        assert!(seen.admit(context(1, 6)));
    }

    #[test]
    fn a_member_spends_each_of_its_contexts_once() {
        let mut contexts = ReadContexts::new(MemberId(3), 1);
        let (first, second) = (contexts.fresh(), contexts.fresh());
        assert!(contexts.spend(second) && !contexts.spend(second) && !contexts.spend(first));
        assert!(!contexts.spend(context(1, 99)) && !contexts.spend(context(2, 1)));
    }
}
