//! Apply: the table of contents. Which command is carried out where, and what may be done while an alarm is raised.
//!
//! The order of checks is etcd's: alarm, permission, lease, then the keys themselves.

use super::StateMachine;
use super::alarm::AlarmKind;
use super::applied::{Applied, LeaseChange, Refusal, Reply};
use super::command::{Command, Kind};
use super::permission::Wanted;
use crate::mvcc::change::SharedChanges;
use crate::mvcc::{self, Written};
use crate::pb::etcdserverpb::{TxnRequest, request_op::Request};
use crate::storage;
use crate::storage::backend::Batch;
use crate::types::{Index, Term};

mod alarm;
mod auth;
mod cluster;
mod kv;
mod lease;

impl StateMachine {
    /// Carries one command of the entry at `index` out and adds the rows it changed to `batch`. An error stops the member:
    /// its disk failed, or the command is none that this release knows.
    pub fn apply(
        &mut self,
        index: Index,
        term: Term,
        command: &Command,
        batch: &mut Batch,
    ) -> storage::Result<Applied> {
        self.assert_next(index, term);
        let Some(kind) = &command.kind else {
            let what = format!("entry {index} holds a command that this release does not know");
            return Err(storage::Error::Engine(what));
        };
        let refusal = self.refused_by_alarm(kind);
        let refusal = refusal.or_else(|| self.permit(command.asker(), Wanted::Command(kind)).err().map(Refusal::Auth));
        let outcome = match refusal {
            Some(refusal) => Err(Stopped::Refused(refusal)),
            None => self.carry_out(term, kind, batch),
        };
        match outcome {
            Ok(Effects { reply, changes, leases }) => Ok(Applied { reply: Ok(reply), changes, leases }),
            Err(Stopped::Refused(refusal)) => {
                Ok(Applied { reply: Err(refusal), changes: Vec::new(), leases: Vec::new() })
            }
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    fn carry_out(&mut self, term: Term, kind: &Kind, batch: &mut Batch) -> Result<Effects, Stopped> {
        match kind {
            Kind::Put(request) => self.put(request, batch),
            Kind::DeleteRange(request) => self.delete_range(request, batch),
            Kind::Txn(request) => self.txn(request, batch),
            Kind::Compaction(request) => self.compact(request, batch),
            Kind::LeaseGrant(request) => self.lease_grant(request, batch),
            Kind::LeaseRevoke(request) => self.lease_revoke(request, batch),
            Kind::LeaseExpire(command) => self.lease_expire(term, command, batch),
            Kind::LeaseRemaining(command) => self.lease_remaining(term, command, batch),
            Kind::Alarm(request) => self.alarm(request, batch),
            Kind::MemberAttributes(command) => self.member_attributes(command, batch),
            Kind::ClusterVersion(command) => self.raise_cluster_version(command, batch),
            Kind::MemberPeerUrls(command) => self.member_peer_urls(command, batch),
            Kind::AuthChange(command) => self.change_auth(command, batch),
            Kind::Authenticate(command) => self.authenticate(command),
        }
    }

    /// CORRUPT lets nothing change keys or leases, expiry included; NOSPACE nothing that needs room. A transaction needs room
    /// if it has a put anywhere, in whichever branch (etcd 3.5 overlooks nested ones).
    fn refused_by_alarm(&self, kind: &Kind) -> Option<Refusal> {
        let (changes_data, needs_room) = match kind {
            Kind::Put(_) | Kind::LeaseGrant(_) => (true, true),
            Kind::Txn(request) => (true, has_put(request)),
            Kind::DeleteRange(_) | Kind::Compaction(_) | Kind::LeaseRevoke(_) | Kind::LeaseExpire(_) => (true, false),
            Kind::LeaseRemaining(_)
            | Kind::Alarm(_)
            | Kind::MemberAttributes(_)
            | Kind::ClusterVersion(_)
            | Kind::MemberPeerUrls(_)
            | Kind::AuthChange(_)
            | Kind::Authenticate(_) => (false, false),
        };
        if changes_data && self.alarms.is_raised(AlarmKind::Corrupt) {
            return Some(Refusal::Corrupt);
        }
        if needs_room && self.alarms.is_raised(AlarmKind::NoSpace) {
            return Some(Refusal::NoSpace);
        }
        None
    }

    /// What every write ends with: its rows go into the batch and its keys to their leases.
    fn written<R>(&mut self, written: Written<R>, batch: &mut Batch) -> (R, Vec<SharedChanges>) {
        let Written { response, changes, attachments } = written;
        if let Some(changes) = &changes {
            changes.rows(batch);
        }
        for (key, id) in attachments {
            self.leases.attach(&key, id).expect("a lease was found to exist before its key was written");
        }
        (response, changes.into_iter().collect())
    }
}

/// What a command did that was not refused.
struct Effects {
    reply: Reply,
    changes: Vec<SharedChanges>,
    leases: Vec<LeaseChange>,
}

impl Effects {
    /// It changed no key and no lease.
    fn reply(reply: Reply) -> Effects {
        Effects { reply, changes: Vec::new(), leases: Vec::new() }
    }
}

/// Why a command was not carried out.
enum Stopped {
    /// The answer is no.
    Refused(Refusal),
    /// This member cannot go on.
    Failed(storage::Error),
}

impl From<mvcc::Error> for Stopped {
    fn from(error: mvcc::Error) -> Stopped {
        match Refusal::try_from(error) {
            Ok(refusal) => Stopped::Refused(refusal),
            Err(error) => Stopped::Failed(error),
        }
    }
}

impl From<crate::lease::Error> for Stopped {
    fn from(error: crate::lease::Error) -> Stopped {
        Stopped::Refused(match error {
            crate::lease::Error::Exists => Refusal::LeaseExists,
            crate::lease::Error::NotFound => Refusal::LeaseNotFound,
        })
    }
}

fn has_put(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_put(nested),
        _ => false,
    })
}
