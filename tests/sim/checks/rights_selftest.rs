//! The judge of who may do what, judged: one story that is right, and everything that could be wrong about it.
//!
//! Alice may read and write what begins with `a`, in two pieces that touch, and write what begins with `w`. Then the role is taken
//! from her. Every request says whose it is, where it was decided and what came of it; a wrong story has one of that changed.

use std::collections::BTreeMap;

use crate::checks::rights::{Access, Asked, Asker, Change, Decided, Logged, Rights, check, texts};
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
        self.rights.log.push(Logged { index: self.index, id, by, what });
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

fn right() -> Story {
    let mut story = Story {
        history: History::default(),
        rights: Rights::default(),
        time: 0,
        index: 1,
        auth_revision: 1,
        revision: 1,
        named: BTreeMap::new(),
    };
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
