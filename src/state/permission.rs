//! The permission function: what every request needs, in one place.
//!
//! | request                  | needs                                                                                  |
//! |--------------------------|----------------------------------------------------------------------------------------|
//! | range, watch, compare    | to read the whole range                                                                 |
//! | put                      | to write the key, and every key of the lease it is put on; to read it, if asked for what it replaces |
//! | delete                   | to write the whole range; to read it, if asked for what it deletes                      |
//! | txn                      | what all its comparisons and the operations of both branches need, nested ones too       |
//! | grant a lease            | to be a user                                                                            |
//! | revoke, renew a lease    | to be a user, and to write all its keys                                                 |
//! | a lease's keys, all leases | to be a user, and to read all their keys                                              |
//! | alarms, to look at       | to be a user                                                                            |
//! | a user, a role           | to be that user, to have that role, or the role `root`                                  |
//! | log in                   | a password, which was compared before                                                   |
//! | anything else            | the role `root`                                                                         |
//!
//! The role `root` is enough for all of it, members ask for themselves, and while auth is off nobody is asked. Commands are checked
//! when they are carried out, reads in the state that they read. etcd 3.5 overlooks nested txns, what a put inside a txn replaces or is
//! attached to, and who asks about leases and alarms; later ones do not.

use crate::auth::{Access, Asker, Error, Guard};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use crate::state::StateMachine;
use crate::state::command::Kind;
use crate::types::{KeyRange, LeaseId};

/// Something that somebody may or may not do.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// To have a command carried out.
    Command(&'a Kind),
    /// To read keys.
    Range(&'a RangeRequest),
    /// A txn, whether it goes through the log or only reads.
    Txn(&'a TxnRequest),
    /// To hear of changes.
    Watch(&'a KeyRange),
    /// To renew a lease.
    Renewal(LeaseId),
    /// To see the keys of a lease.
    LeaseKeys(LeaseId),
    /// To see which leases there are.
    Leases,
    /// To see the roles of a user.
    User(&'a str),
    /// To see the permissions of a role.
    Role(&'a str),
    /// What every user may do.
    Login,
    /// What only the role `root` may do.
    Root,
}

impl StateMachine {
    /// Whether `asker` may do this now.
    pub fn permit(&self, asker: Asker<'_>, wanted: Wanted<'_>) -> Result<(), Error> {
        if !self.auth.is_enabled() || asker == Asker::Member {
            return Ok(());
        }
        match wanted {
            Wanted::Command(kind) => self.permit_command(asker, kind),
            Wanted::Range(request) => read(self.auth.guard(asker)?, &range_of(request)),
            Wanted::Txn(request) => self.permit_txn(self.auth.guard(asker)?, request),
            Wanted::Watch(range) => read(self.auth.guard(asker)?, range),
            Wanted::Renewal(id) => self.permit_lease(asker, Access::Write, id),
            Wanted::LeaseKeys(id) => self.permit_lease(asker, Access::Read, id),
            Wanted::Leases => {
                self.auth.user(asker)?;
                self.leases.iter().try_for_each(|(id, _)| self.permit_lease(asker, Access::Read, id))
            }
            Wanted::User(name) => match asker {
                Asker::User { name: own, .. } if own == name => self.auth.user(asker),
                _ => self.auth.root(asker),
            },
            Wanted::Role(name) => self.auth.role_holder(asker, name),
            Wanted::Login => self.auth.user(asker),
            Wanted::Root => self.auth.root(asker),
        }
    }

    fn permit_command(&self, asker: Asker<'_>, kind: &Kind) -> Result<(), Error> {
        match kind {
            Kind::Put(request) => self.permit_put(self.auth.guard(asker)?, request),
            Kind::DeleteRange(request) => permit_delete(self.auth.guard(asker)?, request),
            Kind::Txn(request) => self.permit_txn(self.auth.guard(asker)?, request),
            Kind::LeaseGrant(_) => self.auth.user(asker),
            Kind::LeaseRevoke(request) => self.permit_lease(asker, Access::Write, LeaseId(request.id)),
            Kind::Alarm(request) if request.action == AlarmAction::Get as i32 => self.auth.user(asker),
            // Looks for itself whether the password was compared.
            Kind::Authenticate(_) => Ok(()),
            Kind::Compaction(_) | Kind::Alarm(_) | Kind::MemberPeerUrls(_) | Kind::AuthChange(_) => {
                self.auth.root(asker)
            }
            // No client can ask for these.
            Kind::LeaseExpire(_) | Kind::LeaseRemaining(_) | Kind::MemberAttributes(_) | Kind::ClusterVersion(_) => {
                Ok(())
            }
        }
    }

    fn permit_put(&self, guard: Guard<'_>, request: &PutRequest) -> Result<(), Error> {
        let key = KeyRange::single(request.key.clone());
        guard.check(Access::Write, &key)?;
        // Whoever puts a key on a lease decides when the others on it go.
        self.check_lease(guard, Access::Write, LeaseId(request.lease))?;
        if request.prev_kv { read(guard, &key) } else { Ok(()) }
    }

    fn permit_txn(&self, guard: Guard<'_>, request: &TxnRequest) -> Result<(), Error> {
        for compare in &request.compare {
            read(guard, &KeyRange::from_wire(compare.key.clone(), compare.range_end.clone()))?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(Request::RequestRange(request)) => read(guard, &range_of(request))?,
                Some(Request::RequestPut(request)) => self.permit_put(guard, request)?,
                Some(Request::RequestDeleteRange(request)) => permit_delete(guard, request)?,
                Some(Request::RequestTxn(request)) => self.permit_txn(guard, request)?,
                // Refused for what it is.
                None => {}
            }
        }
        Ok(())
    }

    /// A lease without keys, or none at all, is anybody's.
    fn permit_lease(&self, asker: Asker<'_>, access: Access, id: LeaseId) -> Result<(), Error> {
        self.auth.user(asker)?;
        match self.leases.get(id).is_some_and(|lease| lease.keys().next().is_some()) && self.auth.root(asker).is_err() {
            true => self.check_lease(self.auth.guard(asker)?, access, id),
            false => Ok(()),
        }
    }

    fn check_lease(&self, guard: Guard<'_>, access: Access, id: LeaseId) -> Result<(), Error> {
        let mut keys = self.leases.get(id).into_iter().flat_map(|lease| lease.keys());
        keys.try_for_each(|key| guard.check(access, &KeyRange::single(key.clone())))
    }
}

fn permit_delete(guard: Guard<'_>, request: &DeleteRangeRequest) -> Result<(), Error> {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    guard.check(Access::Write, &range)?;
    if request.prev_kv { read(guard, &range) } else { Ok(()) }
}

fn read(guard: Guard<'_>, range: &KeyRange) -> Result<(), Error> {
    guard.check(Access::Read, range)
}

fn range_of(request: &RangeRequest) -> KeyRange {
    KeyRange::from_wire(request.key.clone(), request.range_end.clone())
}
