//! The judge: does a recorded history keep what the API promises?
//!
//! A history is what clients saw: every call with the instants of call and return and its outcome, and every message
//! of every watch. The judge knows nothing else and shares no code with the server; its model is written from the
//! API's documentation alone.
//!
//! The idea. Every reply names a revision, so the order of the writes need not be searched for: it is written on them.
//! `replay` runs a model of the store over revisions 2, 3, …; each is produced by the acknowledged write that carries
//! it, or by a write whose outcome is unknown, or by a lease that expired, whichever explains what reads and watches
//! showed of it. Every reply must equal the model at its own revision. `order` then sweeps calls and returns once:
//! nothing may carry a revision older than what someone had already seen when it was called. Both together are strict
//! serializability, in O(n log n). `lease` compares the lives of leases with true time, `watch` holds every watch, and
//! every chain of resumed watches, against the model's list of events. `rights` goes through the log, where it is known, and holds
//! who was let through against the users and roles of that place. `search` is a second opinion on short
//! histories: it knows nothing of the above and looks for an order by trying.
//!
//! What the recorder owes the judge:
//!   * the store was empty, at revision 1, before the first call, and nobody else writes to it or compacts it;
//!   * `Refused` means certainly not carried out (an answer of the API); a timeout, a broken connection or a member
//!     that is stopping is `Unknown`;
//!   * values are unique wherever possible, so that a write of unknown outcome names itself; a client that repeats a
//!     request it got no answer to makes a second call of it;
//!   * at least one watch over all keys from revision 1. Without it gaps are filled by search, and a long search is
//!     given up as a violation.
//!
//! Left to the simulator, which alone can see it: durability of what was shown, equality of members' hashes, bounds of
//! queues. Liveness: `Summary::behind` names the open watches that had not been sent everything; after healing and a
//! quiet time it must be empty.
//!
//! The judge itself is judged by `selftest`, in the test target `sim_checks`: right histories pass, wrong ones do not.

// Two test targets include this, and neither uses all of it; fields of requests and replies are the API's own.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::fmt;

use lease::Leases;
use order::Order;
use replay::{Replay, Writer};

mod lease;
mod model;
mod order;
mod replay;
pub mod rights;
mod search;
mod watch;

#[allow(unused_imports)]
pub use search::{Opinion, second_opinion};

/// Everything the clients of one run saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Calls of all clients, in any order; those of one client in the order it made them.
    pub ops: Vec<Op>,
    /// Watches of all clients, in any order.
    pub watches: Vec<WatchRecord>,
    /// How much faster than true time a member's clock may run, in parts per million: leases may expire that much early.
    pub drift_ppm: u64,
    /// World time from which on nothing is disturbed any more. Leases that nobody renews must then run out in time.
    pub healed: Option<u64>,
    /// World time of the end, 0 if not known: whatever happened before is in the history.
    pub end: u64,
    /// How long after its time to live a lease may still be there in quiet times, in nanoseconds; and how long a
    /// request that got no answer may still be carried out. 0: no bound is promised.
    pub lease_bound: u64,
    /// What is known beside that of users and roles, if there are any.
    pub rights: Option<rights::Rights>,
}

/// One call.
#[derive(Clone, Debug, Default)]
pub struct Op {
    /// Who called.
    pub client: u32,
    /// World time of the call, in nanoseconds.
    pub call: u64,
    /// World time of the return; none if the client never heard of it again.
    pub ret: Option<u64>,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
    /// The member that answered, 0 if not known.
    pub member: u64,
    /// Which life of that member, counted from its starts; 0 if not known.
    pub life: u64,
}

/// A request. Ranges are as on the wire: an empty `end` is the single key, `[0]` everything from `key` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read keys.
    Range { key: Vec<u8>, end: Vec<u8>, limit: i64, revision: i64, serializable: bool },
    /// Write a key.
    Put { key: Vec<u8>, value: Vec<u8>, lease: i64, prev_kv: bool },
    /// Delete keys.
    Delete { key: Vec<u8>, end: Vec<u8>, prev_kv: bool },
    /// Do one list of operations or the other, atomically.
    Txn { compares: Vec<Compare>, then: Vec<TxnOp>, otherwise: Vec<TxnOp> },
    /// Create a lease; id 0 lets the server choose.
    Grant { id: i64, ttl_s: i64 },
    /// End a lease and delete its keys.
    Revoke { id: i64 },
    /// Renew a lease.
    KeepAlive { id: i64 },
    /// Ask how long a lease has to live, and for its keys.
    TimeToLive { id: i64, keys: bool },
    /// Forget what was overwritten before a revision.
    Compact { revision: i64 },
    /// Change users and roles.
    Users(rights::Change),
    /// Get a token.
    Login { user: String, password: String },
}

impl Default for Request {
    fn default() -> Request {
        Request::Range { key: vec![], end: vec![], limit: 0, revision: 0, serializable: false }
    }
}

/// An operation inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    /// Read keys.
    Range { key: Vec<u8>, end: Vec<u8>, limit: i64, revision: i64 },
    /// Write a key.
    Put { key: Vec<u8>, value: Vec<u8>, lease: i64, prev_kv: bool },
    /// Delete keys.
    Delete { key: Vec<u8>, end: Vec<u8>, prev_kv: bool },
    /// Do one list of operations or the other: which is decided before anything of the outermost transaction is done.
    Txn { compares: Vec<Compare>, then: Vec<TxnOp>, otherwise: Vec<TxnOp> },
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Vec<u8>,
    /// What of it, and with what.
    pub target: Target,
    /// How `key's target` stands to the given one.
    pub is: Relation,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Revision of the last write; 0 for an absent key.
    ModRevision(i64),
    /// Revision of creation; 0 for an absent key.
    CreateRevision(i64),
    /// Writes since creation; 0 for an absent key.
    Version(i64),
    /// The value; for an absent key every condition is false.
    Value(Vec<u8>),
}

/// Relations of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
}

/// What came of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Carried out; `revision` is the reply's header revision.
    Ok { revision: i64, reply: Reply },
    /// Certainly not carried out; the API's error text.
    Refused(String),
    /// Carried out once, or not at all.
    #[default]
    Unknown,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a range.
    Range { kvs: Vec<KeyValue>, more: bool, count: i64 },
    /// To a put.
    Put { prev: Option<KeyValue> },
    /// To a delete.
    Delete { deleted: i64, prevs: Vec<KeyValue> },
    /// To a transaction: one reply (Range, Put, Delete, Txn) for each operation of the chosen list.
    Txn { succeeded: bool, replies: Vec<Reply> },
    /// To a grant.
    Grant { id: i64, ttl_s: i64 },
    /// To a revoke.
    Revoke,
    /// To a keep-alive; 0: there is no such lease.
    KeepAlive { ttl_s: i64 },
    /// To a question for a lease's time; `ttl_s` is what is left, -1: there is no such lease.
    TimeToLive { granted_ttl_s: i64, ttl_s: i64, keys: Vec<Vec<u8>> },
    /// To a compaction.
    Compact,
    /// To a change of users and roles.
    Users,
    /// To a login: the token, which the history leaves out.
    Login { token: String },
}

/// A key as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision of its creation.
    pub create_revision: i64,
    /// Revision of its last write.
    pub mod_revision: i64,
    /// Writes since its creation.
    pub version: i64,
    /// Its lease, 0 for none.
    pub lease: i64,
}

/// One watch, from its creation to its end on one stream of one member.
#[derive(Clone, Debug, Default)]
pub struct WatchRecord {
    /// Who watches.
    pub client: u32,
    /// The member watched on.
    pub member: u64,
    /// The stream it came on, 0 if not known; messages of one stream have different times of arrival, in order.
    pub stream: u64,
    /// First key.
    pub key: Vec<u8>,
    /// End of the range, as on the wire.
    pub end: Vec<u8>,
    /// Revision asked for; 0: from now.
    pub start: i64,
    /// Previous values were asked for.
    pub prev_kv: bool,
    /// Periodic progress was asked for.
    pub progress: bool,
    /// Puts were filtered out.
    pub no_put: bool,
    /// Deletes were filtered out.
    pub no_delete: bool,
    /// Splitting of large messages was allowed.
    pub fragment: bool,
    /// Index of the record that this one continues: it starts right after what that one had seen.
    pub resumes: Option<usize>,
    /// What arrived, with the world time of arrival.
    pub messages: Vec<(u64, WatchMessage)>,
}

/// What a watch may receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watch exists.
    Created { revision: i64 },
    /// Events; `fragment`: more of the same message follows.
    Events { header_revision: i64, fragment: bool, events: Vec<Event> },
    /// Everything up to the revision has been sent.
    Progress { revision: i64 },
    /// The same, said of all watches of the stream at once: the reply to a request for progress.
    StreamProgress { revision: i64 },
    /// It was not created, and never will be: what was asked for makes no sense.
    Refused,
    /// The same: who asked for it may not have it.
    Denied,
    /// The server has ended the watch: its user may not have it any more.
    Revoked,
    /// The server or the client has ended the watch; `compact_revision` is 0 unless history was compacted away.
    Canceled { compact_revision: i64 },
    /// The stream is gone, or the client stopped listening.
    Ended,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// The key after it; of a deleted key only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// The key before it.
    pub prev: Option<KeyValue>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key was written.
    Put,
    /// The key was deleted, by a client or with its lease.
    Delete,
}

/// What was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Calls looked at.
    pub ops: usize,
    /// Of them acknowledged.
    pub acknowledged: usize,
    /// Writes of unknown outcome that were carried out.
    pub unknown_done: usize,
    /// Revisions produced by leases that expired.
    pub expiries: usize,
    /// Leases that had to be over by the end of the history, and were.
    pub leases_over: usize,
    /// The last revision anyone saw.
    pub revision: i64,
    /// Watches looked at.
    pub watches: usize,
    /// Their events.
    pub events: usize,
    /// Watches still open at the end that had not been sent every event: their indices.
    pub behind: Vec<usize>,
    /// How often who asked was looked at.
    pub rights: rights::Counts,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The promise, in a word or two.
    pub rule: &'static str,
    /// What was seen instead.
    pub what: String,
    /// The call, by its index.
    pub op: Option<usize>,
    /// The watch, by its index.
    pub watch: Option<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)?;
        if let Some(op) = self.op {
            write!(f, " (op {op})")?;
        }
        if let Some(watch) = self.watch {
            write!(f, " (watch {watch})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}

/// Holds a history against the API's promises.
pub fn check(history: &History) -> Result<Summary, Violation> {
    let rights = history.rights.as_ref().map(|rights| rights::check(history, rights)).transpose()?;
    let order = Order::new(history)?;
    let leases = Leases::new(history);
    leases.check_answers(history)?;
    let judge = |strict| {
        let replayed = Replay::new(history, &order, &leases, strict).run()?;
        let over = leases.check_over(history, &replayed.model)?;
        leases.check_keys(history, &order, &replayed)?;
        let places = watch::check_all(history, &order, &replayed.model)?;
        Ok::<_, Violation>((replayed, places, over))
    };
    let (replayed, places, leases_over) = match judge(true) {
        // It is wrong either way; the judge of watches may say it better.
        Err(violation) if violation.rule == replay::SHOWN => return Err(judge(false).err().unwrap_or(violation)),
        judged => judged?,
    };

    let ops = &history.ops;
    let unknown = |writer: &&Writer| matches!(writer, Writer::Op(op) if ops[*op].outcome == Outcome::Unknown);
    let events =
        |record: &WatchRecord| record.messages.iter().map(|(_, message)| message.events().len()).sum::<usize>();
    Ok(Summary {
        ops: ops.len(),
        acknowledged: ops.iter().filter(|op| matches!(op.outcome, Outcome::Ok { .. })).count(),
        unknown_done: replayed.writers.iter().filter(unknown).count(),
        expiries: replayed.writers.iter().filter(|writer| matches!(writer, Writer::Expiry(_))).count(),
        leases_over,
        revision: replayed.model.revision(),
        watches: history.watches.len(),
        events: history.watches.iter().map(events).sum(),
        behind: (0..places.len()).filter(|index| places[*index].behind).collect(),
        rights: rights.unwrap_or_default(),
    })
}

impl TxnOp {
    /// This operation and all that are nested in it, whichever way is chosen.
    pub fn all(&self) -> Vec<&TxnOp> {
        let mut all = vec![self];
        if let TxnOp::Txn { then, otherwise, .. } = self {
            all.extend(then.iter().chain(otherwise).flat_map(TxnOp::all));
        }
        all
    }

    /// This operation, or those that were done of a nested transaction, as its reply says.
    pub fn done<'a>(&'a self, reply: &Reply) -> Vec<&'a TxnOp> {
        match (self, reply) {
            (TxnOp::Txn { then, otherwise, .. }, Reply::Txn { succeeded, replies }) => {
                let ops = if *succeeded { then } else { otherwise };
                ops.iter().zip(replies).flat_map(|(op, reply)| op.done(reply)).collect()
            }
            _ => vec![self],
        }
    }
}

impl WatchMessage {
    /// The events in it.
    pub fn events(&self) -> &[Event] {
        match self {
            WatchMessage::Events { events, .. } => events,
            _ => &[],
        }
    }
}

fn general(rule: &'static str, what: String) -> Violation {
    Violation { rule, what, op: None, watch: None }
}

fn broken(rule: &'static str, what: String, op: usize) -> Violation {
    Violation { rule, what, op: Some(op), watch: None }
}
