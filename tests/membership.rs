//! How members of a cluster of real processes come and go, while others are away.

mod processes;

use std::time::Instant;

use processes::{Cluster, PATIENCE, Process, READY};

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
        while let Err(status) = leader(&members).promote(id) {
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
