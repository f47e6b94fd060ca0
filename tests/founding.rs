//! How a cluster of real processes begins, and how a member that lost its disk is kept out of it.

mod processes;

use processes::{Cluster, READY};

const WAITS: &str = "this member has no data and waits";
const BOOTSTRAPPED: &str = "has already been bootstrapped";

#[test]
fn two_of_three_found_a_cluster_and_the_third_comes_later() {
    let cluster = Cluster::new(3);
    let alone = cluster.start(2);
    alone.says(WAITS);
    assert!(alone.get("/health").ends_with("{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"));
    assert!(alone.get("/readyz").contains(" 503 "));
    assert!(alone.get("/livez").contains(" 200 "), "a restart would not help");
    assert_eq!(alone.try_has("early").expect_err("there is no data").code(), tonic::Code::Unavailable);
    alone.signal("-TERM");
    let (code, last) = alone.ends();
    assert_eq!(code, Some(0), "{last}");
    assert!(!cluster.dir(2).join("member/state.redb").exists(), "it was founded all alone");

    let third = cluster.start(2);
    let first = cluster.start(0);
    third.says(READY);
    first.says(READY);
    first.put("early");
    let second = cluster.start(1);
    second.says(READY);
    assert!(second.has("early"));

    // A founded member asks nobody.
    drop(first);
    drop(third);
    drop(second);
    let again: Vec<processes::Process> = (0..3).map(|n| cluster.start(n)).collect();
    for process in &again {
        process.says(READY);
        assert!(process.has("early"));
    }
}

#[test]
fn a_member_that_lost_its_disk_is_refused_even_if_nobody_answers_at_first() {
    let cluster = Cluster::new(3);
    let mut members: Vec<processes::Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    members[1].put("precious");

    drop(members.remove(0));
    cluster.wipe(0);
    members.iter().for_each(|member| member.signal("-STOP"));
    let wiped = cluster.start(0);
    wiped.says(WAITS);
    assert!(wiped.get("/health").contains(" 503 "));
    members.iter().for_each(|member| member.signal("-CONT"));
    let (code, last) = wiped.ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
    assert!(members[0].has("precious"));

    // Nor as one that joins.
    let (code, last) = cluster.start_with(0, &cluster.list(3), "existing").ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");

    // One other member knows it, majority or not; and it knows when it is all that is left.
    drop(members.remove(0));
    let (code, last) = cluster.start(0).ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
}

#[test]
fn whoever_was_not_added_does_not_join() {
    let cluster = Cluster::new(3);
    let joining = |list: &str| {
        let (code, last) = cluster.start_with(1, list, "existing").ends();
        assert_eq!(code, Some(1), "{last}");
        last
    };
    let nobody = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs";
    assert!(joining(&cluster.list(2)).contains(nobody));
    let alone = cluster.start_with(0, &cluster.list(1), "new");
    alone.says(READY);
    assert!(joining(&cluster.list(2)).contains("RemovedMemberIDs:[]}: member count is unequal"));
    assert!(joining(&cluster.list(1)).contains("couldn't find local name"));
    let stranger = format!("m1=http://{}", cluster.peers[1]);
    assert!(joining(&stranger).contains(nobody), "there is nobody else to ask");
    assert!(!cluster.dir(1).join("member/state.redb").exists());
}

#[test]
fn a_member_that_was_added_joins_once() {
    let cluster = Cluster::new(3);
    let first = cluster.start_with(0, &cluster.list(1), "new");
    first.says(READY);
    first.put("before");
    first.add(&cluster.peers[1], false);
    // From here on there is no majority without the new member.
    let second = cluster.start_with(1, &cluster.list(2), "existing");
    second.says(READY);
    assert!(second.has("before"));
    second.put("after");

    // With its data it may come back, without it not.
    drop(second);
    let second = cluster.start_with(1, &cluster.list(2), "existing");
    second.says(READY);
    assert!(second.has("after"));
    drop(second);
    cluster.wipe(1);
    let (code, last) = cluster.start_with(1, &cluster.list(2), "existing").ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
}
