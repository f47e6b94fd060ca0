//! The judge judged: good histories pass, and histories with one thing wrong do not, whatever it is.
//!
//! Good histories come from a store even simpler than the model (it copies everything at every revision) and clients
//! whose calls overlap at random. What is wrong is either a flaw of that store (it loses an acknowledged write, ends a
//! lease early, …) or a change of the finished record (an event left out, a reply from the past, …), each only where it
//! breaks a promise for certain.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::checks::*;

const MS: u64 = 1_000_000;
const KEYS: [&[u8]; 6] = [b"a", b"a/1", b"a/2", b"b", b"b/1", b"c"];

/// Seeds of right histories, and wrong histories of each kind. `SEEDS=20000 cargo test --test sim_checks` for a long run.
fn cases(usual: u64) -> u64 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}

#[test]
fn good_histories_pass() {
    let mut all = Summary::default();
    let seeds = cases(1500);
    for seed in 1..=seeds {
        let case = World::run(seed, None);
        let summary = check(&case.history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(!summary.behind.contains(&0), "seed {seed}: the watch over everything has seen everything");
        all.unknown_done += summary.unknown_done;
        all.expiries += summary.expiries;
        all.leases_over += summary.leases_over;
        all.events += summary.events;
    }
    let enough = |got: usize, each_hundred: u64| got as u64 * 100 > each_hundred * seeds;
    let covers = enough(all.unknown_done, 100) && enough(all.expiries, 50) && enough(all.leases_over, 100);
    assert!(covers && enough(all.events, 5000), "they cover too little: {all:?}");
}

/// Without the watch over everything gaps are narrowed down by other watches and by reads alone.
#[test]
fn good_histories_pass_with_little_evidence() {
    for seed in 1..=200 {
        let mut case = World::run(seed, None);
        case.history.watches.retain(|watch| watch.resumes.is_none());
        case.history.watches.remove(0);
        case.history.end = 0; // Some of it nobody saw.
        if let Err(violation) = check(&case.history) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn flawed_stores_are_found_out() {
    use Flaw::*;
    for flaw in [
        LosesWrite,
        ReusesRevision,
        AppliesTwice,
        AppliesRefused,
        EndsLeaseEarly,
        KeepsKeysOfLease,
        KeepsLease,
        ReadsStale,
        DecidesLate,
    ] {
        rejects(&format!("{flaw:?}"), |seed| {
            let case = World::run(seed, Some(flaw));
            case.flawed.then_some(case.history)
        });
    }
}

#[test]
fn changed_records_are_found_out() {
    let changes: [(&str, Change); 41] = [
        ("event dropped", drop_event),
        ("revision dropped", drop_revision),
        ("events swapped", swap_events),
        ("messages swapped", swap_messages),
        ("event duplicated", duplicate_event),
        ("message duplicated", duplicate_message),
        ("event revision bumped", bump_event),
        ("event contents changed", change_event),
        ("event from before the start", early_event),
        ("event of another key", foreign_event),
        ("previous value changed", change_prev),
        ("previous value dropped", drop_prev),
        ("revision torn", tear_revision),
        ("progress too early", early_progress),
        ("header below its events", low_header),
        ("message before created", before_created),
        ("message after canceled", after_canceled),
        ("canceled without reason", cancel),
        ("resumed too late", resume_late),
        ("write's revision bumped", bump_reply),
        ("reply contents changed", change_reply),
        ("stale read", stale_read),
        ("write before its call", late_call),
        ("lease renewed after its end", renew_ended),
        ("live lease not found", lose_lease),
        ("local read goes back", read_back),
        ("more time left than granted", more_time),
        ("less time left than certain", less_time),
        ("time granted that was not", other_time),
        ("keys of a lease changed", other_keys),
        ("lease met when it had to be over", late_lease),
        ("fragmented unasked", fragment_unasked),
        ("fragments with different headers", fragment_headers),
        ("resumed after half a revision", resume_after_half),
        ("fragments without a last one", fragment_unfinished),
        ("something else between two fragments", fragment_interleaved),
        ("watch of an empty range", empty_range_watched),
        ("watch refused without reason", watch_refused),
        ("nested transaction went the other way", other_way),
        ("header falls on a stream", header_falls),
        ("stream's progress too early for another watch", early_stream_progress),
    ];
    for (name, change) in changes {
        rejects(name, |seed| {
            let mut case = World::run(seed, None);
            change(&mut case, &mut Rng(seed ^ 0x5eed))?;
            Some(case.history)
        });
    }
}

/// One call each, and what is certainly wrong about it: the smallest histories of each kind.
#[test]
fn violations_name_the_promise() {
    let mut history = History::default();
    let put = |value: &[u8]| Request::Put { key: b"k".into(), value: value.into(), lease: 0, prev_kv: false };
    let op = |call, ret, request, revision, reply| {
        let outcome = Outcome::Ok { revision, reply };
        Op { client: 1, call, ret: Some(ret), request, outcome, ..Op::default() }
    };
    history.ops.push(op(10, 20, put(b"1"), 2, Reply::Put { prev: None }));
    check(&history).expect("one write");
    history.ops.push(op(30, 40, put(b"2"), 2, Reply::Put { prev: None }));
    assert_eq!(check(&history).expect_err("a revision twice").rule, "real time");
    history.ops[1].call = 15;
    assert_eq!(check(&history).expect_err("a revision twice, at once").rule, "order");
    history.ops[1] = op(30, 40, put(b"2"), 4, Reply::Put { prev: None });
    assert_eq!(check(&history).expect_err("a revision that nothing made").rule, "replay");
    let range = Request::Range { key: b"k".into(), end: vec![], limit: 0, revision: 0, serializable: false };
    history.ops[1] = op(30, 40, range, 1, Reply::Range { kvs: vec![], more: false, count: 0 });
    assert_eq!(check(&history).expect_err("a read from the past").rule, "stale");
}

/// What the API refuses must be refused, and nothing else, for the reason that there is.
#[test]
fn refusals_are_right() {
    let key = || b"k".to_vec();
    let put = |lease| Request::Put { key: key(), value: b"v".into(), lease, prev_kv: false };
    let read = |revision| Request::Range { key: key(), end: vec![], limit: 0, revision, serializable: false };
    let nested = |op| {
        let inner = TxnOp::Txn { compares: vec![], then: vec![op], otherwise: vec![] };
        Request::Txn { compares: vec![], then: vec![inner], otherwise: vec![] }
    };
    let reads = |revision| nested(TxnOp::Range { key: key(), end: vec![], limit: 0, revision });
    let puts = |lease| nested(TxnOp::Put { key: key(), value: b"w".into(), lease, prev_kv: false });
    let inner = |reply| {
        let inner = Reply::Txn { succeeded: true, replies: vec![reply] };
        Reply::Txn { succeeded: true, replies: vec![inner] }
    };
    let nothing = || Reply::Range { kvs: vec![], more: false, count: 0 };
    let ok = |revision, reply| Outcome::Ok { revision, reply };
    let refused = |text: &str| Outcome::Refused(format!("etcdserver: {text}"));
    let (compacted, future) =
        ("mvcc: required revision has been compacted", "mvcc: required revision is a future revision");
    let kv = KeyValue { key: key(), value: b"v".into(), create_revision: 2, mod_revision: 2, version: 1, lease: 0 };
    let shown = || Reply::Range { kvs: vec![kv.clone()], more: false, count: 1 };
    let grant = |id| Request::Grant { id, ttl_s: 100 };
    let cases: Vec<(Request, Outcome, Option<&str>)> = vec![
        (read(3), refused(future), None),
        (read(3), ok(3, nothing()), Some("replay")),
        (read(3), ok(2, shown()), Some("future")),
        (read(2), refused(future), Some("stale")),
        (read(2), refused(compacted), Some("compaction")),
        (reads(2), ok(2, inner(shown())), None),
        (reads(3), ok(2, inner(shown())), Some("future")),
        (reads(3), refused(future), None),
        (reads(2), refused(future), Some("stale")),
        (reads(1), refused(compacted), Some("compaction")),
        (Request::Compact { revision: 3 }, refused(future), None),
        (Request::Compact { revision: 3 }, ok(2, Reply::Compact), Some("compaction")),
        (Request::Compact { revision: 2 }, refused(future), Some("stale")),
        (put(0), refused(future), Some("stale")),
        (put(0), refused(compacted), Some("compaction")),
        (put(9), refused("requested lease not found"), None),
        (put(9), ok(3, Reply::Put { prev: None }), Some("lease")),
        (put(0), refused("requested lease not found"), Some("lease")),
        (put(7), refused("requested lease not found"), Some("lease")),
        (puts(9), refused("requested lease not found"), None),
        (puts(9), ok(3, inner(Reply::Put { prev: None })), Some("lease")),
        (puts(7), refused("requested lease not found"), Some("lease")),
        (read(0), refused("requested lease not found"), Some("lease")),
        (Request::Revoke { id: 9 }, refused("requested lease not found"), None),
        (Request::Revoke { id: 9 }, ok(2, Reply::Revoke), Some("lease")),
        (grant(7), refused("lease already exists"), None),
        (grant(7), ok(2, Reply::Grant { id: 7, ttl_s: 100 }), Some("lease")),
        (grant(9), refused("lease already exists"), Some("lease")),
        (put(0), refused("lease already exists"), Some("refusal")),
        (put(0), refused("key not found"), Some("refusal")),
        (Request::KeepAlive { id: 9 }, ok(2, Reply::KeepAlive { ttl_s: 0 }), None),
        (Request::KeepAlive { id: 9 }, ok(2, Reply::KeepAlive { ttl_s: 5 }), Some("lease")),
    ];
    for (request, outcome, rule) in cases {
        let first = [(grant(7), ok(1, Reply::Grant { id: 7, ttl_s: 100 })), (put(0), ok(2, Reply::Put { prev: None }))];
        let calls = first.into_iter().chain([(request.clone(), outcome.clone())]).zip(1..);
        let ops = calls.map(|((request, outcome), n)| Op {
            client: 1,
            call: 100 * n,
            ret: Some(100 * n + 50),
            request,
            outcome,
            ..Op::default()
        });
        let judged = check(&History { ops: ops.collect(), ..History::default() });
        let got = judged.as_ref().err().map(|violation| violation.rule);
        assert_eq!(got, rule, "{request:?} {outcome:?}: {judged:?}");
    }
}

/// Where an answer was lost, who did it stays open until something later tells.
#[test]
fn doubts_are_resolved_late() {
    let key = || b"k".to_vec();
    let ok = |revision, reply| Outcome::Ok { revision, reply };
    let put = Request::Put { key: key(), value: b"v".into(), lease: 7, prev_kv: false };
    let delete = Request::Delete { key: key(), end: vec![], prev_kv: false };
    let grant = Request::Grant { id: 7, ttl_s: 1000 };
    let read = Request::Range { key: key(), end: vec![], limit: 0, revision: 0, serializable: false };
    let nothing = Reply::Range { kvs: vec![], more: false, count: 0 };
    let base: Vec<(Request, Outcome)> = vec![
        (grant, ok(1, Reply::Grant { id: 7, ttl_s: 1000 })),
        (put.clone(), ok(2, Reply::Put { prev: None })),
        (Request::Revoke { id: 7 }, Outcome::Unknown),
        (delete, Outcome::Unknown),
        (read.clone(), ok(3, nothing.clone())),
    ];
    let history = |calls: &[(Request, Outcome)]| {
        let ops = calls.iter().zip(1..).map(|((request, outcome), n)| {
            let ret = (*outcome != Outcome::Unknown).then_some(100 * n + 50);
            Op { call: 100 * n, ret, request: request.clone(), outcome: outcome.clone(), ..Op::default() }
        });
        History { ops: ops.collect(), ..History::default() }
    };
    let passes = |calls: &[(Request, Outcome)], right: bool, what: &str| {
        let history = history(calls);
        assert_eq!(check(&history).is_ok(), right, "{what}: {:?}", check(&history));
        assert_eq!(second_opinion(&history), if right { Opinion::Right } else { Opinion::Wrong }, "{what}");
    };
    passes(&base, true, "either of them");
    let alive = (Request::KeepAlive { id: 7 }, ok(3, Reply::KeepAlive { ttl_s: 1000 }));
    let gone = (Request::KeepAlive { id: 7 }, ok(3, Reply::KeepAlive { ttl_s: 0 }));
    passes(&[&base[..], std::slice::from_ref(&alive)].concat(), true, "the delete, as the lease lives");
    passes(&[&base[..], std::slice::from_ref(&gone)].concat(), true, "the revoke, or both");
    passes(&[&base[..], &[gone.clone(), alive.clone()]].concat(), false, "a lease that comes back");
    let no_delete = [&base[..3], &base[4..]].concat();
    passes(&no_delete, true, "the revoke");
    passes(&[&no_delete[..], &[alive]].concat(), false, "the revoke, but the lease lives");
    // Twice written by one of two equal calls without an answer each: right; a third time: one too many.
    let tried = (put, Outcome::Unknown);
    let kv = |version| KeyValue {
        key: key(),
        value: b"v".into(),
        create_revision: 2,
        mod_revision: version + 1,
        version,
        lease: 7,
    };
    let shows =
        |version| (read.clone(), ok(version + 1, Reply::Range { kvs: vec![kv(version)], more: false, count: 1 }));
    let twice = [&base[..1], &[tried.clone(), tried, shows(2)]].concat();
    passes(&twice, true, "asked twice, done twice");
    passes(&[&twice[..3], &[shows(3)]].concat(), false, "asked twice, done three times");
    passes(&[&twice[..2], &[shows(2)]].concat(), false, "asked once, done twice");
}

/// Replay and search must agree on what calls alone tell.
#[test]
fn the_second_opinion_agrees() {
    let mut undecided = 0;
    let mut wrong = 0;
    let seeds = cases(400);
    for seed in 1..=seeds {
        let mut case = World::run_long(seed, None, 45, 0);
        let change: Option<Change> =
            [None, Some(bump_reply as Change), Some(change_reply), Some(stale_read)][seed as usize % 4];
        let changed = change.is_some_and(|change| change(&mut case, &mut Rng(seed)).is_some());
        // What the search does not look at.
        (case.history.healed, case.history.end) = (None, 0);
        case.history.ops.iter_mut().for_each(|op| op.member = 0);
        let with_watch = check(&case.history);
        match second_opinion(&case.history) {
            Opinion::Undecided => undecided += 1,
            Opinion::Right => {
                case.history.watches.clear();
                let judged = check(&case.history);
                assert!(judged.is_ok(), "seed {seed}, changed {changed}: only the search finds an order: {judged:?}");
            }
            Opinion::Wrong => {
                assert!(with_watch.is_err(), "seed {seed}, changed {changed}: only the search finds none");
                wrong += 1;
            }
        }
    }
    assert!(undecided * 20 < seeds && wrong * 4 > seeds, "{undecided} undecided, {wrong} wrong of {seeds}");
}

/// A history as long as that of six virtual minutes under load is judged in about a second.
#[test]
fn long_histories_are_judged_fast() {
    let case = World::run_long(1, None, 50_000, 70);
    let started = std::time::Instant::now();
    let summary = check(&case.history).unwrap_or_else(|violation| panic!("{violation}"));
    let took = started.elapsed();
    println!("{took:?} for {summary:?}");
    assert!(summary.ops == 50_000 && summary.events > 450_000, "{summary:?}");
    // Many times what it takes on an idle machine, as others may use it: this catches what grows with the square.
    assert!(took.as_secs() < 60, "{took:?}");
}

type Change = fn(&mut Case, &mut Rng) -> Option<()>;

/// Every wrong history of the first seeds that give one must be rejected.
fn rejects(name: &str, mut wrong: impl FnMut(u64) -> Option<History>) {
    let mut found = 0;
    let most = cases(150);
    for seed in 1..=40 * most {
        let Some(history) = wrong(seed) else { continue };
        if let Ok(summary) = check(&history) {
            panic!("{name}, seed {seed}: passed as good: {summary:?}");
        }
        found += 1;
        if found == most {
            return;
        }
    }
    panic!("{name}: only {found} cases");
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize].clone()) }
    }
}

type State = BTreeMap<Vec<u8>, KeyValue>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    LosesWrite,
    ReusesRevision,
    AppliesTwice,
    AppliesRefused,
    EndsLeaseEarly,
    KeepsKeysOfLease,
    KeepsLease,
    ReadsStale,
    /// Conditions of a nested transaction look at what the outer one has done already.
    DecidesLate,
}

struct Case {
    history: History,
    /// The state at revision 1, 2, …
    states: Vec<State>,
    /// The flaw has shown in what clients saw.
    flawed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Call(u32),
    Effect(usize),
    Expire(i64),
}

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    flawed: bool,
    /// Revision that a lost write was said to have.
    lost: i64,
    queue: BinaryHeap<Reverse<(u64, u64, Turn)>>,
    history: History,
    states: Vec<State>,
    log: Vec<(u64, Vec<Event>)>,
    /// Deadline, time to live, call of the last acknowledged grant or renewal.
    leases: BTreeMap<i64, (u64, i64, u64)>,
    compactions: Vec<(u64, i64)>,
    calls: usize,
    /// Mostly leases and deletes, and many calls without an answer: nobody can tell how keys went.
    doubtful: bool,
    /// What a client got no answer to, and may ask for again.
    unanswered: BTreeMap<u32, Request>,
    /// The newest revision each member has shown it knows.
    known: BTreeMap<u64, i64>,
}

impl World {
    fn run(seed: u64, flaw: Option<Flaw>) -> Case {
        World::run_long(seed, flaw, 70, 6)
    }

    /// A right history with so many calls and about so many watches.
    fn run_long(seed: u64, flaw: Option<Flaw>, calls: usize, watches: usize) -> Case {
        let mut world = World {
            rng: Rng(seed),
            flaw,
            flawed: false,
            lost: 0,
            queue: BinaryHeap::new(),
            history: History::default(),
            states: vec![State::new()],
            log: Vec::new(),
            leases: BTreeMap::new(),
            compactions: Vec::new(),
            calls,
            doubtful: flaw.is_none() && seed.is_multiple_of(3),
            unanswered: BTreeMap::new(),
            known: BTreeMap::new(),
        };
        (0..4).for_each(|client| world.later(MS + u64::from(client), Turn::Call(client)));
        let mut last = 0;
        while let Some(Reverse((now, _, turn))) = world.queue.pop() {
            last = now;
            match turn {
                Turn::Call(client) => world.call(now, client),
                Turn::Effect(op) => world.effect(now, op),
                Turn::Expire(id) => world.expire(now, id),
            }
        }
        if world.lost > 0 {
            world.flawed = world.revision() >= world.lost;
        }
        if flaw == Some(Flaw::KeepsLease) {
            world.flawed = world.state().values().any(|kv| kv.lease != 0);
        }
        world.watches(watches);
        // No lease outlives its time here by more than 50 ms, and no call takes longer than 320.
        world.history.healed = Some(0);
        world.history.lease_bound = 400 * MS;
        world.history.end = last + 10_000 * MS;
        Case { history: world.history, states: world.states, flawed: world.flawed }
    }

    fn later(&mut self, time: u64, turn: Turn) {
        let tie = self.rng.next();
        self.queue.push(Reverse((time, tie, turn)));
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    fn state(&self) -> &State {
        self.states.last().expect("never empty")
    }

    fn call(&mut self, now: u64, client: u32) {
        if self.calls == 0 {
            return;
        }
        self.calls -= 1;
        let again = self.unanswered.remove(&client).filter(|_| self.flaw.is_none() && self.rng.chance(50));
        let request = again.unwrap_or_else(|| self.request());
        let op = self.history.ops.len();
        let member = 1 + self.rng.below(3);
        self.history.ops.push(Op { client, call: now, request, member, life: 1, ..Op::default() });
        let takes = 1 + self.rng.below(40 * MS);
        let plain = matches!(self.history.ops[op].request, Request::Put { .. });
        // Nobody could use a lease whose id the server chose and did not tell.
        let nameless = matches!(self.history.ops[op].request, Request::Grant { id: 0, .. });
        // A flaw must not be explained away by a call that might have been carried out.
        if self.rng.chance(if self.doubtful { 35 } else { 15 }) && !nameless && (self.flaw.is_none() || plain) {
            self.unanswered.insert(client, self.history.ops[op].request.clone());
            if self.rng.chance(60) {
                let takes = takes * (1 + self.rng.below(8));
                self.later(now + takes, Turn::Effect(op));
            }
            self.history.ops[op].ret = self.rng.chance(50).then_some(now + 30 * MS);
            let takes = 30 * MS + self.rng.below(30 * MS);
            self.later(now + takes, Turn::Call(client));
        } else {
            self.history.ops[op].ret = Some(now + takes + 1 + self.rng.below(30 * MS));
            self.history.ops[op].outcome = Outcome::Refused(String::new()); // Until it has happened.
            self.later(now + takes, Turn::Effect(op));
            let ret = self.history.ops[op].ret.unwrap_or(now);
            let pause = if self.rng.chance(30) { 0 } else { self.rng.below(60 * MS) };
            self.later(ret + pause, Turn::Call(client));
        }
    }

    fn request(&mut self) -> Request {
        let value = self.rng.next().to_be_bytes().to_vec();
        let key = KEYS[self.rng.below(6) as usize].to_vec();
        let leases: Vec<i64> = self.leases.keys().copied().collect();
        let lease = if self.rng.chance(50) { self.rng.pick(&leases).unwrap_or(0) } else { 0 };
        let prev_kv = self.rng.chance(50);
        let end = if self.rng.chance(50) { vec![] } else { [&key[..], b"\xff"].concat() };
        let limit = if self.rng.chance(20) { 1 } else { 0 };
        if self.doubtful {
            let id = 1 + self.rng.below(3) as i64;
            let key = KEYS[self.rng.below(2) as usize].to_vec();
            match self.rng.below(100) {
                0..20 => return Request::Put { key, value, lease, prev_kv },
                20..45 => return Request::Delete { key, end: vec![], prev_kv },
                45..60 => return Request::Grant { id, ttl_s: 1 + self.rng.below(2) as i64 },
                60..75 => return Request::Revoke { id },
                75..85 => return Request::KeepAlive { id },
                85..90 => return Request::TimeToLive { id, keys: true },
                _ => {}
            }
        }
        match self.rng.below(100) {
            0..35 => Request::Put { key, value, lease, prev_kv },
            35..45 => Request::Delete { key, end, prev_kv },
            45..60 => {
                let past = if self.rng.chance(30) { 1 + self.rng.below(self.states.len() as u64) as i64 } else { 0 };
                Request::Range { key, end, limit, revision: past, serializable: self.rng.chance(30) }
            }
            60..76 => {
                let found = self.state().get(&key).cloned().unwrap_or_default();
                let target = match self.rng.below(4) {
                    0 => Target::ModRevision(found.mod_revision),
                    1 => Target::CreateRevision(0),
                    2 => Target::Version(found.version),
                    _ => Target::Value(found.value),
                };
                let is = [Relation::Equal, Relation::Equal, Relation::NotEqual, Relation::Less];
                let is = self.rng.pick(&is).expect("four of them");
                let compares = vec![Compare { key: key.clone(), target, is }];
                let nested = self.nested(&key, prev_kv);
                let (other, last) = (b"a/2".to_vec(), b"z".to_vec());
                let then = vec![
                    TxnOp::Put { key: key.clone(), value: value.clone(), lease, prev_kv },
                    TxnOp::Range { key: b"a".into(), end: last.clone(), limit, revision: 0 },
                    TxnOp::Delete { key: b"b".into(), end: b"b0".into(), prev_kv },
                    TxnOp::Put { key: last, value: value.clone(), lease: 0, prev_kv: false },
                ];
                let mut then = if key.starts_with(b"b") { then[..2].to_vec() } else { then };
                then.extend(nested);
                let otherwise = match self.rng.below(3) {
                    0 => vec![TxnOp::Range { key, end: vec![], limit: 0, revision: 0 }],
                    1 => vec![TxnOp::Delete { key: other, end: vec![], prev_kv }],
                    _ => vec![TxnOp::Put { key: other, value, lease, prev_kv }],
                };
                Request::Txn { compares, then, otherwise }
            }
            76..82 => Request::Grant { id: self.id(), ttl_s: 1 + self.rng.below(2) as i64 },
            82..86 => match self.rng.pick(&leases) {
                Some(id) => Request::Revoke { id },
                None => Request::Grant { id: 0, ttl_s: 1 },
            },
            86..92 => Request::KeepAlive { id: self.id() },
            92..95 => Request::TimeToLive { id: self.id(), keys: self.rng.chance(70) },
            _ => Request::Compact { revision: (self.revision() - self.rng.below(20) as i64).max(1) },
        }
    }

    /// Now and then a transaction, in a transaction that wrote `written` before it.
    fn nested(&mut self, written: &[u8], prev_kv: bool) -> Option<TxnOp> {
        let value = self.rng.next().to_be_bytes().to_vec();
        let found = self.state().get(written).cloned().unwrap_or_default();
        let compares =
            vec![Compare { key: written.into(), target: Target::Version(found.version), is: Relation::Equal }];
        let put = |key: &[u8]| TxnOp::Put { key: key.into(), value: value.clone(), lease: 0, prev_kv };
        let then = vec![put(b"y"), TxnOp::Range { key: b"y".into(), end: vec![], limit: 0, revision: 0 }];
        let inner = TxnOp::Txn { compares: compares.clone(), then, otherwise: vec![put(b"x")] };
        self.rng.chance(40).then_some(TxnOp::Txn { compares, then: vec![inner], otherwise: vec![] })
    }

    /// A lease that may have been, or may be, granted: one of thirty around now.
    fn id(&mut self) -> i64 {
        1 + (self.history.ops.len() as u64 / 100 * 10 + self.rng.below(30)) as i64
    }

    fn effect(&mut self, now: u64, index: usize) {
        let op = self.history.ops[index].clone();
        let acknowledged = op.outcome != Outcome::Unknown;
        let certain = acknowledged && !self.flawed && self.lost == 0;
        let mut outcome = self.outcome(now, &op, acknowledged);
        match (self.flaw, &op.request) {
            (Some(Flaw::AppliesTwice), Request::Put { key, value, lease, .. }) if !self.flawed => {
                if let Outcome::Ok { .. } = outcome {
                    let mut events = Vec::new();
                    self.put(&mut self.state().clone(), &mut events, key, value, *lease);
                    self.push(now, events);
                    self.flawed = true;
                }
            }
            (Some(Flaw::AppliesRefused), Request::Put { .. }) if certain => {
                if let Outcome::Ok { .. } = outcome {
                    outcome = Outcome::Refused("etcdserver: too many requests".into());
                    self.flawed = true;
                }
            }
            (Some(Flaw::LosesWrite), Request::Put { .. }) if certain && self.revision() > 5 => {
                if let Outcome::Ok { revision, .. } = outcome {
                    self.states.pop();
                    self.log.pop();
                    self.lost = revision;
                }
            }
            (Some(Flaw::ReusesRevision), Request::Put { .. }) if certain && self.revision() > 5 => {
                if let Outcome::Ok { revision, .. } = &mut outcome {
                    // What it returns was written to another future of the store.
                    self.states.pop();
                    self.log.pop();
                    *revision -= 1;
                    self.flawed = true;
                }
            }
            (Some(Flaw::ReadsStale), Request::Range { key, end, limit, revision: 0, serializable: false }) => {
                let floor = self.floor(&op);
                if floor > 2 {
                    let revision = 1 + self.rng.below(floor as u64 - 1) as i64;
                    let reply = range(&self.states[revision as usize - 1], key, end, *limit);
                    outcome = Outcome::Ok { revision, reply };
                    self.flawed = true;
                }
            }
            _ => {}
        }
        if let Outcome::Ok { revision, .. } = outcome {
            let known = self.known.entry(op.member).or_insert(1);
            *known = (*known).max(revision);
        }
        if acknowledged {
            self.history.ops[index].outcome = outcome;
        }
    }

    fn outcome(&mut self, now: u64, op: &Op, acknowledged: bool) -> Outcome {
        let mut state = self.state().clone();
        let mut events = Vec::new();
        let no_lease = || Outcome::Refused("etcdserver: requested lease not found".into());
        let reply = match &op.request {
            Request::Range { key, end, limit, revision, serializable } => {
                let compacted = self.compactions.iter().map(|(_, at)| *at).max().unwrap_or(-1);
                let lag = if *serializable { self.rng.below(3) as i64 } else { 0 };
                let known = self.known.get(&op.member).copied().unwrap_or(1);
                let at = (self.revision() - lag).max(known).min(self.revision());
                let of = if *revision > 0 { *revision } else { at };
                if of > at {
                    return Outcome::Refused("etcdserver: mvcc: required revision is a future revision".into());
                }
                if *revision > 0 && *revision < compacted {
                    return Outcome::Refused("etcdserver: mvcc: required revision has been compacted".into());
                }
                return Outcome::Ok { revision: at, reply: range(&self.states[of as usize - 1], key, end, *limit) };
            }
            Request::Put { key, value, lease, prev_kv } => {
                if *lease != 0 && !self.leases.contains_key(lease) {
                    return no_lease();
                }
                let prev = self.put(&mut state, &mut events, key, value, *lease);
                Reply::Put { prev: prev.filter(|_| *prev_kv) }
            }
            Request::Delete { key, end, prev_kv } => self.delete(&mut state, &mut events, key, end, *prev_kv),
            Request::Txn { compares, then, otherwise } => {
                let before = state.clone();
                let late = self.flaw == Some(Flaw::DecidesLate);
                let right = self.txn(&before, &mut before.clone(), &mut Vec::new(), compares, then, otherwise, false);
                let reply = self.txn(&before, &mut state, &mut events, compares, then, otherwise, late);
                self.flawed |= acknowledged && reply != right;
                let Some(reply) = reply else { return no_lease() };
                reply
            }
            Request::Users(_) | Request::Login { .. } => unreachable!("nobody here asks for that"),
            Request::Grant { id, ttl_s } => {
                let id = if *id == 0 { 1000 + self.rng.below(1 << 40) as i64 } else { *id };
                if self.leases.contains_key(&id) {
                    return Outcome::Refused("etcdserver: lease already exists".into());
                }
                let deadline = now + *ttl_s as u64 * 1000 * MS;
                self.leases.insert(id, (deadline, *ttl_s, if acknowledged { op.call } else { 0 }));
                let early = if self.flaw == Some(Flaw::EndsLeaseEarly) { *ttl_s as u64 * 500 * MS } else { 0 };
                self.later(deadline - early, Turn::Expire(id));
                Reply::Grant { id, ttl_s: *ttl_s }
            }
            Request::Revoke { id } => {
                if self.leases.remove(id).is_none() {
                    return no_lease();
                }
                let keys: Vec<Vec<u8>> = keys_of(&state, *id);
                if self.flaw == Some(Flaw::KeepsKeysOfLease) && acknowledged && !keys.is_empty() {
                    self.flawed = true;
                } else {
                    keys.iter().for_each(|key| drop(self.delete(&mut state, &mut events, key, &[], false)));
                }
                Reply::Revoke
            }
            Request::KeepAlive { id } => match self.leases.get_mut(id) {
                None => Reply::KeepAlive { ttl_s: 0 },
                Some((deadline, ttl_s, call)) => {
                    *deadline = now + *ttl_s as u64 * 1000 * MS;
                    if acknowledged {
                        *call = (*call).max(op.call);
                    }
                    Reply::KeepAlive { ttl_s: *ttl_s }
                }
            },
            Request::TimeToLive { id, keys } => match self.leases.get(id) {
                None => Reply::TimeToLive { granted_ttl_s: 0, ttl_s: -1, keys: vec![] },
                Some((deadline, ttl_s, _)) => Reply::TimeToLive {
                    granted_ttl_s: *ttl_s,
                    ttl_s: (deadline.saturating_sub(now) / (1000 * MS)) as i64,
                    keys: if *keys { keys_of(&state, *id) } else { vec![] },
                },
            },
            Request::Compact { revision } => {
                if self.compactions.iter().any(|(_, at)| at >= revision) {
                    return Outcome::Refused("etcdserver: mvcc: required revision has been compacted".into());
                }
                self.compactions.push((now, *revision));
                Reply::Compact
            }
        };
        self.push(now, events);
        Outcome::Ok { revision: self.revision(), reply }
    }

    fn expire(&mut self, now: u64, id: i64) {
        let Some((deadline, _, call)) = self.leases.get(&id).copied() else { return };
        if now < deadline && self.flaw != Some(Flaw::EndsLeaseEarly) {
            return self.later(deadline + self.rng.0 % (50 * MS), Turn::Expire(id));
        }
        let keys = keys_of(self.state(), id);
        if self.flaw == Some(Flaw::KeepsLease) && !keys.is_empty() {
            return;
        }
        let (_, ttl_s, _) = self.leases.remove(&id).expect("looked up above");
        let (mut state, mut events) = (self.state().clone(), Vec::new());
        keys.iter().for_each(|key| drop(self.delete(&mut state, &mut events, key, &[], false)));
        // Seen at most 100 ms later by the watch over everything.
        let due = call + ttl_s as u64 * 1000 * MS;
        let once = |request: &Request| matches!(request, Request::Grant { id: granted, .. } if *granted == id);
        let alone = self.flaw.is_some()
            && self.history.ops.iter().filter(|op| once(&op.request)).count() <= 1
            && !self.history.ops.iter().any(|op| op.request == Request::Revoke { id });
        if call > 0 && !events.is_empty() && now + 150 * MS < due && alone {
            let returned = |op: &&Op| matches!(op.outcome, Outcome::Ok { .. }) && op.call == call;
            self.flawed |= self.history.ops.iter().any(|op| returned(&op));
        }
        self.push(now, events);
    }

    fn put(
        &self,
        state: &mut State,
        events: &mut Vec<Event>,
        key: &[u8],
        value: &[u8],
        lease: i64,
    ) -> Option<KeyValue> {
        let revision = self.revision() + 1;
        let prev = state.get(key).cloned();
        let mut kv = prev.clone().unwrap_or(KeyValue { create_revision: revision, ..KeyValue::default() });
        kv.version += 1;
        (kv.key, kv.value, kv.mod_revision, kv.lease) = (key.to_vec(), value.to_vec(), revision, lease);
        state.insert(key.to_vec(), kv.clone());
        events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        prev
    }

    /// None if a lease is missing.
    #[allow(clippy::too_many_arguments)] // a store as simple as can be
    fn txn(
        &self,
        before: &State,
        state: &mut State,
        events: &mut Vec<Event>,
        compares: &[Compare],
        then: &[TxnOp],
        otherwise: &[TxnOp],
        late: bool,
    ) -> Option<Reply> {
        let succeeded = compares.iter().all(|compare| holds(if late { state } else { before }, compare));
        let mut replies = Vec::new();
        for op in if succeeded { then } else { otherwise } {
            replies.push(match op {
                TxnOp::Range { key, end, limit, .. } => range(state, key, end, *limit),
                TxnOp::Put { lease, .. } if *lease != 0 && !self.leases.contains_key(lease) => return None,
                TxnOp::Put { key, value, lease, prev_kv } => {
                    let prev = self.put(state, events, key, value, *lease);
                    Reply::Put { prev: prev.filter(|_| *prev_kv) }
                }
                TxnOp::Delete { key, end, prev_kv } => self.delete(state, events, key, end, *prev_kv),
                TxnOp::Txn { compares, then, otherwise } => {
                    self.txn(before, state, events, compares, then, otherwise, late)?
                }
            });
        }
        Some(Reply::Txn { succeeded, replies })
    }

    fn delete(&self, state: &mut State, events: &mut Vec<Event>, key: &[u8], end: &[u8], prev_kv: bool) -> Reply {
        let Reply::Range { kvs, count, .. } = range(state, key, end, 0) else {
            unreachable!("a range answers a range")
        };
        for prev in &kvs {
            state.remove(&prev.key);
            let kv = KeyValue { key: prev.key.clone(), mod_revision: self.revision() + 1, ..KeyValue::default() };
            events.push(Event { kind: EventKind::Delete, kv, prev: Some(prev.clone()) });
        }
        Reply::Delete { deleted: count, prevs: if prev_kv { kvs } else { vec![] } }
    }

    fn push(&mut self, now: u64, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut state = self.state().clone();
        for event in &events {
            match event.kind {
                EventKind::Put => state.insert(event.kv.key.clone(), event.kv.clone()),
                EventKind::Delete => state.remove(&event.kv.key),
            };
        }
        self.states.push(state);
        self.log.push((now, events));
    }

    /// The highest revision of a call that had returned before this one was made.
    fn floor(&self, op: &Op) -> i64 {
        floor(&self.history, op)
    }

    fn watches(&mut self, count: usize) {
        let end = self.log.last().map_or(0, |(time, _)| *time) + 100 * MS;
        self.watch(
            WatchRecord { key: vec![0], end: vec![0], start: 1, prev_kv: true, ..Default::default() },
            0,
            end,
            0,
        );
        for stream in 0..count as u64 {
            let opened = self.rng.below(end);
            let now = self.revision_at(opened);
            let key = KEYS[self.rng.below(6) as usize].to_vec();
            let (key, range_end) = match self.rng.below(3) {
                0 => (key, vec![]),
                1 => (b"a".to_vec(), b"b".to_vec()),
                _ => (vec![0], vec![0]),
            };
            let start = match self.rng.below(4) {
                0 => 0,
                1 => 1 + self.rng.below(now as u64) as i64,
                2 => now + 1,
                _ => now + self.rng.below(20) as i64,
            };
            let record = WatchRecord {
                client: 10,
                member: 1 + self.rng.below(3),
                key,
                end: range_end,
                start,
                prev_kv: self.rng.chance(60),
                progress: self.rng.chance(50),
                no_put: self.rng.chance(10),
                no_delete: self.rng.chance(10),
                fragment: self.rng.chance(40),
                stream: 100 * (stream + 1),
                ..Default::default()
            };
            self.watch(record, opened, end, 4);
        }
    }

    fn revision_at(&self, time: u64) -> i64 {
        1 + self.log.partition_point(|(at, _)| *at < time) as i64
    }

    /// Plays a watch to its end, or until it breaks off and goes on elsewhere, `breaks` times at most.
    fn watch(&mut self, mut record: WatchRecord, opened: u64, end: u64, breaks: u64) {
        let mut now = opened + 1;
        let header = self.revision_at(now);
        record.messages.push((now, WatchMessage::Created { revision: header }));
        let first = if record.start > 0 { record.start } else { header + 1 };
        let compacted = self.compactions.iter().filter(|(at, _)| *at < opened).map(|(_, at)| *at).max().unwrap_or(-1);
        if first < compacted {
            record.messages.push((now + 1, WatchMessage::Canceled { compact_revision: compacted }));
            let next = WatchRecord { start: compacted, ..record.clone() };
            return self.resume(record, next, now + 5, end, breaks);
        }
        let mut next = first;
        let mut batch: Vec<Event> = Vec::new();
        let mut reached = header;
        while next <= self.revision() {
            let (made, events) =
                usize::try_from(next - 2).ok().and_then(|at| self.log.get(at)).cloned().unwrap_or_default();
            now = now.max(made + 1) + self.rng.below(MS);
            let filtered = |event: &Event| match event.kind {
                EventKind::Put => record.no_put,
                EventKind::Delete => record.no_delete,
            };
            let due = |event: &Event| !filtered(event) && inside(&event.kv.key, &record.key, &record.end);
            let before = batch.len();
            batch.extend(events.into_iter().filter(due));
            batch[before..].iter_mut().for_each(|event| event.prev = event.prev.take().filter(|_| record.prev_kv));
            reached = reached.max(next);
            next += 1;
            if !batch.is_empty() && self.rng.chance(75) {
                let whole = self.send(&mut record, now, reached, &mut batch, breaks > 0);
                if let Some(cut) = whole.err() {
                    record.messages.push((now, WatchMessage::Ended));
                    let resumed = WatchRecord { start: cut, ..record.clone() };
                    return self.resume(record, resumed, now + MS, end, breaks - 1);
                }
            }
            if batch.is_empty() && reached == next - 1 && self.rng.chance(8) && next > record.start {
                record.messages.push((now, WatchMessage::Progress { revision: reached }));
            }
            if breaks > 0 && batch.is_empty() && self.rng.chance(4) {
                record.messages.push((now, WatchMessage::Ended));
                let seen = record.messages.iter().flat_map(|(_, message)| match message {
                    WatchMessage::Events { events, .. } => events.last().map(|event| event.kv.mod_revision),
                    WatchMessage::Progress { revision } => Some(*revision),
                    _ => None,
                });
                let resumed = WatchRecord { start: seen.last().map_or(first, |seen| seen + 1), ..record.clone() };
                return self.resume(record, resumed, now + MS, end, breaks - 1);
            }
        }
        if !batch.is_empty() {
            self.send(&mut record, now, reached, &mut batch, false).expect("nothing cuts it");
        }
        if self.rng.chance(20) && breaks > 0 {
            record.messages.push((now + 1, WatchMessage::Canceled { compact_revision: 0 }));
        }
        self.history.watches.push(record);
    }

    fn resume(&mut self, record: WatchRecord, next: WatchRecord, opened: u64, end: u64, breaks: u64) {
        self.history.watches.push(record);
        let resumes = Some(self.history.watches.len() - 1);
        let (member, stream) = (1 + next.member % 3, next.stream + 1);
        self.watch(WatchRecord { member, stream, resumes, messages: vec![], ..next }, opened, end, breaks);
    }

    /// An error if the stream broke off between two pieces: the revision of the last event that arrived, of which there
    /// may be more.
    fn send(
        &mut self,
        record: &mut WatchRecord,
        now: u64,
        header_revision: i64,
        batch: &mut Vec<Event>,
        may_break: bool,
    ) -> Result<(), i64> {
        let mut events = std::mem::take(batch);
        while record.fragment && events.len() > 1 && self.rng.chance(50) {
            let rest = events.split_off(1);
            let last = events[0].kv.mod_revision;
            record.messages.push((now, WatchMessage::Events { header_revision, fragment: true, events }));
            if may_break && self.rng.chance(30) {
                return Err(last);
            }
            events = rest;
        }
        record.messages.push((now, WatchMessage::Events { header_revision, fragment: false, events }));
        Ok(())
    }
}

fn floor(history: &History, op: &Op) -> i64 {
    let before = history.ops.iter().filter(|other| other.ret.is_some_and(|ret| ret < op.call));
    before.filter_map(revision_of).max().unwrap_or(1)
}

fn revision_of(op: &Op) -> Option<i64> {
    match op.outcome {
        Outcome::Ok { revision, .. } => Some(revision),
        _ => None,
    }
}

fn inside(k: &[u8], key: &[u8], end: &[u8]) -> bool {
    if end.is_empty() { k == key } else { key <= k && (end == [0] || k < end) }
}

fn range(state: &State, key: &[u8], end: &[u8], limit: i64) -> Reply {
    let all: Vec<KeyValue> = state.values().filter(|kv| inside(&kv.key, key, end)).cloned().collect();
    let count = all.len() as i64;
    let most = if limit == 0 { all.len() } else { limit as usize };
    let kvs: Vec<KeyValue> = all.into_iter().take(most).collect();
    Reply::Range { more: (kvs.len() as i64) < count, kvs, count }
}

fn holds(state: &State, compare: &Compare) -> bool {
    let found = state.get(&compare.key);
    let kv = found.cloned().unwrap_or_default();
    let order = match &compare.target {
        Target::ModRevision(with) => kv.mod_revision.cmp(with),
        Target::CreateRevision(with) => kv.create_revision.cmp(with),
        Target::Version(with) => kv.version.cmp(with),
        Target::Value(_) if found.is_none() => return false,
        Target::Value(with) => kv.value.cmp(with),
    };
    match compare.is {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
    }
}

fn keys_of(state: &State, lease: i64) -> Vec<Vec<u8>> {
    state.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
}

// Changes of a finished record. Each gives none where it would not break a promise for certain.

/// Places of events: watch, message, event.
fn events(case: &Case) -> Vec<(usize, usize, usize)> {
    let watches = case.history.watches.iter().enumerate();
    watches
        .flat_map(|(w, watch)| {
            let messages = watch.messages.iter().enumerate();
            messages.flat_map(move |(m, (_, message))| (0..message.events().len()).map(move |e| (w, m, e)))
        })
        .collect()
}

fn sent(case: &mut Case, watch: usize, message: usize) -> &mut Vec<Event> {
    match &mut case.history.watches[watch].messages[message].1 {
        WatchMessage::Events { events, .. } => events,
        other => unreachable!("{other:?} is not events"),
    }
}

/// Events after which the same watch was sent more.
fn inner_events(case: &Case) -> Vec<(usize, usize, usize)> {
    let all = events(case);
    let last: BTreeMap<usize, (usize, usize, usize)> = all.iter().map(|at| (at.0, *at)).collect();
    let last: BTreeSet<_> = last.into_values().collect();
    all.into_iter().filter(|at| !last.contains(at)).collect()
}

fn drop_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&inner_events(case))?;
    sent(case, w, m).remove(e);
    if sent(case, w, m).is_empty() {
        case.history.watches[w].messages.remove(m);
    }
    Some(())
}

fn drop_revision(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&inner_events(case))?;
    let revision = sent(case, w, m)[e].kv.mod_revision;
    let watch = &mut case.history.watches[w];
    let last = watch.messages.iter().flat_map(|(_, message)| message.events()).last()?.kv.mod_revision;
    if revision == last {
        return None;
    }
    for (_, message) in &mut watch.messages {
        if let WatchMessage::Events { events, .. } = message {
            events.retain(|event| event.kv.mod_revision != revision);
        }
    }
    watch.messages.retain(|(_, message)| !matches!(message, WatchMessage::Events { events, .. } if events.is_empty()));
    Some(())
}

fn swap_events(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let pairs: Vec<_> = events(case).into_iter().filter(|(_, _, e)| *e > 0).collect();
    let (w, m, e) = rng.pick(&pairs)?;
    sent(case, w, m).swap(e - 1, e);
    Some(())
}

fn swap_messages(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let pairs: Vec<_> = events(case).into_iter().filter(|(_, m, e)| *e == 0 && *m > 1).collect();
    let (w, m, _) = rng.pick(&pairs)?;
    let messages = &mut case.history.watches[w].messages;
    if messages[m - 1].1.events().is_empty() {
        return None;
    }
    let (left, right) = messages.split_at_mut(m);
    std::mem::swap(&mut left[m - 1].1, &mut right[0].1);
    Some(())
}

fn duplicate_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let event = sent(case, w, m)[e].clone();
    sent(case, w, m).insert(e, event);
    Some(())
}

fn duplicate_message(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, _) = rng.pick(&events(case))?;
    let messages = &mut case.history.watches[w].messages;
    let to = m + 1 + rng.below((messages.len() - m) as u64) as usize;
    let (time, message) = (messages[to - 1].0, messages[m].1.clone());
    messages.insert(to, (time, message));
    Some(())
}

fn bump_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let event = &mut sent(case, w, m)[e];
    event.kv.mod_revision += if rng.chance(50) { 1 } else { -1 };
    Some(())
}

fn change_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let event = &mut sent(case, w, m)[e];
    match rng.below(6) {
        0 => event.kv.version += 1,
        1 => event.kv.create_revision += 1,
        2 => event.kv.value.push(0),
        3 => event.kv.lease += 1,
        4 => event.kv.key.push(0xff),
        _ => event.kind = if event.kind == EventKind::Put { EventKind::Delete } else { EventKind::Put },
    }
    Some(())
}

fn early_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, _) = rng.pick(&events(case))?;
    let start = match case.history.watches[w].messages[0].1 {
        WatchMessage::Created { revision } if case.history.watches[w].start == 0 => revision + 1,
        _ => case.history.watches[w].start,
    };
    let all = case.history.watches[0].messages.iter().flat_map(|(_, message)| message.events());
    let event = all.rev().find(|event| event.kv.mod_revision < start)?.clone();
    sent(case, w, m).insert(0, event);
    Some(())
}

fn foreign_event(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let record = &case.history.watches[w];
    let after = record.messages[m].1.events()[e].kv.mod_revision;
    let all = case.history.watches[0].messages.iter().flat_map(|(_, message)| message.events());
    let foreign = |event: &&Event| !inside(&event.kv.key, &record.key, &record.end);
    let event = all.filter(foreign).find(|event| event.kv.mod_revision >= after)?.clone();
    sent(case, w, m).insert(e + 1, event);
    Some(())
}

fn change_prev(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let event = &mut sent(case, w, m)[e];
    match &mut event.prev {
        Some(prev) => prev.version += 1,
        none => *none = Some(KeyValue { key: event.kv.key.clone(), mod_revision: 1, ..KeyValue::default() }),
    }
    Some(())
}

fn drop_prev(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let compacts = |op: &Op| match op.request {
        Request::Compact { revision } => revision,
        _ => 0,
    };
    let compacted = case.history.ops.iter().map(compacts).max().unwrap_or(0);
    let (w, m, e) = rng.pick(&events(case))?;
    let event = &mut sent(case, w, m)[e];
    event.prev.take()?;
    (event.kv.mod_revision > compacted).then_some(())
}

fn tear_revision(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let all = events(case).into_iter().filter(|(w, m, e)| {
        let events = case.history.watches[*w].messages[*m].1.events();
        *e > 0 && events[*e].kv.mod_revision == events[*e - 1].kv.mod_revision
    });
    let (w, m, e) = rng.pick(&all.collect::<Vec<_>>())?;
    let rest = sent(case, w, m).split_off(e);
    let messages = &mut case.history.watches[w].messages;
    let (time, WatchMessage::Events { header_revision, fragment, .. }) = messages[m] else { return None };
    if let WatchMessage::Events { fragment, .. } = &mut messages[m].1 {
        *fragment = false;
    }
    messages.insert(m + 1, (time, WatchMessage::Events { header_revision, fragment, events: rest }));
    Some(())
}

fn early_progress(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let revision = sent(case, w, m)[e].kv.mod_revision;
    let messages = &mut case.history.watches[w].messages;
    let time = messages[m].0;
    messages.insert(m, (time, WatchMessage::Progress { revision }));
    Some(())
}

fn low_header(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, _) = rng.pick(&events(case))?;
    let WatchMessage::Events { header_revision, events, .. } = &mut case.history.watches[w].messages[m].1 else {
        return None;
    };
    *header_revision = events.last()?.kv.mod_revision - 1;
    Some(())
}

fn before_created(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, _, _) = rng.pick(&events(case))?;
    let messages = &mut case.history.watches[w].messages;
    let (created, next) = (messages[0].clone(), messages[1].clone());
    (messages[0].1, messages[1].1) = (next.1, created.1);
    Some(())
}

fn after_canceled(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, _) = rng.pick(&inner_events(case))?;
    let messages = &mut case.history.watches[w].messages;
    let time = messages[m].0;
    (m + 1 < messages.len() && !matches!(messages[m + 1].1, WatchMessage::Ended)).then_some(())?;
    messages.insert(m + 1, (time, WatchMessage::Canceled { compact_revision: 0 }));
    Some(())
}

fn cancel(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m, e) = rng.pick(&events(case))?;
    let sent = sent(case, w, m)[e].kv.mod_revision;
    let watch = &mut case.history.watches[w];
    watch.messages.truncate(m + 1);
    // Either nobody asked for that compaction, or it did not reach what the watch had still to be sent.
    let compact_revision = if rng.chance(50) { 1 << 40 } else { sent };
    watch.messages.push((watch.messages[m].0, WatchMessage::Canceled { compact_revision }));
    Some(())
}

fn resume_late(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let watches = &case.history.watches;
    let compacted = |at: usize| matches!(watches[at].messages.last(), Some((_, WatchMessage::Canceled { .. })));
    let passes = |at: usize| compacted(at) || half_sent(&watches[at]).is_some();
    let resumed = (0..watches.len()).filter(|at| watches[*at].resumes.is_some_and(|before| !passes(before)));
    let w = rng.pick(&resumed.collect::<Vec<_>>())?;
    case.history.watches[w].start += 1;
    Some(())
}

/// Of a watch that ended between two pieces, the revision of the last event.
fn half_sent(record: &WatchRecord) -> Option<i64> {
    let (_, last) = record.messages.iter().rev().find(|(_, message)| *message != WatchMessage::Ended)?;
    match last {
        WatchMessage::Events { fragment: true, events, .. } => events.last().map(|event| event.kv.mod_revision),
        _ => None,
    }
}

/// It goes on after a revision of which it was sent only half.
fn resume_after_half(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let watches = &case.history.watches;
    let of = |record: &WatchRecord, revision: i64| {
        let events = record.messages.iter().flat_map(|(_, message)| message.events());
        events.filter(|event| event.kv.mod_revision == revision).count()
    };
    let halves = watches.iter().enumerate().filter_map(|(w, record)| {
        let before = &watches[record.resumes?];
        let half = half_sent(before)?;
        (of(record, half) > of(before, half)).then_some((w, half))
    });
    let (w, half) = rng.pick(&halves.collect::<Vec<_>>())?;
    let record = &mut case.history.watches[w];
    record.start = half + 1;
    for (_, message) in &mut record.messages {
        if let WatchMessage::Events { events, .. } = message {
            events.retain(|event| event.kv.mod_revision > half);
        }
    }
    record.messages.retain(|(_, message)| !matches!(message, WatchMessage::Events { events, .. } if events.is_empty()));
    Some(())
}

/// Acknowledged calls of which this holds.
fn ops(case: &Case, holds: impl Fn(&Op, i64, &Reply) -> bool) -> Vec<usize> {
    let ops = case.history.ops.iter().enumerate();
    let chosen = ops.filter(|(_, op)| match &op.outcome {
        Outcome::Ok { revision, reply } => holds(op, *revision, reply),
        _ => false,
    });
    chosen.map(|(index, _)| index).collect()
}

/// Acknowledged writes that no other call could have made.
fn writes(case: &Case) -> Vec<usize> {
    let unknown = |of: &dyn Fn(&Request) -> bool| {
        case.history.ops.iter().any(|op| op.outcome == Outcome::Unknown && of(&op.request))
    };
    let also_deletes = |request: &Request| {
        matches!(request, Request::Delete { .. } | Request::Revoke { .. } | Request::Txn { .. } | Request::Grant { .. })
    };
    ops(case, |op, _, reply| match reply {
        Reply::Put { .. } => !unknown(&|request| *request == op.request),
        Reply::Delete { deleted, .. } => *deleted > 0 && !unknown(&also_deletes),
        _ => false,
    })
}

fn bump_reply(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let op = rng.pick(&writes(case))?;
    if let Outcome::Ok { revision, .. } = &mut case.history.ops[op].outcome {
        *revision += [1, -1, 2][rng.below(3) as usize];
    }
    Some(())
}

fn change_reply(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let op = rng.pick(&ops(case, |_, _, reply| {
        matches!(reply, Reply::Range { .. } | Reply::Put { .. } | Reply::Delete { .. } | Reply::Txn { .. })
    }))?;
    let Outcome::Ok { reply, .. } = &mut case.history.ops[op].outcome else { return None };
    match reply {
        Reply::Range { kvs, more, count } => match rng.below(4) {
            0 => *count += 1,
            1 => *more = !*more,
            2 => drop(kvs.pop()?),
            _ => kvs.last_mut()?.version += 1,
        },
        Reply::Put { prev } => match prev {
            Some(prev) => prev.value.push(0),
            none => *none = Some(KeyValue::default()),
        },
        Reply::Delete { deleted, prevs } => match rng.below(3) {
            0 => *deleted += 1,
            1 => *deleted -= if *deleted > 1 { 1 } else { return None },
            _ => prevs.last_mut()?.mod_revision += 1,
        },
        Reply::Txn { succeeded, replies } => match rng.below(3) {
            0 => *succeeded = !*succeeded,
            1 => drop(replies.pop()?),
            _ => match replies.first_mut()? {
                Reply::Range { count, .. } => *count += 1,
                Reply::Put { prev } => *prev = Some(KeyValue::default()),
                Reply::Delete { deleted, .. } => *deleted += 1,
                _ => return None,
            },
        },
        _ => return None,
    }
    Some(())
}

/// A nested transaction says that it went the other way.
fn other_way(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let is_nested = |reply: &Reply| matches!(reply, Reply::Txn { .. });
    let op = rng.pick(&ops(case, |_, _, reply| match reply {
        Reply::Txn { replies, .. } => replies.iter().any(is_nested),
        _ => false,
    }))?;
    let Outcome::Ok { reply: Reply::Txn { replies, .. }, .. } = &mut case.history.ops[op].outcome else { return None };
    let Some(Reply::Txn { succeeded, .. }) = replies.iter_mut().find(|reply| is_nested(reply)) else { return None };
    *succeeded = !*succeeded;
    Some(())
}

fn stale_read(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let reads = ops(case, |op, _, _| {
        matches!(op.request, Request::Range { revision: 0, serializable: false, .. }) && floor(&case.history, op) > 1
    });
    let index = rng.pick(&reads)?;
    let op = &case.history.ops[index];
    let Request::Range { key, end, limit, .. } = &op.request else { return None };
    let revision = 1 + rng.below(floor(&case.history, op) as u64 - 1) as i64;
    let reply = range(&case.states[revision as usize - 1], key, end, *limit);
    case.history.ops[index].outcome = Outcome::Ok { revision, reply };
    Some(())
}

fn late_call(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = rng.pick(&writes(case))?;
    let written = revision_of(&case.history.ops[index])?;
    let others = ops(case, |_, revision, _| revision >= written);
    let other = rng.pick(&others).filter(|other| *other != index)?;
    let seen = case.history.ops[other].ret?;
    let op = &mut case.history.ops[index];
    (op.call, op.ret) = (seen + 1, Some(seen + 2));
    Some(())
}

fn granted_once(case: &Case, id: i64) -> Option<&Op> {
    let mut grants = case.history.ops.iter().filter(|op| {
        matches!(op.request, Request::Grant { id: granted, .. } if granted == id)
            && !matches!(op.outcome, Outcome::Refused(_))
    });
    grants.next().filter(|_| grants.next().is_none())
}

fn renew_ended(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = rng.pick(&ops(case, |op, _, reply| {
        let Request::KeepAlive { id } = op.request else { return false };
        let ended = |other: &Op| other.request == Request::Revoke { id } && revision_of(other).is_some();
        let before = case.history.ops.iter().filter(|other| other.ret.is_some_and(|ret| ret < op.call));
        matches!(reply, Reply::KeepAlive { ttl_s: 0 })
            && granted_once(case, id).is_some()
            && before.filter(|other| ended(other)).count() > 0
    }))?;
    if let Outcome::Ok { reply, .. } = &mut case.history.ops[index].outcome {
        *reply = Reply::KeepAlive { ttl_s: 1 };
    }
    Some(())
}

fn lose_lease(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = rng.pick(&ops(case, |op, _, _| {
        let id = match op.request {
            Request::KeepAlive { id } => id,
            Request::Put { lease, .. } => lease,
            _ => return false,
        };
        let Some(grant) = granted_once(case, id) else { return false };
        let Outcome::Ok { reply: Reply::Grant { ttl_s, .. }, .. } = grant.outcome else { return false };
        let revoked = case.history.ops.iter().any(|other| other.request == Request::Revoke { id });
        let (Some(granted), Some(ret)) = (grant.ret, op.ret) else { return false };
        !revoked && granted < op.call && ret < grant.call + ttl_s as u64 * 1000 * MS
    }))?;
    let op = &mut case.history.ops[index];
    op.outcome = match op.request {
        Request::KeepAlive { .. } => Outcome::Ok { revision: revision_of(op)?, reply: Reply::KeepAlive { ttl_s: 0 } },
        _ => Outcome::Refused("etcdserver: requested lease not found".into()),
    };
    Some(())
}

fn read_back(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index =
        rng.pick(&ops(case, |op, _, _| matches!(op.request, Request::Range { revision: 0, serializable: true, .. })))?;
    let op = &case.history.ops[index];
    let shown = case.history.ops.iter().filter(|other| {
        let local = !matches!(other.request, Request::KeepAlive { .. } | Request::TimeToLive { .. });
        local && other.member == op.member && other.ret.is_some_and(|ret| ret < op.call)
    });
    let known = shown.filter_map(revision_of).max().filter(|known| *known > 1)?;
    let Request::Range { key, end, limit, .. } = &op.request else { return None };
    let revision = known - 1;
    let reply = range(&case.states[revision as usize - 1], key, end, *limit);
    case.history.ops[index].outcome = Outcome::Ok { revision, reply };
    Some(())
}

/// A question for a lease's time that found it, as it was answered.
fn asked_time(case: &mut Case, rng: &mut Rng) -> Option<usize> {
    rng.pick(&ops(case, |_, _, reply| matches!(reply, Reply::TimeToLive { ttl_s: 0.., .. })))
}

fn more_time(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = asked_time(case, rng)?;
    if let Outcome::Ok { reply: Reply::TimeToLive { granted_ttl_s, ttl_s, .. }, .. } =
        &mut case.history.ops[index].outcome
    {
        *ttl_s = *granted_ttl_s + 1;
    }
    Some(())
}

fn less_time(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let two_s = ops(case, |_, _, reply| matches!(reply, Reply::Grant { ttl_s: 2, .. }));
    let grant = &case.history.ops[rng.pick(&two_s)?];
    let Outcome::Ok { revision, reply: Reply::Grant { id, .. } } = grant.outcome else { return None };
    let revoked = case.history.ops.iter().any(|other| other.request == Request::Revoke { id });
    (!revoked).then_some(())?;
    let (request, call) = (Request::TimeToLive { id, keys: false }, grant.ret? + 1);
    let reply = Reply::TimeToLive { granted_ttl_s: 2, ttl_s: 0, keys: vec![] };
    let outcome = Outcome::Ok { revision, reply };
    case.history.ops.push(Op { client: 99, call, ret: Some(call + 1), request, outcome, ..Op::default() });
    Some(())
}

fn other_time(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = asked_time(case, rng)?;
    let Request::TimeToLive { id, .. } = case.history.ops[index].request else { return None };
    // Of a grant without an answer nobody knows how long the server made it.
    matches!(granted_once(case, id)?.outcome, Outcome::Ok { .. }).then_some(())?;
    if let Outcome::Ok { reply: Reply::TimeToLive { granted_ttl_s, .. }, .. } = &mut case.history.ops[index].outcome {
        *granted_ttl_s += 1;
    }
    Some(())
}

fn other_keys(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let index = asked_time(case, rng)?;
    matches!(case.history.ops[index].request, Request::TimeToLive { keys: true, .. }).then_some(())?;
    if let Outcome::Ok { reply: Reply::TimeToLive { keys, .. }, .. } = &mut case.history.ops[index].outcome {
        keys.push(b"never written".to_vec());
    }
    Some(())
}

fn late_lease(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let grants = ops(case, |_, _, reply| matches!(reply, Reply::Grant { .. }));
    let grant = rng.pick(&grants)?;
    let Outcome::Ok { reply: Reply::Grant { id, .. }, .. } = case.history.ops[grant].outcome else { return None };
    let (call, revision) = (case.history.end, case.states.len() as i64);
    let (request, reply) = if rng.chance(50) {
        (Request::KeepAlive { id }, Reply::KeepAlive { ttl_s: 1 })
    } else {
        (Request::TimeToLive { id, keys: false }, Reply::TimeToLive { granted_ttl_s: 1, ttl_s: 0, keys: vec![] })
    };
    let outcome = Outcome::Ok { revision, reply };
    case.history.ops.push(Op { client: 99, call, ret: Some(call + 1), request, outcome, ..Op::default() });
    Some(())
}

/// Messages marked as fragments.
fn fragments(case: &Case) -> Vec<(usize, usize)> {
    let marked = |(_, message): &(u64, WatchMessage)| matches!(message, WatchMessage::Events { fragment: true, .. });
    let watches = case.history.watches.iter().enumerate();
    watches
        .flat_map(|(w, watch)| (0..watch.messages.len()).filter(|m| marked(&watch.messages[*m])).map(move |m| (w, m)))
        .collect()
}

/// Those after which the next piece arrived.
fn inner_fragments(case: &Case) -> Vec<(usize, usize)> {
    let followed = |(w, m): &(usize, usize)| {
        let messages = &case.history.watches[*w].messages;
        matches!(messages.get(m + 1), Some((_, WatchMessage::Events { .. })))
    };
    fragments(case).into_iter().filter(followed).collect()
}

fn fragment_unasked(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, _) = rng.pick(&fragments(case))?;
    case.history.watches[w].fragment = false;
    Some(())
}

fn fragment_headers(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m) = rng.pick(&inner_fragments(case))?;
    for (_, message) in &mut case.history.watches[w].messages[m + 1..] {
        match message {
            WatchMessage::Events { header_revision, .. } => *header_revision += 1,
            WatchMessage::Progress { revision } => *revision += 1,
            _ => {}
        }
    }
    // The higher header must not be told by nothing having made that revision.
    let last = case.history.watches[w].messages.iter().filter_map(|(_, message)| match message {
        WatchMessage::Events { header_revision, .. } => Some(*header_revision),
        _ => None,
    });
    (last.max()? <= case.states.len() as i64).then_some(())
}

/// A last piece that says that there is more, and then comes something else.
fn fragment_unfinished(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let others = |w: usize, m: usize| {
        let messages = &case.history.watches[w].messages;
        let WatchMessage::Events { header_revision, fragment: false, .. } = &messages[m].1 else { return false };
        match messages.get(m + 1).map(|(_, message)| message) {
            None | Some(WatchMessage::Ended) => false,
            Some(WatchMessage::Events { header_revision: next, .. }) => next != header_revision,
            Some(_) => true,
        }
    };
    let asked = |w: usize| case.history.watches[w].fragment;
    let last: Vec<_> = events(case).into_iter().filter(|(w, m, _)| asked(*w) && others(*w, *m)).collect();
    let (w, m, _) = rng.pick(&last)?;
    if let WatchMessage::Events { fragment, .. } = &mut case.history.watches[w].messages[m].1 {
        *fragment = true;
    }
    Some(())
}

/// Something for another watch of the stream arrives between two pieces.
fn fragment_interleaved(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let (w, m) = rng.pick(&inner_fragments(case))?;
    let stream = case.history.watches[w].stream;
    case.history.watches[w].messages[m + 1..].iter_mut().for_each(|(time, _)| *time += 2);
    let (time, message) = &case.history.watches[w].messages[m];
    let WatchMessage::Events { header_revision, .. } = message else { return None };
    let created = (time + 1, WatchMessage::Created { revision: *header_revision });
    let start = *header_revision + 1000;
    let other = WatchRecord { key: b"a".into(), stream, start, messages: vec![created], ..WatchRecord::default() };
    case.history.watches.push(other);
    Some(())
}

/// A watch of nothing is let in.
fn empty_range_watched(case: &mut Case, _: &mut Rng) -> Option<()> {
    let created = (1, WatchMessage::Created { revision: 1 });
    let (key, end) = (b"b".to_vec(), b"a".to_vec());
    case.history.watches.push(WatchRecord { key, end, messages: vec![created], ..WatchRecord::default() });
    Some(())
}

/// A watch of something is not let in.
fn watch_refused(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let watches = 1..case.history.watches.len();
    let resumed = |w: usize| case.history.watches.iter().any(|other| other.resumes == Some(w));
    let w = rng.pick(&watches.filter(|w| !resumed(*w)).collect::<Vec<_>>())?;
    let record = &mut case.history.watches[w];
    record.messages.truncate(1);
    record.messages[0].1 = WatchMessage::Refused;
    Some(())
}

/// A second watch over everything on the stream of the first, told the same at the same times.
fn twin(case: &mut Case) -> usize {
    case.history.watches[0].stream = 1;
    let twin = WatchRecord { start: 1, ..case.history.watches[0].clone() };
    case.history.watches.push(twin);
    case.history.watches.len() - 1
}

fn header_falls(case: &mut Case, _: &mut Rng) -> Option<()> {
    let twin = twin(case);
    check(&case.history).expect("twins are right");
    let last = case.history.watches[0].messages.last()?.0;
    let revision = case.states.len() as i64;
    (revision > 1).then_some(())?;
    case.history.watches[0].messages.push((last + 1, WatchMessage::StreamProgress { revision }));
    // Created, says the stream, as of a revision long past.
    case.history.watches[twin].messages.iter_mut().for_each(|(time, _)| *time += last + 2);
    Some(())
}

fn early_stream_progress(case: &mut Case, _: &mut Rng) -> Option<()> {
    let twin = twin(case);
    let revision = case.states.len() as i64;
    let messages = &mut case.history.watches[0].messages;
    let last = messages.last()?.0;
    messages.push((last + 1, WatchMessage::StreamProgress { revision }));
    let messages = &mut case.history.watches[twin].messages;
    let (time, message) = messages.last_mut()?;
    matches!(message, WatchMessage::Events { header_revision, .. } if *header_revision == revision).then_some(())?;
    *time = last + 2;
    Some(())
}
