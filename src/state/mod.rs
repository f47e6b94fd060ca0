//! The state machine: carries commands out, in the order of the log.
//!
//! [`StateMachine`] is everything that is replicated: keys, leases, users, members, alarms. [`StateMachine::apply`] takes a command
//! and gives back an [`Applied`](applied::Applied): the reply, what watchers hear, what the leader's lessor hears; and it adds
//! the rows it changed to a batch for the backend. An entry may hold many commands; [`StateMachine::finish_entry`] adds, once,
//! the rows that say how far the backend then is. One entry's rows are one batch or part of one, never two.
//!
//! ```text
//!  entry 7, term 2 ─┬─ apply(put a)        rows of the change             ┐
//!                   ├─ apply(grant 5)      the lease's row                ├─▶ batch ──▶ the backend, some time later
//!                   └─ finish_entry        applied 7, term 2, revision    ┘
//! ```
//!
//! An entry that changes who belongs holds one change and no commands; it goes through [`StateMachine::reconfigure`], which
//! changes the table of members and raft's configuration together, as rows of one batch. Raft hears of the change afterwards,
//! so the state and not raft decides what the configuration is.
//!
//! **Every member comes to the same state**, because
//!
//! 1. apply reads the state and the command, and nothing else: no clock, no disk size, not who leads;
//! 2. what is random or slow was settled before the command was proposed;
//! 3. an error is either a [`Refusal`](applied::Refusal), part of the reply and the same everywhere, or a
//!    [`storage::Error`], which stops this member. A refused command has changed nothing;
//! 4. where order can be seen, iteration is over ordered maps;
//! 5. a command that this release does not know stops the member.
//!
//! **Restoring.** The rows of all buckets are the state; [`StateMachine::open`] reads them at start and after a snapshot was
//! adopted. It is the only constructor, so tables that are derived (key index, lease of a key, what a user may do) cannot be forgotten. Rows that
//! contradict each other are refused as damage.
//!
//! Keys, leases and users do not know each other. Where one command concerns several, [`apply`](self) composes them in plain order;
//! what a request needs of who asks is said in [`permission`].
//!
//! Deliberately missing: when anything happens. Expiry, compaction and alarms are commands like any other.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::auth;
use crate::cluster::{Membership, Version, membership};
use crate::lease;
use crate::mvcc::Store;
use crate::pb::etcdserverpb::ResponseHeader;
use crate::pb::everwatchpb::{ConfState, LeaseRecord, MemberRecord};
use crate::storage::backend::{Batch, Bucket, Reader};
use crate::storage::{self, schema};
use crate::types::{Index, LeaseId, MemberId, Revision, Term};

pub mod alarm;
pub mod applied;
mod apply;
pub mod command;
pub mod permission;
pub mod relief;

pub use alarm::{AlarmKind, Alarms};

/// Everything that is replicated.
pub struct StateMachine {
    /// Keys with their history.
    pub kv: Store,
    /// Leases and their keys.
    pub leases: lease::Table,
    /// Users and roles.
    pub auth: auth::Store,
    /// The members.
    pub members: Membership,
    /// NOSPACE and CORRUPT.
    pub alarms: Alarms,
    cluster_version: Option<Version>,
    applied: Index,
    applied_term: Term,
    conf_state: ConfState,
}

impl StateMachine {
    /// The state that a new member of a cluster founded by `members` begins with: as if an entry at index 1 of term 1 had
    /// established them. The same on every founding member.
    pub fn founding_rows(members: &[MemberRecord], conf_state: &ConfState) -> Batch {
        let mut batch = Batch::default();
        for record in members {
            membership::put_row(&mut batch, record);
        }
        put_applied(&mut batch, Index(1), Term(1));
        put_conf_state(&mut batch, conf_state);
        put_meta(&mut batch, schema::REVISION, schema::u64_row(Revision::FIRST.0 as u64));
        batch
    }

    /// The state as the backend has it. An empty backend is the state at index 0, of a member that waits for a snapshot.
    pub fn open(reader: Arc<dyn Reader>) -> storage::Result<StateMachine> {
        let rows = &*reader;
        let applied = read_number(rows, schema::APPLIED_INDEX)?;
        let applied_term = read_number(rows, schema::APPLIED_TERM)?;
        let revision = read_number(rows, schema::REVISION)?;
        let conf_state = rows.get(Bucket::Meta, schema::CONF_STATE)?;
        let known = [applied.is_some(), applied_term.is_some(), revision.is_some(), conf_state.is_some()];
        // A missing revision would let revisions be given out a second time.
        if known.contains(&true) && known.contains(&false) {
            return Err(damaged("the rows that say how far it is are incomplete"));
        }
        let conf_state = decode::<ConfState>(conf_state.as_deref().unwrap_or_default(), "raft's configuration")?;

        let (kv, attached) = Store::open(reader.clone())?;
        let (mut leases, mut members, mut alarms) = (lease::Table::default(), Membership::default(), Alarms::default());
        restore_leases(rows, attached, &mut leases)?;
        restore_members(rows, &mut members)?;
        each_row(rows, Bucket::Alarm, |key, _| {
            alarms.restore(key).ok_or_else(|| damaged("an alarm's row is none that we know"))
        })?;
        let cluster_version = match rows.get(Bucket::Meta, schema::CLUSTER_VERSION)? {
            Some(row) => {
                let version = str::from_utf8(&row).ok().and_then(|text| text.parse().ok());
                Some(version.ok_or_else(|| damaged("the cluster version is not a version"))?)
            }
            None => None,
        };
        Ok(StateMachine {
            kv,
            leases,
            auth: auth::Store::open(rows)?,
            members,
            alarms,
            cluster_version,
            applied: Index(applied.unwrap_or(0)),
            applied_term: Term(applied_term.unwrap_or(0)),
            conf_state,
        })
    }

    /// Every command of this entry is carried out (or it had none; no entry is left out): the batch, with all before it, is the state at `index`.
    pub fn finish_entry(&mut self, index: Index, term: Term, batch: &mut Batch) {
        self.assert_next(index, term);
        self.applied = index;
        self.applied_term = term;
        put_applied(batch, index, term);
        self.kv.meta_rows(batch);
    }

    /// Raft's configuration is now this one: part of the entry that changed it, so before its `finish_entry`.
    fn set_conf_state(&mut self, conf_state: ConfState, batch: &mut Batch) {
        put_conf_state(batch, &conf_state);
        self.conf_state = conf_state;
    }

    /// The last entry carried out.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The term of that entry.
    pub fn applied_term(&self) -> Term {
        self.applied_term
    }

    /// Raft's configuration at that entry.
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// The lowest version every member speaks, once the leader has found it out.
    pub fn cluster_version(&self) -> Option<Version> {
        self.cluster_version
    }

    /// An entry carried out twice, or left out, would fork the state. Entries without commands come through `finish_entry`.
    fn assert_next(&self, index: Index, term: Term) {
        assert!(index.0 == self.applied.0 + 1, "entry {index} is carried out after {}", self.applied);
        assert!(term >= self.applied_term, "term {term} comes after {}", self.applied_term);
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.kv.revision().0, ..Default::default() })
    }
}

fn restore_leases(
    rows: &dyn Reader,
    attached: Vec<(Bytes, LeaseId)>,
    leases: &mut lease::Table,
) -> storage::Result<()> {
    each_row(rows, Bucket::Lease, |key, value| {
        let record = decode::<LeaseRecord>(value, "a lease")?;
        if schema::read_u64(key) != Some(record.id as u64) || record.id == LeaseId::NONE.0 {
            return Err(damaged("a lease's row is not where it belongs"));
        }
        leases.restore(record);
        Ok(())
    })?;
    for (key, id) in attached {
        let gone = |_| damaged(&format!("the key {} has a lease {id} that does not exist", key.escape_ascii()));
        leases.attach(&key, id).map_err(gone)?;
    }
    Ok(())
}

fn restore_members(rows: &dyn Reader, members: &mut Membership) -> storage::Result<()> {
    each_row(rows, Bucket::Members, |key, value| {
        let record = decode::<MemberRecord>(value, "a member")?;
        if schema::read_u64(key) != Some(record.id) {
            return Err(damaged("a member's row is not where it belongs"));
        }
        members.restore(record);
        Ok(())
    })?;
    each_row(rows, Bucket::MembersRemoved, |key, _| {
        let id = schema::read_u64(key).ok_or_else(|| damaged("a removed member's row is not an id"))?;
        members.restore_removed(MemberId(id));
        Ok(())
    })
}

/// Visits all rows of a bucket, until one is not as it should be.
fn each_row(
    rows: &dyn Reader,
    bucket: Bucket,
    mut visit: impl FnMut(&[u8], &[u8]) -> storage::Result<()>,
) -> storage::Result<()> {
    let mut outcome = Ok(());
    rows.scan(bucket, &[], None, &mut |key, value| {
        outcome = visit(key, value);
        outcome.is_ok()
    })?;
    outcome
}

fn read_number(rows: &dyn Reader, name: &'static [u8]) -> storage::Result<Option<u64>> {
    match rows.get(Bucket::Meta, name)? {
        Some(row) => match schema::read_u64(&row) {
            Some(number) => Ok(Some(number)),
            None => Err(damaged(&format!("{} is not a number", name.escape_ascii()))),
        },
        None => Ok(None),
    }
}

fn decode<M: Message + Default>(row: &[u8], what: &str) -> storage::Result<M> {
    M::decode(row).map_err(|error| damaged(&format!("the row of {what} cannot be read: {error}")))
}

/// The engine vouches for its pages, so a row that makes no sense was written by something else.
fn damaged(what: &str) -> storage::Error {
    storage::Error::Engine(format!("the state is damaged: {what}"))
}

fn put_applied(batch: &mut Batch, index: Index, term: Term) {
    put_meta(batch, schema::APPLIED_INDEX, schema::u64_row(index.0));
    put_meta(batch, schema::APPLIED_TERM, schema::u64_row(term.0));
}

fn put_conf_state(batch: &mut Batch, conf_state: &ConfState) {
    put_meta(batch, schema::CONF_STATE, conf_state.encode_to_vec().into());
}

fn put_meta(batch: &mut Batch, name: &'static [u8], value: Bytes) {
    batch.put(Bucket::Meta, Bytes::from_static(name), value);
}

#[cfg(test)]
mod tests;
