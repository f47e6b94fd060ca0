//! Who was allowed what, held against the log.
//!
//! The log says in which order users, roles and requests came. A model of users, roles, keys and leases goes through it and says
//! of each request whether it had to be let through; then
//!   * a request that was let through must have been allowed at its place, and one that was turned away must not: at its own
//!     place in the log, or, for reads, where the member stood that answered;
//!   * every revision that an entry made is what one of its commands does that was allowed, or the end of a lease that its leader
//!     found run out;
//!   * nobody is taken for somebody else: a token is worth nothing once its user is gone or has another password, and is got with
//!     the password that counts;
//!   * a token lives on its member for so long, by that member's clock, and no longer, after it came there or was used there
//!     last; while it lives it is known;
//!   * a request that is not a local read is decided no earlier than what had been answered before it was made;
//!   * in the end members have the users and roles that the log comes to.
//!
//! **Leases.** Granting one is for any user. Revoking one, putting a key on it and renewing it is for who may write all keys that
//! hang on it then: at the place in the log, or, for a renewal, where the member stood that was asked. To see how long it lives
//! is for any user, its keys for who may read them all; that is looked at when the member is as far as everybody had been told.
//! Of these only what touches keys is refused to who was recognised before users changed. A lease that has run out is revoked by
//! nobody.
//!
//! **Watches.** What is promised (`server::watch_rights`):
//!   * a watch is created only for who may read all of its range where its member stands, and that is as far as everybody had
//!     been told, if a leader could be asked;
//!   * whenever a member has carried out a change of users or roles, and before a stream writes anything more, its watches are
//!     looked at. One whose user may not read all of its range there is sent nothing more but that it has ended. So events of
//!     later revisions are never sent, nor those of earlier ones that still waited, but for a watch that had ended before. A
//!     client that does not read is told when he does;
//!   * a watch ends for no other reason. One that was created while users did not count is for everybody, and goes on.
//!
//! The server's threads hear of a change of users a moment after they hear of the keys that the same turn of its core changed;
//! here that is one instant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::model::{Model, within};
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
    /// What members did about watches, in order: the watch's index.
    pub watched: Vec<(usize, Watched)>,
    /// What became of tokens on members, in order.
    pub tokens: Vec<Held>,
    /// How long one lives, in nanoseconds.
    pub token_lifetime: u64,
    /// Users and roles as members have them at the end.
    pub end: Option<Standing>,
}

/// A command as the log has it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The place of its entry.
    pub index: u64,
    /// The term of its entry.
    pub term: u64,
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
    /// Leases that have run out, as a leader of this term says who had carried out so much.
    Expire { ids: Vec<i64>, term: u64, seen: u64 },
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
    /// The same, for the keys of a lease.
    LookedAtKeys { by: Asker, applied: u64 },
}

/// What a member did about a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// It was asked for at this time, and when the member had carried out so much it looked who asked.
    Asked {
        /// Who, if that is known.
        by: Asker,
        /// The token he came with.
        token: Option<String>,
        /// When he asked.
        asked_at: u64,
        /// How far the member was.
        applied: u64,
        /// A leader has said how far it must be.
        confirmed: bool,
        /// What he was told, if he was turned away.
        refused: Option<&'static str>,
    },
    /// A member that had carried out so much wrote something for it, or had its client read while it goes on.
    Goes { applied: u64 },
    /// A member that had carried out so much ended it for want of rights.
    Ended { applied: u64 },
}

/// Something that became of tokens, on a member in one of its lives, at a time of its clock in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The member and its life.
    pub member: (u64, u64),
    /// When.
    pub at: u64,
    /// What.
    pub what: Token,
}

/// What may become of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// It came there, for this user.
    Came { token: String, user: String },
    /// All of a user's are void.
    VoidOf(String),
    /// All are.
    AllVoid,
    /// Somebody came with it, and was taken for its user or not.
    Shown { token: String, known: bool },
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
    /// Requests about leases with keys that were turned away for them.
    pub leases: usize,
    /// Watches that were let be, turned away, ended.
    pub watches: [usize; 3],
    /// Tokens that had run out when they were shown.
    pub run_out: usize,
}

impl Counts {
    /// Together.
    pub fn add(&mut self, other: &Counts) {
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.outdated += other.outdated;
        self.changes += other.changes;
        self.logins += other.logins;
        self.leases += other.leases;
        self.run_out += other.run_out;
        self.watches.iter_mut().zip(other.watches).for_each(|(sum, more)| *sum += more);
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

/// Leases and their keys as far as the log has been read, and what they were.
#[derive(Default)]
struct Leases {
    /// The entry that granted each.
    granted: BTreeMap<i64, u64>,
    model: Model,
    /// Of each lease its keys from an index on, oldest first.
    past: BTreeMap<i64, Vec<(u64, Keys)>>,
}

type Keys = BTreeSet<Vec<u8>>;

/// Holds what was decided against the log.
pub fn check(history: &History, rights: &Rights) -> Result<Counts, Violation> {
    let mut counts = Counts::default();
    let mut users = Users::default();
    users.standing.revision = 1;
    // What they were from an index on.
    let mut past: Vec<(u64, Users)> = vec![(0, users.clone())];
    let mut leases = Leases::default();
    let mut verdicts: BTreeMap<Id, (u64, Verdict)> = BTreeMap::new();
    let mut tokens: Issued = BTreeMap::new();
    let logins = logins(history, rights);
    let mut made = VecDeque::new();
    for (at, logged) in rights.log.iter().enumerate() {
        if at.checked_sub(1).is_none_or(|before| rights.log[before].index != logged.index) {
            made = revisions(rights.effects.get(&logged.index).map_or(&[], Vec::as_slice));
        }
        let mut verdict = users.allows_command(&logged.by, &logged.what, &|id| leases.keys(id));
        match &logged.what {
            Asked::Request(Request::Users(change)) => {
                verdict = verdict.and_then(|()| users.change(change, logged.index));
                counts.changes += usize::from(verdict.is_ok());
            }
            Asked::Request(request) if verdict.is_ok() => leases.carry_out(request, logged.index, &mut made),
            // The clock of a leader that was deposed does not count any more.
            Asked::Expire { ids, term, seen } if *term == logged.term => {
                ids.iter().for_each(|id| leases.run_out(*id, *seen, logged.index, &mut made));
            }
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
            if let Some(events) = made.front() {
                let what = format!("nobody was allowed at {} what was done: {:?}", logged.index, events[0]);
                return Err(general("rights", what));
            }
            if past.last().is_some_and(|(_, before)| before.standing.revision != users.standing.revision)
                || past.last().is_some_and(|(_, before)| before.standing.enabled != users.standing.enabled)
            {
                past.push((logged.index, users.clone()));
            }
        }
    }
    let at = |applied: u64| &past[past.partition_point(|(from, _)| *from <= applied) - 1].1;
    let later = |(op, decided): &(usize, Decided)| {
        matches!(decided, Decided::LookedAgain { .. } | Decided::LookedAtKeys { .. }).then_some(*op)
    };
    let later: BTreeSet<usize> = rights.decided.iter().filter_map(later).collect();

    let mut places: BTreeMap<usize, u64> = BTreeMap::new();
    for (op, decided) in &rights.decided {
        let Op { request, outcome, .. } = &history.ops[*op];
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
                at(*applied).check_taken(token, by, *applied, &tokens).map_err(|what| broken("rights", what, *op))?;
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
                count(&mut counts, at(*index), request, verdict);
            }
            Decided::Looked { by, applied } => {
                let users = at(*applied);
                let verdict = users.allows(by, request, &|id| leases.keys_at(id, *applied));
                // What it finds out later is another question.
                if verdict.is_err() || !later.contains(op) {
                    held(*applied, verdict)?;
                }
                // What is asked of the leader's clock, or of this member as it stands, is not asked of the log.
                if !matches!(request, Request::KeepAlive { .. } | Request::TimeToLive { .. }) {
                    places.insert(*op, *applied);
                }
                count(&mut counts, users, request, &verdict);
            }
            Decided::LookedAgain { by, applied } => {
                let users = at(*applied);
                let outdated = matches!(by, Asker::User { revision, .. }
                    if users.standing.enabled && *revision != users.standing.revision);
                held(*applied, if outdated { Err(texts::OUTDATED) } else { Ok(()) })?;
            }
            Decided::LookedAtKeys { by, applied } => {
                let Request::TimeToLive { id, .. } = request else { continue };
                let users = at(*applied);
                let verdict = users.allows_keys(by, leases.keys_at(*id, *applied), Vec::new());
                held(*applied, verdict)?;
                places.insert(*op, *applied);
                count(&mut counts, users, request, &verdict);
            }
        }
    }
    let floors = Floors::new(history, &places);
    floors.check(history, &places)?;
    check_watches(history, rights, &at, &tokens, &floors, &mut counts)?;
    check_lifetimes(rights, &mut counts)?;
    // What else this role allows is never shown.
    users.standing.roles.entry(ROOT.into()).and_modify(Vec::clear);
    match &rights.end {
        Some(end) if *end != users.standing => {
            Err(general("rights", format!("members have {end:?}, the log comes to {:?}", users.standing)))
        }
        _ => Ok(counts),
    }
}

fn count(counts: &mut Counts, users: &Users, request: &Request, verdict: &Verdict) {
    let of_lease = matches!(request, Request::Revoke { .. } | Request::KeepAlive { .. } | Request::TimeToLive { .. });
    counts.allowed += usize::from(users.standing.enabled && verdict.is_ok());
    counts.denied += usize::from(verdict.is_err());
    counts.outdated += usize::from(*verdict == Err(texts::OUTDATED));
    counts.leases += usize::from(of_lease && *verdict == Err(texts::DENIED));
}

/// What logins were proposed with: the request's index and the password.
fn logins<'a>(history: &'a History, rights: &Rights) -> BTreeMap<Id, (usize, &'a String)> {
    let login = |(op, decided): &(usize, Decided)| match (decided, &history.ops[*op].request) {
        (Decided::Proposed { id }, Request::Login { password, .. }) => Some((*id, (*op, password))),
        _ => None,
    };
    rights.decided.iter().filter_map(login).collect()
}

/// What an entry did, by revision.
fn revisions(events: &[Event]) -> VecDeque<&[Event]> {
    events.chunk_by(|event, next| event.kv.mod_revision == next.kv.mod_revision).collect()
}

impl Leases {
    /// Keys on a lease, now.
    fn keys(&self, id: i64) -> Keys {
        self.model.attached(id).cloned().collect()
    }

    /// Keys on a lease where so much was carried out.
    fn keys_at(&self, id: i64, applied: u64) -> Keys {
        let past = self.past.get(&id).map_or(&[][..], Vec::as_slice);
        let versions = past.partition_point(|(from, _)| *from <= applied);
        past[..versions].last().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    /// A request is carried out that is allowed. What comes of it is taken off what its entry has made.
    fn carry_out(&mut self, request: &Request, index: u64, made: &mut VecDeque<&[Event]>) {
        match request {
            Request::Grant { id, .. } if *id != 0 => _ = self.granted.entry(*id).or_insert(index),
            Request::Revoke { id } if self.granted.remove(id).is_some() => self.change(request, index, made),
            // It may be refused for what it asks for: then nothing came of it.
            Request::Put { .. } | Request::Delete { .. } | Request::Txn { .. } => self.change(request, index, made),
            _ => {}
        }
    }

    /// The leader that had carried out so much found a lease run out. One of the same id that was granted later is another.
    fn run_out(&mut self, id: i64, seen: u64, index: u64, made: &mut VecDeque<&[Event]>) {
        if self.granted.get(&id).is_some_and(|granted| *granted <= seen) {
            self.carry_out(&Request::Revoke { id }, index, made);
        }
    }

    fn change(&mut self, request: &Request, index: u64, made: &mut VecDeque<&[Event]>) {
        let events = self.model.effect(request).events;
        let same = |(event, done): (&Event, &Event)| {
            let told = |event: &Event| {
                let KeyValue { key, value, mod_revision, lease, .. } = event.kv.clone();
                (event.kind, key, value, mod_revision, lease)
            };
            told(event) == told(done)
        };
        let is_it =
            |done: &&&[Event]| !done.is_empty() && done.len() == events.len() && events.iter().zip(**done).all(same);
        if made.front().filter(is_it).is_none() {
            return;
        }
        made.pop_front();
        let of = |event: &Event| [event.kv.lease, event.prev.as_ref().map_or(0, |prev| prev.lease)];
        let touched: BTreeSet<i64> = events.iter().flat_map(of).filter(|id| *id != 0).collect();
        self.model.push(events);
        for id in touched {
            let keys = self.keys(id);
            self.past.entry(id).or_default().push((index, keys));
        }
    }
}

/// Tokens by the entry that made them: whose, and by which command.
type Issued = BTreeMap<u64, Vec<(String, Id)>>;

/// The highest place at which something had been decided of what was answered, over time.
struct Floors(Vec<(u64, u64)>);

impl Floors {
    fn new(history: &History, places: &BTreeMap<usize, u64>) -> Floors {
        let returned = |(op, place): (&usize, &u64)| history.ops[*op].ret.map(|ret| (ret, *place));
        let mut returns: Vec<(u64, u64)> = places.iter().filter_map(returned).collect();
        returns.sort_unstable();
        let mut highest = 0;
        for (_, place) in &mut returns {
            highest = highest.max(*place);
            *place = highest;
        }
        Floors(returns)
    }

    /// Of what had been answered before that time.
    fn before(&self, time: u64) -> u64 {
        let before = self.0.partition_point(|(ret, _)| *ret < time);
        before.checked_sub(1).map_or(0, |at| self.0[at].1)
    }

    /// Whatever is asked for after something was answered is decided after it.
    fn check(&self, history: &History, places: &BTreeMap<usize, u64>) -> Result<(), Violation> {
        for (op, place) in places {
            let Op { call, outcome, request, .. } = &history.ops[*op];
            let local = matches!(request, Request::Range { serializable: true, .. });
            let floor = self.before(*call);
            if !local && *outcome != Outcome::Unknown && *place < floor {
                let what = format!("decided at {place}, though something at {floor} had been answered before");
                return Err(broken("rights", what, *op));
            }
        }
        Ok(())
    }
}

/// Holds watches against users and roles as they were where members stood.
fn check_watches<'a>(
    history: &History,
    rights: &Rights,
    at: &dyn Fn(u64) -> &'a Users,
    tokens: &Issued,
    floors: &Floors,
    counts: &mut Counts,
) -> Result<(), Violation> {
    // Whose those are that were created while users counted; and whose a stream is.
    let (mut held, mut streams) = (BTreeMap::new(), BTreeMap::new());
    for (watch, watched) in &rights.watched {
        let WatchRecord { key, end, stream, .. } = &history.watches[*watch];
        let wrong = |what: String| Violation { rule: "rights", what, op: None, watch: Some(*watch) };
        let request = Request::Range { key: key.clone(), end: end.clone(), limit: 0, revision: 0, serializable: false };
        let may = |users: &Users, name: &String| {
            let asker = Asker::User { name: name.clone(), revision: users.standing.revision };
            users.allows(&asker, &request, &|_| Keys::new()).is_ok()
        };
        match watched {
            Watched::Asked { by, token, asked_at, applied, confirmed, refused } => {
                let users = at(*applied);
                let unknown = *by == Asker::Nobody && token.is_some();
                let verdict = match unknown && users.standing.enabled {
                    true => Err(texts::TOKEN),
                    false => users.allows(by, &request, &|_| Keys::new()),
                };
                match (verdict, refused) {
                    (Err(text), None) => {
                        return Err(wrong(format!("watches from {applied} on, which has to be refused: {text}")));
                    }
                    (_, Some(told)) if verdict != Err(*told) => {
                        return Err(wrong(format!(
                            "may not watch at {applied}: {told}, where it should be {verdict:?}"
                        )));
                    }
                    _ => {}
                }
                if let Some(token) = token {
                    users.check_taken(token, by, *applied, tokens).map_err(wrong)?;
                }
                let floor = floors.before(*asked_at);
                if *confirmed && *applied < floor {
                    let what = format!("decided at {applied}, though something at {floor} had been answered before");
                    return Err(wrong(what));
                }
                counts.watches[1] += usize::from(refused.is_some());
                if let (Asker::User { name, .. }, None, true) = (by, refused, users.standing.enabled) {
                    counts.watches[0] += 1;
                    held.insert(*watch, name);
                    streams.insert(*stream, name);
                }
            }
            Watched::Goes { applied } => {
                if let Some(name) = held.get(watch)
                    && !may(at(*applied), name)
                {
                    return Err(wrong(format!("goes on at {applied}, where {name} may not read all of it")));
                }
            }
            Watched::Ended { applied } => {
                counts.watches[2] += 1;
                if streams.get(stream).is_none_or(|name| may(at(*applied), name)) {
                    return Err(wrong(format!("is ended at {applied} for no reason")));
                }
            }
        }
    }
    Ok(())
}

/// Holds what members know of tokens against their clocks.
fn check_lifetimes(rights: &Rights, counts: &mut Counts) -> Result<(), Violation> {
    // By member: whose they are, and when they were last used.
    type Known<'a> = BTreeMap<&'a String, (&'a String, u64)>;
    let mut known: BTreeMap<(u64, u64), Known<'_>> = BTreeMap::new();
    for Held { member, at, what } in &rights.tokens {
        let known = known.entry(*member).or_default();
        match what {
            Token::Came { token, user } => _ = known.insert(token, (user, *at)),
            Token::VoidOf(gone) => known.retain(|_, (user, _)| *user != gone),
            Token::AllVoid => known.clear(),
            Token::Shown { token, known: taken } => {
                let last = known.remove(token);
                let alive = last.filter(|(_, used)| at - used < rights.token_lifetime);
                counts.run_out += usize::from(last.is_some() && alive.is_none());
                if *taken != alive.is_some() {
                    let what = format!("{token} is shown at {at} to {member:?}; known: {taken}, last used: {last:?}");
                    return Err(general("rights", what));
                }
                known.extend(alive.map(|(user, _)| (token, (user, *at))));
            }
        }
    }
    Ok(())
}

impl Users {
    fn allows_command(&self, by: &Asker, what: &Asked, keys_of: &dyn Fn(i64) -> Keys) -> Verdict {
        match what {
            Asked::Request(request) => self.allows(by, request, keys_of),
            Asked::Token { .. } if !self.standing.enabled => Err(texts::OFF),
            Asked::Token { user, .. } if !self.standing.users.contains_key(user) => Err(texts::PASSWORD),
            Asked::Token { compared_at, .. } if *compared_at != self.standing.revision => Err(texts::OUTDATED),
            Asked::Token { .. } | Asked::Expire { .. } | Asked::Own => Ok(()),
        }
    }

    /// Whether whoever came with a token may be taken for this one, where so much was carried out.
    fn check_taken(&self, token: &str, by: &Asker, applied: u64, tokens: &Issued) -> Result<(), String> {
        let Asker::User { name, revision } = by else { return Ok(()) };
        let made = token.rsplit('.').next().and_then(|index| index.parse().ok()).unwrap_or(0);
        if !tokens.get(&made).is_some_and(|made| made.iter().any(|(user, _)| user == name)) {
            return Err(format!("{token} is no token of {name}"));
        }
        if made <= self.all_void.max(self.void.get(name).copied().unwrap_or(0)) {
            return Err(format!("{name} comes at {applied} with {token}, which is void"));
        }
        if *revision > self.standing.revision {
            return Err(format!("{name} is recognised at {applied} as of {revision}"));
        }
        Ok(())
    }

    /// Whether a request is to be let through. `keys_of` says which keys hang on a lease.
    fn allows(&self, by: &Asker, request: &Request, keys_of: &dyn Fn(i64) -> Keys) -> Verdict {
        if !self.standing.enabled || *by == Asker::Member || matches!(request, Request::Login { .. }) {
            return Ok(());
        }
        let Asker::User { name, .. } = by else { return Err(texts::NOBODY) };
        let roles = self.standing.users.get(name).ok_or(texts::DENIED);
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        match request {
            Request::Users(_) | Request::Compact { .. } => {
                return if roles?.contains(ROOT) { Ok(()) } else { Err(texts::DENIED) };
            }
            Request::Grant { .. } | Request::TimeToLive { .. } => return roles.map(|_| ()),
            Request::Revoke { id } | Request::KeepAlive { id } => {
                return self.allows_keys(by, Keys::new(), keys_of(*id).into_iter().collect());
            }
            Request::Range { key, end, .. } => reads.push((key.clone(), end.clone())),
            Request::Put { key, lease, prev_kv, .. } => {
                put_needs(key, *lease, *prev_kv, keys_of, &mut reads, &mut writes);
            }
            Request::Delete { key, end, prev_kv } => {
                writes.push((key.clone(), end.clone()));
                reads.extend(prev_kv.then(|| (key.clone(), end.clone())));
            }
            Request::Txn { compares, then, otherwise } => {
                txn_needs(compares, then, otherwise, keys_of, &mut reads, &mut writes);
            }
            Request::Login { .. } => return Ok(()),
        }
        self.allows_ranges(by, &reads, &writes)
    }

    /// Whether somebody may do something for which he needs to read these keys of a lease and to write those: without any, any
    /// user.
    fn allows_keys(&self, by: &Asker, reads: Keys, writes: Vec<Vec<u8>>) -> Verdict {
        if !self.standing.enabled || *by == Asker::Member {
            return Ok(());
        }
        let Asker::User { name, .. } = by else { return Err(texts::NOBODY) };
        let roles = self.standing.users.get(name).ok_or(texts::DENIED)?;
        if roles.contains(ROOT) || reads.is_empty() && writes.is_empty() {
            return Ok(());
        }
        let single = |key: Vec<u8>| (key, Vec::new());
        let (reads, writes): (Ranges, Ranges) =
            (reads.into_iter().map(single).collect(), writes.into_iter().map(single).collect());
        self.allows_ranges(by, &reads, &writes)
    }

    /// Whether a user may read and write these.
    fn allows_ranges(&self, by: &Asker, reads: &Ranges, writes: &Ranges) -> Verdict {
        let Asker::User { name, revision } = by else { return Err(texts::NOBODY) };
        if *revision < self.standing.revision {
            return Err(texts::OUTDATED);
        }
        let roles = self.standing.users.get(name).ok_or(texts::DENIED)?;
        let covers = |(key, end): &(Vec<u8>, Vec<u8>), may: fn(&Permission) -> bool| {
            let held = roles.iter().filter_map(|role| self.standing.roles.get(role)).flatten();
            covered((key, end), &held.filter(|permission| may(permission)).collect::<Vec<_>>())
        };
        let allowed = roles.contains(ROOT)
            || reads.iter().all(|range| covers(range, |permission| permission.read))
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

type Ranges = Vec<(Vec<u8>, Vec<u8>)>;

/// Whoever puts a key on a lease decides when the others on it go.
fn put_needs(
    key: &[u8],
    lease: i64,
    prev_kv: bool,
    keys_of: &dyn Fn(i64) -> Keys,
    reads: &mut Ranges,
    writes: &mut Ranges,
) {
    writes.push((key.to_vec(), Vec::new()));
    writes.extend(keys_of(lease).into_iter().map(|key| (key, Vec::new())));
    reads.extend(prev_kv.then(|| (key.to_vec(), Vec::new())));
}

/// A transaction needs what all of it needs, whichever way it goes.
fn txn_needs(
    compares: &[Compare],
    then: &[TxnOp],
    otherwise: &[TxnOp],
    keys_of: &dyn Fn(i64) -> Keys,
    reads: &mut Ranges,
    writes: &mut Ranges,
) {
    reads.extend(compares.iter().map(|compare| (compare.key.clone(), Vec::new())));
    for op in then.iter().chain(otherwise) {
        match op {
            TxnOp::Range { key, end, .. } => reads.push((key.clone(), end.clone())),
            TxnOp::Put { key, lease, prev_kv, .. } => put_needs(key, *lease, *prev_kv, keys_of, reads, writes),
            TxnOp::Delete { key, end, prev_kv } => {
                writes.push((key.clone(), end.clone()));
                reads.extend(prev_kv.then(|| (key.clone(), end.clone())));
            }
            TxnOp::Txn { compares, then, otherwise } => txn_needs(compares, then, otherwise, keys_of, reads, writes),
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
