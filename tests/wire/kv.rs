//! KV and leases, as far as watches rest on them.

use super::*;

wire!(alone kv_revisions_versions_and_prev_kv, |c| {
    assert_eq!(c.revision().await, 1);
    assert_eq!(c.put("a", "1").await, 2);
    let response = c.kv.put(PutRequest { prev_kv: true, ..c.put_request("a", "2") }).await.expect("put").into_inner();
    let previous = response.prev_kv.expect("it was asked for");
    assert_eq!((previous.create_revision, previous.mod_revision, previous.version), (2, 2, 1));
    assert_eq!(c.delete("none").await, 3, "deleting nothing is no revision");
    assert_eq!(c.delete("a").await, 4);
});

wire!(kv_errors_carry_etcds_code_and_text, |c| {
    let status = c.kv.put(PutRequest::default()).await.expect_err("no key");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    let status = c.kv.put(PutRequest { lease: 404, ..c.put_request("a", "1") }).await.expect_err("no lease");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let future = RangeRequest { key: c.key("a"), revision: 1 << 60, ..Default::default() };
    let status = c.kv.range(future).await.expect_err("future");
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(status.message(), "etcdserver: mvcc: required revision is a future revision");
});

wire!(kv_compare_and_swap, |c| {
    let created = c.put("a", "1").await;
    let compare = |revision| Compare {
        target: pb::compare::CompareTarget::Mod as i32,
        key: c.prefix.clone().into_bytes().into_iter().chain(*b"a").collect::<Vec<_>>().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    for (revision, succeeds) in [(created, true), (created, false)] {
        let request = TxnRequest {
            compare: vec![compare(revision)],
            success: vec![put_op(c.put_request("a", "2"))],
            ..Default::default()
        };
        assert_eq!(c.kv.clone().txn(request).await.expect("txn").into_inner().succeeded, succeeds);
    }
});

wire!(lease_revoke_deletes_keys_and_is_then_unknown, |c| {
    let lease = c.grant(60).await;
    c.send_put(PutRequest { lease, ..c.put_request("a", "1") }).await;
    c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke");
    let gone = RangeRequest { key: c.key("a"), ..Default::default() };
    assert_eq!(c.kv.range(gone).await.expect("range").into_inner().count, 0);
    let status = c.lease.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect_err("gone");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
});

wire!(keepalives_of_one_stream_are_answered_in_their_order, |c| {
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(c.grant(60).await);
        // Nobody has this one.
        ids.push(1);
    }
    let requests = tokio_stream::iter(ids.clone().into_iter().map(|id| pb::LeaseKeepAliveRequest { id }));
    let mut renewals = c.lease.lease_keep_alive(requests).await.expect("keep alive").into_inner();
    for id in ids {
        let renewal = renewals.message().await.expect("renewal").expect("one answer each");
        assert_eq!((renewal.id, renewal.ttl), (id, if id == 1 { 0 } else { 60 }));
    }
    assert!(renewals.message().await.expect("end").is_none());
});

wire!(a_client_we_did_not_write_puts_gets_and_watches, |c| {
    let mut client = etcd_client::Client::connect([c.server.url.clone()], None).await.expect("connect");
    let key = c.key("a").to_vec();
    let mut watch = client.watch(key.clone(), None).await.expect("watch");
    client.put(key.clone(), "1", None).await.expect("put");
    let response = client.get(key, None).await.expect("get");
    assert_eq!(response.kvs()[0].value(), b"1");
    loop {
        let message = watch.message().await.expect("watch").expect("watch goes on");
        if let Some(event) = message.events().first() {
            assert_eq!(event.kv().expect("kv").value(), b"1");
            break;
        }
    }
});

wire!(a_range_as_a_stream_is_the_range_in_pieces, |c| {
    if is_etcd() {
        // It came with 3.7.
        return;
    }
    for n in 0..600 {
        c.put(&format!("{n:03}"), &"v".repeat(1000)).await;
    }
    let all = RangeRequest { key: c.key(""), range_end: c.end(), ..Default::default() };
    for request in [
        all.clone(),
        RangeRequest { limit: 300, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, ..all.clone() },
        RangeRequest { key: c.key("none"), ..Default::default() },
        RangeRequest { serializable: true, limit: 1, ..all.clone() },
    ] {
        let whole = c.kv.range(request.clone()).await.expect("range").into_inner();
        let mut pieces = c.kv.range_stream(request.clone()).await.expect("range").into_inner();
        let (mut kvs, mut count, mut last) = (Vec::new(), 0, None);
        while let Some(piece) = pieces.message().await.expect("a piece") {
            assert!(last.is_none(), "nothing comes after the header");
            let piece = piece.range_response.expect("a piece of a range");
            (count, last) = (count + 1, piece.header);
            kvs.extend(piece.kvs.iter().cloned());
            assert!(last.is_some() || (piece.count, piece.more) == (0, false));
            if last.is_some() {
                assert_eq!((piece.count, piece.more), (whole.count, whole.more));
            }
        }
        assert_eq!(kvs, whole.kvs, "{request:?}");
        assert_eq!(last.expect("the last has a header").revision, whole.header.expect("a header").revision);
        assert_eq!(count > 1, kvs.len() > 1, "{count} pieces for {request:?}");
    }
    for (request, text) in [
        (RangeRequest { sort_order: 1, ..all.clone() }, "RangeStream does not support custom sort orders"),
        (RangeRequest { min_mod_revision: 1, ..all.clone() }, "RangeStream does not support revision filters"),
    ] {
        let refused = c.kv.range_stream(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, text));
    }
});
