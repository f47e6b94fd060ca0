//! Members: how they are, who leads, who comes and goes; alarms, hashes and backups.

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, DowngradeOptions, MemberAddOptions};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::processes::READY;
use crate::{Members, refused};

/// A client of who leads.
async fn leading(client: &mut Client) -> Client {
    let leader = client.status().await.expect("it says how it is").leader();
    let list = client.member_list().await.expect("listed");
    let member = list.members().iter().find(|member| member.id() == leader).expect("it is listed");
    Client::connect(member.client_urls(), None).await.expect("it listens")
}

pub(crate) async fn members_say_how_they_are(members: &Members) {
    let mut client = members.client().await;
    let put = client.put("s", "1", None).await.expect("put").header().unwrap().revision();
    let status = client.status().await.expect("it says how it is");
    assert!(status.version().starts_with("3.") && !status.is_learner() && status.errors().is_empty());
    assert!(status.db_size() >= status.raft_used_db_size() && status.raft_used_db_size() > 0);
    assert!(status.raft_index() >= status.raft_applied_index() && status.raft_applied_index() > 0);
    assert!(status.raft_term() > 0 && status.leader() != 0);
    if members.speaks(3, 6).await {
        assert_eq!(status.storage_version(), "3.6.0");
        assert!(status.db_size_quota() > 0);
        let info = status.downgrade_info().expect("there is one");
        assert_eq!((info.enabled(), info.target_version()), (false, ""));
    }
    let list = client.member_list().await.expect("listed");
    let mut names: Vec<_> = list.members().iter().map(|member| member.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["m0", "m1", "m2"]);
    assert!(list.members().iter().any(|member| member.id() == status.leader()));
    let own = list.members().iter().find(|member| member.client_urls() == [members.url(0)]).expect("it is listed");
    assert_eq!(own.peer_urls(), [format!("http://{}", members.places.peers[0])]);

    // All of them have the same.
    let mut hashes = Vec::new();
    for n in 0..3 {
        let mut client = Client::connect([members.url(n)], None).await.expect("it listens");
        client.get("s", None).await.expect("it has come so far");
        let hashed = client.hash_kv(put).await.expect("hashed");
        if members.speaks(3, 6).await {
            assert_eq!(hashed.hash_revision(), put);
        }
        assert!(hashed.compact_version() <= put);
        hashes.push((hashed.hash(), hashed.compact_version()));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let mut maintenance = client.maintenance_client();
    assert_eq!(maintenance.hash_kv(put).await.expect("hashed").hash(), hashes[0].0);
    client.hash().await.expect("hashed");
    assert!(maintenance.hash().await.expect("hashed").header().unwrap().revision() >= put);
    client.defragment().await.expect("done");
    maintenance.defragment().await.expect("done");
    assert_eq!(maintenance.status().await.expect("it says how it is").leader(), status.leader());
    assert_eq!(client.get("s", None).await.expect("read").kvs()[0].mod_revision(), put);
}

pub(crate) async fn alarms_are_raised_and_taken_back(members: &Members) {
    let mut client = members.client().await;
    assert!(client.alarm(AlarmAction::Get, AlarmType::None, None).await.expect("listed").alarms().is_empty());
    let own = client.status().await.expect("it says how it is").header().unwrap().member_id();
    let mut options = AlarmOptions::new();
    options.with_member(own);
    let mut maintenance = client.maintenance_client();
    let answer =
        maintenance.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options.clone())).await.expect("raised");
    let [raised] = answer.alarms() else { panic!("{answer:?}") };
    assert!(raised.member_id() == own && raised.alarm() == AlarmType::Nospace);
    let full = refused(client.put("s", "2", None).await);
    assert_eq!((full.code(), full.message()), (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    let status = client.status().await.expect("it says how it is");
    assert_eq!(status.errors(), [format!("memberID:{own} alarm:NOSPACE ")]);
    let answer = client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await.expect("taken back");
    assert_eq!(answer.alarms().len(), 1);
    client.put("s", "2", None).await.expect("put");
    assert!(client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.expect("listed").alarms().is_empty());
}

pub(crate) async fn backups_come_in_pieces(members: &Members) {
    let mut client = members.client().await;
    client.put("backup", vec![b'x'; 1 << 20], None).await.expect("put");
    let mut maintenance = client.maintenance_client();
    for mut backup in [client.snapshot().await.expect("begun"), maintenance.snapshot().await.expect("begun")] {
        let mut bytes = Vec::new();
        let mut left = u64::MAX;
        while let Some(piece) = backup.message().await.expect("it goes on") {
            assert!(piece.remaining_bytes() <= left);
            left = piece.remaining_bytes();
            bytes.extend_from_slice(piece.blob());
            if members.speaks(3, 6).await {
                assert!(piece.version().starts_with("3."));
            }
        }
        // The file's hash is its end.
        let (file, hash) = bytes.split_at(bytes.len() - 32);
        assert_eq!(&Sha256::digest(file)[..], hash);
        assert!(left == 0 && file.len() > 1 << 20);
    }
    client.delete("backup", None).await.expect("deleted");
}

pub(crate) async fn versions_go_not_down(members: &Members) {
    let mut maintenance = members.client().await.maintenance_client();
    let target = if members.speaks(3, 6).await { "3.5.0" } else { "3.4.0" };
    let possible = maintenance.downgrade(DowngradeOptions::Validate(target.into())).await.expect("one below");
    assert!(possible.version().starts_with("3."));
    let refusal = refused(maintenance.downgrade(DowngradeOptions::Validate("3.1.0".into())).await);
    assert_eq!(refusal.message(), "etcdserver: invalid downgrade target version");
    let refusal = refused(maintenance.downgrade(DowngradeOptions::Validate("none".into())).await);
    assert_eq!(refusal.message(), "etcdserver: wrong downgrade target version format");
    if members.speaks(3, 6).await {
        maintenance.downgrade(DowngradeOptions::Enable(target.into())).await.expect_err("there is none");
        maintenance.downgrade(DowngradeOptions::Cancel).await.expect("nothing to call off");
    } else {
        let refusal = refused(maintenance.downgrade(DowngradeOptions::Cancel).await);
        assert_eq!(refusal.message(), "etcdserver: no inflight downgrade job");
    }
}

pub(crate) async fn another_leads(members: &Members) {
    for within in [false, true] {
        let mut client = members.client().await;
        let mut client = leading(&mut client).await;
        let leader = client.status().await.expect("it says how it is").leader();
        let list = client.member_list().await.expect("listed");
        let other = list.members().iter().find(|member| member.id() != leader).expect("there are three");
        let follower = Client::connect(other.client_urls(), None).await.expect("it listens");
        let not = refused(follower.maintenance_client().move_leader(other.id()).await);
        assert_eq!((not.code(), not.message()), (Code::FailedPrecondition, "etcdserver: not leader"));
        if within {
            let mut maintenance = client.maintenance_client();
            maintenance.move_leader(other.id()).await.expect("moved");
        } else {
            client.move_leader(other.id()).await.expect("moved");
        }
        assert_eq!(client.status().await.expect("it says how it is").leader(), other.id());
        // The first has heard of it, too.
        let mut client = members.client().await;
        while client.status().await.expect("it says how it is").leader() != other.id() {}
    }
}

pub(crate) async fn members_come_and_go(members: &Members) {
    // Another than the leader proposes a change again that the leader did not take up, and hears that it is done.
    let mut client = leading(&mut members.client().await).await;
    let mut cluster = client.cluster_client();
    // One that never comes.
    let added =
        cluster.member_add(["http://127.0.0.1:1".to_owned()], Some(MemberAddOptions::new().with_is_learner())).await;
    let added = added.expect("added");
    let member = added.member().expect("it is named");
    assert_eq!(
        (member.name(), member.peer_urls(), member.is_learner()),
        ("", &["http://127.0.0.1:1".to_owned()][..], true)
    );
    assert!(member.client_urls().is_empty() && added.member_list().len() == 4);
    let late = refused(cluster.member_promote(member.id()).await);
    let behind = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!((late.code(), late.message()), (Code::FailedPrecondition, behind));
    let many = refused(client.member_add(["127.0.0.1:2"], Some(MemberAddOptions::new().with_is_learner())).await);
    assert_eq!(many.message(), "etcdserver: too many learner members in cluster");
    let twice = refused(client.member_add(["127.0.0.1:1", "127.0.0.1:3"], None).await);
    assert_eq!(twice.message(), "etcdserver: Peer URLs already exists");
    let updated = cluster.member_update(member.id(), ["http://127.0.0.1:2".to_owned()]).await.expect("updated");
    let moved = updated.members().iter().find(|listed| listed.id() == member.id()).expect("it is listed");
    assert_eq!(moved.peer_urls(), ["http://127.0.0.1:2"]);
    assert_eq!(cluster.member_remove(member.id()).await.expect("removed").members().len(), 3);
    let gone = refused(cluster.member_remove(member.id()).await);
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: member not found"));

    // One that comes.
    let peer = format!("http://{}", members.places.peers[3]);
    let added = client.member_add([&peer], Some(MemberAddOptions::new().with_is_learner())).await.expect("added");
    let id = added.member().expect("it is named").id();
    let process = members.places.start_with(3, &members.places.list(4), "existing");
    process.says(READY);
    let list = loop {
        match client.member_promote(id).await {
            Ok(list) => break list,
            // It has to catch up first.
            refusal => assert_eq!(refused(refusal).message(), behind),
        }
    };
    let member = list.members().iter().find(|member| member.id() == id).expect("it is listed");
    assert!(!member.is_learner() && list.members().len() == 4);
    assert_eq!(refused(client.member_promote(id).await).message(), "etcdserver: can only promote a learner member");
    assert_eq!(cluster.member_list().await.expect("listed").members().len(), 4);
    // It stays where it is.
    let updated = client.member_update(id, [peer.clone()]).await.expect("updated");
    let member = updated.members().iter().find(|member| member.id() == id).expect("it is listed");
    assert_eq!(member.peer_urls(), [peer]);
    let mut newest = Client::connect([format!("http://{}", process.client)], None).await.expect("it listens");
    newest.put("from the fourth", "", None).await.expect("put");
    let left = client.member_remove(id).await.expect("removed");
    assert!(left.members().len() == 3 && left.members().iter().all(|member| member.id() != id));
    assert_eq!(client.get("from the fourth", None).await.expect("read").count(), 1);
}
