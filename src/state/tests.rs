//! What every member must agree on, and what a member must find again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::applied::{Applied, LeaseChange, Refusal, Reply};
use super::command::{
    Change, Command, Kind, LeaseExpire, LeaseRemaining, MemberAdd, MemberPeerUrls, MemberPromote, MemberRemove,
    Reconfiguration,
};
use super::*;
use crate::pb::authpb::Permission;
use crate::pb::etcdserverpb::*;
use crate::pb::everwatchpb::{
    AuthChange, ClusterVersion, MemberAttributes, UserAdd, auth_change, lease_remaining::Remaining,
};
use crate::storage::backend::{Backend, memory::MemoryBackend};

/// All rows of a backend.
type Rows = BTreeMap<(Bucket, Bytes), Bytes>;

fn rows_of(backend: &MemoryBackend) -> Rows {
    let (reader, mut rows) = (backend.reader().unwrap(), Rows::new());
    for bucket in Bucket::ALL {
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.insert((bucket, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
            true
        };
        reader.scan(bucket, &[], None, &mut visit).unwrap();
    }
    rows
}

/// The state that these rows are.
fn open(rows: Rows) -> storage::Result<StateMachine> {
    let backend = MemoryBackend::new();
    let rows = rows.into_iter().map(|((bucket, key), value)| (bucket, key, Some(value))).collect();
    backend.commit(&Batch { rows })?;
    StateMachine::open(backend.reader()?)
}

/// A member: its state, and a backend that runs behind.
struct Member {
    state: StateMachine,
    backend: MemoryBackend,
    waiting: Batch,
    index: u64,
}

fn founders() -> (Vec<MemberRecord>, ConfState) {
    let record = |id| MemberRecord { id, peer_urls: vec![format!("http://h:{id}")], ..Default::default() };
    (vec![record(1), record(2), record(3)], ConfState { voters: vec![1, 2, 3], ..Default::default() })
}

impl Member {
    fn new() -> Member {
        let (members, conf_state) = founders();
        let backend = MemoryBackend::new();
        backend.commit(&StateMachine::founding_rows(&members, &conf_state)).unwrap();
        let state = StateMachine::open(backend.reader().unwrap()).unwrap();
        Member { state, backend, waiting: Batch::default(), index: 1 }
    }

    /// An entry with one command, in term 1.
    fn run(&mut self, kind: Kind) -> Applied {
        self.run_in(Term(1), kind)
    }

    fn run_in(&mut self, term: Term, kind: Kind) -> Applied {
        self.index += 1;
        let command = Command { kind: Some(kind), ..Default::default() };
        let applied = self.state.apply(Index(self.index), term, &command, &mut self.waiting).unwrap();
        self.state.finish_entry(Index(self.index), term, &mut self.waiting);
        applied
    }

    /// An entry that changes who belongs, in term 1.
    fn reconfigure(&mut self, change: Change) -> Result<Reply, Refusal> {
        self.index += 1;
        let command = Reconfiguration { change: Some(change), ..Default::default() };
        let outcome = self.state.reconfigure(Index(self.index), Term(1), &command, &mut self.waiting).unwrap();
        self.state.finish_entry(Index(self.index), Term(1), &mut self.waiting);
        outcome
    }

    fn carry_out(&mut self, step: Step) -> String {
        match step {
            Step::Command(kind) => told(&self.run(kind)),
            Step::Change(change) => format!("{:?}", self.reconfigure(change)),
        }
    }

    fn flush(&mut self) {
        self.backend.commit(&std::mem::take(&mut self.waiting)).unwrap();
        self.state.kv.flushed(self.backend.reader().unwrap()).unwrap();
    }

    /// What did not reach the backend is gone. Says where to continue.
    fn crash(&mut self) -> u64 {
        self.waiting = Batch::default();
        self.state = StateMachine::open(self.backend.reader().unwrap()).unwrap();
        self.index = self.state.applied().0;
        self.index
    }

    fn compact_fully(&mut self) {
        while self.state.kv.compact_step(3, &mut self.waiting).unwrap() {}
    }
}

/// What an entry holds.
#[derive(Clone)]
enum Step {
    Command(Kind),
    Change(Change),
}

/// splitmix64: the tests' only source of chance.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn key(&mut self) -> Bytes {
        format!("k{}", self.roll(8)).into()
    }

    fn lease(&mut self) -> i64 {
        self.roll(6) as i64 - 1
    }

    fn put(&mut self) -> PutRequest {
        let lease = if self.roll(2) == 0 { self.lease() } else { 0 };
        let (ignore_value, ignore_lease) = (self.roll(9) == 0, self.roll(9) == 0);
        let value = self.roll(1000).to_string().into();
        PutRequest { key: self.key(), value, lease, prev_kv: self.roll(3) == 0, ignore_value, ignore_lease }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let range_end = if self.roll(3) == 0 { self.key() } else { Bytes::new() };
        DeleteRangeRequest { key: self.key(), range_end, prev_kv: self.roll(2) == 0 }
    }

    fn txn(&mut self) -> TxnRequest {
        use request_op::Request::*;
        let op = |request| RequestOp { request: Some(request) };
        let compare = Compare {
            key: self.key(),
            result: compare::CompareResult::Greater as i32,
            target: compare::CompareTarget::Version as i32,
            target_union: Some(compare::TargetUnion::Version(self.roll(3) as i64)),
            ..Default::default()
        };
        let success = vec![
            op(RequestDeleteRange(self.delete())),
            op(RequestRange(RangeRequest { key: self.key(), ..Default::default() })),
        ];
        TxnRequest { compare: vec![compare], success, failure: vec![op(RequestPut(self.put()))] }
    }

    fn change(&mut self) -> Change {
        let id = self.roll(9);
        match self.roll(4) {
            0 => Change::Promote(MemberPromote { id }),
            1 => Change::Remove(MemberRemove { id }),
            _ => {
                let peer_urls = vec![format!("http://h:{}", self.roll(9))];
                Change::Add(MemberAdd { id, peer_urls, is_learner: self.roll(2) == 0, learners_max: 2 })
            }
        }
    }

    fn step(&mut self, revision: i64) -> Step {
        if self.roll(12) == 0 { Step::Change(self.change()) } else { Step::Command(self.command(revision)) }
    }

    fn name(&mut self) -> String {
        format!("n{}", self.roll(3))
    }

    fn users(&mut self) -> auth_change::Change {
        use auth_change::Change;
        let (name, role, user) = (self.name(), self.name(), self.name());
        match self.roll(8) {
            0 => Change::UserAdd(UserAdd { name, hash: "h".into(), options: None }),
            1 => Change::UserDelete(AuthUserDeleteRequest { name }),
            2 => Change::UserGrantRole(AuthUserGrantRoleRequest { user, role }),
            3 => Change::UserRevokeRole(AuthUserRevokeRoleRequest { name, role }),
            4 => Change::RoleAdd(AuthRoleAddRequest { name }),
            5 => Change::RoleDelete(AuthRoleDeleteRequest { role }),
            6 => {
                let perm_type = self.roll(3) as i32;
                let perm = Some(Permission { perm_type, key: self.key(), range_end: self.key() });
                Change::RoleGrantPermission(AuthRoleGrantPermissionRequest { name, perm })
            }
            _ => {
                let (key, range_end) = (self.key(), self.key());
                Change::RoleRevokePermission(AuthRoleRevokePermissionRequest { role, key, range_end })
            }
        }
    }

    fn command(&mut self, revision: i64) -> Kind {
        let alarm = |action, alarm, member_id| Kind::Alarm(AlarmRequest { action, member_id, alarm });
        match self.roll(112) {
            100.. => Kind::AuthChange(AuthChange { change: Some(self.users()) }),
            0..=39 => Kind::Put(self.put()),
            40..=49 => Kind::DeleteRange(self.delete()),
            50..=64 => Kind::Txn(self.txn()),
            65..=76 => Kind::LeaseGrant(LeaseGrantRequest { id: self.lease(), ttl: 1 + self.roll(60) as i64 }),
            77..=79 => Kind::LeaseRevoke(LeaseRevokeRequest { id: self.lease() }),
            80..=83 => {
                let ids = vec![self.lease(), self.lease(), self.lease()];
                Kind::LeaseExpire(LeaseExpire { term: 1 + self.roll(2), ids, seen: self.roll(2) * u64::MAX })
            }
            84..=88 => {
                let rest = Remaining { id: self.lease(), remaining_ms: self.roll(3) * 500 };
                Kind::LeaseRemaining(LeaseRemaining { term: 1, leases: vec![rest], seen: self.roll(2) * u64::MAX })
            }
            89..=91 => {
                Kind::Compaction(CompactionRequest { revision: revision - self.roll(9) as i64, physical: false })
            }
            92 => alarm(1, 1 + self.roll(2) as i32, self.roll(2)),
            93..=96 => alarm(2, 1 + self.roll(2) as i32, self.roll(2)),
            97 => Kind::MemberAttributes(MemberAttributes { id: self.roll(5), name: "n".into(), ..Default::default() }),
            98 => {
                let peer_urls = vec![format!("http://h:{}", self.roll(9))];
                Kind::MemberPeerUrls(MemberPeerUrls { id: self.roll(5), peer_urls })
            }
            _ => Kind::ClusterVersion(ClusterVersion { version: format!("3.{}.0", self.roll(9)) }),
        }
    }
}

/// Everything of an outcome that anybody is told.
fn told(applied: &Applied) -> String {
    let changes: Vec<_> = applied
        .changes
        .iter()
        .map(|set| {
            let change = |c: &crate::mvcc::change::Change| (c.key.clone(), c.kind, c.record.clone(), c.replaced);
            (set.revision, set.changes.iter().map(change).collect::<Vec<_>>())
        })
        .collect();
    format!("{:?} {changes:?} {:?}", applied.reply, applied.leases)
}

/// Everything of a state that anybody can ask.
fn content(state: &StateMachine) -> String {
    let mut out = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}\n",
        (state.applied(), state.applied_term(), state.kv.revision(), state.kv.compacted(), state.kv.keys_total()),
        state.conf_state(),
        state.cluster_version(),
        state.members,
        state.alarms,
        state.auth,
        state.leases.iter().collect::<Vec<_>>(),
        (0..8).map(|n| state.leases.lease_of(format!("k{n}").as_bytes())).collect::<Vec<_>>(),
        state.kv.hash_kv(Revision(0)).unwrap(),
    );
    for revision in state.kv.compacted().0.max(1)..=state.kv.revision().0 {
        let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
        out += &format!("{revision} {:?}\n", state.kv.range(&all).unwrap());
    }
    out
}

/// Leases and keys name each other, and no others.
fn check_leases(state: &StateMachine) {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let mut by_lease: BTreeMap<LeaseId, Vec<Bytes>> = state.leases.iter().map(|(id, _)| (id, Vec::new())).collect();
    for kv in state.kv.range(&all).unwrap().kvs.into_iter().filter(|kv| kv.lease != 0) {
        by_lease.get_mut(&LeaseId(kv.lease)).expect("a key's lease exists").push(kv.key);
    }
    let table = state.leases.iter().map(|(id, lease)| (id, lease.keys().cloned().collect())).collect();
    assert_eq!(by_lease, table);
}

/// The table of members and raft's configuration name the same voters and learners, and nobody who was removed.
fn check_configuration(state: &StateMachine) {
    let ids = |is_learner| {
        let of_rank = state.members.iter().filter(|(_, member)| member.is_learner == is_learner);
        of_rank.map(|(id, _)| id.0).collect::<Vec<_>>()
    };
    let expected = ConfState { voters: ids(false), learners: ids(true), ..Default::default() };
    assert_eq!(state.conf_state(), &expected);
    assert!(state.members.iter().all(|(id, _)| !state.members.was_removed(id)));
}

#[test]
fn members_agree_however_often_one_of_them_flushes_crashes_and_restores() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let (mut steady, mut troubled) = (Member::new(), Member::new());
        let mut log: Vec<(Step, String)> = Vec::new();
        for _ in 0..250 {
            let step = dice.step(steady.state.kv.revision().0);
            let said = steady.carry_out(step.clone());
            log.push((step, said));
            // Follow, from wherever the last crash left us.
            for (step, said) in &log[troubled.index as usize - 1..] {
                assert_eq!(&troubled.carry_out(step.clone()), said, "seed {seed}");
            }
            match dice.roll(12) {
                0 => troubled.flush(),
                1 => drop(troubled.crash()),
                2 => drop(troubled.state.kv.compact_step(2, &mut troubled.waiting).unwrap()),
                3 => {
                    troubled.flush();
                    troubled.crash();
                    assert_eq!(content(&troubled.state), content(&steady.state), "seed {seed}");
                }
                _ => (),
            }
        }
        for (step, said) in &log[troubled.index as usize - 1..] {
            assert_eq!(&troubled.carry_out(step.clone()), said, "seed {seed}");
        }
        assert_eq!(content(&troubled.state), content(&steady.state), "seed {seed}");
        check_leases(&steady.state);
        check_configuration(&steady.state);
        for member in [&mut steady, &mut troubled] {
            member.compact_fully();
            member.flush();
        }
        assert_eq!(rows_of(&steady.backend), rows_of(&troubled.backend), "seed {seed}");
    }
}

fn put(key: &str, lease: i64) -> Kind {
    Kind::Put(PutRequest { key: key.to_owned().into(), value: "v".into(), lease, ..Default::default() })
}

fn grant(id: i64) -> Kind {
    Kind::LeaseGrant(LeaseGrantRequest { id, ttl: 60 })
}

fn expire(term: u64, ids: &[i64]) -> Kind {
    Kind::LeaseExpire(LeaseExpire { term, ids: ids.to_vec(), seen: u64::MAX })
}

fn keys_of(applied: &Applied) -> Vec<(i64, Vec<Bytes>)> {
    applied.changes.iter().map(|set| (set.revision.0, set.changes.iter().map(|c| c.key.clone()).collect())).collect()
}

#[test]
fn a_revoked_lease_takes_its_keys_in_order_at_one_revision() {
    let mut member = Member::new();
    member.run(grant(7));
    for key in ["c", "a", "b"] {
        member.run(put(key, 7));
    }
    member.run(put("b", 0));
    let applied = member.run(Kind::LeaseRevoke(LeaseRevokeRequest { id: 7 }));
    assert_eq!(keys_of(&applied), [(6, vec!["a".into(), "c".into()])]);
    assert_eq!(applied.leases, [LeaseChange::Revoked { id: LeaseId(7) }]);
    let header = Some(ResponseHeader { revision: 6, ..Default::default() });
    assert_eq!(applied.reply, Ok(Reply::LeaseRevoke(LeaseRevokeResponse { header })));
    assert_eq!(member.run(put("a", 7)).reply, Err(Refusal::LeaseNotFound));
}

#[test]
fn leases_that_expire_together_end_one_by_one_and_only_in_the_term_that_saw_it() {
    let mut member = Member::new();
    for id in [1, 2, 3] {
        member.run(grant(id));
        member.run(put(&format!("k{id}"), id));
    }
    member.run(put("k2", 3));
    let applied = member.run_in(Term(2), expire(1, &[1, 2, 3]));
    assert_eq!((applied.reply, applied.changes.len(), applied.leases.len()), (Ok(Reply::Done), 0, 0));
    let applied = member.run_in(Term(2), expire(2, &[3, 9, 2, 1, 1]));
    assert_eq!(keys_of(&applied), [(6, vec!["k2".into(), "k3".into()]), (7, vec!["k1".into()])]);
    let ended = [3, 2, 1].map(|id| LeaseChange::Revoked { id: LeaseId(id) });
    assert_eq!(applied.leases, ended, "the one without keys ends as well, without a revision");

    member.run_in(Term(3), grant(4));
    let rest = |term, remaining_ms| {
        let leases = vec![Remaining { id: 4, remaining_ms }, Remaining { id: 5, remaining_ms }];
        Kind::LeaseRemaining(LeaseRemaining { term, leases, seen: u64::MAX })
    };
    assert_eq!(member.run_in(Term(3), rest(2, 500)).leases, []);
    let changed = [LeaseChange::Remaining { id: LeaseId(4), rest_ms: Some(500) }];
    assert_eq!(member.run_in(Term(3), rest(3, 500)).leases, changed);
    assert_eq!(member.state.leases.get(LeaseId(4)).unwrap().rest_ms().map(|ms| ms.get()), Some(500));
    member.run_in(Term(3), rest(3, 0));
    assert_eq!(member.state.leases.get(LeaseId(4)).unwrap().rest_ms(), None);
}

#[test]
fn checks_come_in_etcds_order() {
    let mut member = Member::new();
    let missing = |lease| Kind::Put(PutRequest { key: "none".into(), ignore_value: true, lease, ..Default::default() });
    assert_eq!(member.run(missing(66)).reply, Err(Refusal::LeaseNotFound));
    assert_eq!(member.run(missing(0)).reply, Err(Refusal::KeyNotFound));
    member.run(Kind::Alarm(AlarmRequest { action: 1, member_id: 7, alarm: 1 }));
    assert_eq!(member.run(missing(66)).reply, Err(Refusal::NoSpace));
    assert_eq!(member.state.kv.revision(), Revision::FIRST);
    assert_eq!(member.run(grant(0)).reply, Err(Refusal::NoSpace));
}

#[test]
fn alarms_refuse_what_they_should_and_answer_as_etcd_does() {
    let mut member = Member::new();
    let alarm = |member: &mut Member, action, id, kind| {
        let request = AlarmRequest { action, member_id: id, alarm: kind };
        match member.run(Kind::Alarm(request)).reply {
            Ok(Reply::Alarm(response)) => {
                response.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let (get, raise, clear, none, nospace, corrupt) = (0, 1, 2, 0, 1, 2);
    for (action, id, kind) in [(raise, 7, none), (clear, 0, none), (raise, 3, 9), (clear, 3, 9), (9, 3, 1)] {
        assert_eq!(alarm(&mut member, action, id, kind), [], "{action} {id} {kind}");
    }
    assert_eq!(alarm(&mut member, raise, 7, nospace), [(7, 1)]);
    assert_eq!(alarm(&mut member, raise, 7, nospace), [(7, 1)], "again");
    assert_eq!(alarm(&mut member, raise, 5, nospace), [(5, 1)]);
    assert_eq!(alarm(&mut member, get, 99, none), [(5, 1), (7, 1)]);
    assert_eq!(alarm(&mut member, get, 0, corrupt), []);

    let op = |request| RequestOp { request: Some(request) };
    let nested = |request| TxnRequest { failure: vec![op(request)], ..Default::default() };
    let Kind::Put(room) = put("k", 0) else { unreachable!() };
    let with_put = nested(request_op::Request::RequestTxn(nested(request_op::Request::RequestPut(room))));
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    let without = nested(request_op::Request::RequestDeleteRange(delete.clone()));
    for kind in [put("k", 0), grant(1), Kind::Txn(with_put)] {
        assert_eq!(member.run(kind).reply, Err(Refusal::NoSpace));
    }
    assert!(member.run(Kind::Txn(without.clone())).reply.is_ok());
    assert!(member.run(Kind::DeleteRange(delete.clone())).reply.is_ok());

    assert_eq!(alarm(&mut member, clear, 7, corrupt), []);
    assert_eq!(alarm(&mut member, clear, 7, nospace), [(7, 1)]);
    assert_eq!(member.run(put("k", 0)).reply, Err(Refusal::NoSpace), "the other member has none either");
    assert_eq!(alarm(&mut member, clear, 5, nospace), [(5, 1)]);
    member.run(grant(1));
    member.run(put("k", 1));

    assert_eq!(alarm(&mut member, raise, 0, corrupt), [(0, 2)]);
    let revoke = Kind::LeaseRevoke(LeaseRevokeRequest { id: 1 });
    let compaction = Kind::Compaction(CompactionRequest { revision: 2, physical: false });
    for kind in
        [put("k", 0), Kind::DeleteRange(delete), Kind::Txn(without), compaction, grant(2), revoke, expire(1, &[1])]
    {
        assert_eq!(member.run(kind).reply, Err(Refusal::Corrupt));
    }
    assert_eq!(member.state.kv.revision(), Revision(2));
}

#[test]
fn damaged_rows_are_refused() {
    let mut member = Member::new();
    member.run(grant(7));
    member.run(put("k", 7));
    member.run(Kind::Alarm(AlarmRequest { action: 1, member_id: 7, alarm: 1 }));
    member.run(Kind::ClusterVersion(ClusterVersion { version: "3.5.0".into() }));
    member.flush();
    let good = rows_of(&member.backend);
    assert!(open(good.clone()).is_ok());
    assert!(open(Rows::new()).is_ok_and(|empty| empty.applied() == Index(0)));

    let opens = |change: &dyn Fn(&mut Rows)| {
        let mut rows = good.clone();
        change(&mut rows);
        open(rows).is_ok()
    };
    let row = |bucket, key: &'static [u8]| (bucket, Bytes::from_static(key));
    for name in [schema::APPLIED_INDEX, schema::APPLIED_TERM, schema::REVISION, schema::CONF_STATE] {
        assert!(!opens(&|rows| drop(rows.remove(&row(Bucket::Meta, name)))), "{name:?} is missing");
        assert!(!opens(&|rows| drop(rows.insert(row(Bucket::Meta, name), "x".into()))), "{name:?} is short");
    }
    assert!(!opens(&|rows| drop(rows.insert(row(Bucket::Meta, schema::CLUSTER_VERSION), "x".into()))));
    assert!(!opens(&|rows| drop(rows.insert(row(Bucket::Alarm, b"short"), Bytes::new()))));
    assert!(!opens(&|rows| drop(rows.insert(row(Bucket::MembersRemoved, b"x"), Bytes::new()))));
    assert!(!opens(&|rows| drop(rows.insert(row(Bucket::Meta, schema::AUTH_REVISION), "x".into()))));
    for bucket in [Bucket::Lease, Bucket::Members, Bucket::Users, Bucket::Roles] {
        assert!(!opens(&|rows| drop(rows.insert(row(bucket, b"12345678"), Bytes::new()))), "{bucket:?} elsewhere");
        assert!(!opens(&|rows| drop(rows.insert(row(bucket, b"12345678"), "\u{7f}".into()))), "{bucket:?} unreadable");
    }
    let lease = (Bucket::Lease, schema::u64_row(7));
    assert!(!opens(&|rows| drop(rows.remove(&lease))), "a key's lease is missing");
}

#[test]
fn an_unknown_command_stops_the_member() {
    let mut member = Member::new();
    let outcome = member.state.apply(Index(2), Term(1), &Command::default(), &mut Batch::default());
    assert!(matches!(outcome, Err(storage::Error::Engine(_))));
}

fn apply_at(index: u64) {
    let mut member = Member::new();
    member.run(put("k", 0));
    let command = Command { kind: Some(put("k", 0)), ..Default::default() };
    let _ = member.state.apply(Index(index), Term(1), &command, &mut Batch::default());
}

#[test]
#[should_panic(expected = "entry 2 is carried out after 2")]
fn an_entry_is_carried_out_once() {
    apply_at(2);
}

#[test]
#[should_panic(expected = "entry 4 is carried out after 2")]
fn no_entry_is_left_out() {
    apply_at(4);
}
