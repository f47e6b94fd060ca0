//! T: transactions are told whole, in the order of their operations.

use super::*;

wire!(t01_t02_t08_a_transaction_is_one_response_live_and_from_history, |c| {
    c.put("c", "1").await;
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    stream.create_as(c.one("b"), 1).await;
    let ops = vec![put_op(c.put_request("b", "1")), put_op(c.put_request("a", "1")), delete_op(c.key("c"), "".into())];
    let at = c.txn(ops).await.expect("txn");
    let whole = [format!("put b=1 @{at} c{at} v1"), format!("put a=1 @{at} c{at} v1"), format!("delete c @{at}")];
    let said = c.before_marker(&mut stream).await;
    assert_eq!(said.len(), 2, "{said:?}");
    for response in &said {
        let wanted = if response.watch_id == 0 { &whole[..] } else { &whole[..1] };
        assert_eq!(stream.show(response), wanted);
    }
    let mut late = c.stream();
    late.create_as(WatchCreateRequest { start_revision: at, ..c.everything() }, 0).await;
    assert_eq!(late.events().await, whole);
});

wire!(alone t03_t04_only_what_happened_is_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let compare = Compare { key: c.key("none"), target_union: Some(pb::compare::TargetUnion::Version(9)), ..Default::default() };
    let request = TxnRequest {
        compare: vec![compare.clone()],
        success: vec![put_op(c.put_request("then", ""))],
        failure: vec![put_op(c.put_request("else", ""))],
    };
    c.kv.txn(request).await.expect("txn");
    assert_eq!(stream.events().await, ["put else= @2 c2 v1"]);
    let idle = TxnRequest { compare: vec![compare], success: vec![put_op(c.put_request("then", ""))], failure: vec![] };
    c.kv.txn(idle).await.expect("txn");
    let nothing = c.txn(vec![delete_op(c.key("none"), "".into())]).await.expect("txn");
    assert_eq!(nothing, 2);
    c.assert_quiet(&mut stream).await;
});

wire!(t05_t06_nested_and_ranges_keep_their_place, |c| {
    for key in ["z", "x", "y"] {
        c.put(key, "1").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = vec![
        put_op(c.put_request("m", "")),
        txn_op(vec![put_op(c.put_request("b", ""))]),
        delete_op(c.key("x"), c.key("zz")),
        put_op(c.put_request("a", "")),
    ];
    c.txn(ops).await.expect("txn");
    let order: Vec<String> =
        stream.events().await.iter().map(|e| e.split('@').next().expect("first").trim().to_owned()).collect();
    assert_eq!(order, ["put m=", "put b=", "delete x", "delete y", "delete z", "put a="]);
});

wire!(t07_the_largest_transaction_is_one_response, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = |count| (0..count).map(|n| put_op(c.put_request(&format!("{n:03}"), ""))).collect::<Vec<_>>();
    let (fits, over) = (ops(128), ops(129));
    c.txn(fits).await.expect("txn");
    assert_eq!(stream.events().await.len(), 128);
    let status = c.txn(over).await.expect_err("too many");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: too many operations in txn request")
    );
});

wire!(t09_a_duplicate_key_is_refused_and_not_told, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let ops = vec![put_op(c.put_request("a", "1")), put_op(c.put_request("a", "2"))];
    let status = c.txn(ops).await.expect_err("duplicate");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
    );
    c.assert_quiet(&mut stream).await;
});
