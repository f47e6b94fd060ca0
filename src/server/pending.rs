//! Commands on their way into the log: they wait for a leader, or for room among what is not committed yet.
//!
//! Bounded in number and in bytes. A command whose client has stopped waiting is forgotten, for it is in nobody's log: a write
//! must not come to pass minutes after its client was told that it timed out, only because there was no leader in between.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::state::command::ProposalWriter;

/// Bytes of commands in one raft entry, about: an entry is closed by the command that reaches this.
const ENTRY_BYTES: usize = 64 << 10;
/// Commands that may wait. Beyond this clients are refused.
const COMMANDS_MAX: usize = 20_000;
/// Bytes of them. Beyond this, as above.
const BYTES_MAX: usize = 256 << 20;

/// The queue.
#[derive(Default)]
pub(crate) struct Pending {
    commands: VecDeque<(Duration, Bytes)>,
    bytes: usize,
}

impl Pending {
    /// Whether one more client's command may wait.
    pub(crate) fn has_room(&self) -> bool {
        self.commands.len() < COMMANDS_MAX && self.bytes < BYTES_MAX
    }

    /// Adds a command, encoded for a proposal, that nobody waits for after `deadline`; deadlines come in order.
    pub(crate) fn push(&mut self, deadline: Duration, command: Bytes) {
        self.bytes += command.len();
        self.commands.push_back((deadline, command));
    }

    /// Forgets what nobody waits for any more.
    pub(crate) fn expire(&mut self, now: Duration) {
        let overdue = self.commands.iter().take_while(|(deadline, _)| *deadline <= now).count();
        self.taken(overdue);
    }

    /// The payload of the next raft entry, and how many commands it has. It has room for them and no more: it stays in memory
    /// for as long as the log does.
    pub(crate) fn entry(&self, proposer: u64, boot: u64) -> Option<(Bytes, usize)> {
        let mut bytes = 0;
        let mut count = 0;
        for (_, command) in &self.commands {
            if bytes >= ENTRY_BYTES {
                break;
            }
            bytes += command.len();
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let mut entry = ProposalWriter::new(proposer, boot, bytes);
        self.commands.iter().take(count).for_each(|(_, command)| entry.push(command));
        Some((entry.finish(), count))
    }

    /// The first `count` commands need not wait any more.
    pub(crate) fn taken(&mut self, count: usize) {
        self.bytes -= self.commands.drain(..count).map(|(_, command)| command.len()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn commands_share_entries_and_leave_when_nobody_waits_for_them() {
        let mut pending = Pending::default();
        assert_eq!(pending.entry(1, 1), None);
        for n in 1..=3 {
            pending.push(at(n), Bytes::from(vec![0; ENTRY_BYTES / 2]));
        }
        let (entry, count) = pending.entry(1, 1).unwrap();
        assert_eq!((count, entry.len() < ENTRY_BYTES + 24), (2, true));
        pending.expire(at(1));
        assert_eq!(pending.entry(1, 1).unwrap().1, 2, "the first one's client has gone");
        pending.taken(2);
        assert_eq!((pending.bytes, pending.commands.len()), (0, 0));
    }

    #[test]
    fn large_commands_fill_it_before_many_do() {
        let mut pending = Pending::default();
        let large = Bytes::from(vec![0; 16 << 20]);
        let mut count = 0;
        while pending.has_room() {
            pending.push(at(1), large.clone());
            count += 1;
        }
        assert_eq!(count, 16);
        pending.taken(1);
        assert!(pending.has_room());
    }
}
