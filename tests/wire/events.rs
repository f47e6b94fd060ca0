//! E: what an event says, and what is none.

use super::*;

wire!(alone e01_to_e07_puts_and_deletes, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    assert_eq!(c.delete("k").await, 1, "deleting nothing is no revision and no event");
    c.put("k", "1").await;
    c.put("k", "1").await;
    c.send_put(PutRequest { ignore_value: true, ..c.put_request("k", "") }).await;
    c.put("k", "").await;
    c.delete("k").await;
    c.put("k", "new").await;
    let wanted = ["put k=1 @2 c2 v1", "put k=1 @3 c2 v2", "put k=1 @4 c2 v3", "put k= @5 c2 v4", "delete k @6", "put k=new @7 c7 v1"];
    for event in wanted {
        let response = stream.next().await;
        assert_eq!(stream.show(&response), [event]);
        assert_eq!(response.header.expect("header").revision, modified(&response.events[0]));
    }
});

wire!(alone e08_v08_expiry_is_one_revision_in_key_order, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, ..c.everything() }, 0).await;
    let lease = c.grant(1).await;
    c.send_put(PutRequest { lease, ..c.put_request("b", "1") }).await;
    c.send_put(PutRequest { lease, ..c.put_request("a", "1") }).await;
    assert_eq!(stream.take(2).await, [format!("put b=1 @2 c2 v1 l{lease}"), format!("put a=1 @3 c3 v1 l{lease}")]);
    let response = stream.next().await;
    assert_eq!(stream.show(&response), ["delete a @4 <- 1@3", "delete b @4 <- 1@2"]);
    assert!(response.events.iter().all(|e| e.prev_kv.as_ref().expect("asked for").lease == lease));
    assert_eq!(c.revision().await, 4);
});

wire!(alone e09_revoke_of_a_lease_without_keys_is_no_event, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let lease = c.grant(60).await;
    c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke");
    assert_eq!(c.revision().await, 1);
    c.assert_quiet(&mut stream).await;
});

wire!(e09_e11_a_revoked_lease_ends_its_keys_in_one_revision, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let lease = c.grant(60).await;
    for key in ["b", "a"] {
        let at = c.send_put(PutRequest { lease, ..c.put_request(key, "1") }).await;
        assert_eq!(stream.events().await, [format!("put {key}=1 @{at} c{at} v1 l{lease}")]);
    }
    let revoked = c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke").into_inner();
    let response = stream.next().await;
    let at = modified(&response.events[0]);
    assert_eq!(stream.show(&response), [format!("delete a @{at}"), format!("delete b @{at}")]);
    assert!(revoked.header.expect("a header").revision >= at);
});

wire!(e10_a_range_deletion_is_one_revision_in_key_order, |c| {
    for key in ["c", "a", "b"] {
        c.put(key, "1").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let at = c.delete_all().await;
    assert_eq!(stream.events().await, ["a", "b", "c"].map(|key| format!("delete {key} @{at}")));
});

wire!(alone e12_what_changes_no_key_is_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let at = c.put("k", "1").await;
    assert_eq!(stream.events().await.len(), 1);
    let lease = c.grant(60).await;
    let once = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
    let mut renewals = c.lease.lease_keep_alive(once).await.expect("keep alive").into_inner();
    assert_eq!(renewals.message().await.expect("the stream goes on").expect("an answer").ttl, 60);
    c.compact(at).await;
    pb::cluster_client::ClusterClient::new(c.channel.clone())
        .member_list(pb::MemberListRequest::default())
        .await
        .expect("member list");
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(c.channel.clone());
    maintenance.status(pb::StatusRequest::default()).await.expect("status");
    maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("hash");
    maintenance.alarm(pb::AlarmRequest::default()).await.expect("alarm");
    maintenance.defragment(pb::DefragmentRequest {}).await.expect("defragment");
    let mut backup = maintenance.snapshot(pb::SnapshotRequest {}).await.expect("snapshot").into_inner();
    while backup.message().await.expect("it does not break off").is_some() {}
    c.assert_quiet(&mut stream).await;
    assert_eq!(c.revision().await, at + 1, "the marker alone");
});

wire!(e13_a_thousand_puts_are_a_thousand_events, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let mut written = Vec::new();
    for n in 0..1000 {
        written.push(c.put(&format!("k{}", n % 7), "v").await);
    }
    let said = c.before_marker(&mut stream).await;
    assert_eq!(said.iter().flat_map(|r| &r.events).map(modified).collect::<Vec<_>>(), written);
});

wire!(e14_other_keys_are_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k1"), 0).await;
    c.put("k2", "1").await;
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(e16_a_value_of_a_mebibyte_arrives_whole, |c| {
    let value: bytes::Bytes =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>().into();
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    c.send_put(PutRequest { value: value.clone(), ..c.put_request("k", "") }).await;
    assert!(stream.next().await.events[0].kv.as_ref().expect("kv").value == value);
});
