//! How members talk to each other, on their peer URLs.
//!
//! ```text
//!   raft's messages                 one peer                              the same peer's process
//!   ───────────────▶ Transport::send ─▶ queue ─▶ Messages stream ─ ─ ─ ─▶ PeerService ─▶ deliver(Message)
//!                          │              full, or no connection: drop,
//!                          │              deliver(Unreachable)
//!                          └─ MsgSnapshot ─▶ reader's rows ─▶ Snapshot stream ─ ─ ─▶ file ─▶ deliver(SnapshotReceived)
//!                                            deliver(SnapshotSent), whatever happened
//!   a member without data ─▶ ask_members ─ ─ ─▶ PeerService, or Unfounded while it has no data either
//!   a follower's clients ─▶ Transport::renew, time_to_live, learner ─ ─ ─▶ the leader's PeerService ─▶ closures of its member
//! ```
//!
//! Promises:
//!   * nobody waits: [`Transport::send`] puts messages into bounded queues and returns;
//!   * a message arrives once or not at all. What was handed to a connection that broke is forgotten, never sent again:
//!     raft repeats what it needs, and a repeated read request could release a stale read;
//!   * between two members, while a connection lives, messages that carry entries keep their order, and so do all
//!     others; the others may overtake the first, so that a heartbeat does not stand behind megabytes of log;
//!   * every MsgSnapshot ends in exactly one `SnapshotSent`, for raft sends nothing else to that member until then;
//!   * nothing is delivered that came from another cluster, from a member that was removed, in somebody else's name or for
//!     somebody else. Whether it makes sense is for the raft node to judge;
//!   * a sender that this member has not heard of is answered where it says that it is reached, until the table names it.
//!
//! Bulk never delays heartbeats: a snapshot has a connection of its own, and a stream's batches are small enough that
//! urgent messages soon get their turn. Connections are dialled by the sender, so between two members there are two.
//!
//! Missing on purpose: discovery, relaying, resending, any decision. TLS is added where connections are made.

use std::sync::Arc;

use ::raft::eraftpb::Message;

use crate::pb::everwatchpb::SnapshotMeta;
use crate::storage;
use crate::storage::backend::Reader;
use crate::types::{Index, MemberId};

/// What the transport has to say to the owner of the raft node.
#[derive(Debug)]
pub enum FromPeer {
    /// A message from a member of the table, or one that is to be there soon, addressed to this one.
    Message(Message),
    /// Something for this member was dropped, or may have been lost with a connection that broke.
    Unreachable(MemberId),
    /// What became of a MsgSnapshot given to [`Transport::send`].
    SnapshotSent {
        /// The member it was for.
        to: MemberId,
        /// Whether that member holds it durably.
        ok: bool,
    },
    /// A whole snapshot is durable in the snapshot file of its index, complete and checked. If raft does not want it, the
    /// file is to be discarded.
    SnapshotReceived {
        /// The MsgSnapshot; its metadata is exactly that of the rows in the file.
        message: Message,
        /// The snapshot's index.
        index: Index,
        /// To be dropped when the file has been adopted or discarded.
        place: Place,
    },
    /// This peer refused what this member sent, as coming from one that was removed. It says so again and again.
    ToldRemoved(MemberId),
    /// This member's own disk failed while a snapshot was read or written: the member has to stop.
    StorageFailed(storage::Error),
}

/// Takes what the transport has to say. It must not block, nor take a lock that is held during [`Transport::send`]:
/// send itself calls it. It bounds what it keeps; raft messages may be dropped, the other kinds may not.
pub type Deliver = Arc<dyn Fn(FromPeer) + Send + Sync>;

/// Gives the rows of a snapshot, and the place in the log of exactly those rows. Called on a thread that may block.
pub type SnapshotSource = Arc<dyn Fn() -> storage::Result<(Arc<dyn Reader>, SnapshotMeta)> + Send + Sync>;

pub mod codec;
pub mod forward;
mod queue;
mod remote;
mod service;
mod snapshot;
mod transport;
mod unfounded;

pub use forward::{BoxFuture, Error as AskError, Learner, Remaining, Renewal, ask_members};
pub use service::{HistoryHash, Members, PeerGrpc, PeerService, ServiceConfig, peer_service};
pub use snapshot::Place;
pub use transport::{PeerCounters, PeerStatus, Transport, TransportConfig};
pub use unfounded::{Unfounded, UnfoundedGrpc};

#[cfg(test)]
mod tests;
