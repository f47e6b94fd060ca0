//! Leases: granted, kept, looked at, ended.

use etcd_client::{Error, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions};
use tonic::Code;

use crate::{Members, refused};

pub(crate) async fn leases_are_granted_and_kept(members: &Members) {
    let mut client = members.client().await;
    let granted = client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(4711))).await.expect("granted");
    assert_eq!((granted.id(), granted.ttl(), granted.error()), (4711, 60, ""));
    let taken = refused(client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(4711))).await);
    assert_eq!((taken.code(), taken.message()), (Code::FailedPrecondition, "etcdserver: lease already exists"));
    let long = refused(client.lease_grant(10_000_000_000, None).await);
    assert_eq!((long.code(), long.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));

    client.put("ls/a", "1", Some(PutOptions::new().with_lease(4711))).await.expect("put");
    client.put("ls/b", "1", Some(PutOptions::new().with_lease(4711))).await.expect("put");
    let left = client.lease_time_to_live(4711, None).await.expect("known");
    assert!((1..=60).contains(&left.ttl()) && left.keys().is_empty());
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(4711, Some(options)).await.expect("known");
    let mut keys = left.keys().to_vec();
    keys.sort();
    assert_eq!((left.id(), left.granted_ttl(), keys), (4711, 60, vec![b"ls/a".to_vec(), b"ls/b".to_vec()]));

    let (mut keeper, mut kept) = client.lease_keep_alive(4711).await.expect("it is alive");
    assert_eq!(keeper.id(), 4711);
    for _ in 0..3 {
        keeper.keep_alive().await.expect("asked");
        let renewed = kept.message().await.expect("it goes on").expect("it goes on");
        assert_eq!((renewed.id(), renewed.ttl()), (4711, 60));
    }
    let all = client.leases().await.expect("listed");
    assert!(all.leases().iter().any(|status| status.id() == 4711));
    // Nobody asks any more.
    drop(keeper);
    assert!(kept.message().await.expect("it ends well").is_none());
}

pub(crate) async fn leases_end_with_their_keys(members: &Members) {
    let mut client = members.client().await;
    let mut lease = client.lease_client();
    client.lease_revoke(4711).await.expect("revoked");
    assert!(client.get("ls/a", None).await.expect("read").kvs().is_empty());
    let gone = refused(client.lease_revoke(4711).await);
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    assert!(matches!(client.lease_keep_alive(4711).await, Err(Error::LeaseKeepAliveError(_))));
    assert_eq!(client.lease_time_to_live(4711, None).await.expect("answered").ttl(), -1);

    // One that nobody keeps runs out, and takes its key along.
    let granted = lease.grant(1, None).await.expect("granted");
    client.put("ls/c", "", Some(PutOptions::new().with_lease(granted.id()))).await.expect("put");
    let (mut keeper, _kept) = lease.keep_alive(granted.id()).await.expect("it is alive");
    keeper.keep_alive().await.expect("asked");
    while lease.time_to_live(granted.id(), None).await.expect("answered").ttl() != -1 {}
    while !client.get("ls/c", None).await.expect("read").kvs().is_empty() {}
    let other = lease.grant(30, None).await.expect("granted").id();
    assert!(lease.leases().await.expect("listed").leases().iter().any(|status| status.id() == other));
    lease.revoke(other).await.expect("revoked");
    assert!(lease.leases().await.expect("listed").leases().iter().all(|status| status.id() != other));
}
