//! How members of a cluster of real processes come and go, while others are away.

mod processes;

use std::time::Instant;

use everwatch::pb::etcdserverpb::cluster_client::ClusterClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::watch_client::WatchClient;
use everwatch::pb::etcdserverpb::watch_request::RequestUnion;
use everwatch::pb::etcdserverpb::{
    LeaseGrantRequest, MemberListRequest, PutRequest, RangeRequest, StatusRequest, WatchCreateRequest, WatchRequest,
};
use processes::{Cluster, PATIENCE, Process, READY};
use tonic::Code;

const REMOVED: &str = "stopping: the member has been permanently removed from the cluster";
const WAITS: &str = "this member was removed and waits";

/// Founders that serve. Whether a change is wise is not asked: that takes seconds.
fn founded(places: usize, founders: usize) -> (Cluster, Vec<Process>) {
    let mut cluster = Cluster::new(places);
    cluster.flags = &["--strict-reconfig-check=false"];
    let list = cluster.list(founders);
    let members: Vec<Process> = (0..founders).map(|n| cluster.start_with(n, &list, "new")).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    (cluster, members)
}

/// Waits until it serves what was written.
fn serves(process: &Process, key: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match process.try_has(key) {
            Ok(found) => return assert!(found, "{key} is lost"),
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
    }
}

/// Waits until there is a leader, known to this member, that gets this written.
fn writes(process: &Process, key: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(status) = process.try_put(key) {
        assert!(Instant::now() < deadline, "{status}");
    }
}

/// Waits until one of them leads.
fn leader(members: &[Process]) -> &Process {
    let deadline = Instant::now() + PATIENCE;
    let leads = |member: &&Process| matches!(member.ids(), (own, leader) if own == leader);
    loop {
        match members.iter().find(leads) {
            Some(leader) => return leader,
            None => assert!(Instant::now() < deadline, "nobody leads"),
        }
    }
}

/// Goes by itself, as one that was removed.
fn leaves(process: Process) {
    process.says(REMOVED);
    let (code, last) = process.ends();
    assert_eq!(code, Some(0), "{last}");
}

#[test]
fn a_member_that_was_removed_while_it_was_down_hears_of_it_when_it_comes_back() {
    let (cluster, mut members) = founded(3, 3);
    let (id, _) = members[2].ids();
    drop(members.pop());
    writes(&members[0], "with one down");
    members[0].remove(id);
    members[1].put("after");
    leaves(cluster.start(2));
    assert!(members[0].has("after"));
    // Again and again.
    leaves(cluster.start(2));
}

#[test]
fn a_removed_member_waits_until_a_majority_of_the_others_has_it_on_disk() {
    let (cluster, mut members) = founded(3, 3);
    let (id, _) = members[2].ids();
    drop(members.pop());
    writes(&members[0], "with one down");
    members[0].remove(id);
    drop(members.pop());
    let removed = cluster.start(2);
    removed.says(WAITS);
    // It has no leader.
    assert!(removed.get("/health").contains(" 503 "));
    assert_eq!(removed.try_put("by nobody").expect_err("nobody leads it").code(), tonic::Code::Unavailable);
    let second = cluster.start(1);
    leaves(removed);
    serves(&second, "with one down");
}

#[test]
fn a_member_that_was_down_while_all_others_were_replaced_finds_the_new_ones() {
    let (cluster, mut members) = founded(5, 3);
    members[2].put("before");
    let first = members[0].ids().0;
    let second = members[1].ids().0;
    drop(members.pop());
    writes(&members[0], "with one down");
    for n in [3, 4] {
        // Not as a voter at once: whether it has run before is confirmed by a majority without it, which there is not then.
        let id = members[0].add(&cluster.peers[n], true);
        let joined = cluster.start_with(n, &cluster.list(n + 1), "existing");
        joined.says(READY);
        members.push(joined);
        let deadline = Instant::now() + PATIENCE;
        while let Err(status) = members[0].promote(id) {
            assert!(Instant::now() < deadline, "{status}");
        }
    }
    for id in [first, second] {
        writes(&members[members.len() - 1], "while it was down");
        members[members.len() - 1].remove(id);
        leaves(members.remove(0));
    }
    writes(&members[0], "by those who are new");

    // It knows the first and the second.
    let third = cluster.start(2);
    third.says(READY);
    serves(&third, "by those who are new");
    assert_eq!(third.members().len(), 3);
    assert!(third.has("before"));
    // One of two.
    drop(members.pop());
    writes(&third, "with its vote");
}

#[test]
fn every_member_says_that_a_learner_lacks_the_log() {
    let (cluster, members) = founded(4, 3);
    members[0].put("to be had");
    // It is never started.
    let id = members[0].add(&cluster.peers[3], true);
    for member in &members {
        let refused = member.promote(id).expect_err("it has nothing");
        let behind = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!((refused.code(), refused.message()), (tonic::Code::FailedPrecondition, behind));
        let voter = member.promote(member.ids().0).expect_err("it votes");
        assert_eq!(voter.message(), "etcdserver: can only promote a learner member");
        assert_eq!(member.promote(7).expect_err("nobody").message(), "etcdserver: member not found");
    }
}

#[test]
fn whoever_writes_through_a_member_that_is_removed_hears_of_it_at_once() {
    let (_cluster, mut members) = founded(3, 3);
    let leading = leader(&members).ids().0;
    let follower = members.iter().position(|member| member.ids().0 != leading).expect("two follow");
    let follower = members.remove(follower);
    let id = follower.ids().0;
    let deadline = Instant::now() + PATIENCE;
    // One put after the other: whichever is under way then must not wait for what will never come.
    let writing = std::thread::spawn(move || {
        let mut written = 0;
        while Instant::now() < deadline {
            match follower.try_put(&format!("{written}")) {
                Ok(()) => written += 1,
                Err(status) => return (follower, written, status),
            }
        }
        panic!("it is written through a member that was removed");
    });
    while !members[0].try_has("9").unwrap_or(false) {
        assert!(Instant::now() < deadline, "nothing is written");
    }
    members[0].remove(id);
    let (follower, written, status) = writing.join().expect("it ends");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    assert!(members[1].has(&format!("{}", written - 1)), "what was acknowledged is there");
    leaves(follower);
}

#[test]
fn a_leader_answers_who_asked_it_to_leave() {
    let (_cluster, mut members) = founded(3, 3);
    let id = leader(&members).ids().0;
    let leader = members.extract_if(.., |member| member.ids().0 == id).next().expect("one of them leads");
    assert_eq!(leader.remove(id).len(), 2);
    leaves(leader);
    writes(&members[0], "without it");
    assert!(members[1].has("without it"));
}

#[test]
fn the_one_that_is_left_of_two_goes_on_alone() {
    let (_cluster, mut members) = founded(2, 2);
    let second = members.remove(1);
    let id = second.ids().0;
    assert_eq!(members[0].remove(id).len(), 1);
    leaves(second);
    writes(&members[0], "alone");
}

/// The next `count` events of all keys from `revision` on: each key, with its revision.
fn watched(process: &Process, revision: i64, count: usize) -> Vec<(String, i64)> {
    let create =
        WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), start_revision: revision, ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    process.ask(async |channel| {
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
        let mut stream = WatchClient::new(channel).watch(requests).await.expect("it watches").into_inner();
        let mut seen = Vec::new();
        while seen.len() < count {
            let response = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
            let events = response.expect("it goes on").expect("it does not end").events;
            let kvs = events.into_iter().filter_map(|event| event.kv);
            seen.extend(kvs.map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision)));
        }
        seen
    })
}

#[test]
fn the_last_of_three_is_forced_to_go_on_alone_and_grows_again() {
    let (mut cluster, mut members) = founded(4, 3);
    let third = members.remove(2);
    let (id, _) = third.ids();
    let keys: Vec<String> = (0..20).map(|n| format!("before {n}")).collect();
    keys.iter().for_each(|key| members[0].put(key));
    // So all of it is known here to be committed.
    assert!(third.has(&keys[19]));
    drop((members, third));

    cluster.more = vec!["--force-new-cluster".to_owned()];
    let alone = cluster.start(2);
    alone.says("forced to go on alone");
    alone.says(READY);
    assert!(keys.iter().all(|key| alone.has(key)));
    let known = alone.members();
    assert_eq!(known.iter().map(|member| (member.id, member.name.as_str())).collect::<Vec<_>>(), [(id, "m2")]);
    alone.put("alone");
    let mut expected: Vec<(String, i64)> = keys.iter().cloned().zip(2..).collect();
    expected.push(("alone".to_owned(), 22));
    assert_eq!(watched(&alone, 2, 21), expected);

    // Killed and forced again, it has lost nothing that it acknowledged alone.
    drop(alone);
    let again = cluster.start(2);
    again.says(READY);
    assert!(again.has("alone"));
    assert_eq!(again.ids().0, id);
    drop(again);

    cluster.more.clear();
    let alone = cluster.start(2);
    alone.says(READY);
    assert_eq!(alone.members().len(), 1);
    alone.put("unforced");
    expected.push(("unforced".to_owned(), 23));

    alone.add(&cluster.peers[3], false);
    let list = format!("m2=http://{},m3=http://{}", cluster.peers[2], cluster.peers[3]);
    let joined = cluster.start_with(3, &list, "existing");
    joined.says(READY);
    serves(&joined, "unforced");
    assert_eq!(watched(&joined, 2, 22), expected);
    writes(&joined, "by both");
    assert!(alone.has("by both"));

    // Those that were killed come back, and hear that they do not belong any more.
    leaves(cluster.start(0));
}

#[test]
fn without_data_the_flag_changes_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.more = vec!["--force-new-cluster".to_owned()];
    let founder = cluster.start_with(0, &cluster.list(1), "new");
    founder.says(READY);
    founder.put("key");
    assert_eq!(founder.members().len(), 1);
}

/// Status, serializable ranges and backups: for the rest clients go to a member that votes.
#[test]
fn a_learner_answers_what_etcd_s_does() {
    let mut cluster = Cluster::new(2);
    cluster.flags = &["--strict-reconfig-check=false"];
    let voter = cluster.start_with(0, &cluster.list(1), "new");
    voter.says(READY);
    voter.add(&cluster.peers[1], true);
    let learner = cluster.start_with(1, &cluster.list(2), "existing");
    learner.says(READY);
    learner.ask(async |channel| {
        let (mut kv, mut others) = (KvClient::new(channel.clone()), ClusterClient::new(channel.clone()));
        let range = |serializable| RangeRequest { key: "k".into(), serializable, ..Default::default() };
        let refusals = [
            kv.put(PutRequest { key: "k".into(), ..Default::default() }).await.err(),
            kv.range(range(false)).await.err(),
            others.member_list(MemberListRequest::default()).await.err(),
            LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: 9, id: 0 }).await.err(),
        ];
        for refusal in refusals {
            let status = refusal.expect("it learns");
            let text = "etcdserver: rpc not supported for learner";
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, text));
        }
        kv.range(range(true)).await.expect("what it has");
        let status = MaintenanceClient::new(channel).status(StatusRequest {}).await.expect("how it is");
        assert!(status.into_inner().is_learner);
    });
}
