//! What members do by themselves for their data: compaction, taking NOSPACE back, comparing what they hold. Real processes.

mod processes;

use std::time::Instant;

use everwatch::pb::etcdserverpb::alarm_request::AlarmAction;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, CompactionRequest, PutRequest, RangeRequest};
use everwatch::storage::backend::disk::DiskBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket};
use processes::{Cluster, PATIENCE, Process, READY};
use tonic::{Code, Status};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const MISMATCH: &str = "found data inconsistency with peers";

fn started(cluster: &Cluster, count: usize) -> Vec<Process> {
    let list = cluster.list(count);
    let members: Vec<Process> = (0..count).map(|n| cluster.start_with(n, &list, "new")).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    members
}

fn put(member: &Process, key: &str, value: &[u8]) -> Result<i64, Status> {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_vec().into(), ..Default::default() };
    let answer = member.ask(async |channel| KvClient::new(channel).put(put).await)?;
    Ok(answer.into_inner().header.expect("there is one").revision)
}

fn compact(member: &Process, revision: i64) -> Result<(), Status> {
    let compaction = CompactionRequest { revision, physical: true };
    member.ask(async |channel| KvClient::new(channel).compact(compaction).await).map(drop)
}

/// However often it is asked, it is the same. A leader that has just been started again may lose the question.
fn alarm(member: &Process, action: AlarmAction, alarm: &AlarmMember) -> Vec<AlarmMember> {
    let request = AlarmRequest { action: action as i32, member_id: alarm.member_id, alarm: alarm.alarm };
    let ask = || member.ask(async |channel| MaintenanceClient::new(channel).alarm(request).await);
    in_the_end(ask).into_inner().alarms
}

fn alarms(member: &Process) -> Vec<AlarmMember> {
    alarm(member, AlarmAction::Get, &AlarmMember::default())
}

/// Puts the same key until there is no space; the revision it came to.
fn fill(member: &Process) -> i64 {
    let mut revision = 0;
    loop {
        match put(member, "k", &[b'x'; 100_000]) {
            Ok(at) => revision = at,
            Err(status) => {
                assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, NO_SPACE));
                return revision;
            }
        }
    }
}

/// Tries again until it works.
fn in_the_end<T>(mut attempt: impl FnMut() -> Result<T, Status>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
    }
}

#[test]
fn what_is_older_than_the_period_is_compacted() {
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];
    let members = started(&cluster, 1);
    let first = put(&members[0], "k", b"1").expect("it serves");
    let last = put(&members[0], "k", b"2").expect("it serves");
    let at = |revision| {
        let range = RangeRequest { key: "k".into(), revision, ..Default::default() };
        members[0].ask(async |channel| KvClient::new(channel).range(range).await)
    };
    let refused = in_the_end(|| match at(first) {
        Ok(_) => Err(Status::unknown("it can still be read")),
        Err(status) => Ok(status),
    });
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(at(last).expect("the newest stays").into_inner().count, 1);
}

#[test]
fn prefixes_that_are_asked_for_are_counted() {
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--metrics-key-prefixes=a/,b/"];
    let mut members = started(&cluster, 1);
    put(&members[0], "a/1", b"1").expect("it serves");
    let member = members.remove(0);
    member.signal("-TERM");
    assert_eq!(member.ends().0, Some(0));
    // The first count is made at the start.
    let members = started(&cluster, 1);
    let metrics = in_the_end(|| {
        let metrics = members[0].get("/metrics");
        let counted = metrics.contains("everwatch_prefix_bytes{prefix=\"b/\"} 0\n");
        counted.then_some(metrics).ok_or(Status::unknown("not counted yet"))
    });
    assert!(metrics.contains("everwatch_prefix_keys{prefix=\"a/\"} 1\n"), "{metrics}");
    assert!(metrics.contains("everwatch_prefix_keys{prefix=\"b/\"} 0\n"), "{metrics}");
}

#[test]
fn space_that_compaction_makes_ends_nospace() {
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--quota-backend-bytes=1000000"];
    let members = started(&cluster, 1);
    let revision = fill(&members[0]);
    assert_eq!(alarms(&members[0]).len(), 1);
    compact(&members[0], revision).expect("compaction needs no space");
    in_the_end(|| put(&members[0], "k", &[b'x'; 100_000]));
    assert_eq!(alarms(&members[0]), []);
    // It is raised again where there is none.
    fill(&members[0]);
    assert_eq!(alarms(&members[0]).len(), 1);
}

#[test]
fn nospace_waits_for_an_operator_where_he_wants_that() {
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--quota-backend-bytes=1000000", "--quota-manual-disarm"];
    let members = started(&cluster, 1);
    let revision = fill(&members[0]);
    compact(&members[0], revision).expect("compaction needs no space");
    // Each of these goes through the log, as taking the alarm back would.
    for _ in 0..200 {
        assert_eq!(put(&members[0], "k", b"x").expect_err("nobody took it back").message(), NO_SPACE);
    }
    let raised = alarms(&members[0]);
    assert_eq!(alarm(&members[0], AlarmAction::Deactivate, &raised[0]), raised);
    put(&members[0], "k", b"x").expect("there is space");
}

#[test]
fn nospace_that_an_operator_raised_stays() {
    let cluster = Cluster::new(1);
    let members = started(&cluster, 1);
    let revision = put(&members[0], "k", b"x").expect("it serves");
    let (member_id, _) = members[0].ids();
    let raised = AlarmMember { member_id, alarm: AlarmType::Nospace as i32 };
    assert_eq!(alarm(&members[0], AlarmAction::Activate, &raised), [raised]);
    compact(&members[0], revision).expect("compaction needs no space");
    for _ in 0..200 {
        assert_eq!(put(&members[0], "k", b"x").expect_err("nobody took it back").message(), NO_SPACE);
    }
    assert_eq!(alarms(&members[0]), [raised]);
}

/// Stops a member and has it say something else from now on.
fn falsify(cluster: &Cluster, n: usize, member: Process) {
    member.signal("-TERM");
    let (code, last) = member.ends();
    assert_eq!(code, Some(0), "{last}");
    let backend = DiskBackend::open(cluster.dir(n).join("member/state.redb")).expect("it was closed");
    let mut batch = Batch::default();
    let (truth, lie) = (b"truth", b"a lie");
    let change = &mut |row: &[u8], value: &[u8]| {
        if let Some(at) = value.windows(truth.len()).position(|window| window == truth) {
            let mut value = value.to_vec();
            value[at..at + truth.len()].copy_from_slice(lie);
            batch.put(Bucket::Key, row.to_vec().into(), value.into());
        }
        true
    };
    backend.reader().and_then(|reader| reader.scan(Bucket::Key, &[], None, change)).expect("it can be read");
    assert!(!batch.is_empty());
    backend.commit(&batch).expect("it can be written");
}

/// A cluster of three with these flags, of which the last member says something else than the others. Its id.
fn inconsistent(flags: &'static [&'static str]) -> (Cluster, Vec<Process>, u64) {
    let mut cluster = Cluster::new(3);
    let mut members = started(&cluster, 3);
    in_the_end(|| put(&members[0], "k", b"truth"));
    // A majority that has it need not be with this one.
    assert!(in_the_end(|| members[2].try_has("k")));
    let (liar, _) = members[2].ids();
    falsify(&cluster, 2, members.remove(2));
    cluster.flags = flags;
    members.push(cluster.start(2));
    members[2].says(READY);
    for n in [0, 1] {
        let old = members.remove(n);
        old.signal("-TERM");
        assert_eq!(old.ends().0, Some(0));
        members.insert(n, cluster.start(n));
        members[n].says(READY);
    }
    (cluster, members, liar)
}

/// Waits for an alarm, and sees that it names this member and keeps everybody from writing.
fn found(members: &[Process], liar: u64) {
    let deadline = Instant::now() + PATIENCE;
    let raised = loop {
        match alarms(&members[0]) {
            raised if raised.is_empty() => assert!(Instant::now() < deadline, "nobody noticed"),
            raised => break raised,
        }
    };
    assert_eq!(raised, [AlarmMember { member_id: liar, alarm: AlarmType::Corrupt as i32 }]);
    for member in members {
        let refused = put(member, "k", b"more").expect_err("the cluster is corrupt");
        assert_eq!((refused.code(), refused.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
    }
}

#[test]
fn a_member_that_differs_is_found_after_a_compaction() {
    let (_cluster, members, liar) = inconsistent(&["--experimental-compact-hash-check-time=200ms"]);
    let revision = in_the_end(|| put(&members[0], "other", b"x"));
    assert_eq!(alarms(&members[0]), []);
    in_the_end(|| compact(&members[0], revision));
    found(&members, liar);
}

#[test]
fn a_member_that_differs_is_found_by_the_timer() {
    let (_cluster, members, liar) =
        inconsistent(&["--corrupt-check-time=200ms", "--feature-gates=CompactHashCheck=false"]);
    found(&members, liar);
}

#[test]
fn a_member_that_differs_does_not_start_if_it_compares_first() {
    let mut cluster = Cluster::new(3);
    let mut members = started(&cluster, 3);
    in_the_end(|| put(&members[0], "k", b"truth"));
    assert!(in_the_end(|| members[2].try_has("k")));
    falsify(&cluster, 2, members.remove(2));
    cluster.flags = &["--experimental-initial-corrupt-check"];
    let (code, last) = cluster.start(2).ends();
    assert_eq!(code, Some(1));
    assert!(last.contains(MISMATCH), "{last}");
    // The others are as they were.
    members[1].signal("-TERM");
    assert_eq!(members.remove(1).ends().0, Some(0));
    let second = cluster.start(1);
    second.says("initial corruption checking passed");
    second.says(READY);
}
