//! One entry of etcd's log as a command of ours: the other direction of `offline::etcd`.
//!
//! | in the log                                             | here                                                                  |
//! |--------------------------------------------------------|-----------------------------------------------------------------------|
//! | keys, compaction, leases granted and revoked, alarms   | the same                                                              |
//! | a lease's rest                                         | the same, in milliseconds                                             |
//! | users, roles, whether they count                       | the same; hashes of passwords as bytes                                |
//! | names, addresses and version of members, a downgrade   | nothing: they are those of the cluster that is left                   |
//! | the old API (v2)                                       | nothing: etcd tells itself names and versions with it, and what else was stored there is in no file that is migrated |
//! | logins, questions                                      | nothing: tokens end with the members that gave them                   |
//! | anything else, fields that are not known               | refused                                                               |
//!
//! Who asked counts where etcd asks for a permission when it carries a request out: for keys, for the end of a lease, for users and
//! roles. The rest it looks at before, or never. Permissions themselves are looked at by our rules: etcd 3.5 overlooks some (nested txns,
//! leases of puts in txns), and all of them between an alarm and the next start.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use crate::pb::etcdserverpb::{InternalRaftRequest, LeaseCheckpointRequest, LeaseGrantRequest};
use crate::pb::everwatchpb::auth_change::Change;
use crate::pb::everwatchpb::command::Kind;
use crate::pb::everwatchpb::lease_remaining::Remaining;
use crate::pb::everwatchpb::{AuthChange, Command, LeaseRemaining, UserAdd, UserPassword};

/// The entry that founds a cluster, as part of which all commands are carried out: its index and its term.
pub const FOUNDING: (u64, u64) = (1, 1);

/// Fields of `InternalRaftRequest` with which nothing changes that is taken over: id, range, header, questions about users and roles,
/// logins, versions and names, the test of a downgrade.
const IDLE: [u32; 14] = [1, 3, 100, 1012, 1013, 1102, 1106, 1107, 1202, 1300, 1301, 1302, 1303, 9900];

/// The one of the old API. Requests of that are also found unwrapped, and have a field with this number, too.
const OLD: u32 = 2;

/// The shortest lease of an etcd with its own choice of an election timeout, in seconds; the log has what the client wanted.
const TTL_MIN: i64 = 2;
/// Of longer ones etcd makes nothing.
const TTL_MAX: i64 = 9_000_000_000;

/// What an entry wants done, if anything; or what is wrong with it, in words that follow its number.
pub fn command(data: &Bytes) -> Result<Option<Command>, String> {
    let fields = fields(data).ok_or("cannot be read")?;
    if fields.contains(&OLD) || fields.iter().all(|field| IDLE.contains(field)) {
        return Ok(None);
    }
    let request = InternalRaftRequest::decode(data.clone()).map_err(|error| format!("cannot be read: {error}"))?;
    // What is not known is lost when a message is read.
    if request.encoded_len() != data.len() {
        return Err("holds something that only another version of etcd knows".to_owned());
    }
    let header = request.header.clone().unwrap_or_default();
    let Some((kind, asked)) = kind(request)? else { return Ok(None) };
    let (user, auth_revision) = if asked { (header.username, header.auth_revision) } else { Default::default() };
    Ok(Some(Command { id: 0, user, auth_revision, by_member: !asked, kind: Some(kind) }))
}

/// The fields of a message. `None`: it is none.
fn fields(mut message: &[u8]) -> Option<BTreeSet<u32>> {
    let mut fields = BTreeSet::new();
    while !message.is_empty() {
        let (field, wire) = decode_key(&mut message).ok()?;
        if matches!(wire, WireType::StartGroup | WireType::EndGroup) {
            return None;
        }
        skip_field(wire, field, &mut message, DecodeContext::default()).ok()?;
        fields.insert(field);
    }
    Some(fields)
}

/// What is to be done, and whether it matters who asked.
fn kind(request: InternalRaftRequest) -> Result<Option<(Kind, bool)>, String> {
    if let Some(put) = request.put {
        return Ok(Some((Kind::Put(put), true)));
    }
    if let Some(delete) = request.delete_range {
        return Ok(Some((Kind::DeleteRange(delete), true)));
    }
    if let Some(txn) = request.txn {
        return Ok(Some((Kind::Txn(txn), true)));
    }
    if let Some(compaction) = request.compaction {
        return Ok(Some((Kind::Compaction(compaction), false)));
    }
    if let Some(grant) = request.lease_grant {
        return Ok(granted(grant).map(|kind| (kind, false)));
    }
    if let Some(revoke) = request.lease_revoke {
        return Ok(Some((Kind::LeaseRevoke(revoke), true)));
    }
    if let Some(checkpoint) = request.lease_checkpoint {
        return Ok(Some((remaining(&checkpoint), false)));
    }
    if let Some(alarm) = request.alarm {
        return Ok(Some((Kind::Alarm(alarm), false)));
    }
    let change = if let Some(enable) = request.auth_enable {
        Change::Enable(enable)
    } else if let Some(disable) = request.auth_disable {
        Change::Disable(disable)
    } else if let Some(user) = request.auth_user_add {
        let hash = hash(&user.password, &user.hashed_password)?;
        Change::UserAdd(UserAdd { name: user.name, hash, options: user.options })
    } else if let Some(delete) = request.auth_user_delete {
        Change::UserDelete(delete)
    } else if let Some(user) = request.auth_user_change_password {
        Change::UserPassword(UserPassword { hash: hash(&user.password, &user.hashed_password)?, name: user.name })
    } else if let Some(grant) = request.auth_user_grant_role {
        Change::UserGrantRole(grant)
    } else if let Some(revoke) = request.auth_user_revoke_role {
        Change::UserRevokeRole(revoke)
    } else if let Some(add) = request.auth_role_add {
        Change::RoleAdd(add)
    } else if let Some(delete) = request.auth_role_delete {
        Change::RoleDelete(delete)
    } else if let Some(grant) = request.auth_role_grant_permission {
        Change::RoleGrantPermission(grant)
    } else if let Some(revoke) = request.auth_role_revoke_permission {
        Change::RoleRevokePermission(revoke)
    } else {
        return Ok(None);
    };
    Ok(Some((Kind::AuthChange(AuthChange { change: Some(change) }), true)))
}

/// etcd raises what is too short when it carries it out; an id it has given before.
fn granted(LeaseGrantRequest { ttl, id }: LeaseGrantRequest) -> Option<Kind> {
    let possible = id != 0 && ttl <= TTL_MAX;
    possible.then(|| Kind::LeaseGrant(LeaseGrantRequest { id, ttl: ttl.max(TTL_MIN) }))
}

fn remaining(checkpoint: &LeaseCheckpointRequest) -> Kind {
    let (seen, term) = FOUNDING;
    let milliseconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let leases = checkpoint.checkpoints.iter();
    let leases = leases.map(|lease| Remaining { id: lease.id, remaining_ms: milliseconds(lease.remaining_ttl) });
    Kind::LeaseRemaining(LeaseRemaining { term, leases: leases.collect(), seen })
}

/// etcd before 3.5 has members hash passwords by themselves, each with another salt: that cannot be the same on all members here.
fn hash(password: &str, hashed: &str) -> Result<Bytes, String> {
    if !password.is_empty() {
        return Err("holds a password that is not hashed, as etcd before 3.5 writes it".to_owned());
    }
    let hash = STANDARD.decode(hashed).map_err(|_| "holds a hash of a password that is none")?;
    Ok(hash.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::authpb;
    use crate::pb::etcdserverpb::{
        AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserGetRequest, CompactionRequest, LeaseCheckpoint,
        LeaseRevokeRequest, PutRequest, RequestHeader, RequestOp, TxnRequest, request_op::Request,
    };

    fn by_jane(request: InternalRaftRequest) -> Bytes {
        let header = Some(RequestHeader { id: 9, username: "jane".into(), auth_revision: 3 });
        InternalRaftRequest { id: 9, header, ..request }.encode_to_vec().into()
    }

    fn of(request: InternalRaftRequest) -> Option<Command> {
        command(&by_jane(request)).expect("it is understood")
    }

    #[test]
    fn who_asked_counts_for_what_needs_a_permission() {
        let put = PutRequest { key: "k".into(), ..Default::default() };
        let nested = TxnRequest {
            success: vec![RequestOp { request: Some(Request::RequestPut(put.clone())) }],
            ..Default::default()
        };
        let txn = TxnRequest {
            failure: vec![RequestOp { request: Some(Request::RequestTxn(nested)) }],
            ..Default::default()
        };
        let command = of(InternalRaftRequest { txn: Some(txn.clone()), ..Default::default() }).unwrap();
        assert_eq!((&*command.user, command.auth_revision, command.by_member, command.id), ("jane", 3, false, 0));
        assert_eq!(command.kind, Some(Kind::Txn(txn)));
        let revoke = Some(LeaseRevokeRequest { id: 5 });
        assert!(!of(InternalRaftRequest { lease_revoke: revoke, ..Default::default() }).unwrap().by_member);
        let compaction = Some(CompactionRequest { revision: 5, physical: true });
        let command = of(InternalRaftRequest { compaction, ..Default::default() }).unwrap();
        assert!(command.by_member && command.user.is_empty());
    }

    #[test]
    fn leases_are_what_etcd_makes_of_them() {
        let granted = |id, ttl| {
            let grant = InternalRaftRequest { lease_grant: Some(LeaseGrantRequest { id, ttl }), ..Default::default() };
            of(grant).map(|command| command.kind.unwrap())
        };
        assert_eq!(granted(5, 60), Some(Kind::LeaseGrant(LeaseGrantRequest { id: 5, ttl: 60 })));
        assert_eq!(granted(5, -1), Some(Kind::LeaseGrant(LeaseGrantRequest { id: 5, ttl: 2 })));
        assert_eq!((granted(0, 60), granted(5, TTL_MAX + 1)), (None, None));
        let checkpoints = [(5, 7), (6, 0), (7, -1), (8, i64::MAX)];
        let checkpoints = checkpoints.map(|(id, remaining_ttl)| LeaseCheckpoint { id, remaining_ttl }).to_vec();
        let request = LeaseCheckpointRequest { checkpoints };
        let command = of(InternalRaftRequest { lease_checkpoint: Some(request), ..Default::default() }).unwrap();
        let Some(Kind::LeaseRemaining(LeaseRemaining { leases, term: 1, seen: 1 })) = command.kind else { panic!() };
        let rests: Vec<_> = leases.iter().map(|lease| (lease.id, lease.remaining_ms)).collect();
        assert_eq!(rests, [(5, 7000), (6, 0), (7, 0), (8, u64::MAX)]);
    }

    #[test]
    fn passwords_are_hashes() {
        let added = |password: &str, hashed_password: &str| {
            let (password, hashed_password) = (password.to_owned(), hashed_password.to_owned());
            let options = Some(authpb::UserAddOptions { no_password: true });
            let user = AuthUserAddRequest { name: "n".into(), password, options, hashed_password };
            command(&by_jane(InternalRaftRequest { auth_user_add: Some(user), ..Default::default() }))
        };
        let Some(Kind::AuthChange(AuthChange { change: Some(Change::UserAdd(user)) })) =
            added("", "JDJhJA==").unwrap().unwrap().kind
        else {
            panic!()
        };
        assert_eq!((&*user.name, &user.hash[..], user.options.unwrap().no_password), ("n", &b"$2a$"[..], true));
        assert!(added("secret", "").unwrap_err().contains("not hashed"));
        assert!(added("", "*").unwrap_err().contains("none"));
        let changed = AuthUserChangePasswordRequest {
            name: "n".into(),
            hashed_password: "JDJhJA==".into(),
            ..Default::default()
        };
        let command =
            of(InternalRaftRequest { auth_user_change_password: Some(changed), ..Default::default() }).unwrap();
        let changed = Change::UserPassword(UserPassword { name: "n".into(), hash: Bytes::from_static(b"$2a$") });
        assert_eq!(command.kind, Some(Kind::AuthChange(AuthChange { change: Some(changed) })));
    }

    #[test]
    fn every_change_is_one() {
        // Fields of requests, each with an empty message.
        for field in (4..=11).chain([1000, 1011, 1100, 1101, 1103, 1104, 1105, 1200, 1201, 1203, 1204]) {
            let mut request = Vec::new();
            prost::encoding::encode_key(field, WireType::LengthDelimited, &mut request);
            request.push(0);
            // A lease without an id is none.
            assert_eq!(command(&request.into()).unwrap().is_some(), field != 8, "{field}");
        }
    }

    #[test]
    fn questions_and_the_old_api_change_nothing_and_what_is_not_known_is_refused() {
        let question = Some(AuthUserGetRequest { name: "n".into() });
        assert_eq!(of(InternalRaftRequest { auth_user_get: question, ..Default::default() }), None);
        for nothing in [&b""[..], b"\x08\x01", b"\x08\x01\x12\x03PUT\x1a\x01k\x22\x01v"] {
            assert_eq!(command(&Bytes::from_static(nothing)), Ok(None));
        }
        // A field of the request; one of a put.
        for unknown in [&b"\xe2\x5d\x00"[..], b"\x22\x05\x0a\x01k\x78\x01"] {
            assert!(command(&Bytes::from_static(unknown)).unwrap_err().contains("another version"));
        }
        assert!(
            command(&Bytes::from_static(b"\x22\x05\x0a")).is_err() && command(&Bytes::from_static(b"\x0b")).is_err()
        );
    }
}
