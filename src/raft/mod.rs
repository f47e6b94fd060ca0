//! Raft: which commands there are, and in which order. Entries are bytes here; what they mean is none of our business.
//!
//! The protocol itself is the `raft` crate. It does no I/O, but it trusts its caller in many ways: it panics on
//! messages that a healthy cluster never sends, on notices that come in the wrong order and on logs that do not fit
//! together. This module is that caller, written once and for all: [`Node`] takes [`Input`]s and gives [`Output`]s, and
//! no input, however wrong, reaches a panic.
//!
//! One turn of the loop that owns a node, in the order that matters:
//!
//! 1. `handle` every waiting input: ticks, messages of peers, proposals, reads, notices of the disk and of apply.
//! 2. `take_output` until there is none. Each output has a number, and they are dealt with in that order.
//! 3. Send `messages` at once. A leader's appends are among them: they need not wait for its own disk.
//! 4. Append `entries`, then `hard_state` (in this order in the file: the hard state may speak of the entries), to the
//!    log; install `snapshot` if there is one. Sync if `must_sync`.
//! 5. When output n and all before it are durable: `Persisted { number: n }`, and send `messages_after_sync`. Votes and
//!    acknowledgements are there.
//! 6. Give `committed` to apply; they are durable here and on a quorum. When they are carried out: `Applied(index)`.
//!    For an entry that changes the configuration: `apply_conf_change`, once, before the inputs that follow.
//! 7. A read of `reads` may be answered once apply has reached its index. A `role` means: leadership or the term
//!    changed; forget every read that is still waiting and ask again with a fresh context.
//!
//! ```text
//!   Input ──▶ check ──▶ RawNode ──▶ Output      check        no message that could panic gets past it
//!               │          │                    log          what the disk has or is about to have, in memory
//!           read_index    log                   read_index   contexts that never repeat
//!            timeout                            timeout      election timeouts out of a seed
//!           catch_up                            catch_up     what is kept for peers that lack much, and their portions
//! ```
//!
//! Two things the crate leaves open are closed here. A member does not stand for election while its log has writes
//! under way or a snapshot being installed; and nothing of a term leaves the member before that term and its vote are
//! durable, not even a leader's appends (a lone voter with learners leads before it has written down its term).
//!
//! Deliberately missing: leader leases for reads (a paused leader would answer from the past) and snapshots with data
//! in them (a snapshot message names a point in the log; the rows travel beside it).

mod catch_up;
mod check;
mod conf_change;
#[cfg(test)]
mod fuzz;
mod interface;
mod log;
mod node;
mod read_index;
#[cfg(test)]
mod tests;
mod timeout;

pub use ::raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
    HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

pub use conf_change::{decode as decode_conf_change, encode as encode_conf_change};
pub use interface::{Error, Input, LogStart, NodeConfig, Output, Peer, Rejected, Role};
pub use log::SnapshotPoint;
pub use node::Node;
pub use read_index::ReadContext;
