//! The commands of leases. They drive the leader's lessor as the server's lease loop does.
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
//! ```
//!
//! Keys that go with a lease are shown as `REV deleted KEYS`.

use std::time::Duration;

use everwatch::lease::Renewed;
use everwatch::pb::etcdserverpb::*;
use everwatch::pb::everwatchpb::lease_remaining::Remaining;
use everwatch::pb::everwatchpb::{LeaseExpire, LeaseRemaining};
use everwatch::state::command::Kind;
use everwatch::types::LeaseId;

use crate::kv;
use crate::world::World;

/// Carries out a command of this area; `None` when it is none.
pub(crate) fn run(world: &mut World, words: &[&str]) -> Option<Vec<String>> {
    Some(match *words {
        ["grant", id, ttl] => {
            world.propose(Kind::LeaseGrant(LeaseGrantRequest { id: kv::number(id), ttl: kv::number(ttl) }))
        }
        ["revoke", id] => world.propose(Kind::LeaseRevoke(LeaseRevokeRequest { id: kv::number(id) })),
        ["renew", id] => renew(world, LeaseId(kv::number(id))),
        ["ttl", id] => vec![ttl(world, LeaseId(kv::number(id)))],
        ["leases"] => leases(world),
        ["at", seconds] => {
            world.now = secs(seconds);
            Vec::new()
        }
        ["tick"] => tick(world),
        ["lose", "tick"] => {
            let lost = world.lessor.expired(world.now, 100).len() + world.lessor.checkpoints(world.now, 100).len();
            vec![format!("lost={lost}")]
        }
        ["elect", ref options @ ..] => {
            let extend = options.first().map_or("0", |option| option.trim_start_matches("extend="));
            world.term += 1;
            let (now, extend) = (world.now, secs(extend));
            let mut lessor = std::mem::take(&mut world.lessor);
            lessor.promote(&world.state().leases, now, extend);
            world.lessor = lessor;
            vec![format!("term={}", world.term)]
        }
        ["depose"] => {
            world.lessor.demote();
            Vec::new()
        }
        ["expire", term, ref ids @ ..] => {
            let (seen, ids) = match ids {
                [ids @ .., seen] if seen.starts_with("seen=") => (kv::number(&seen[5..]) as u64, ids),
                ids => (world.state().applied().0, ids),
            };
            let ids = ids.iter().map(|id| kv::number(id)).collect();
            world.propose(Kind::LeaseExpire(LeaseExpire { term: kv::number(term) as u64, ids, seen }))
        }
        ["alarm", action, kind] => {
            let action = if action == "raise" { 1 } else { 2 };
            let alarm = AlarmType::from_str_name(kind).expect("an alarm's name") as i32;
            world.propose(Kind::Alarm(AlarmRequest { action, member_id: 1, alarm }))
        }
        _ => return None,
    })
}

fn renew(world: &mut World, id: LeaseId) -> Vec<String> {
    let line = match world.lessor.renew(id, world.now) {
        Renewed::Ttl(ttl) => format!("ttl={ttl}"),
        Renewed::Unknown => "unknown".into(),
        Renewed::NeedsLog => {
            let leases = vec![Remaining { id: id.0, remaining_ms: 0 }];
            let command = LeaseRemaining { term: world.term, leases, seen: world.state().applied().0 };
            world.apply(vec![Kind::LeaseRemaining(command)]);
            match world.lessor.renew(id, world.now) {
                Renewed::Ttl(ttl) => format!("ttl={ttl} through the log"),
                other => panic!("{other:?} after the record was cleared"),
            }
        }
    };
    vec![line]
}

fn tick(world: &mut World) -> Vec<String> {
    let mut lines = Vec::new();
    let expired = world.lessor.expired(world.now, 100);
    if !expired.is_empty() {
        let ids: Vec<i64> = expired.iter().map(|id| id.0).collect();
        lines.push(format!("expire {ids:?}"));
        let command = LeaseExpire { term: world.term, ids, seen: world.state().applied().0 };
        lines.extend(world.propose(Kind::LeaseExpire(command)));
    }
    let rests = world.lessor.checkpoints(world.now, 100);
    if !rests.is_empty() {
        lines.extend(rests.iter().map(|(id, ms)| format!("record {}={}", id.0, Secs(*ms))));
        let leases = rests.iter().map(|(id, ms)| Remaining { id: id.0, remaining_ms: *ms }).collect();
        let command = LeaseRemaining { term: world.term, leases, seen: world.state().applied().0 };
        world.apply(vec![Kind::LeaseRemaining(command)]);
    }
    lines
}

fn ttl(world: &World, id: LeaseId) -> String {
    let state = world.state();
    let (Some(left), Some(lease)) = (world.lessor.remaining(id, world.now), state.leases.get(id)) else {
        return "unknown".into();
    };
    let keys: String = lease.keys().map(|key| format!(" {}", kv::show(key))).collect();
    format!("left={} of {}{keys}", Secs(left.as_millis() as u64), lease.ttl)
}

fn leases(world: &World) -> Vec<String> {
    let show = |(id, lease): (LeaseId, &everwatch::lease::Lease)| {
        let rest = lease.rest_ms().map_or(String::new(), |ms| format!(" rest={}", Secs(ms.get())));
        let keys: String = lease.keys().map(|key| format!(" {}", kv::show(key))).collect();
        format!("{} ttl={}{rest}{keys}", id.0, lease.ttl)
    };
    world.state().leases.iter().map(show).collect()
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
