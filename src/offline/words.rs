//! Entries in words, a line each.

use std::fmt::Write;

use super::dump::Content;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use crate::pb::everwatchpb::auth_change::Change as AuthKind;
use crate::pb::everwatchpb::reconfiguration::Change;
use crate::pb::everwatchpb::{AuthChange, Command};
use crate::state::command::Kind;
use crate::types::{LeaseId, MemberId};

/// Bytes of a key or value that are shown.
const SHOWN_MAX: usize = 256;

/// One line for each thing that is to be done.
pub(super) fn of(content: &Content) -> Vec<String> {
    match content {
        Content::Nothing => vec!["nothing".to_owned()],
        Content::Commands(commands) => commands.iter().map(command).collect(),
        Content::Change(change) => vec![match &change.change {
            Some(Change::Add(new)) => {
                let kind = if new.is_learner { "learner" } else { "member" };
                format!("{kind} add {} {}", MemberId(new.id), new.peer_urls.join(","))
            }
            Some(Change::Promote(promoted)) => format!("member promote {}", MemberId(promoted.id)),
            Some(Change::Remove(removed)) => format!("member remove {}", MemberId(removed.id)),
            None => "a change of members that this release does not know".to_owned(),
        }],
    }
}

/// What kind of command it is, in a word or two.
pub(super) fn kind(command: &Command) -> &'static str {
    match &command.kind {
        None => "unknown",
        Some(Kind::Put(_)) => "put",
        Some(Kind::DeleteRange(_)) => "delete",
        Some(Kind::Txn(_)) => "txn",
        Some(Kind::Compaction(_)) => "compact",
        Some(Kind::LeaseGrant(_)) => "lease grant",
        Some(Kind::LeaseRevoke(_)) => "lease revoke",
        Some(Kind::LeaseExpire(_)) => "lease expire",
        Some(Kind::LeaseRemaining(_)) => "lease remaining",
        Some(Kind::Alarm(_)) => "alarm",
        Some(Kind::MemberAttributes(_)) => "member name",
        Some(Kind::ClusterVersion(_)) => "cluster version",
        Some(Kind::MemberPeerUrls(_)) => "member update",
        Some(Kind::Authenticate(_)) => "login",
        Some(Kind::AuthChange(AuthChange { change })) => match change {
            None => "unknown",
            Some(AuthKind::Enable(_)) => "auth enable",
            Some(AuthKind::Disable(_)) => "auth disable",
            Some(AuthKind::UserAdd(_)) => "user add",
            Some(AuthKind::UserDelete(_)) => "user delete",
            Some(AuthKind::UserPassword(_)) => "user passwd",
            Some(AuthKind::UserGrantRole(_)) => "user grant-role",
            Some(AuthKind::UserRevokeRole(_)) => "user revoke-role",
            Some(AuthKind::RoleAdd(_)) => "role add",
            Some(AuthKind::RoleDelete(_)) => "role delete",
            Some(AuthKind::RoleGrantPermission(_)) => "role grant-permission",
            Some(AuthKind::RoleRevokePermission(_)) => "role revoke-permission",
        },
    }
}

fn command(command: &Command) -> String {
    let mut line = match &command.kind {
        Some(Kind::Put(request)) => put(request),
        Some(Kind::DeleteRange(request)) => delete(request),
        Some(Kind::Txn(request)) => txn(request),
        _ => format!("{}{}", kind(command), rest(command)),
    };
    if !command.user.is_empty() {
        let _ = write!(line, " user={}", command.user.escape_debug());
    }
    line
}

fn rest(command: &Command) -> String {
    match &command.kind {
        Some(Kind::Compaction(request)) => {
            format!(" {}{}", request.revision, if request.physical { " physical" } else { "" })
        }
        Some(Kind::LeaseGrant(request)) => format!(" {} ttl={}s", LeaseId(request.id), request.ttl),
        Some(Kind::LeaseRevoke(request)) => format!(" {}", LeaseId(request.id)),
        Some(Kind::LeaseExpire(expired)) => {
            let ids = expired.ids.iter().map(|id| format!(" {}", LeaseId(*id)));
            ids.chain([format!(" term={}", expired.term)]).collect()
        }
        Some(Kind::LeaseRemaining(remaining)) => {
            let leases =
                remaining.leases.iter().map(|lease| format!(" {}={}ms", LeaseId(lease.id), lease.remaining_ms));
            leases.chain([format!(" term={}", remaining.term)]).collect()
        }
        Some(Kind::Alarm(request)) => {
            format!(" {:?} {:?} member={}", request.action(), request.alarm(), MemberId(request.member_id))
        }
        Some(Kind::MemberAttributes(member)) => {
            format!(" {} {} {}", MemberId(member.id), member.name.escape_debug(), member.client_urls.join(","))
        }
        Some(Kind::ClusterVersion(version)) => format!(" {}", version.version.escape_debug()),
        Some(Kind::MemberPeerUrls(member)) => format!(" {} {}", MemberId(member.id), member.peer_urls.join(",")),
        Some(Kind::Authenticate(login)) => format!(" {}", login.name.escape_debug()),
        Some(Kind::AuthChange(AuthChange { change: Some(change) })) => auth_change(change),
        _ => String::new(),
    }
}

fn auth_change(change: &AuthKind) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!(" {}", word.escape_debug())).collect();
    match change {
        AuthKind::Enable(_) | AuthKind::Disable(_) => String::new(),
        AuthKind::UserAdd(user) => words(&[&user.name]),
        AuthKind::UserDelete(user) => words(&[&user.name]),
        AuthKind::UserPassword(user) => words(&[&user.name]),
        AuthKind::UserGrantRole(grant) => words(&[&grant.user, &grant.role]),
        AuthKind::UserRevokeRole(revoke) => words(&[&revoke.name, &revoke.role]),
        AuthKind::RoleAdd(role) => words(&[&role.name]),
        AuthKind::RoleDelete(role) => words(&[&role.role]),
        AuthKind::RoleGrantPermission(grant) => {
            let permission = grant.perm.clone().unwrap_or_default();
            let range = range(&permission.key, &permission.range_end);
            format!(" {} {:?} {range}", grant.name.escape_debug(), permission.perm_type())
        }
        AuthKind::RoleRevokePermission(revoke) => {
            format!(" {} {}", revoke.role.escape_debug(), range(&revoke.key, &revoke.range_end))
        }
    }
}

fn put(request: &PutRequest) -> String {
    let mut line = format!("put {} {}", shown(&request.key), shown(&request.value));
    if request.lease != 0 {
        let _ = write!(line, " lease={}", LeaseId(request.lease));
    }
    for (name, given) in [("ignore-value", request.ignore_value), ("ignore-lease", request.ignore_lease)] {
        if given {
            let _ = write!(line, " {name}");
        }
    }
    line
}

fn delete(request: &DeleteRangeRequest) -> String {
    format!("delete {}", range(&request.key, &request.range_end))
}

fn txn(request: &TxnRequest) -> String {
    let branch = |ops: &[RequestOp]| ops.iter().map(op).collect::<Vec<_>>().join("; ");
    let keys: Vec<String> = request.compare.iter().map(|compare| range(&compare.key, &compare.range_end)).collect();
    format!(
        "txn if {} of [{}] then [{}] else [{}]",
        request.compare.len(),
        keys.join(", "),
        branch(&request.success),
        branch(&request.failure)
    )
}

fn op(op: &RequestOp) -> String {
    match &op.request {
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => txn(request),
        Some(Request::RequestRange(request)) => format!("get {}", range(&request.key, &request.range_end)),
        None => "nothing".to_owned(),
    }
}

fn range(key: &[u8], end: &[u8]) -> String {
    if end.is_empty() { shown(key) } else { format!("{} to {}", shown(key), shown(end)) }
}

fn shown(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_MAX) {
        Some(begin) if bytes.len() > SHOWN_MAX => format!("\"{}\"...({} bytes)", begin.escape_ascii(), bytes.len()),
        _ => format!("\"{}\"", bytes.escape_ascii()),
    }
}
