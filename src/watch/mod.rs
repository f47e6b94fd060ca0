//! Watching: every client that asked about a key hears of each change to it, in order, once.
//!
//! ```text
//!               tell        publish(revision r)                 read by the stream's task
//!  apply loop ──────▶ Feed ──────▶ Hub ── synced watchers ─────▶ Outbox of the stream ──▶ client
//!                                   │                                   ▲
//!                                   └─ unsynced watchers ◀─ outbox full │ deliver(parcel)
//!                                            └─ next_catch_up ─▶ watch loop reads history
//! ```
//!
//! A watcher is *synced*: it has been offered everything published, and the next publish reaches it through the index of
//! groups; or *unsynced*: it stands at a revision, and the watch loop reads history from there. It becomes unsynced by
//! starting in the past, by a full outbox, or because a snapshot replaced the state under it; in each of these it holds no
//! events, only a revision. The history of keys is the one retry buffer.
//!
//! Nothing here is done once per watcher but what is written to its client. Watchers of the same keys, with the same wishes, are one
//! *group*: a change is matched with groups, and encoded for all of them. Those of a group that are on one stream and equally far are
//! one *cohort*: they share a message, move together, and are late together.
//!
//! What a watcher is promised, and what keeps the promise:
//!
//! | promise      | meaning                                             | kept by                                                     |
//! | ------------ | --------------------------------------------------- | ----------------------------------------------------------- |
//! | ordered      | revisions never go down                             | `Hub::advance` refuses; one queue per stream                 |
//! | unique       | no change twice                                     | publish and catch-up both start at the watcher's position    |
//! | atomic       | the changes of a revision come in one message       | both push whole revisions; only the edge may cut, marked; it may join what follows     |
//! | reliable     | nothing between two changes is left out             | `Full` changes the position, never skips; synced only when the position lies behind `published` |
//! | resumable    | start at last + 1 continues exactly                 | history answers from any revision not compacted, else `Compacted` |
//! | bookmarkable | after progress r nothing ≤ r follows                | progress goes through the same queue, from synced watchers only |
//!
//! Example. A watcher on `a` starts at 5 while `published` is 8: it is unsynced at 5, "created" says 8. The watch loop reads
//! 5..=8 without any lock; meanwhile 9 is published and passes the watcher by, for it is not synced. `deliver`
//! pushes what concerns `a`, moves the watcher to 9, sees that 9 is published and leaves it unsynced. The next round
//! reads 9, moves it to 10, and since nothing from 10 on is published the watcher is synced, under the same lock that
//! `publish` needs.
//!
//! The header revision of events is the last revision which the message completes for its watcher. While history is being
//! sent this is less than etcd says (it names the store's revision), so that clients which resume behind the header's
//! revision lose nothing. A catch-up that fits one message says the same as etcd.
//!
//! Deliberately missing: a third state for events that found no room (etcd's "victims"), a task per watcher,
//! generations of ids (a cancelled watcher is gone from every structure before its cancel is answered; what catch-up carries names
//! a stream, a group and a revision, and is handed out only where these three still stand for the same), and knowledge of where history is kept.
//!
//! etcd: `server/storage/mvcc/watchable_store.go`, `watcher.go`, `watcher_group.go`.

pub mod catch_up;
mod cohorts;
pub mod feed;
mod group;
pub mod hub;
mod index;
mod interval;
pub mod outbox;
mod slab;
pub mod slice;
pub mod stats;
mod stream;
mod trie;
pub mod watcher;

pub use catch_up::{CatchUp, Order, Parcel, Round};
pub use feed::{Feed, Feeds, Notice};
pub use hub::{Hub, StreamId};
pub use outbox::{Bell, End, EventList, Events, Ids, Next, Outbox, Outgoing, Refusal};
pub use slice::Slice;
pub use stats::{Cancels, Stats};
pub use watcher::{Filters, Spec};

#[cfg(test)]
pub(crate) mod dice;
#[cfg(test)]
mod tests;
