//! The judge of who may do what, judged: one story that is right, and everything that could be wrong about it.
//!
//! Alice may read and write what begins with `a`, in two pieces that touch, and write what begins with `w`. Then the role is
//! taken from her. Every request says whose it is, where it was decided and what came of it; a wrong story has one of that
//! changed. A second story is about leases, watches and tokens.

use std::collections::BTreeMap;

use crate::checks::rights::{
    Access, Asked, Asker, Change, Decided, Held, Logged, Rights, Token, Watched, check, texts,
};
use crate::checks::*;

const MEMBER: u64 = 1;
const BOOT: u64 = 7;

/// A history that grows by one entry, or one read, at a time.
struct Story {
    history: History,
    rights: Rights,
    time: u64,
    index: u64,
    auth_revision: u64,
    revision: i64,
    named: BTreeMap<&'static str, usize>,
}

impl Story {
    fn op(&mut self, request: Request, outcome: Outcome) -> usize {
        self.time += 10;
        let (call, ret) = (self.time, Some(self.time + 5));
        self.history.ops.push(Op { client: 1, call, ret, request, outcome, member: 1, life: 1 });
        self.history.ops.len() - 1
    }

    fn ok(&self, reply: Reply) -> Outcome {
        Outcome::Ok { revision: self.revision, reply }
    }

    fn proposed(&mut self, by: Asker, what: Asked, request: Request, outcome: Outcome) -> usize {
        self.index += 1;
        let id = (MEMBER, BOOT, self.index);
        let op = self.op(request, outcome);
        self.rights.log.push(Logged { index: self.index, term: 1, id, by, what });
        self.rights.decided.push((op, Decided::Proposed { id }));
        op
    }

    fn write(&mut self, name: &'static str, by: Asker, request: Request, refused: Option<&str>) {
        let key = match &request {
            Request::Put { key, .. } => key.clone(),
            _ => Vec::new(),
        };
        let outcome = match (refused, &request) {
            (Some(text), _) => Outcome::Refused(text.into()),
            (None, Request::Put { .. }) => {
                self.revision += 1;
                let event = put_event(&key, self.revision);
                self.rights.effects.insert(self.index + 1, vec![event]);
                self.ok(Reply::Put { prev: None })
            }
            (None, _) => self.ok(Reply::Txn { succeeded: true, replies: Vec::new() }),
        };
        let op = self.proposed(by, Asked::Request(request.clone()), request, outcome);
        self.named.insert(name, op);
    }

    fn change(&mut self, name: &'static str, by: Asker, change: Change, refused: Option<&str>) {
        let makes_revision = !matches!(change, Change::Enable);
        let request = Request::Users(change);
        let outcome = refused.map_or(self.ok(Reply::Users), |text| Outcome::Refused(text.into()));
        let op = self.proposed(by, Asked::Request(request.clone()), request, outcome);
        self.named.insert(name, op);
        self.auth_revision += u64::from(refused.is_none() && makes_revision);
    }

    fn login(&mut self, name: &'static str, user: &str, password: &str) -> String {
        let request = Request::Login { user: user.into(), password: password.into() };
        let outcome = self.ok(Reply::Login { token: String::new() });
        let what = Asked::Token { user: user.into(), compared_at: self.auth_revision };
        let op = self.proposed(Asker::Nobody, what, request, outcome);
        self.named.insert(name, op);
        format!("letters.{}", self.index)
    }

    /// The next request comes with this token.
    fn recognise(&mut self, token: &str, by: &Asker) {
        let (op, applied) = (self.history.ops.len(), self.index);
        self.rights.decided.push((op, Decided::Recognised { token: token.into(), by: by.clone(), applied }));
    }

    fn read(&mut self, name: &'static str, by: Asker, request: Request, refused: Option<&str>) {
        let reply = Reply::Range { kvs: Vec::new(), more: false, count: 0 };
        let outcome = refused.map_or(self.ok(reply), |text| Outcome::Refused(text.into()));
        let op = self.op(request, outcome);
        let applied = self.index;
        self.rights.decided.push((op, Decided::Looked { by: by.clone(), applied }));
        if refused.is_none() {
            self.rights.decided.push((op, Decided::LookedAgain { by, applied }));
        }
        self.named.insert(name, op);
    }

    /// A request that is carried out, and what its entry then did to keys, as one revision.
    fn done(&mut self, name: &'static str, by: Asker, request: Request, keys: &[Event]) {
        let reply = match request {
            Request::Put { .. } => Reply::Put { prev: None },
            Request::Revoke { .. } => Reply::Revoke,
            _ => Reply::Grant { id: 7, ttl_s: 5 },
        };
        if !keys.is_empty() {
            self.revision += 1;
            self.effect(self.index + 1, keys);
        }
        let outcome = self.ok(reply);
        let op = self.proposed(by, Asked::Request(request.clone()), request, outcome);
        self.named.insert(name, op);
    }

    fn effect(&mut self, index: u64, keys: &[Event]) {
        let revision = self.revision;
        let at = |event: &Event| {
            let kv = KeyValue { mod_revision: revision, ..event.kv.clone() };
            Event { kv, ..event.clone() }
        };
        self.rights.effects.insert(index, keys.iter().map(at).collect());
    }

    fn refused(&mut self, name: &'static str, by: Asker, request: Request, text: &str) {
        let op = self.proposed(by, Asked::Request(request.clone()), request, Outcome::Refused(text.into()));
        self.named.insert(name, op);
    }

    /// A question about a lease, for which a member looks who asks, and looks again before it names keys.
    fn asks(&mut self, name: &'static str, by: Asker, request: Request, refused: Option<&str>) {
        let (applied, keys) = (self.index, matches!(request, Request::TimeToLive { keys: true, .. }));
        let reply = match request {
            Request::KeepAlive { .. } => Reply::KeepAlive { ttl_s: 5 },
            _ => Reply::TimeToLive { granted_ttl_s: 5, ttl_s: 3, keys: Vec::new() },
        };
        let outcome = refused.map_or(self.ok(reply), |text| Outcome::Refused(text.into()));
        let op = self.op(request, outcome);
        self.rights.decided.push((op, Decided::Looked { by: by.clone(), applied }));
        if keys {
            self.rights.decided.push((op, Decided::LookedAtKeys { by, applied }));
        }
        self.named.insert(name, op);
    }

    /// Leases that a leader finds run out.
    fn run_out(&mut self, id: i64, keys: &[Event]) {
        self.index += 1;
        self.revision += 1;
        self.effect(self.index, keys);
        let what = Asked::Expire { ids: vec![id], term: 1, seen: self.index - 1 };
        self.rights.log.push(Logged {
            index: self.index,
            term: 1,
            id: (MEMBER, BOOT, self.index),
            by: Asker::Member,
            what,
        });
    }

    /// Somebody asks for a watch, on a stream of his own. Its number.
    fn watch(&mut self, name: &'static str, by: Asker, key: &str, end: &str, refused: Option<&'static str>) -> usize {
        self.time += 10;
        let watch = self.history.watches.len();
        let (key, end, stream) = (key.into(), end.into(), watch as u64 + 1);
        self.history.watches.push(WatchRecord { key, end, stream, ..WatchRecord::default() });
        let (asked_at, applied) = (self.time, self.index);
        let asked = Watched::Asked { by, token: None, asked_at, applied, confirmed: true, refused };
        self.named.insert(name, self.rights.watched.len());
        self.rights.watched.push((watch, asked));
        watch
    }

    fn heard(&mut self, name: &'static str, watch: usize, heard: fn(u64) -> Watched) {
        self.named.insert(name, self.rights.watched.len());
        self.rights.watched.push((watch, heard(self.index)));
    }

    fn user(&self, name: &str) -> Asker {
        Asker::User { name: name.into(), revision: self.auth_revision }
    }
}

fn put(key: &str, prev_kv: bool) -> Request {
    Request::Put { key: key.into(), value: b"v".to_vec(), lease: 0, prev_kv }
}

fn put_event(key: &[u8], revision: i64) -> Event {
    let kv = KeyValue { key: key.to_vec(), value: b"v".to_vec(), mod_revision: revision, ..KeyValue::default() };
    Event { kind: EventKind::Put, kv, prev: None }
}

fn range(key: &str, end: &str) -> Request {
    Request::Range { key: key.into(), end: end.into(), limit: 0, revision: 0, serializable: false }
}

fn nothing_but_reads(key: &str, otherwise: &str) -> Request {
    let compares = vec![Compare { key: key.into(), target: Target::Version(0), is: Relation::Equal }];
    let read = |key: &str| TxnOp::Range { key: key.into(), end: Vec::new(), limit: 0, revision: 0 };
    let nested = TxnOp::Txn { compares: Vec::new(), then: Vec::new(), otherwise: vec![read(otherwise)] };
    Request::Txn { compares, then: vec![read(key)], otherwise: vec![nested] }
}

fn nothing_yet() -> Story {
    Story {
        history: History::default(),
        rights: Rights::default(),
        time: 0,
        index: 1,
        auth_revision: 1,
        revision: 1,
        named: BTreeMap::new(),
    }
}

fn right() -> Story {
    let mut story = nothing_yet();
    let grant =
        |kind, key: &str, end: &str| Change::Grant { role: "app".into(), kind, key: key.into(), end: end.into() };
    let user = |name: &str, password: &str| Change::AddUser { name: name.into(), password: password.into() };
    let role_of = |user: &str, role: &str| Change::GrantRole { user: user.into(), role: role.into() };
    let nobody = || Asker::Nobody;
    story.write("before users count", nobody(), put("z", false), None);
    for change in [
        user("root", "secret"),
        role_of("root", "root"),
        Change::AddRole { name: "app".into() },
        grant(Access::Both, "a", "am"),
        grant(Access::Both, "am", "b"),
        grant(Access::Write, "w", ""),
        user("alice", "wonder"),
        role_of("alice", "app"),
        Change::Enable,
    ] {
        story.change("set up", nobody(), change, None);
    }
    story.write("nobody", nobody(), put("a", false), Some(texts::NOBODY));
    let token = story.login("login", "alice", "wonder");
    let alice = story.user("alice");
    story.recognise(&token, &alice);
    story.write("hers", alice.clone(), put("a", true), None);
    story.recognise(&token, &alice);
    story.read("her range", alice.clone(), range("a", "b"), None);
    story.read("more than her range", alice.clone(), range("a", "c"), Some(texts::DENIED));
    story.read("her reads", alice.clone(), nothing_but_reads("a", "am"), None);
    story.read("not all hers", alice.clone(), nothing_but_reads("a", "w"), Some(texts::DENIED));
    story.write("only to be written", alice.clone(), put("w", false), None);
    story.write("to be read as well", alice.clone(), put("w", true), Some(texts::DENIED));
    story.write("compaction", alice.clone(), Request::Compact { revision: 2 }, Some(texts::DENIED));
    story.change("management", alice.clone(), Change::Disable, Some(texts::DENIED));
    let root = story.user("root");
    let revoke = Change::RevokeRole { user: "alice".into(), role: "app".into() };
    story.change("revoke", root.clone(), revoke, None);
    story.write("outdated", alice.clone(), put("a", false), Some(texts::OUTDATED));
    let alice = story.user("alice");
    story.recognise(&token, &alice);
    story.write("forbidden", alice.clone(), put("a", false), Some(texts::DENIED));
    story.read("forbidden range", alice, range("a", ""), Some(texts::DENIED));
    story.change("other password", root, Change::Password { name: "alice".into(), password: "land".into() }, None);
    story.read("nothing", Asker::Member, range("a", ""), None);
    let token = story.login("login again", "alice", "land");
    let alice = story.user("alice");
    story.recognise(&token, &alice);
    story.read("in the end", alice, range("w", ""), Some(texts::DENIED));
    story
}

/// The violation, if any.
fn judged(wrong: impl FnOnce(&mut Story)) -> Result<rights::Counts, String> {
    let mut story = right();
    wrong(&mut story);
    check(&story.history, &story.rights).map_err(|violation| violation.to_string())
}

/// What answered requests are told that are let through.
fn let_through(story: &mut Story, name: &str) {
    let op = story.named[name];
    let reply = match story.history.ops[op].request {
        Request::Put { .. } => Reply::Put { prev: None },
        Request::Users(_) => Reply::Users,
        Request::Compact { .. } => Reply::Compact,
        _ => Reply::Range { kvs: Vec::new(), more: false, count: 0 },
    };
    story.history.ops[op].outcome = Outcome::Ok { revision: story.revision, reply };
}

fn refuse(story: &mut Story, name: &str, text: &str) {
    let op = story.named[name];
    story.history.ops[op].outcome = Outcome::Refused(text.into());
}

/// What was noted of a request.
fn notes<'a>(story: &'a mut Story, name: &str) -> Vec<&'a mut Decided> {
    let op = story.named[name];
    story.rights.decided.iter_mut().filter(|(of, _)| *of == op).map(|(_, decided)| decided).collect()
}

#[test]
fn a_right_story_passes() {
    let counts = judged(|_| ()).unwrap();
    assert_eq!((counts.logins, counts.outdated), (2, 1));
    assert!(counts.allowed > 3 && counts.denied > 6 && counts.changes > 9, "{counts:?}");
}

#[test]
fn whoever_is_let_through_against_the_log_is_found() {
    for name in [
        "nobody",
        "more than her range",
        "not all hers",
        "to be read as well",
        "compaction",
        "management",
        "outdated",
        "forbidden",
        "forbidden range",
        "in the end",
    ] {
        let violation = judged(|story| let_through(story, name)).expect_err(name);
        assert!(violation.starts_with("rights: allowed at "), "{name}: {violation}");
    }
}

/// As a whole run is judged.
#[test]
fn the_judge_of_histories_asks_it() {
    let mut story = right();
    let_through(&mut story, "forbidden");
    story.history.rights = Some(story.rights);
    let violation = crate::checks::check(&story.history).expect_err("the story is wrong");
    assert_eq!(violation.rule, "rights");
}

/// Nobody heard of it, but it was done.
#[test]
fn what_was_done_against_the_log_is_found() {
    for (name, key) in [("forbidden", "a"), ("outdated", "a"), ("nobody", "a"), ("hers", "b")] {
        let violation = judged(|story| {
            let op = story.named[name];
            story.history.ops[op].outcome = Outcome::Unknown;
            let id = match notes(story, name).last() {
                Some(Decided::Proposed { id }) => *id,
                other => panic!("{name} was proposed, not {other:?}"),
            };
            let event = put_event(key.as_bytes(), 9);
            story.rights.effects.entry(id.2).or_default().push(event);
        });
        let violation = violation.expect_err(name);
        assert!(violation.starts_with("rights: nobody was allowed at "), "{name}: {violation}");
    }
}

#[test]
fn whoever_is_turned_away_for_nothing_is_found() {
    for (name, text) in [
        ("before users count", texts::NOBODY),
        ("hers", texts::DENIED),
        ("hers", texts::OUTDATED),
        ("her range", texts::DENIED),
        ("her reads", texts::DENIED),
        ("revoke", texts::DENIED),
    ] {
        let violation = judged(|story| refuse(story, name, text)).expect_err(name);
        assert!(violation.starts_with("rights: refused at "), "{name}: {violation}");
    }
    // For the wrong reason.
    for (name, text) in [("outdated", texts::DENIED), ("forbidden", texts::OUTDATED), ("nobody", texts::DENIED)] {
        let violation = judged(|story| refuse(story, name, text)).expect_err(name);
        assert!(violation.contains("where it should be"), "{name}: {violation}");
    }
}

#[test]
fn whoever_is_taken_for_somebody_else_is_found() {
    let changed = |name: &'static str, change: &dyn Fn(&mut Decided)| {
        judged(|story| change(notes(story, name).remove(0))).expect_err(name)
    };
    let other_token = changed("in the end", &|decided| {
        let Decided::Recognised { token, .. } = decided else { panic!("{decided:?}") };
        // The one before the password was changed.
        *token = "letters.13".into();
    });
    assert!(other_token.contains("which is void"), "{other_token}");
    let no_token = changed("in the end", &|decided| {
        let Decided::Recognised { token, .. } = decided else { panic!("{decided:?}") };
        *token = "letters.3".into();
    });
    assert!(no_token.contains("is no token of"), "{no_token}");
    let somebody_else = changed("forbidden", &|decided| {
        let Decided::Recognised { by, .. } = decided else { panic!("{decided:?}") };
        *by = Asker::User { name: "root".into(), revision: 1 };
    });
    assert!(somebody_else.contains("is no token of"), "{somebody_else}");
    let to_come = changed("hers", &|decided| {
        let Decided::Recognised { by: Asker::User { revision, .. }, .. } = decided else { panic!("{decided:?}") };
        *revision += 1;
    });
    assert!(to_come.contains("is recognised at"), "{to_come}");
    let wrong_password = judged(|story| {
        let op = story.named["login again"];
        story.history.ops[op].request = Request::Login { user: "alice".into(), password: "wonder".into() };
    });
    assert!(wrong_password.expect_err("a wrong password").contains("has logged in with"));
}

#[test]
fn whatever_is_decided_too_early_or_nowhere_is_found() {
    // A member that did not know yet.
    let early = judged(|story| {
        let_through(story, "forbidden range");
        for decided in notes(story, "forbidden range") {
            let Decided::Looked { by, applied } = decided else { continue };
            *applied = 14;
            *by = Asker::User { name: "alice".into(), revision: 9 };
        }
    });
    assert!(early.as_ref().expect_err("early").contains("had been answered before"), "{early:?}");
    // Users were changed while it read.
    let late = judged(|story| {
        let Some(Decided::LookedAgain { applied, .. }) = notes(story, "her range").pop() else { panic!("it looks") };
        *applied = 22;
    });
    assert!(late.as_ref().expect_err("late").contains("which has to be refused"), "{late:?}");
    let nowhere = judged(|story| {
        let Some(Decided::Proposed { id }) = notes(story, "hers").pop() else { panic!("it is proposed") };
        id.2 += 1000;
    });
    assert!(nowhere.expect_err("nowhere").contains("not in the log"));
}

#[test]
fn members_that_end_otherwise_are_found() {
    let end = |change: &dyn Fn(&mut rights::Standing)| {
        judged(|story| {
            let mut end = rights::Standing { enabled: true, revision: 11, ..Default::default() };
            end.users.insert("root".into(), ["root".to_owned()].into());
            end.users.insert("alice".into(), Default::default());
            let allows =
                |key: &str, end: &str, read| rights::Permission { key: key.into(), end: end.into(), read, write: true };
            end.roles
                .insert("app".into(), vec![allows("a", "am", true), allows("am", "b", true), allows("w", "", false)]);
            change(&mut end);
            story.rights.end = Some(end);
        })
    };
    end(&|_| ()).unwrap();
    assert!(end(&|standing| standing.revision += 1).is_err());
    assert!(end(&|standing| standing.enabled = false).is_err());
    assert!(end(&|standing| _ = standing.users.remove("alice")).is_err());
    assert!(end(&|standing| standing.roles.values_mut().for_each(|allows| allows[0].write = false)).is_err());
}

fn on_lease(key: &str, lease: i64) -> (Request, [Event; 1]) {
    let event = put_event(key.as_bytes(), 0);
    let event = Event { kv: KeyValue { lease, ..event.kv }, ..event };
    (Request::Put { key: key.into(), value: b"v".to_vec(), lease, prev_kv: false }, [event])
}

fn gone(key: &str) -> Event {
    let kv = KeyValue { key: key.into(), ..KeyValue::default() };
    Event { kind: EventKind::Delete, kv, prev: None }
}

/// Alice may read and write what begins with `a`, until the role is taken from her; root puts a key of its own on her lease, and
/// takes it off again.
fn leases_and_watches() -> Story {
    let mut story = nothing_yet();
    let nobody = || Asker::Nobody;
    let user = |name: &str| Change::AddUser { name: name.into(), password: "secret".into() };
    let role_of = |user: &str, role: &str| Change::GrantRole { user: user.into(), role: role.into() };
    let allows = Change::Grant { role: "app".into(), kind: Access::Both, key: b"a".to_vec(), end: b"b".to_vec() };
    let free = story.watch("before users count", nobody(), "z", "", None);
    for change in [
        user("root"),
        role_of("root", "root"),
        Change::AddRole { name: "app".into() },
        allows,
        user("alice"),
        role_of("alice", "app"),
        Change::Enable,
    ] {
        story.change("set up", nobody(), change, None);
    }
    let (alice, root) = (story.user("alice"), story.user("root"));
    let (revoke, renew, see) =
        (Request::Revoke { id: 7 }, Request::KeepAlive { id: 7 }, Request::TimeToLive { id: 7, keys: true });
    story.refused("a grant by nobody", nobody(), Request::Grant { id: 7, ttl_s: 5 }, texts::NOBODY);
    story.done("grant", alice.clone(), Request::Grant { id: 7, ttl_s: 5 }, &[]);
    story.asks("an empty one", alice.clone(), see.clone(), None);
    let (request, events) = on_lease("a", 7);
    story.done("a key of hers", alice.clone(), request.clone(), &events);
    let (of_root, events) = on_lease("z", 7);
    story.done("a key of root's", root.clone(), of_root, &events);
    story.refused("a key beside root's", alice.clone(), request.clone(), texts::DENIED);
    let op = TxnOp::Put { key: b"a".to_vec(), value: b"v".to_vec(), lease: 7, prev_kv: false };
    let txn = Request::Txn { compares: Vec::new(), then: vec![op], otherwise: Vec::new() };
    story.refused("a key beside root's, in a txn", alice.clone(), txn, texts::DENIED);
    story.refused("a revoke of root's key", alice.clone(), revoke.clone(), texts::DENIED);
    story.asks("a renewal of root's key", alice.clone(), renew.clone(), Some(texts::DENIED));
    story.asks("a look at root's key", alice.clone(), see.clone(), Some(texts::DENIED));
    story.asks("a renewal by nobody", nobody(), renew.clone(), Some(texts::NOBODY));
    story.asks("a look by root", root.clone(), see.clone(), None);
    let (request, events) = on_lease("z", 0);
    story.done("root's key goes", root.clone(), request, &events);
    story.asks("a renewal", alice.clone(), renew, None);
    story.asks("a look", alice.clone(), see, None);
    story.done("a revoke", alice.clone(), revoke, &[gone("a")]);
    story.done("grant again", alice.clone(), Request::Grant { id: 7, ttl_s: 5 }, &[]);
    for key in ["a", "a1"] {
        let (request, events) = on_lease(key, 7);
        story.done("keys again", alice.clone(), request, &events);
    }
    story.run_out(7, &[gone("a"), gone("a1")]);

    let hers = story.watch("hers", alice.clone(), "a", "b", None);
    let roots = story.watch("root's", root.clone(), "a", "b", None);
    story.watch("not hers", alice.clone(), "a", "c", Some(texts::DENIED));
    story.watch("nobody's", nobody(), "a", "", Some(texts::NOBODY));
    for watch in [hers, roots, free] {
        story.heard("at first", watch, |applied| Watched::Goes { applied });
    }
    story.heard("in time", hers, |applied| Watched::Goes { applied });
    let take = Change::RevokeRole { user: "alice".into(), role: "app".into() };
    story.change("taken", root, take, None);
    story.heard("her end", hers, |applied| Watched::Ended { applied });
    for watch in [roots, free] {
        story.heard("go on", watch, |applied| Watched::Goes { applied });
    }
    story.watch("outdated", alice, "a", "b", Some(texts::OUTDATED));
    let alice = story.user("alice");
    story.watch("no more", alice, "a", "b", Some(texts::DENIED));

    story.rights.token_lifetime = 300;
    let came = |token: &str| Token::Came { token: token.into(), user: "alice".into() };
    let shown = |token: &str, known| Token::Shown { token: token.into(), known };
    for (at, what) in [
        (0, came("t")),
        (0, came("u")),
        (299, shown("t", true)),
        (300, shown("u", false)),
        (598, shown("t", true)),
        (600, came("v")),
        (601, Token::VoidOf("alice".into())),
        (602, shown("t", false)),
        (700, came("w")),
        (701, Token::AllVoid),
        (702, shown("w", false)),
    ] {
        story.rights.tokens.push(Held { member: (MEMBER, 1), at, what });
    }
    story
}

fn judged_again(wrong: impl FnOnce(&mut Story)) -> Result<rights::Counts, String> {
    let mut story = leases_and_watches();
    wrong(&mut story);
    check(&story.history, &story.rights).map_err(|violation| violation.to_string())
}

#[test]
fn a_right_story_of_leases_and_watches_passes() {
    let counts = judged_again(|_| ()).unwrap();
    assert_eq!((counts.leases, counts.watches, counts.run_out), (3, [2, 4, 1], 1));
}

#[test]
fn leases_with_keys_that_he_may_not_have_are_nobodys_to_touch() {
    for name in [
        "a grant by nobody",
        "a key beside root's",
        "a key beside root's, in a txn",
        "a revoke of root's key",
        "a renewal of root's key",
        "a look at root's key",
        "a renewal by nobody",
    ] {
        let violation = judged_again(|story| let_through(story, name)).expect_err(name);
        assert!(violation.starts_with("rights: allowed at "), "{name}: {violation}");
    }
    for name in ["grant", "an empty one", "a key of hers", "a look by root", "a renewal", "a look", "a revoke"] {
        let violation = judged_again(|story| refuse(story, name, texts::DENIED)).expect_err(name);
        assert!(violation.starts_with("rights: refused at "), "{name}: {violation}");
    }
}

#[test]
fn keys_that_go_with_a_lease_for_no_reason_are_found() {
    let place = |story: &Story, is: fn(&Asked) -> bool| story.rights.log.iter().position(|logged| is(&logged.what));
    let expiry = |story: &Story| place(story, |what| matches!(what, Asked::Expire { .. })).expect("one runs out");
    type Wrong<'a> = &'a dyn Fn(&mut Story);
    let changed: [(&str, Wrong<'_>); 5] = [
        ("of a leader that is none any more", &|story| {
            let at = expiry(story);
            story.rights.log[at].term = 2;
        }),
        ("of the lease before it", &|story| {
            let at = expiry(story);
            let Asked::Expire { seen, .. } = &mut story.rights.log[at].what else { panic!("it is one") };
            *seen = 14;
        }),
        ("of another", &|story| {
            let at = expiry(story);
            let Asked::Expire { ids, .. } = &mut story.rights.log[at].what else { panic!("it is one") };
            *ids = vec![8];
        }),
        ("with a key that was not on it", &|story| {
            let index = story.rights.log[expiry(story)].index;
            let events = story.rights.effects.get_mut(&index).expect("it has keys");
            let kv = KeyValue { key: b"z".to_vec(), ..events[0].kv.clone() };
            events.push(Event { kv, ..events[0].clone() });
        }),
        ("by a revoke that was refused", &|story| {
            let op = story.named["a revoke of root's key"];
            let id = match story.rights.decided.iter().find(|(of, _)| *of == op) {
                Some((_, Decided::Proposed { id })) => id.2,
                other => panic!("it was proposed, not {other:?}"),
            };
            story.history.ops[op].outcome = Outcome::Unknown;
            story.rights.effects.insert(id, vec![gone("z")]);
        }),
    ];
    for (name, change) in changed {
        let violation = judged_again(change).expect_err(name);
        assert!(violation.starts_with("rights: nobody was allowed at "), "{name}: {violation}");
    }
}

#[test]
fn whoever_watches_what_he_may_not_read_is_found() {
    let asked = |name: &'static str, told: Option<&'static str>| {
        judged_again(|story| match &mut story.rights.watched[story.named[name]].1 {
            Watched::Asked { refused, .. } => *refused = told,
            other => panic!("{name} is asked for, not {other:?}"),
        })
        .expect_err(name)
    };
    for name in ["not hers", "nobody's", "outdated", "no more"] {
        let violation = asked(name, None);
        assert!(violation.contains("which has to be refused"), "{name}: {violation}");
    }
    for name in ["before users count", "hers", "root's"] {
        let violation = asked(name, Some(texts::DENIED));
        assert!(violation.contains("where it should be"), "{name}: {violation}");
    }
    assert!(asked("no more", Some(texts::NOBODY)).contains("where it should be"));
    // It goes on, or is sent something that waited.
    let goes_on = judged_again(|story| {
        let Watched::Ended { applied } = story.rights.watched[story.named["her end"]].1 else { panic!("it ends") };
        story.rights.watched[story.named["in time"]].1 = Watched::Goes { applied };
    });
    assert!(goes_on.expect_err("too late").contains("goes on at"));
    for name in ["in time", "go on"] {
        let ended = judged_again(|story| {
            let watched = &mut story.rights.watched[story.named[name]].1;
            let Watched::Goes { applied } = *watched else { panic!("it goes on") };
            *watched = Watched::Ended { applied };
        });
        assert!(ended.as_ref().expect_err(name).contains("for no reason"), "{name}: {ended:?}");
    }
}

#[test]
fn a_watch_is_decided_too_early_only_by_a_member_that_could_not_know() {
    let early = |sure: bool| {
        judged_again(|story| match &mut story.rights.watched[story.named["no more"]].1 {
            Watched::Asked { by, applied, confirmed, refused, .. } => {
                *by = Asker::User { name: "alice".into(), revision: 7 };
                (*applied, *confirmed, *refused) = (*applied - 1, sure, None);
            }
            other => panic!("it is asked for, not {other:?}"),
        })
    };
    assert!(early(true).expect_err("it knew").contains("had been answered before"));
    early(false).expect("it could not ask");
}

#[test]
fn tokens_that_live_too_long_or_not_long_enough_are_found() {
    let shown = |at: u64, known: bool| {
        judged_again(|story| {
            let held = story.rights.tokens.iter_mut().find(|held| held.at == at).expect("it happens");
            let Token::Shown { known: taken, .. } = &mut held.what else { panic!("it is shown") };
            *taken = known;
        })
        .expect_err("a wrong one")
    };
    for (at, known) in [(299, false), (300, true), (598, false), (602, true), (702, true)] {
        assert!(shown(at, known).contains("is shown at"), "{at}");
    }
    // After a start nothing is known.
    let restarted = judged_again(|story| story.rights.tokens[2].member.1 = 2);
    assert!(restarted.expect_err("another life").contains("is shown at"));
}
