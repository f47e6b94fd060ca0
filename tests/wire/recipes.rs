//! The lock and election services: recipes that the server carries out.

use everwatch::pb::v3electionpb::election_client::ElectionClient;
use everwatch::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use everwatch::pb::v3lockpb::lock_client::LockClient;
use everwatch::pb::v3lockpb::{LockRequest, UnlockRequest};
use tokio::task::JoinHandle;

use super::*;

impl Client {
    /// Locks, beside the test.
    fn lock(&self, name: &str, lease: i64) -> JoinHandle<Result<bytes::Bytes, Status>> {
        let (mut client, name) = (LockClient::new(self.channel.clone()), self.key(name));
        tokio::spawn(async move { Ok(client.lock(LockRequest { name, lease }).await?.into_inner().key) })
    }

    async fn unlock(&self, key: bytes::Bytes) {
        LockClient::new(self.channel.clone()).unlock(UnlockRequest { key }).await.expect("unlock");
    }

    fn campaign(&self, name: &str, lease: i64, value: &str) -> JoinHandle<Result<CampaignResponse, Status>> {
        let (mut client, name) = (ElectionClient::new(self.channel.clone()), self.key(name));
        let request = CampaignRequest { name, lease, value: value.to_owned().into() };
        tokio::spawn(async move { Ok(client.campaign(request).await?.into_inner()) })
    }

    /// Waits until so many keys begin so.
    async fn until_keys(&mut self, prefix: &str, count: i64) {
        let end = format!("{}0", &prefix[..prefix.len() - 1]);
        let request =
            RangeRequest { key: self.key(prefix), range_end: self.key(&end), count_only: true, ..Default::default() };
        let deadline = Instant::now() + PATIENCE;
        while self.kv.range(request.clone()).await.expect("range").into_inner().count != count {
            assert!(Instant::now() < deadline, "there are never {count} keys with {prefix}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn soon<T>(task: &mut JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, task).await.expect("an answer in time").expect("no panic")
}

async fn observe(leaders: &mut tonic::Streaming<LeaderResponse>) -> (String, String) {
    let leader = tokio::time::timeout(PATIENCE, leaders.message()).await.expect("a leader in time");
    texts(leader.expect("the stream goes on").expect("a leader"))
}

fn texts(leader: LeaderResponse) -> (String, String) {
    let kv = leader.kv.expect("a leader has a key");
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("text");
    (text(kv.key), text(kv.value))
}

wire!(one_after_the_other_has_the_lock, |c| {
    let (first, second, third) = (c.grant(60).await, c.grant(60).await, c.grant(60).await);
    let key = |lease: i64| c.key(&format!("lock/{lease:x}"));
    let (first_key, second_key, third_key) = (key(first), key(second), key(third));
    assert_eq!(soon(&mut c.lock("lock", first)).await.expect("free"), first_key);
    // Who has it may ask again.
    assert_eq!(soon(&mut c.lock("lock", first)).await.expect("its own"), first_key);
    let mut waiting = c.lock("lock", second);
    c.until_keys("lock/", 2).await;
    let mut last = c.lock("lock", third);
    c.until_keys("lock/", 3).await;
    assert!(!waiting.is_finished() && !last.is_finished());
    c.unlock(first_key).await;
    assert_eq!(soon(&mut waiting).await.expect("its turn"), second_key);
    assert!(!last.is_finished());
    // A lease that ends unlocks, too.
    c.lease.lease_revoke(LeaseRevokeRequest { id: second }).await.expect("revoke");
    assert_eq!(soon(&mut last).await.expect("its turn"), third_key);
});

wire!(who_gives_up_waiting_leaves_the_queue, |c| {
    let (first, second, third) = (c.grant(60).await, c.grant(60).await, c.grant(60).await);
    let key = soon(&mut c.lock("lock", first)).await.expect("free");
    let impatient = c.lock("lock", second);
    c.until_keys("lock/", 2).await;
    let mut last = c.lock("lock", third);
    c.until_keys("lock/", 3).await;
    impatient.abort();
    c.until_keys("lock/", 2).await;
    c.unlock(key).await;
    soon(&mut last).await.expect("its turn");
});

wire!(a_lease_that_ends_while_it_waits_gets_no_lock, |c| {
    let (first, second) = (c.grant(60).await, c.grant(60).await);
    let key = soon(&mut c.lock("lock", first)).await.expect("free");
    let mut waiting = c.lock("lock", second);
    c.until_keys("lock/", 2).await;
    c.lease.lease_revoke(LeaseRevokeRequest { id: second }).await.expect("revoke");
    c.unlock(key).await;
    let refused = soon(&mut waiting).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "mutex: session is expired"));
    let unknown = soon(&mut c.lock("lock", 12345)).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::Unknown, "etcdserver: requested lease not found"));
});

wire!(who_brings_no_lease_gets_one_of_a_minute, |c| {
    let key = soon(&mut c.lock("lock", 0)).await.expect("free");
    let lease = i64::from_str_radix(str::from_utf8(&key).expect("text").rsplit('/').next().expect("a lease"), 16);
    let request = pb::LeaseTimeToLiveRequest { id: lease.expect("in hex"), keys: true };
    let left = c.lease.lease_time_to_live(request).await.expect("a lease").into_inner();
    assert_eq!((left.granted_ttl, left.keys), (60, vec![key]));
});

wire!(candidates_lead_in_the_order_in_which_they_came, |c| {
    let (first, second) = (c.grant(60).await, c.grant(60).await);
    let mut election = ElectionClient::new(c.channel.clone());
    let of = LeaderRequest { name: c.key("el") };
    let nobody = election.leader(of.clone()).await.unwrap_err();
    assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "election: no leader"));

    let mut observer = election.clone();
    let mut observed = {
        let of = of.clone();
        // etcd answers with the first leader only.
        tokio::spawn(async move { observer.observe(of).await.expect("observe").into_inner() })
    };
    let won = soon(&mut c.campaign("el", first, "a")).await.expect("nobody else stands").leader.expect("a key");
    assert_eq!(won.key, c.key(&format!("el/{first:x}")));
    let key = |lease: i64| String::from_utf8(c.key(&format!("el/{lease:x}")).to_vec()).expect("text");
    let (first_key, second_key) = (key(first), key(second));
    let mut observed = soon(&mut observed).await;
    assert_eq!(observe(&mut observed).await, (first_key.clone(), "a".into()));
    let mut waiting = c.campaign("el", second, "b");
    c.until_keys("el/", 2).await;
    assert_eq!(
        texts(election.leader(of.clone()).await.expect("there is one").into_inner()),
        (first_key.clone(), "a".into())
    );

    let wrong = ProclaimRequest { leader: Some(LeaderKey { rev: 1, ..won.clone() }), value: "x".into() };
    let refused = election.proclaim(wrong).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "election: not leader"));
    election.proclaim(ProclaimRequest { leader: Some(won.clone()), value: "a2".into() }).await.expect("it leads");
    assert!(!waiting.is_finished());
    election.resign(ResignRequest { leader: Some(won) }).await.expect("it led");
    soon(&mut waiting).await.expect("its turn");

    assert_eq!(observe(&mut observed).await, (first_key, "a2".into()));
    assert_eq!(observe(&mut observed).await, (second_key, "b".into()));
    let nobody = election.resign(ResignRequest { leader: None }).await.unwrap_err();
    assert_eq!(nobody.message(), "\"leader\" field must be provided");
});
