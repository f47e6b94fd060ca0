//! What is made of keys and leases: locks and elections.

use etcd_client::{LeaderKey, LockOptions, ProclaimOptions, ResignOptions};
use tonic::Code;

use crate::{Members, refused};

pub(crate) async fn locks_are_held_by_one(members: &Members) {
    let mut client = members.client().await;
    let lease = client.lease_grant(60, None).await.expect("granted").id();
    let held = client.lock("lock", Some(LockOptions::new().with_lease(lease))).await.expect("locked");
    assert_eq!(held.key(), format!("lock/{lease:x}").as_bytes());
    let found = client.get(held.key(), None).await.expect("read");
    assert_eq!((found.kvs()[0].lease(), found.kvs()[0].value()), (lease, &b""[..]));
    let mut locks = client.lock_client();
    let waiting = async {
        let next = locks.lock("lock", None).await.expect("locked");
        // It was not free before.
        assert!(next.header().unwrap().revision() > held.header().unwrap().revision());
        assert_ne!(next.key(), held.key());
        locks.unlock(next.key()).await.expect("unlocked");
        next.key().to_vec()
    };
    let unlocking = async {
        // The other is in the queue.
        let all = etcd_client::GetOptions::new().with_prefix().with_count_only();
        let mut reader = members.client().await;
        while reader.get("lock/", Some(all.clone())).await.expect("read").count() < 2 {}
        client.unlock(held.key()).await.expect("unlocked")
    };
    let (next, _) = tokio::join!(waiting, unlocking);
    assert!(members.client().await.get(next, None).await.expect("read").kvs().is_empty());
    let gone = refused(members.client().await.lock("lock", Some(LockOptions::new().with_lease(99))).await);
    assert_eq!((gone.code(), gone.message()), (Code::Unknown, "etcdserver: requested lease not found"));
}

pub(crate) async fn leaders_are_elected(members: &Members) {
    let mut client = members.client().await;
    let nobody = refused(client.leader("vote").await);
    assert!(nobody.message().ends_with("election: no leader"), "{nobody:?}");
    let lease = client.lease_grant(60, None).await.expect("granted").id();
    let mut won = client.campaign("vote", "first", lease).await.expect("elected");
    let key = won.leader().expect("it is named").clone();
    assert_eq!((key.name(), key.name_str().unwrap(), key.lease()), (&b"vote"[..], "vote", lease));
    assert_eq!(
        (key.key(), key.key_str().unwrap()),
        (format!("vote/{lease:x}").as_bytes(), &*format!("vote/{lease:x}"))
    );
    assert_eq!(won.take_leader().expect("it is named").rev(), key.rev());
    let mut leader = client.leader("vote").await.expect("there is one");
    assert_eq!((leader.kv().unwrap().value(), leader.kv().unwrap().create_revision()), (&b"first"[..], key.rev()));
    assert_eq!(leader.take_kv().unwrap().key(), key.key());
    // etcd begins to answer when there is a leader.
    let mut observed = client.observe("vote").await.expect("observed");
    let told = observed.message().await.expect("it goes on").expect("it goes on");
    assert_eq!(told.kv().unwrap().value(), b"first");
    // The same key, put together by hand.
    let same = LeaderKey::new().with_name("vote").with_key(key.key()).with_rev(key.rev()).with_lease(lease);
    client.proclaim("second", Some(ProclaimOptions::new().with_leader(same.clone()))).await.expect("it leads");
    let told = observed.message().await.expect("it goes on").expect("it goes on");
    assert_eq!(told.kv().unwrap().value(), b"second");
    client.resign(Some(ResignOptions::new().with_leader(same.clone()))).await.expect("it led");
    assert!(refused(client.leader("vote").await).message().ends_with("election: no leader"));
    let late = refused(client.proclaim("third", Some(ProclaimOptions::new().with_leader(same))).await);
    assert!(late.message().ends_with("election: not leader"), "{late:?}");
}

pub(crate) async fn leaders_are_elected_by_the_client_within(members: &Members) {
    let mut client = members.client().await;
    let mut election = client.election_client();
    let first = client.lease_grant(60, None).await.expect("granted").id();
    let second = client.lease_grant(60, None).await.expect("granted").id();
    let won = election.campaign("poll", "first", first).await.expect("elected");
    let mut other = client.election_client();
    let waiting = async { other.campaign("poll", "second", second).await.expect("elected") };
    let leading = async {
        let key = won.leader().expect("it is named").clone();
        election
            .proclaim("still first", Some(ProclaimOptions::new().with_leader(key.clone())))
            .await
            .expect("it leads");
        assert_eq!(election.leader("poll").await.expect("there is one").kv().unwrap().value(), b"still first");
        election.resign(Some(ResignOptions::new().with_leader(key))).await.expect("it led");
    };
    let (next, ()) = tokio::join!(waiting, leading);
    assert_eq!(next.leader().unwrap().lease(), second);
    let mut observed = election.observe("poll").await.expect("observed");
    let told = observed.message().await.expect("it goes on").expect("it goes on");
    assert_eq!(told.kv().unwrap().value(), b"second");
}
