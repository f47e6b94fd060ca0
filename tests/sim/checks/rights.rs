//! Who was allowed what, held against the log.
//!
//! The log says in which order users, roles and requests came. A model of users and roles goes through it and says of each
//! request whether it had to be let through; then
//!   * a request that was let through must have been allowed at its place, and one that was turned away must not: at its own
//!     place in the log, or, for reads, where the member stood that answered;
//!   * every key that an entry changed was changed by a command of it that was allowed;
//!   * nobody is taken for somebody else: a token is worth nothing once its user is gone or has another password, and is got with
//!     the password that counts;
//!   * a request that is not a local read is decided no earlier than what had been answered before it was made;
//!   * in the end members have the users and roles that the log comes to.
//!
//! Whoever records keeps leases out: what a request needs does not depend on what is stored then.

use std::collections::{BTreeMap, BTreeSet};

use super::model::within;
use super::*;

const ROOT: &str = "root";

/// What the simulator alone can see of it.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// Every command that was carried out, in order.
    pub log: Vec<Logged>,
    /// What entries did to keys.
    pub effects: BTreeMap<u64, Vec<Event>>,
    /// How requests were decided: the request's index, and for whom.
    pub decided: Vec<(usize, Decided)>,
    /// Users and roles as members have them at the end.
    pub end: Option<Standing>,
}

/// A command as the log has it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The place of its entry.
    pub index: u64,
    /// Who proposed it, in which life, and its number there.
    pub id: Id,
    /// On whose behalf.
    pub by: Asker,
    /// What it is.
    pub what: Asked,
}

/// What a command asks for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A request of a client.
    Request(Request),
    /// A token for a user whose password was compared at this auth revision.
    Token { user: String, compared_at: u64 },
    /// What members say among themselves.
    Own,
}

/// On whose behalf something is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asker {
    /// A member's own.
    Member,
    /// Nobody has said who he is.
    #[default]
    Nobody,
    /// A user, recognised at this auth revision.
    User { name: String, revision: u64 },
}

/// Where a request was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Somebody came with this token, and was taken for him by a member that had carried out so much.
    Recognised { token: String, by: Asker, applied: u64 },
    /// It was proposed.
    Proposed { id: Id },
    /// A member that had carried out so much looked whether he may.
    Looked { by: Asker, applied: u64 },
    /// It looked again when it had read.
    LookedAgain { by: Asker, applied: u64 },
}

/// A change of users and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// They count.
    Enable,
    /// They do not.
    Disable,
    /// A new user.
    AddUser { name: String, password: String },
    /// He goes.
    DeleteUser { name: String },
    /// His password is another.
    Password { name: String, password: String },
    /// He gets a role.
    GrantRole { user: String, role: String },
    /// He loses it.
    RevokeRole { user: String, role: String },
    /// A new role.
    AddRole { name: String },
    /// It goes.
    DeleteRole { name: String },
    /// It allows something.
    Grant { role: String, kind: Access, key: Vec<u8>, end: Vec<u8> },
    /// Not any more.
    Revoke { role: String, key: Vec<u8>, end: Vec<u8> },
}

/// What is allowed with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read them.
    Read,
    /// To write them.
    Write,
    /// Both.
    Both,
}

/// All users with their roles, all roles with what they allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether they count.
    pub enabled: bool,
    /// The auth revision.
    pub revision: u64,
    /// By name.
    pub users: BTreeMap<String, BTreeSet<String>>,
    /// By name.
    pub roles: BTreeMap<String, Vec<Permission>>,
}

/// Something that a role allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// First key.
    pub key: Vec<u8>,
    /// End of the range, as on the wire.
    pub end: Vec<u8>,
    /// They may be read.
    pub read: bool,
    /// They may be written.
    pub write: bool,
}

/// How often the rules had something to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were let through while users counted.
    pub allowed: usize,
    /// Requests that were turned away.
    pub denied: usize,
    /// Of them those of users who were no longer known as at their recognition.
    pub outdated: usize,
    /// Changes of users and roles.
    pub changes: usize,
    /// Tokens given out.
    pub logins: usize,
}

impl Counts {
    /// Together.
    pub fn add(&mut self, other: &Counts) {
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.outdated += other.outdated;
        self.changes += other.changes;
        self.logins += other.logins;
    }
}

/// The texts of the API.
pub mod texts {
    /// Nobody has said who he is; or a new user has no name.
    pub const NOBODY: &str = "etcdserver: user name is empty";
    /// Not with his roles.
    pub const DENIED: &str = "etcdserver: permission denied";
    /// Users or roles have changed since he was recognised.
    pub const OUTDATED: &str = "etcdserver: revision of auth store is old";
    /// Nobody knows that token.
    pub const TOKEN: &str = "etcdserver: invalid auth token";
    /// No such user, or not his password.
    pub const PASSWORD: &str = "etcdserver: authentication failed, invalid user ID or password";
    /// Nobody logs in while users do not count.
    pub const OFF: &str = "etcdserver: authentication is not enabled";
    /// The name is taken.
    pub const USER_EXISTS: &str = "etcdserver: user name already exists";
    /// There is none.
    pub const NO_USER: &str = "etcdserver: user name not found";
    /// The name is taken.
    pub const ROLE_EXISTS: &str = "etcdserver: role name already exists";
    /// There is none.
    pub const NO_ROLE: &str = "etcdserver: role name not found";
    /// He does not have it.
    pub const NOT_GRANTED: &str = "etcdserver: role is not granted to the user";
    /// It does not allow that.
    pub const NOT_ALLOWED: &str = "etcdserver: permission is not granted to the role";
    /// Users cannot count without one who manages them.
    pub const NO_ROOT: &str = "etcdserver: root user does not exist";
    /// And who has the role for it.
    pub const NO_ROOT_ROLE: &str = "etcdserver: root user does not have root role";
    /// Nothing that may be while users count, or a permission on no key.
    pub const NOT_SO: &str = "etcdserver: invalid auth management";
    /// What a request is turned away with for who asks.
    pub const TURNED_AWAY: [&str; 3] = [NOBODY, DENIED, OUTDATED];
}

/// Who proposed a command, in which life, and its number there.
pub type Id = (u64, u64, u64);
/// Whether somebody may, or the text that he is told.
type Verdict = Result<(), &'static str>;

/// Users and roles as far as the log has been read.
#[derive(Clone, Debug, Default)]
struct Users {
    standing: Standing,
    passwords: BTreeMap<String, String>,
    /// Where the tokens of a user, or all of them, became void last.
    void: BTreeMap<String, u64>,
    all_void: u64,
}

/// Holds what was decided against the log.
pub fn check(history: &History, rights: &Rights) -> Result<Counts, Violation> {
    let mut counts = Counts::default();
    let mut users = Users::default();
    users.standing.revision = 1;
    // What they were from an index on.
    let mut past: Vec<(u64, Users)> = vec![(0, users.clone())];
    let mut verdicts: BTreeMap<Id, (u64, Verdict)> = BTreeMap::new();
    let mut tokens: BTreeMap<u64, Vec<(String, Id)>> = BTreeMap::new();
    let logins = logins(history, rights);
    let mut entry: Vec<&Request> = Vec::new();
    for (at, logged) in rights.log.iter().enumerate() {
        let mut verdict = users.allows_command(&logged.by, &logged.what);
        match &logged.what {
            Asked::Request(Request::Users(change)) => {
                verdict = verdict.and_then(|()| users.change(change, logged.index));
                counts.changes += usize::from(verdict.is_ok());
            }
            Asked::Request(request) if verdict.is_ok() => entry.push(request),
            Asked::Token { user, .. } if verdict.is_ok() => {
                if let Some((op, password)) = logins.get(&logged.id)
                    && users.passwords.get(user) != Some(password)
                {
                    return Err(broken("rights", format!("{user} has logged in with {password:?}"), *op));
                }
                tokens.entry(logged.index).or_default().push((user.clone(), logged.id));
            }
            _ => {}
        }
        // The first answers; it is not proposed twice.
        verdicts.entry(logged.id).or_insert((logged.index, verdict));
        if rights.log.get(at + 1).is_none_or(|next| next.index != logged.index) {
            explain(logged.index, &entry, rights)?;
            entry.clear();
            if past.last().is_some_and(|(_, before)| before.standing.revision != users.standing.revision)
                || past.last().is_some_and(|(_, before)| before.standing.enabled != users.standing.enabled)
            {
                past.push((logged.index, users.clone()));
            }
        }
    }
    let at = |applied: u64| &past[past.partition_point(|(from, _)| *from <= applied) - 1].1;

    let mut places: BTreeMap<usize, u64> = BTreeMap::new();
    for (op, decided) in &rights.decided {
        let Op { request, outcome, .. } = &history.ops[*op];
        let refused = |text: &&str| matches!(outcome, Outcome::Refused(told) if told == text);
        let held = |index: u64, verdict: Verdict| match (verdict, outcome) {
            (Err(text), Outcome::Ok { .. }) => {
                Err(broken("rights", format!("allowed at {index}, which has to be refused: {text}"), *op))
            }
            (Err(text), Outcome::Refused(told)) if told != text => {
                Err(broken("rights", format!("refused at {index}: {told}, where it should be: {text}"), *op))
            }
            (Ok(()), Outcome::Refused(told)) if texts::TURNED_AWAY.iter().any(|text| told == text) => {
                Err(broken("rights", format!("refused at {index}, where it is allowed: {told}"), *op))
            }
            _ => Ok(()),
        };
        match decided {
            Decided::Recognised { token, by, applied } => {
                let Asker::User { name, revision } = by else { continue };
                let made = token.rsplit('.').next().and_then(|index| index.parse().ok()).unwrap_or(0);
                let users = at(*applied);
                if !tokens.get(&made).is_some_and(|made| made.iter().any(|(user, _)| user == name)) {
                    return Err(broken("rights", format!("{token} is no token of {name}"), *op));
                }
                if made <= users.all_void.max(users.void.get(name).copied().unwrap_or(0)) {
                    return Err(broken(
                        "rights",
                        format!("{name} comes at {applied} with {token}, which is void"),
                        *op,
                    ));
                }
                if *revision > users.standing.revision {
                    return Err(broken("rights", format!("{name} is recognised at {applied} as of {revision}"), *op));
                }
            }
            Decided::Proposed { id } => {
                let Some((index, verdict)) = verdicts.get(id) else {
                    if matches!(outcome, Outcome::Ok { .. }) {
                        return Err(broken("rights", "answered, and not in the log".into(), *op));
                    }
                    continue;
                };
                places.insert(*op, *index);
                held(*index, *verdict)?;
                counts.logins += usize::from(matches!(request, Request::Login { .. }) && verdict.is_ok());
                count(&mut counts, at(*index), verdict);
            }
            Decided::Looked { by, applied } => {
                let users = at(*applied);
                let verdict = users.allows(by, request);
                // What it finds out later is another question.
                if !(verdict.is_ok() && refused(&texts::OUTDATED)) {
                    held(*applied, verdict)?;
                }
                places.insert(*op, *applied);
                count(&mut counts, users, &verdict);
            }
            Decided::LookedAgain { by, applied } => {
                let users = at(*applied);
                let outdated = matches!(by, Asker::User { revision, .. }
                    if users.standing.enabled && *revision != users.standing.revision);
                held(*applied, if outdated { Err(texts::OUTDATED) } else { Ok(()) })?;
            }
        }
    }
    check_order(history, &places)?;
    // What else this role allows is never shown.
    users.standing.roles.entry(ROOT.into()).and_modify(Vec::clear);
    match &rights.end {
        Some(end) if *end != users.standing => {
            Err(general("rights", format!("members have {end:?}, the log comes to {:?}", users.standing)))
        }
        _ => Ok(counts),
    }
}

fn count(counts: &mut Counts, users: &Users, verdict: &Verdict) {
    counts.allowed += usize::from(users.standing.enabled && verdict.is_ok());
    counts.denied += usize::from(verdict.is_err());
    counts.outdated += usize::from(*verdict == Err(texts::OUTDATED));
}

/// What logins were proposed with: the request's index and the password.
fn logins<'a>(history: &'a History, rights: &Rights) -> BTreeMap<Id, (usize, &'a String)> {
    let login = |(op, decided): &(usize, Decided)| match (decided, &history.ops[*op].request) {
        (Decided::Proposed { id }, Request::Login { password, .. }) => Some((*id, (*op, password))),
        _ => None,
    };
    rights.decided.iter().filter_map(login).collect()
}

/// Every key that an entry changed was changed by one of these.
fn explain(index: u64, allowed: &[&Request], rights: &Rights) -> Result<(), Violation> {
    for event in rights.effects.get(&index).into_iter().flatten() {
        let puts = |key: &Vec<u8>, value: &Vec<u8>| {
            event.kind == EventKind::Put && *key == event.kv.key && *value == event.kv.value
        };
        let deletes = |key: &Vec<u8>, end: &Vec<u8>| event.kind == EventKind::Delete && within(&event.kv.key, key, end);
        let does = |op: &TxnOp| match op {
            TxnOp::Put { key, value, .. } => puts(key, value),
            TxnOp::Delete { key, end, .. } => deletes(key, end),
            _ => false,
        };
        let by = |request: &&&Request| match request {
            Request::Put { key, value, .. } => puts(key, value),
            Request::Delete { key, end, .. } => deletes(key, end),
            Request::Txn { then, otherwise, .. } => then.iter().chain(otherwise).flat_map(TxnOp::all).any(does),
            _ => false,
        };
        if !allowed.iter().any(|request| by(&request)) {
            let what = format!("nobody was allowed at {index} what was done: {event:?}");
            return Err(general("rights", what));
        }
    }
    Ok(())
}

/// Whatever is asked for after something was answered is decided after it.
fn check_order(history: &History, places: &BTreeMap<usize, u64>) -> Result<(), Violation> {
    let returned = |(op, place): (&usize, &u64)| history.ops[*op].ret.map(|ret| (ret, *place));
    let mut returns: Vec<(u64, u64)> = places.iter().filter_map(returned).collect();
    returns.sort_unstable();
    let mut highest = 0;
    for (_, place) in &mut returns {
        highest = highest.max(*place);
        *place = highest;
    }
    for (op, place) in places {
        let Op { call, outcome, request, .. } = &history.ops[*op];
        let local = matches!(request, Request::Range { serializable: true, .. });
        let before = returns.partition_point(|(ret, _)| ret < call);
        let floor = before.checked_sub(1).map_or(0, |at| returns[at].1);
        if !local && *outcome != Outcome::Unknown && *place < floor {
            let what = format!("decided at {place}, though something at {floor} had been answered before");
            return Err(broken("rights", what, *op));
        }
    }
    Ok(())
}

impl Users {
    fn allows_command(&self, by: &Asker, what: &Asked) -> Verdict {
        match what {
            Asked::Request(request) => self.allows(by, request),
            Asked::Token { .. } if !self.standing.enabled => Err(texts::OFF),
            Asked::Token { user, .. } if !self.standing.users.contains_key(user) => Err(texts::PASSWORD),
            Asked::Token { compared_at, .. } if *compared_at != self.standing.revision => Err(texts::OUTDATED),
            Asked::Token { .. } | Asked::Own => Ok(()),
        }
    }

    /// Whether a request is to be let through.
    fn allows(&self, by: &Asker, request: &Request) -> Verdict {
        if !self.standing.enabled || *by == Asker::Member || matches!(request, Request::Login { .. }) {
            return Ok(());
        }
        let Asker::User { name, revision } = by else { return Err(texts::NOBODY) };
        let manages = matches!(request, Request::Users(_) | Request::Compact { .. });
        if !manages && *revision < self.standing.revision {
            return Err(texts::OUTDATED);
        }
        let roles = self.standing.users.get(name).ok_or(texts::DENIED)?;
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        match request {
            _ if roles.contains(ROOT) => return Ok(()),
            Request::Range { key, end, .. } => reads.push((&key[..], &end[..])),
            Request::Put { key, prev_kv, .. } => {
                writes.push((&key[..], &[][..]));
                reads.extend(prev_kv.then_some((&key[..], &[][..])));
            }
            Request::Delete { key, end, prev_kv } => {
                writes.push((&key[..], &end[..]));
                reads.extend(prev_kv.then_some((&key[..], &end[..])));
            }
            Request::Txn { compares, then, otherwise } => txn_needs(compares, then, otherwise, &mut reads, &mut writes),
            _ if manages => return Err(texts::DENIED),
            other => unreachable!("the recorder keeps leases out: {other:?}"),
        }
        let covers = |range: &(&[u8], &[u8]), may: fn(&Permission) -> bool| {
            let held = roles.iter().filter_map(|role| self.standing.roles.get(role)).flatten();
            covered(*range, &held.filter(|permission| may(permission)).collect::<Vec<_>>())
        };
        let allowed = reads.iter().all(|range| covers(range, |permission| permission.read))
            && writes.iter().all(|range| covers(range, |permission| permission.write));
        if allowed { Ok(()) } else { Err(texts::DENIED) }
    }

    /// A change that is allowed is made, or refused for what it is.
    fn change(&mut self, change: &Change, index: u64) -> Verdict {
        let Users { standing, passwords, void, all_void } = self;
        let Standing { enabled, revision, users, roles } = standing;
        let mut changed = true;
        match change {
            Change::Enable if *enabled => changed = false,
            Change::Enable => {
                let root = users.get(ROOT).ok_or(texts::NO_ROOT)?;
                *enabled = root.contains(ROOT).then_some(true).ok_or(texts::NO_ROOT_ROLE)?;
                changed = false;
            }
            Change::Disable => {
                changed = std::mem::replace(enabled, false);
                *all_void = index;
            }
            Change::AddUser { name, .. } if users.contains_key(name) => return Err(texts::USER_EXISTS),
            Change::AddUser { name, password } => {
                users.insert(name.clone(), BTreeSet::new());
                passwords.insert(name.clone(), password.clone());
            }
            Change::DeleteUser { name } if *enabled && name == ROOT => return Err(texts::NOT_SO),
            Change::DeleteUser { name } => {
                users.remove(name).ok_or(texts::NO_USER)?;
                passwords.remove(name);
                void.insert(name.clone(), index);
            }
            Change::Password { name, password } => {
                *passwords.get_mut(name).ok_or(texts::NO_USER)? = password.clone();
                void.insert(name.clone(), index);
            }
            Change::GrantRole { user, role } => {
                let held = users.get_mut(user).ok_or(texts::NO_USER)?;
                if role != ROOT && !roles.contains_key(role) {
                    return Err(texts::NO_ROLE);
                }
                changed = held.insert(role.clone());
            }
            Change::RevokeRole { user, role } if *enabled && user == ROOT && role == ROOT => return Err(texts::NOT_SO),
            Change::RevokeRole { user, role } => {
                if !users.get_mut(user).ok_or(texts::NO_USER)?.remove(role) {
                    return Err(texts::NOT_GRANTED);
                }
            }
            Change::AddRole { name } if roles.contains_key(name) => return Err(texts::ROLE_EXISTS),
            Change::AddRole { name } => _ = roles.insert(name.clone(), Vec::new()),
            Change::DeleteRole { name } if *enabled && name == ROOT => return Err(texts::NOT_SO),
            Change::DeleteRole { name } => {
                roles.remove(name).ok_or(texts::NO_ROLE)?;
                users.values_mut().for_each(|held| _ = held.remove(name));
            }
            Change::Grant { role, kind, key, end } => {
                let nothing = key.is_empty() || !end.is_empty() && end[..] != [0] && end <= key;
                if nothing {
                    return Err(texts::NOT_SO);
                }
                let allows = roles.get_mut(role).ok_or(texts::NO_ROLE)?;
                allows.retain(|old| old.key != *key || old.end != *end);
                let (read, write) = (*kind != Access::Write, *kind != Access::Read);
                allows.push(Permission { key: key.clone(), end: end.clone(), read, write });
                allows.sort();
            }
            Change::Revoke { role, key, end } => {
                let allows = roles.get_mut(role).ok_or(texts::NO_ROLE)?;
                let before = allows.len();
                allows.retain(|old| old.key != *key || old.end != *end);
                if allows.len() == before {
                    return Err(texts::NOT_ALLOWED);
                }
            }
        }
        *revision += u64::from(changed);
        Ok(())
    }
}

type Ranges<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A transaction needs what all of it needs, whichever way it goes.
fn txn_needs<'a>(
    compares: &'a [Compare],
    then: &'a [TxnOp],
    otherwise: &'a [TxnOp],
    reads: &mut Ranges<'a>,
    writes: &mut Ranges<'a>,
) {
    reads.extend(compares.iter().map(|compare| (&compare.key[..], &[][..])));
    for op in then.iter().chain(otherwise) {
        match op {
            TxnOp::Range { key, end, .. } => reads.push((key, end)),
            TxnOp::Put { key, prev_kv, .. } => {
                writes.push((key, &[]));
                reads.extend(prev_kv.then_some((&key[..], &[][..])));
            }
            TxnOp::Delete { key, end, prev_kv } => {
                writes.push((key, end));
                reads.extend(prev_kv.then_some((&key[..], &end[..])));
            }
            TxnOp::Txn { compares, then, otherwise } => txn_needs(compares, then, otherwise, reads, writes),
        }
    }
}

/// Whether one gets from the start of a range to its end on what is held. One that ends before it starts needs its start.
fn covered((key, end): (&[u8], &[u8]), held: &[&Permission]) -> bool {
    let next = |key: &[u8]| [key, &[0]].concat();
    let mut at = key.to_vec();
    loop {
        let Some(step) = held.iter().find(|permission| within(&at, &permission.key, &permission.end)) else {
            return false;
        };
        match &step.end[..] {
            [0] => return true,
            [] => at = next(&at),
            until => at = until.to_vec(),
        }
        match end {
            [] => return at[..] > *key,
            [0] => {}
            end if at[..] >= *end => return true,
            _ => {}
        }
    }
}
