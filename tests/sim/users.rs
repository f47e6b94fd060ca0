//! Users and roles: what clients know of them, how they come by tokens, and how all of it is put into the words of the judge.
//!
//! A few clients manage: first they see to it that users count, then they change who may do what, again and again. The others each
//! are a user, log in with a password that somebody has set, and go on with the token until it is refused.

use std::collections::BTreeMap;

use everwatch::auth::{Error, Store};
use everwatch::pb::authpb::{self, permission::Type};
use everwatch::pb::etcdserverpb as pb;
use everwatch::pb::everwatchpb::auth_change::Change as Wire;
use everwatch::pb::everwatchpb::{AuthChange, UserAdd, UserPassword};
use everwatch::state::command::{Command, Kind, decode_proposal};

use crate::checks::rights::{Access, Asked, Asker, Change, Logged, Permission, Standing, texts};
use crate::checks::{Compare, Outcome, Relation, Reply, Request, Target, TxnOp};
use crate::clients::{Knowledge, Mix};
use crate::dice::Dice;
use crate::member::By;

/// The one who manages.
const ROOT: &str = "root";
const USERS: u64 = 4;
const ROLES: u64 = 4;
/// Steps until users count; the last is all that is missing when they once did.
const SETUP: usize = 3;
/// Permissions that are remembered, to be taken back.
const GRANTED_MAX: usize = 12;

/// What clients have learned of users, all of them together.
#[derive(Default)]
pub struct Gossip {
    /// How far it is that users count.
    steps: usize,
    /// All passwords that a user may have had, the latest last.
    passwords: BTreeMap<String, Vec<String>>,
    passwords_made: u64,
    granted: Vec<(String, Vec<u8>, Vec<u8>)>,
    /// By client.
    tokens: BTreeMap<u32, String>,
}

impl Gossip {
    /// What a client asks for next, and as whom.
    pub fn request(
        &mut self,
        dice: &mut Dice,
        client: u32,
        managers: u32,
        knowledge: &mut Knowledge,
        mix: &Mix,
    ) -> (By, Request) {
        let manages = client < managers;
        let name = if manages { ROOT.to_owned() } else { format!("u{}", u64::from(client - managers) % USERS) };
        if self.steps < SETUP && client == 0 && !dice.chance(300) {
            return (By::Nobody, Request::Users(self.setup()));
        }
        // Everybody may do that now.
        if self.steps < SETUP && manages && dice.chance(700) {
            return (By::Nobody, Request::Users(self.change(dice, mix.keys)));
        }
        match self.tokens.get(&client).cloned() {
            Some(token) if manages && dice.chance(700) => {
                (By::Token(token), Request::Users(self.change(dice, mix.keys)))
            }
            Some(token) => (By::Token(token), knowledge.request(dice, client, mix)),
            None if self.steps < SETUP || dice.chance(30) => (By::Nobody, knowledge.request(dice, client, mix)),
            None => {
                let known = self.passwords.get(&name).map_or(&[][..], Vec::as_slice);
                let back = dice.skewed(1, 3) as usize;
                let known = known.iter().rev().take(back).next_back().filter(|_| dice.chance(950));
                let password = known.cloned().unwrap_or_else(|| "guess".into());
                (By::Nobody, Request::Login { user: name, password })
            }
        }
    }

    /// As whom a watch client opens a stream: as one of the others, or as nobody.
    pub fn watches_as(&self, dice: &mut Dice) -> By {
        let known: Vec<&String> = self.tokens.values().collect();
        match known.len() as u64 {
            0 => By::Nobody,
            _ if dice.chance(50) => By::Nobody,
            n => By::Token(known[dice.below(n) as usize].clone()),
        }
    }

    /// What such a client watches: often just what somebody was allowed to read.
    pub fn watches(&self, dice: &mut Dice) -> Option<(Vec<u8>, Vec<u8>)> {
        let n = self.granted.len() as u64;
        let (_, key, end) = self.granted.get(dice.below(n.max(1)) as usize).filter(|_| dice.chance(600))?;
        Some((key.clone(), end.clone()))
    }

    /// The next step until users count.
    fn setup(&mut self) -> Change {
        let root = || ROOT.to_owned();
        match self.steps {
            0 => Change::AddUser { name: root(), password: "first".into() },
            1 => Change::GrantRole { user: root(), role: root() },
            _ => Change::Enable,
        }
    }

    fn change(&mut self, dice: &mut Dice, keys: u64) -> Change {
        let user = if dice.chance(30) { ROOT.into() } else { format!("u{}", dice.below(USERS)) };
        let role = if dice.chance(30) { ROOT.into() } else { format!("r{}", dice.below(ROLES)) };
        match dice.below(222) {
            0..35 => Change::AddUser { name: user, password: self.password() },
            35..45 => Change::DeleteUser { name: user },
            45..55 => Change::Password { name: user, password: self.password() },
            55..95 => Change::GrantRole { user, role },
            95..110 => Change::RevokeRole { user, role },
            110..135 => Change::AddRole { name: role },
            135..145 => Change::DeleteRole { name: role },
            145..190 => {
                let (key, end) = Knowledge::range(dice, keys);
                let kind = dice.pick(&[Access::Read, Access::Write, Access::Both, Access::Both]);
                Change::Grant { role, kind, key, end }
            }
            190..218 => match self.granted.len() as u64 {
                0 => Change::Revoke { role, key: b"k00".to_vec(), end: Vec::new() },
                n => {
                    let (role, key, end) = self.granted[dice.below(n) as usize].clone();
                    Change::Revoke { role, key, end }
                }
            },
            _ => Change::Disable,
        }
    }

    fn password(&mut self) -> String {
        self.passwords_made += 1;
        format!("pw{}", self.passwords_made)
    }

    /// What came of a request.
    pub fn learn(&mut self, dice: &mut Dice, client: u32, request: &Request, outcome: &Outcome) {
        let done = matches!(outcome, Outcome::Ok { .. });
        let possible = !matches!(outcome, Outcome::Refused(_));
        let refused = |text: &str| matches!(outcome, Outcome::Refused(told) if told == text);
        match request {
            Request::Users(Change::AddUser { name, password } | Change::Password { name, password }) if possible => {
                self.passwords.entry(name.clone()).or_default().push(password.clone());
            }
            Request::Users(Change::Grant { role, key, end, .. }) if possible => {
                self.granted.insert(0, (role.clone(), key.clone(), end.clone()));
                self.granted.truncate(GRANTED_MAX);
            }
            Request::Users(Change::Disable) if done => self.steps = SETUP - 1,
            Request::Users(Change::Enable) if refused(texts::NO_ROOT) || refused(texts::NO_ROOT_ROLE) => {
                return self.steps = 0;
            }
            Request::Login { .. } if refused(texts::OFF) => self.steps = SETUP - 1,
            Request::Login { .. } => {
                if let Outcome::Ok { reply: Reply::Login { token }, .. } = outcome {
                    self.tokens.insert(client, token.clone());
                }
            }
            _ => {}
        }
        if self.steps < SETUP && *request == Request::Users(self.setup()) && *outcome != Outcome::Unknown {
            self.steps += 1;
        }
        // Some try again with what they have.
        if refused(texts::TOKEN) || refused(texts::OUTDATED) && dice.chance(500) {
            self.tokens.remove(&client);
        }
    }
}

/// A change as it is proposed. Passwords are not hashed here, which takes long and is decided nowhere.
pub fn wire(change: &Change) -> Kind {
    let bytes = |text: &String| text.clone().into_bytes().into();
    let change = match change.clone() {
        Change::Enable => Wire::Enable(pb::AuthEnableRequest {}),
        Change::Disable => Wire::Disable(pb::AuthDisableRequest {}),
        Change::AddUser { name, password } => Wire::UserAdd(UserAdd { name, hash: bytes(&password), options: None }),
        Change::DeleteUser { name } => Wire::UserDelete(pb::AuthUserDeleteRequest { name }),
        Change::Password { name, password } => Wire::UserPassword(UserPassword { name, hash: bytes(&password) }),
        Change::GrantRole { user, role } => Wire::UserGrantRole(pb::AuthUserGrantRoleRequest { user, role }),
        Change::RevokeRole { user, role } => Wire::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: user, role }),
        Change::AddRole { name } => Wire::RoleAdd(pb::AuthRoleAddRequest { name }),
        Change::DeleteRole { name } => Wire::RoleDelete(pb::AuthRoleDeleteRequest { role: name }),
        Change::Grant { role, kind, key, end } => {
            let perm_type = match kind {
                Access::Read => Type::Read,
                Access::Write => Type::Write,
                Access::Both => Type::Readwrite,
            };
            let perm = authpb::Permission { perm_type: perm_type as i32, key: key.into(), range_end: end.into() };
            Wire::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role, perm: Some(perm) })
        }
        Change::Revoke { role, key, end } => Wire::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
            role,
            key: key.into(),
            range_end: end.into(),
        }),
    };
    Kind::AuthChange(AuthChange { change: Some(change) })
}

/// What a client is told.
pub fn text(error: Error) -> &'static str {
    match error {
        Error::NoRootUser => texts::NO_ROOT,
        Error::NoRootRole => texts::NO_ROOT_ROLE,
        Error::UserEmpty => texts::NOBODY,
        Error::UserExists => texts::USER_EXISTS,
        Error::UserNotFound => texts::NO_USER,
        Error::RoleExists => texts::ROLE_EXISTS,
        Error::RoleNotFound => texts::NO_ROLE,
        Error::RoleNotGranted => texts::NOT_GRANTED,
        Error::PermissionNotGranted => texts::NOT_ALLOWED,
        Error::InvalidManagement => texts::NOT_SO,
        Error::PermissionDenied => texts::DENIED,
        Error::OldRevision => texts::OUTDATED,
        Error::NotEnabled => texts::OFF,
        Error::WrongPassword => texts::PASSWORD,
        Error::RoleEmpty | Error::PermissionMissing | Error::NoPassword | Error::VerifyOnly => {
            panic!("no client asked for that")
        }
    }
}

/// The users and roles of a member.
pub fn standing(auth: &Store) -> Standing {
    let users = auth.users().map(|name| {
        let roles = auth.roles_of(name).expect("it is one of them");
        (name.clone(), roles.into_iter().collect())
    });
    let permission = |allowed: authpb::Permission| {
        let kind = Type::try_from(allowed.perm_type).expect("no other is granted");
        let (read, write) = (kind != Type::Write, kind != Type::Read);
        Permission { key: allowed.key.into(), end: allowed.range_end.into(), read, write }
    };
    let roles = auth.roles().map(|name| {
        let mut allowed = auth.permissions_of(name).expect("it is one of them");
        // That it allows everything need not be said.
        allowed.retain(|_| name != ROOT);
        let mut allowed: Vec<Permission> = allowed.into_iter().map(permission).collect();
        allowed.sort();
        (name.clone(), allowed)
    });
    Standing { enabled: auth.is_enabled(), revision: auth.revision(), users: users.collect(), roles: roles.collect() }
}

/// The commands of an entry.
pub fn read_entry(index: u64, term: u64, payload: bytes::Bytes) -> Vec<Logged> {
    let proposal = decode_proposal(payload).expect("it was carried out");
    let (member, boot) = (proposal.proposer, proposal.boot);
    let logged = |command: &Command| {
        let id = (member, boot, command.id);
        Logged {
            index,
            term,
            id,
            by: asker(command.asker()),
            what: asked(command.kind.as_ref().expect("it was carried out")),
        }
    };
    proposal.commands.iter().map(logged).collect()
}

pub fn asker(asker: everwatch::auth::Asker<'_>) -> Asker {
    match asker {
        everwatch::auth::Asker::Member => Asker::Member,
        everwatch::auth::Asker::Nobody => Asker::Nobody,
        everwatch::auth::Asker::User { name, revision } => Asker::User { name: name.into(), revision },
    }
}

fn asked(kind: &Kind) -> Asked {
    Asked::Request(match kind {
        Kind::Put(put) => {
            Request::Put { key: put.key.to_vec(), value: put.value.to_vec(), lease: put.lease, prev_kv: put.prev_kv }
        }
        Kind::DeleteRange(delete) => {
            Request::Delete { key: delete.key.to_vec(), end: delete.range_end.to_vec(), prev_kv: delete.prev_kv }
        }
        Kind::Txn(txn) => {
            let (compares, then, otherwise) = read_txn(txn);
            Request::Txn { compares, then, otherwise }
        }
        Kind::Compaction(compaction) => Request::Compact { revision: compaction.revision },
        Kind::AuthChange(change) => Request::Users(read_change(change)),
        Kind::LeaseGrant(grant) => Request::Grant { id: grant.id, ttl_s: grant.ttl },
        Kind::LeaseRevoke(revoke) => Request::Revoke { id: revoke.id },
        Kind::LeaseExpire(expire) => {
            return Asked::Expire { ids: expire.ids.clone(), term: expire.term, seen: expire.seen };
        }
        Kind::Authenticate(login) => {
            return Asked::Token { user: login.name.clone(), compared_at: login.auth_revision };
        }
        _ => return Asked::Own,
    })
}

type Txn = (Vec<Compare>, Vec<TxnOp>, Vec<TxnOp>);

fn read_txn(txn: &pb::TxnRequest) -> Txn {
    let ops = |ops: &[pb::RequestOp]| ops.iter().filter_map(read_op).collect();
    (txn.compare.iter().map(read_compare).collect(), ops(&txn.success), ops(&txn.failure))
}

fn read_compare(compare: &pb::Compare) -> Compare {
    use pb::compare::{CompareResult, TargetUnion};
    let target = match compare.target_union.clone().expect("clients say with what") {
        TargetUnion::ModRevision(n) => Target::ModRevision(n),
        TargetUnion::CreateRevision(n) => Target::CreateRevision(n),
        TargetUnion::Version(n) => Target::Version(n),
        TargetUnion::Value(value) => Target::Value(value.into()),
        TargetUnion::Lease(_) => panic!("no client compares that"),
    };
    let is = match CompareResult::try_from(compare.result).expect("a relation") {
        CompareResult::Equal => Relation::Equal,
        CompareResult::NotEqual => Relation::NotEqual,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
    };
    Compare { key: compare.key.to_vec(), target, is }
}

fn read_op(op: &pb::RequestOp) -> Option<TxnOp> {
    use pb::request_op::Request as Op;
    Some(match op.request.as_ref()? {
        Op::RequestRange(range) => TxnOp::Range {
            key: range.key.to_vec(),
            end: range.range_end.to_vec(),
            limit: range.limit,
            revision: range.revision,
        },
        Op::RequestPut(put) => {
            TxnOp::Put { key: put.key.to_vec(), value: put.value.to_vec(), lease: put.lease, prev_kv: put.prev_kv }
        }
        Op::RequestDeleteRange(delete) => {
            TxnOp::Delete { key: delete.key.to_vec(), end: delete.range_end.to_vec(), prev_kv: delete.prev_kv }
        }
        Op::RequestTxn(txn) => {
            let (compares, then, otherwise) = read_txn(txn);
            TxnOp::Txn { compares, then, otherwise }
        }
    })
}

fn read_change(change: &AuthChange) -> Change {
    let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("it was a text");
    match change.change.clone().expect("it was carried out") {
        Wire::Enable(_) => Change::Enable,
        Wire::Disable(_) => Change::Disable,
        Wire::UserAdd(UserAdd { name, hash, .. }) => Change::AddUser { name, password: text(&hash) },
        Wire::UserDelete(request) => Change::DeleteUser { name: request.name },
        Wire::UserPassword(UserPassword { name, hash }) => Change::Password { name, password: text(&hash) },
        Wire::UserGrantRole(request) => Change::GrantRole { user: request.user, role: request.role },
        Wire::UserRevokeRole(request) => Change::RevokeRole { user: request.name, role: request.role },
        Wire::RoleAdd(request) => Change::AddRole { name: request.name },
        Wire::RoleDelete(request) => Change::DeleteRole { name: request.role },
        Wire::RoleGrantPermission(request) => {
            let perm = request.perm.expect("clients say what they grant");
            let kind = match Type::try_from(perm.perm_type).expect("a kind of permission") {
                Type::Read => Access::Read,
                Type::Write => Access::Write,
                Type::Readwrite => Access::Both,
            };
            Change::Grant { role: request.name, kind, key: perm.key.into(), end: perm.range_end.into() }
        }
        Wire::RoleRevokePermission(request) => {
            Change::Revoke { role: request.role, key: request.key.into(), end: request.range_end.into() }
        }
    }
}
