//! What the audit log is told, and when: of each change that was carried out, or refused because of who asked, or of which nobody can say
//! whether it was carried out, be it that the log did not say so in time or that whoever asked did not wait. What is refused for another reason changed nothing and is not noted; nor is what only reads.
//!
//! A request that may be noted has an [`Origin`], which the [`Caller`] carries to where it is decided.

use std::marker::PhantomData;

use super::caller::Caller;
use super::status::status;
use crate::audit::{Fields, Origin};
use crate::auth;
use crate::pb::authpb::permission;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::{alarm_request::AlarmAction, request_op, response_op};
use crate::pb::everwatchpb::auth_change::Change;
use crate::server::error::Error;
use crate::server::handle::Handle;
use crate::server::logins::Identity;
use crate::state::applied::{Refusal, Reply};
use crate::state::command::Kind;

/// Whether calls of this method change something, or give everything away.
pub(super) fn is_change(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return false };
    match service {
        "etcdserverpb.KV" => matches!(method, "Put" | "DeleteRange" | "Txn" | "Compact"),
        "etcdserverpb.Lease" => matches!(method, "LeaseGrant" | "LeaseRevoke"),
        "etcdserverpb.Cluster" => method != "MemberList",
        "etcdserverpb.Maintenance" => matches!(method, "Alarm" | "Defragment" | "Snapshot" | "MoveLeader"),
        "etcdserverpb.Auth" => !matches!(method, "AuthStatus" | "UserGet" | "UserList" | "RoleGet" | "RoleList"),
        "v3lockpb.Lock" => true,
        "v3electionpb.Election" => matches!(method, "Campaign" | "Proclaim" | "Resign"),
        _ => false,
    }
}

impl Caller {
    /// Has the log decide what he wants done, and notes what became of it.
    pub(super) fn propose<'a>(
        &'a self,
        handle: &'a Handle,
        identity: &'a Identity,
        kind: Kind,
    ) -> impl Future<Output = Result<Reply, Error>> + Send + use<'a> {
        let noted = self.origin().and_then(|origin| Some((origin, What::of(&kind)?)));
        let proposed = handle.propose(kind, identity.asker());
        async move {
            let Some((origin, what)) = noted else { return proposed.await };
            let unsettled = Unsettled::new(origin, handle, identity, |reply: Option<&Reply>| what.fields(reply));
            let outcome = proposed.await;
            let revision = outcome.as_ref().ok().and_then(revision_of);
            unsettled.settle(&outcome, revision);
            outcome
        }
    }

    /// Does what the log does not decide about as of a command, and notes what became of it. `what` is told of a success.
    pub(super) async fn noted<T>(
        &self,
        handle: &Handle,
        what: impl FnOnce(Option<&T>) -> Fields,
        doing: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(origin) = self.origin() else { return doing.await };
        let identity = self.known(handle).await.unwrap_or_default();
        let unsettled = Unsettled::new(origin, handle, &identity, what);
        let outcome = doing.await;
        unsettled.settle(&outcome, None);
        outcome
    }

    /// Notes that he was turned away before anybody looked at what he wanted.
    pub(super) fn note_refusal(&self, handle: &Handle, identity: &Identity, what: Fields, status: &tonic::Status) {
        if let Some(origin) = self.origin().filter(|origin| is_change(origin.method())) {
            let refused = Some((status.code() as i32, status.message()));
            origin.note(identity.user().map(AsRef::as_ref), what, refused, now(handle));
        }
    }

    /// Notes that he logged in, or tried to.
    pub(super) fn note_login(&self, handle: &Handle, name: &str, error: Option<&Error>) {
        if let Some(origin) = self.origin() {
            // Only who has logged in is who he says.
            let identity = if error.is_none() { Identity::of(name.into(), 0) } else { Identity::default() };
            note(origin, handle, &identity, Fields::default().text("name", name), error, None);
        }
    }
}

/// A change that is under way. If whoever asked for it goes before he is answered, nobody is left to hear what became of it: that is
/// noted then.
struct Unsettled<'a, T, W: FnOnce(Option<&T>) -> Fields> {
    origin: &'a Origin,
    handle: &'a Handle,
    identity: &'a Identity,
    what: Option<W>,
    outcome: PhantomData<fn(&T)>,
}

impl<'a, T, W: FnOnce(Option<&T>) -> Fields> Unsettled<'a, T, W> {
    fn new(origin: &'a Origin, handle: &'a Handle, identity: &'a Identity, what: W) -> Self {
        Unsettled { origin, handle, identity, what: Some(what), outcome: PhantomData }
    }

    fn settle(mut self, outcome: &Result<T, Error>, revision: Option<i64>) {
        if let Some(what) = self.what.take() {
            let done = outcome.as_ref().ok();
            note(self.origin, self.handle, self.identity, what(done), outcome.as_ref().err(), revision);
        }
    }
}

impl<T, W: FnOnce(Option<&T>) -> Fields> Drop for Unsettled<'_, T, W> {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            let gone = Some((tonic::Code::Cancelled as i32, "whoever asked went before it was answered"));
            self.origin.note(self.identity.user().map(AsRef::as_ref), what(None), gone, now(self.handle));
        }
    }
}

fn now(handle: &Handle) -> i64 {
    handle.view(|state| state.kv.revision()).0
}

fn note(
    origin: &Origin,
    handle: &Handle,
    identity: &Identity,
    what: Fields,
    error: Option<&Error>,
    revision: Option<i64>,
) {
    if error.is_some_and(|error| !concerns_audit(error)) {
        return;
    }
    let status = error.map(|error| status(error.clone()));
    let refused = status.as_ref().map(|status| (status.code() as i32, status.message()));
    let revision = revision.unwrap_or_else(|| now(handle));
    origin.note(identity.user().map(AsRef::as_ref), what, refused, revision);
}

/// Whether a failure is about who asked, or leaves open what happened.
fn concerns_audit(error: &Error) -> bool {
    use auth::Error::*;
    match error {
        Error::Timeout | Error::TimeoutLeaderLost | Error::TransferTimeout | Error::Stopped => true,
        Error::Refused(Refusal::Auth(error)) => {
            matches!(error, PermissionDenied | UserEmpty | OldRevision | WrongPassword | NoPassword)
        }
        _ => false,
    }
}

fn revision_of(reply: &Reply) -> Option<i64> {
    let header = match reply {
        Reply::Put(response) => response.header,
        Reply::DeleteRange(response) => response.header,
        Reply::Txn(response) => response.header,
        Reply::Compaction(response) => response.header,
        Reply::LeaseGrant(response) => response.header,
        Reply::LeaseRevoke(response) => response.header,
        Reply::AuthChanged { revision, .. } => return Some(revision.0),
        _ => None,
    };
    Some(header?.revision).filter(|revision| *revision > 0)
}

/// What somebody wants to be changed.
enum What {
    /// Which of its writes are carried out will be known later.
    Txn(pb::TxnRequest),
    Known(Fields),
}

impl What {
    /// Nothing, of what only looks.
    fn of(kind: &Kind) -> Option<What> {
        let fields = Fields::default();
        Some(What::Known(match kind {
            Kind::Txn(txn) => return Some(What::Txn(txn.clone())),
            Kind::Put(request) => fields.list("writes", [put(request)]),
            Kind::DeleteRange(request) => fields.list("writes", [delete(request)]),
            Kind::Compaction(request) => fields.number("compact_revision", request.revision),
            Kind::LeaseGrant(request) => lease(fields, request.id).number("ttl", request.ttl),
            Kind::LeaseRevoke(request) => lease(fields, request.id),
            Kind::Alarm(request) => {
                let action = match AlarmAction::try_from(request.action) {
                    Ok(AlarmAction::Get) => return None,
                    Ok(action) => action.as_str_name(),
                    Err(_) => "UNKNOWN",
                };
                let alarm = pb::AlarmType::try_from(request.alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
                member(fields.text("action", action).text("alarm", alarm), request.member_id)
            }
            Kind::MemberPeerUrls(change) => urls(member(fields, change.id), &change.peer_urls),
            Kind::AuthChange(change) => match change.change.as_ref()? {
                Change::Enable(_) | Change::Disable(_) => fields,
                Change::UserAdd(new) => fields.text("name", &new.name),
                Change::UserDelete(request) => fields.text("name", &request.name),
                Change::UserPassword(change) => fields.text("name", &change.name),
                Change::UserGrantRole(request) => fields.text("name", &request.user).text("role", &request.role),
                Change::UserRevokeRole(request) => fields.text("name", &request.name).text("role", &request.role),
                Change::RoleAdd(request) => fields.text("role", &request.name),
                Change::RoleDelete(request) => fields.text("role", &request.role),
                Change::RoleGrantPermission(request) => {
                    let fields = fields.text("role", &request.name);
                    let Some(granted) = &request.perm else { return Some(What::Known(fields)) };
                    let kind = permission::Type::try_from(granted.perm_type);
                    let fields = fields.text("permission", kind.map_or("UNKNOWN", |kind| kind.as_str_name()));
                    range(fields, &granted.key, &granted.range_end)
                }
                Change::RoleRevokePermission(request) => {
                    range(fields.text("role", &request.role), &request.key, &request.range_end)
                }
            },
            // What members propose, and what has a verb of its own.
            _ => return None,
        }))
    }

    /// As it is noted.
    fn fields(self, reply: Option<&Reply>) -> Fields {
        match (self, reply) {
            (What::Known(fields), _) => fields,
            (What::Txn(txn), reply) => {
                let response = match reply {
                    Some(Reply::Txn(response)) => Some(response),
                    _ => None,
                };
                let mut writes = Vec::new();
                add_writes(&txn, response, &mut writes);
                Fields::default().list("writes", writes)
            }
        }
    }
}

/// The writes that a txn has carried out; of one that has not been, those that it would, whichever way it had gone.
fn add_writes(txn: &pb::TxnRequest, response: Option<&pb::TxnResponse>, writes: &mut Vec<Fields>) {
    let branches = match response {
        Some(response) if response.succeeded => [&txn.success[..], &[]],
        Some(_) => [&[], &txn.failure[..]],
        None => [&txn.success[..], &txn.failure[..]],
    };
    for branch in branches {
        for (at, op) in branch.iter().enumerate() {
            match &op.request {
                Some(request_op::Request::RequestPut(request)) => writes.push(put(request)),
                Some(request_op::Request::RequestDeleteRange(request)) => writes.push(delete(request)),
                Some(request_op::Request::RequestTxn(nested)) => {
                    let answer = response.and_then(|response| response.responses.get(at)?.response.as_ref());
                    let response = match answer {
                        Some(response_op::Response::ResponseTxn(response)) => Some(response),
                        _ => None,
                    };
                    add_writes(nested, response, writes);
                }
                _ => {}
            }
        }
    }
}

fn put(request: &pb::PutRequest) -> Fields {
    let fields = Fields::default().text("op", "put").key("key", &request.key);
    if request.lease == 0 { fields } else { lease(fields, request.lease) }
}

fn delete(request: &pb::DeleteRangeRequest) -> Fields {
    range(Fields::default().text("op", "delete"), &request.key, &request.range_end)
}

fn range(fields: Fields, key: &[u8], range_end: &[u8]) -> Fields {
    let fields = fields.key("key", key);
    if range_end.is_empty() { fields } else { fields.key("range_end", range_end) }
}

/// Its id as etcdctl writes it.
fn lease(fields: Fields, id: i64) -> Fields {
    fields.text("lease", &format!("{id:016x}"))
}

/// The same.
pub(super) fn member(fields: Fields, id: u64) -> Fields {
    fields.text("member", &format!("{id:x}"))
}

/// Where a member is reached.
pub(super) fn urls(fields: Fields, urls: &[String]) -> Fields {
    fields.text("peer_urls", &urls.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::METHODS;

    #[test]
    fn of_every_method_it_is_known_whether_it_changes_anything() {
        let looks: Vec<&str> = METHODS
            .iter()
            .filter(|(service, method, _)| !is_change(&format!("/{service}/{method}")))
            .map(|(_, method, _)| *method)
            .collect();
        let expected = [
            "Range",
            "RangeStream",
            "Watch",
            "LeaseKeepAlive",
            "LeaseTimeToLive",
            "LeaseLeases",
            "MemberList",
            "Status",
            "Hash",
            "HashKV",
            // It is refused always.
            "Downgrade",
            "AuthStatus",
            "UserGet",
            "UserList",
            "RoleGet",
            "RoleList",
            "Leader",
            "Observe",
            "Check",
            "Watch",
        ];
        assert_eq!(looks, expected);
    }
}
