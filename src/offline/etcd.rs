//! Commands in the words of etcd's raft log.
//!
//! What etcd has no request for is left out: the peer URLs of a member, which it changes by an entry of another kind. Where one of our
//! commands is several of etcd's, as with leases that ran out, it becomes several, in its order; where it does nothing, because the leader
//! that proposed it led no more, none.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::pb::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, InternalAuthenticateRequest, InternalRaftRequest,
    LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest, RequestHeader,
};
use crate::pb::everwatchpb::auth_change::Change;
use crate::pb::everwatchpb::{AuthChange, Command};
use crate::pb::membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest};
use crate::state::command::Kind;
use crate::types::Term;

/// What etcd would have proposed in an entry of `term`.
pub(super) fn requests(command: &Command, term: Term) -> Vec<InternalRaftRequest> {
    let header = RequestHeader { id: command.id, username: command.user.clone(), auth_revision: command.auth_revision };
    let mut request = InternalRaftRequest { header: Some(header.clone()), ..Default::default() };
    let Some(kind) = command.kind.clone() else { return Vec::new() };
    match kind {
        Kind::Put(put) => request.put = Some(put),
        Kind::DeleteRange(delete) => request.delete_range = Some(delete),
        Kind::Txn(txn) => request.txn = Some(txn),
        Kind::Compaction(compaction) => request.compaction = Some(compaction),
        Kind::LeaseGrant(grant) => request.lease_grant = Some(grant),
        Kind::LeaseRevoke(revoke) => request.lease_revoke = Some(revoke),
        Kind::LeaseExpire(expired) => {
            let ids = expired.ids.into_iter().filter(|_| expired.term == term.0);
            let revoke = |id| InternalRaftRequest {
                header: Some(header.clone()),
                lease_revoke: Some(LeaseRevokeRequest { id }),
                ..Default::default()
            };
            return ids.map(revoke).collect();
        }
        Kind::LeaseRemaining(remaining) => {
            if remaining.term != term.0 || remaining.leases.is_empty() {
                return Vec::new();
            }
            // etcd counts seconds, and takes none for the whole length, as we do.
            let seconds = |ms: u64| i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX);
            let checkpoint = remaining.leases.into_iter();
            let checkpoints = checkpoint
                .map(|lease| LeaseCheckpoint { id: lease.id, remaining_ttl: seconds(lease.remaining_ms) })
                .collect();
            request.lease_checkpoint = Some(LeaseCheckpointRequest { checkpoints });
        }
        Kind::Alarm(alarm) => request.alarm = Some(alarm),
        Kind::MemberAttributes(member) => {
            let attributes = Attributes { name: member.name, client_urls: member.client_urls };
            request.cluster_member_attr_set =
                Some(ClusterMemberAttrSetRequest { member_id: member.id, member_attributes: Some(attributes) });
        }
        Kind::ClusterVersion(version) => {
            request.cluster_version_set = Some(ClusterVersionSetRequest { ver: version.version });
        }
        Kind::MemberPeerUrls(_) => return Vec::new(),
        Kind::AuthChange(AuthChange { change: None }) => return Vec::new(),
        Kind::AuthChange(AuthChange { change: Some(change) }) => set_auth_change(&mut request, change),
        Kind::Authenticate(login) => {
            request.authenticate = Some(InternalAuthenticateRequest {
                name: login.name,
                password: String::new(),
                simple_token: login.token,
            });
        }
    }
    vec![request]
}

fn set_auth_change(request: &mut InternalRaftRequest, change: Change) {
    match change {
        Change::Enable(enable) => request.auth_enable = Some(enable),
        Change::Disable(disable) => request.auth_disable = Some(disable),
        Change::UserAdd(user) => {
            request.auth_user_add = Some(AuthUserAddRequest {
                name: user.name,
                password: String::new(),
                options: user.options,
                // etcd's field is text.
                hashed_password: STANDARD.encode(user.hash),
            });
        }
        Change::UserDelete(delete) => request.auth_user_delete = Some(delete),
        Change::UserPassword(user) => {
            request.auth_user_change_password = Some(AuthUserChangePasswordRequest {
                name: user.name,
                password: String::new(),
                hashed_password: STANDARD.encode(user.hash),
            });
        }
        Change::UserGrantRole(grant) => request.auth_user_grant_role = Some(grant),
        Change::UserRevokeRole(revoke) => request.auth_user_revoke_role = Some(revoke),
        Change::RoleAdd(add) => request.auth_role_add = Some(add),
        Change::RoleDelete(delete) => request.auth_role_delete = Some(delete),
        Change::RoleGrantPermission(grant) => request.auth_role_grant_permission = Some(grant),
        Change::RoleRevokePermission(revoke) => request.auth_role_revoke_permission = Some(revoke),
    }
}

/// The same without what opens doors.
pub(super) fn without_secrets(mut request: InternalRaftRequest) -> InternalRaftRequest {
    if let Some(user) = &mut request.auth_user_add {
        user.hashed_password.clear();
    }
    if let Some(user) = &mut request.auth_user_change_password {
        user.hashed_password.clear();
    }
    if let Some(login) = &mut request.authenticate {
        login.simple_token.clear();
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::everwatchpb::lease_remaining::Remaining;
    use crate::pb::everwatchpb::{Authenticate, LeaseExpire, LeaseRemaining, UserAdd};

    fn of(kind: Kind, term: u64) -> Vec<InternalRaftRequest> {
        let command = Command { id: 7, user: "u".into(), auth_revision: 3, by_member: false, kind: Some(kind) };
        requests(&command, Term(term))
    }

    #[test]
    fn what_leaders_say_of_leases_is_said_once_for_each_and_only_in_their_term() {
        let expired = || Kind::LeaseExpire(LeaseExpire { term: 2, ids: vec![5, 6], seen: 0 });
        let revoked: Vec<_> = of(expired(), 2).into_iter().map(|request| request.lease_revoke.unwrap().id).collect();
        assert_eq!(revoked, [5, 6]);
        assert!(of(expired(), 3).is_empty());
        let leases = vec![Remaining { id: 5, remaining_ms: 1001 }, Remaining { id: 6, remaining_ms: 0 }];
        let remaining = of(Kind::LeaseRemaining(LeaseRemaining { term: 2, leases, seen: 0 }), 2).remove(0);
        let checkpoints = remaining.lease_checkpoint.unwrap().checkpoints;
        assert_eq!(checkpoints.iter().map(|lease| lease.remaining_ttl).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn who_asked_is_said_and_secrets_can_be_left_out() {
        let hash = Bytes::from_static(b"$2a$");
        let added = Change::UserAdd(UserAdd { name: "n".into(), hash, options: None });
        let request = of(Kind::AuthChange(AuthChange { change: Some(added) }), 1).remove(0);
        assert_eq!(request.header.as_ref().unwrap().username, "u");
        let hashed = |request: &InternalRaftRequest| request.auth_user_add.as_ref().unwrap().hashed_password.clone();
        assert_eq!(hashed(&request), "JDJhJA==");
        assert_eq!(hashed(&without_secrets(request)), "");
        let login = Authenticate { name: "n".into(), token: "abc".into(), auth_revision: 3 };
        let request = without_secrets(of(Kind::Authenticate(login), 1).remove(0));
        assert_eq!(request.authenticate.unwrap().simple_token, "");
    }

    use bytes::Bytes;
}
