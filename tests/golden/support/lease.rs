//! The commands of leases. They drive the state machine and the leader's lessor as the server's loops do; `put`, `get`,
//! `delete` and `txn` are those of keys, carried out through the state machine.
//!
//! ```text
//! grant ID TTL, revoke ID
//! renew ID                                  a client's keep-alive; "through the log" if a record had to be cleared first
//! ttl ID                                    what is left by the leader's clock, and the keys
//! leases                                    all of them, with their recorded rests
//! at SECONDS                                sets the leader's clock
//! tick                                      the lease loop looks at the clock: leases expire, rests are recorded
//! lose tick                                 the same, but what it proposes is lost
//! elect [extend=SECONDS]                    this member leads, in a new term
//! depose                                    it does not lead any more
//! expire TERM ID ID …                       a proposal of that term's leader arrives
//! alarm raise|clear NOSPACE|CORRUPT
//! restart                                   everything is flushed; the member comes back from its rows, not leading
//! ```
//!
//! It leads in term 1, at second 0, when a script begins. Keys that go with a lease are shown as `REV deleted KEYS`.

use std::time::Duration;

use everwatch::lease::{Lessor, Renewed};
use everwatch::pb::etcdserverpb::*;
use everwatch::pb::everwatchpb::lease_remaining::Remaining;
use everwatch::pb::everwatchpb::{ConfState, LeaseExpire, LeaseRemaining};
use everwatch::state::StateMachine;
use everwatch::state::applied::{Applied, LeaseChange, Refusal, Reply};
use everwatch::state::command::{Command, Kind};
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch};
use everwatch::types::{Index, LeaseId, Term};

use crate::kv;

/// One member that leads most of the time.
pub(crate) struct LeaseWorld {
    backend: MemoryBackend,
    batch: Batch,
    state: StateMachine,
    lessor: Lessor,
    term: u64,
    index: u64,
    now: Duration,
}

impl LeaseWorld {
    pub(crate) fn new() -> LeaseWorld {
        let backend = MemoryBackend::new();
        backend.commit(&StateMachine::founding_rows(&[], &ConfState::default())).unwrap();
        let state = StateMachine::open(backend.reader().unwrap()).unwrap();
        let mut lessor = Lessor::default();
        lessor.promote(&state.leases, Duration::ZERO, Duration::ZERO);
        LeaseWorld { backend, batch: Batch::default(), state, lessor, term: 1, index: 1, now: Duration::ZERO }
    }

    /// Carries out a command, given as its line and the indented lines below it, and says what came of it.
    pub(crate) fn run(&mut self, command: &[&str]) -> Vec<String> {
        let words: Vec<&str> = command[0].split_whitespace().collect();
        match *words.as_slice() {
            ["put", ..] => self.propose(Kind::Put(kv::put(&words))),
            ["get", ..] => kv::show_range(&self.state.kv.range(&kv::get(&words)).unwrap()),
            ["delete", ..] => self.propose(Kind::DeleteRange(kv::delete(&words))),
            ["txn"] => self.propose(Kind::Txn(kv::txn(&command[1..]))),
            ["grant", id, ttl] => {
                self.propose(Kind::LeaseGrant(LeaseGrantRequest { id: kv::number(id), ttl: kv::number(ttl) }))
            }
            ["revoke", id] => self.propose(Kind::LeaseRevoke(LeaseRevokeRequest { id: kv::number(id) })),
            ["renew", id] => self.renew(LeaseId(kv::number(id))),
            ["ttl", id] => vec![self.ttl(LeaseId(kv::number(id)))],
            ["leases"] => self.leases(),
            ["at", seconds] => {
                self.now = secs(seconds);
                Vec::new()
            }
            ["tick"] => self.tick(),
            ["lose", "tick"] => {
                let lost = self.lessor.expired(self.now, 100).len() + self.lessor.checkpoints(self.now, 100).len();
                vec![format!("lost={lost}")]
            }
            ["elect", ref options @ ..] => {
                let extend = options.first().map_or("0", |option| option.trim_start_matches("extend="));
                self.term += 1;
                self.lessor.promote(&self.state.leases, self.now, secs(extend));
                vec![format!("term={}", self.term)]
            }
            ["depose"] => {
                self.lessor.demote();
                Vec::new()
            }
            ["expire", term, ref ids @ ..] => {
                let ids = ids.iter().map(|id| kv::number(id)).collect();
                self.propose(Kind::LeaseExpire(LeaseExpire { term: kv::number(term) as u64, ids }))
            }
            ["alarm", action, kind] => {
                let action = if action == "raise" { 1 } else { 2 };
                let alarm = AlarmType::from_str_name(kind).expect("an alarm's name") as i32;
                self.propose(Kind::Alarm(AlarmRequest { action, member_id: 1, alarm }))
            }
            ["restart"] => {
                self.backend.commit(&std::mem::take(&mut self.batch)).unwrap();
                self.state = StateMachine::open(self.backend.reader().unwrap()).unwrap();
                self.lessor.demote();
                vec![format!("rev={}", self.state.kv.revision())]
            }
            _ => panic!("unknown command {:?}; the areas' commands are in golden/support/", command[0]),
        }
    }

    /// An entry with one command: what its proposer is told, then what became of leases' keys.
    fn propose(&mut self, kind: Kind) -> Vec<String> {
        let deletes_by_lease = matches!(kind, Kind::LeaseRevoke(_) | Kind::LeaseExpire(_));
        let applied = self.apply(kind);
        let mut lines = match &applied.reply {
            Ok(Reply::Put(response)) => kv::show_put(response),
            Ok(Reply::DeleteRange(response)) => kv::show_delete(response),
            Ok(Reply::Txn(response)) => kv::show_txn(response, ""),
            Ok(Reply::LeaseGrant(response)) => {
                vec![format!("rev={} id={} ttl={}", kv::revision(&response.header), response.id, response.ttl)]
            }
            Ok(Reply::LeaseRevoke(response)) => vec![format!("rev={}", kv::revision(&response.header))],
            Ok(_) => Vec::new(),
            Err(Refusal::LeaseNotFound) => vec!["error: lease not found".into()],
            Err(Refusal::LeaseExists) => vec!["error: lease exists".into()],
            Err(Refusal::NoSpace) => vec!["error: no space".into()],
            Err(Refusal::Corrupt) => vec!["error: corrupt".into()],
            Err(refusal) => vec![format!("error: {refusal:?}")],
        };
        if deletes_by_lease {
            for set in &applied.changes {
                let keys: Vec<String> = set.changes.iter().map(|change| kv::show(&change.key)).collect();
                lines.push(format!("{} deleted {}", set.revision, keys.join(" ")));
            }
        }
        lines
    }

    fn apply(&mut self, kind: Kind) -> Applied {
        self.index += 1;
        let command = Command { kind: Some(kind), ..Default::default() };
        let (index, term) = (Index(self.index), Term(self.term));
        let applied = self.state.apply(index, term, &command, &mut self.batch).unwrap();
        self.state.finish_entry(index, term, &mut self.batch);
        for change in &applied.leases {
            match *change {
                LeaseChange::Granted { id, ttl } => self.lessor.granted(id, ttl, self.now),
                LeaseChange::Revoked { id } => self.lessor.revoked(id),
                LeaseChange::Remaining { id, rest_ms } => self.lessor.remaining_changed(id, rest_ms, self.now),
            }
        }
        applied
    }

    fn renew(&mut self, id: LeaseId) -> Vec<String> {
        let line = match self.lessor.renew(id, self.now) {
            Renewed::Ttl(ttl) => format!("ttl={ttl}"),
            Renewed::Unknown => "unknown".into(),
            Renewed::NeedsLog => {
                let leases = vec![Remaining { id: id.0, remaining_ms: 0 }];
                self.apply(Kind::LeaseRemaining(LeaseRemaining { term: self.term, leases }));
                match self.lessor.renew(id, self.now) {
                    Renewed::Ttl(ttl) => format!("ttl={ttl} through the log"),
                    other => panic!("{other:?} after the record was cleared"),
                }
            }
        };
        vec![line]
    }

    fn tick(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let expired = self.lessor.expired(self.now, 100);
        if !expired.is_empty() {
            let ids: Vec<i64> = expired.iter().map(|id| id.0).collect();
            lines.push(format!("expire {ids:?}"));
            lines.extend(self.propose(Kind::LeaseExpire(LeaseExpire { term: self.term, ids })));
        }
        let rests = self.lessor.checkpoints(self.now, 100);
        if !rests.is_empty() {
            lines.extend(rests.iter().map(|(id, ms)| format!("record {}={}", id.0, Secs(*ms))));
            let leases = rests.iter().map(|(id, ms)| Remaining { id: id.0, remaining_ms: *ms }).collect();
            self.apply(Kind::LeaseRemaining(LeaseRemaining { term: self.term, leases }));
        }
        lines
    }

    fn ttl(&self, id: LeaseId) -> String {
        let (Some(left), Some(lease)) = (self.lessor.remaining(id, self.now), self.state.leases.get(id)) else {
            return "unknown".into();
        };
        let keys: String = lease.keys().map(|key| format!(" {}", kv::show(key))).collect();
        format!("left={} of {}{keys}", Secs(left.as_millis() as u64), lease.ttl)
    }

    fn leases(&self) -> Vec<String> {
        let show = |(id, lease): (LeaseId, &everwatch::lease::Lease)| {
            let rest = lease.rest_ms.map_or(String::new(), |ms| format!(" rest={}", Secs(ms)));
            let keys: String = lease.keys().map(|key| format!(" {}", kv::show(key))).collect();
            format!("{} ttl={}{rest}{keys}", id.0, lease.ttl)
        };
        self.state.leases.iter().map(show).collect()
    }
}

/// Milliseconds, shown as seconds.
struct Secs(u64);

impl std::fmt::Display for Secs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0 as f64 / 1000.0)
    }
}

fn secs(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().unwrap_or_else(|_| panic!("{text} is not a number of seconds")))
}
