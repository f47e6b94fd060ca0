//! Keys: put, read, deleted, compared and compacted.

use std::collections::HashSet;
use std::time::Duration;

use etcd_client::{
    BalancedChannelBuilder, Channel, Client, CompactionOptions, Compare, CompareOp, ConnectOptions, DeleteOptions,
    GetOptions, GetStreamResponse, KvClientPrefix, LeaseClientPrefix, LeaseTimeToLiveOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse,
};
use tokio::sync::mpsc::Sender;
use tonic::Code;
use tonic::transport::channel::Change;
use tonic::transport::{Endpoint, Uri};

use crate::{Members, names, refused};

/// Makes the channel of a client, in the place of the client.
struct Balanced;

impl BalancedChannelBuilder for Balanced {
    type Error = tonic::transport::Error;

    fn balanced_channel(self, size: usize) -> Result<(Channel, Sender<Change<Uri, Endpoint>>), Self::Error> {
        let (channel, endpoints) = tonic::transport::Channel::balance_channel(size);
        Ok((Channel::Tonic(channel), endpoints))
    }
}

/// Who answers, of so many calls.
async fn answering(client: &mut Client, calls: usize) -> HashSet<u64> {
    let mut members = HashSet::new();
    for _ in 0..calls {
        let found = client.get("c/none", Some(GetOptions::new().with_serializable())).await.expect("read");
        members.insert(found.header().expect("there is one").member_id());
    }
    members
}

pub(crate) async fn clients_connect_in_many_ways(members: &Members) {
    let options = ConnectOptions::new()
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_keep_alive_while_idle(true)
        .with_timeout(Duration::from_secs(20))
        .with_connect_timeout(Duration::from_secs(5))
        .with_tcp_keepalive(Duration::from_secs(30))
        .with_require_leader(true);
    let mut client = Client::connect([members.url(0)], Some(options.clone())).await.expect("it listens");
    let put = client.put("c/a", "1", None).await.expect("put");
    let (cluster, first) = (put.header().unwrap().cluster_id(), put.header().unwrap().member_id());
    assert!(put.header().unwrap().raft_term() > 0);
    assert_eq!(answering(&mut client, 5).await, HashSet::from([first]));
    // One more, and this one no more.
    client.add_endpoint(members.url(1)).await.expect("it is taken");
    client.remove_endpoint(members.url(0)).await.expect("it is known");
    while answering(&mut client, 3).await.contains(&first) {}
    let found = client.get("c/a", None).await.expect("read");
    assert_eq!(found.header().unwrap().cluster_id(), cluster);
    assert_ne!(found.header().unwrap().member_id(), first);
    // All of them, over a channel of ours.
    let urls: Vec<_> = (0..3).map(|n| members.url(n)).collect();
    let mut client = Client::connect_with_balanced_channel(&urls, Some(options), Balanced).await.expect("they listen");
    let mut seen = HashSet::new();
    while seen.len() < 3 {
        seen.extend(answering(&mut client, 1).await);
    }
    assert!(seen.contains(&first));
}

pub(crate) async fn keys_are_put_and_read(members: &Members) {
    let mut client = members.client().await;
    let mut put = client.put("kv/a", "1", None).await.expect("put");
    assert!(put.prev_key().is_none());
    let first = put.take_header().expect("there is one").revision();
    let mut put = client.put("kv/a", "2", Some(PutOptions::new().with_prev_key())).await.expect("put");
    assert_eq!(put.header().unwrap().revision(), first + 1);
    assert_eq!(put.prev_key().unwrap().value(), b"1");
    assert_eq!(put.take_prev_key().unwrap().into_key_value(), (b"kv/a".to_vec(), b"1".to_vec()));
    let found = client.get("kv/a", None).await.expect("read");
    let [kv] = found.kvs() else { panic!("{found:?}") };
    assert_eq!(
        (kv.key(), kv.key_str().unwrap(), kv.value(), kv.value_str().unwrap()),
        (&b"kv/a"[..], "kv/a", &b"2"[..], "2")
    );
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()), (first, first + 1, 2, 0));
    assert_eq!((found.count(), found.more()), (1, false));
    let mut before = client.get("kv/a", Some(GetOptions::new().with_revision(first))).await.expect("read");
    assert_eq!(before.take_kvs()[0].value(), b"1");
    assert!(client.get("kv/none", None).await.expect("read").kvs().is_empty());

    // A lease stays, and so does a value, if told so.
    let lease = client.lease_grant(100, None).await.expect("granted").id();
    client.put("kv/a", "3", Some(PutOptions::new().with_lease(lease))).await.expect("put");
    client.put("kv/a", "", Some(PutOptions::new().with_ignore_value().with_lease(lease))).await.expect("put");
    client.put("kv/a", "4", Some(PutOptions::new().with_ignore_lease())).await.expect("put");
    let found = client.get("kv/a", None).await.expect("read");
    assert_eq!((found.kvs()[0].value(), found.kvs()[0].lease(), found.kvs()[0].version()), (&b"4"[..], lease, 5));
    let refusal = refused(client.put("kv/none", "", Some(PutOptions::new().with_ignore_value())).await);
    assert_eq!((refusal.code(), refusal.message()), (Code::InvalidArgument, "etcdserver: key not found"));
    let refusal = refused(client.put("kv/a", "v", Some(PutOptions::new().with_ignore_value())).await);
    assert_eq!((refusal.code(), refusal.message()), (Code::InvalidArgument, "etcdserver: value is provided"));
    let refusal = refused(client.put("kv/a", "v", Some(PutOptions::new().with_lease(7))).await);
    assert_eq!((refusal.code(), refusal.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let refusal = refused(client.put("", "v", None).await);
    assert_eq!((refusal.code(), refusal.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));

    // The client within, with bounds.
    let mut kv = client.kv_client().max_decoding_message_size(1 << 20).max_encoding_message_size(1 << 20);
    kv.put("kv/b", vec![b'x'; 100], None).await.expect("put");
    assert_eq!(kv.get("kv/b", None).await.expect("read").kvs()[0].value().len(), 100);
    let mut kv = client.kv_client().max_decoding_message_size(99);
    assert_eq!(refused(kv.get("kv/b", None).await).code(), Code::OutOfRange);
    let mut kv = client.kv_client();
    assert_eq!(kv.delete("kv/b", None).await.expect("deleted").deleted(), 1);
    let huge = refused(kv.put("kv/b", vec![b'x'; 1_600_000], None).await);
    assert_eq!((huge.code(), huge.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
}

pub(crate) async fn ranges_are_read_in_every_way(members: &Members) {
    let mut client = members.client().await;
    let mut revisions = Vec::new();
    for (key, value) in [("r/b", "1"), ("r/a", "3"), ("r/c", "2"), ("r/a", "0")] {
        revisions.push(client.put(key, value, None).await.expect("put").header().unwrap().revision());
    }
    let all = || GetOptions::new().with_prefix();
    let orders = [
        (SortTarget::Key, ["a", "b", "c"]),
        (SortTarget::Create, ["b", "a", "c"]),
        (SortTarget::Mod, ["b", "c", "a"]),
        (SortTarget::Value, ["a", "b", "c"]),
        (SortTarget::Version, ["b", "c", "a"]),
    ];
    for (target, expected) in orders {
        let found = client.get("r/", Some(all().with_sort(target, SortOrder::Ascend))).await.expect("read");
        let letters: Vec<_> = names(found.kvs()).iter().map(|key| key[2..].to_owned()).collect();
        assert_eq!(letters, expected, "{target:?}");
        let found = client.get("r/", Some(all().with_sort(target, SortOrder::Descend))).await.expect("read");
        assert_eq!(found.kvs()[0].key_str().unwrap()[2..], *expected[2], "{target:?}");
    }
    let found = client.get("r/", Some(all().with_limit(2))).await.expect("read");
    assert_eq!((names(found.kvs()), found.more(), found.count()), (vec!["r/a", "r/b"], true, 3));
    let found = client.get("r/a", Some(GetOptions::new().with_range("r/c"))).await.expect("read");
    assert_eq!(names(found.kvs()), ["r/a", "r/b"]);
    let found = client.get("r/b", Some(GetOptions::new().with_from_key().with_limit(2))).await.expect("read");
    assert_eq!(names(found.kvs()), ["r/b", "r/c"]);
    let found = client.get("", Some(GetOptions::new().with_all_keys())).await.expect("read");
    assert_eq!(found.count() as usize, found.kvs().len());
    let every: HashSet<_> = names(found.kvs()).into_iter().collect();
    assert!(every.is_superset(&HashSet::from(["kv/a", "r/a", "r/b", "r/c"])));
    let found = client.get("r/", Some(all().with_keys_only())).await.expect("read");
    assert!(found.kvs().iter().all(|kv| kv.value().is_empty() && kv.mod_revision() > 0) && found.kvs().len() == 3);
    let found = client.get("r/", Some(all().with_count_only())).await.expect("read");
    assert_eq!((found.kvs().len(), found.count()), (0, 3));
    let found = client.get("r/", Some(all().with_serializable())).await.expect("read");
    assert_eq!(found.count(), 3);
    // Modified: b, c, a; created: b, a, c.
    for (options, expected) in [
        (all().with_min_mod_revision(revisions[2]), vec!["r/a", "r/c"]),
        (all().with_max_mod_revision(revisions[2]), vec!["r/b", "r/c"]),
        (all().with_min_create_revision(revisions[1]), vec!["r/a", "r/c"]),
        (all().with_max_create_revision(revisions[1]), vec!["r/a", "r/b"]),
    ] {
        let found = client.get("r/", Some(options.clone())).await.expect("read");
        assert_eq!((names(found.kvs()), found.count()), (expected, 3), "{options:?}");
    }
    let refusal = refused(client.get("r/", Some(all().with_revision(revisions[3] + 1000))).await);
    assert_eq!(refusal.message(), "etcdserver: mvcc: required revision is a future revision");
}

pub(crate) async fn keys_are_deleted(members: &Members) {
    let mut client = members.client().await;
    for key in ["d/a", "d/b", "d/c", "d/d", "d/e", "d2/f"] {
        client.put(key, key, None).await.expect("put");
    }
    let mut gone = client.delete("d/a", Some(DeleteOptions::new().with_prev_key())).await.expect("deleted");
    assert_eq!((gone.deleted(), names(gone.prev_kvs())), (1, vec!["d/a"]));
    assert_eq!(gone.take_prev_kvs()[0].value(), b"d/a");
    assert!(gone.prev_kvs().is_empty());
    let revision = gone.header().unwrap().revision();
    let gone = client.delete("d/a", None).await.expect("deleted");
    assert_eq!((gone.deleted(), gone.header().unwrap().revision()), (0, revision));
    assert_eq!(client.delete("d/b", Some(DeleteOptions::new().with_range("d/d"))).await.expect("deleted").deleted(), 2);
    let gone = client.delete("d/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await.expect("deleted");
    assert_eq!(names(gone.prev_kvs()), ["d/d", "d/e"]);

    let mut kv = client.kv_client();
    kv.put("z/a", "", None).await.expect("put");
    kv.put("z/b", "", None).await.expect("put");
    assert_eq!(kv.delete("z/", Some(DeleteOptions::new().with_from_key())).await.expect("deleted").deleted(), 2);
    let left = client.get("", Some(GetOptions::new().with_all_keys())).await.expect("read").count();
    assert!(left > 0);
    let gone = client.delete("", Some(DeleteOptions::new().with_all_keys())).await.expect("deleted");
    assert_eq!(gone.deleted(), left);
    assert_eq!(client.get("", Some(GetOptions::new().with_all_keys())).await.expect("read").count(), 0);
}

pub(crate) async fn txns_choose_and_nest(members: &Members) {
    let mut client = members.client().await;
    let lease = client.lease_grant(100, None).await.expect("granted").id();
    let put = client.put("t/a", "1", Some(PutOptions::new().with_lease(lease))).await.expect("put");
    let revision = put.header().unwrap().revision();
    let holds = [
        Compare::version("t/a", CompareOp::Equal, 1),
        Compare::create_revision("t/a", CompareOp::Equal, revision),
        Compare::mod_revision("t/a", CompareOp::Less, revision + 1),
        Compare::value("t/a", CompareOp::Greater, "0"),
        Compare::lease("t/a", CompareOp::Equal, lease),
        Compare::value("t/a", CompareOp::NotEqual, "2"),
        Compare::version("t/", CompareOp::Greater, 0).with_prefix(),
        Compare::version("t/a", CompareOp::Less, 2).with_range("t/b"),
    ];
    let inner = Txn::new()
        .when([Compare::value("t/a", CompareOp::Equal, "none")])
        .and_then([TxnOp::put("t/wrong", "", None)])
        .or_else([
            TxnOp::get("t/", Some(GetOptions::new().with_prefix())),
            TxnOp::put("t/c", "3", Some(PutOptions::new().with_prev_key())),
        ]);
    let txn = Txn::new().when(holds).and_then([
        TxnOp::put("t/b", "2", None),
        TxnOp::get("t/b", None),
        TxnOp::txn(inner),
        TxnOp::delete("t/a", Some(DeleteOptions::new().with_prev_key())),
    ]);
    let done = client.txn(txn.clone()).await.expect("carried out");
    assert!(done.succeeded());
    assert_eq!(done.header().unwrap().revision(), revision + 1);
    let answers = done.op_responses();
    let [TxnOpResponse::Put(put), TxnOpResponse::Get(got), TxnOpResponse::Txn(nested), TxnOpResponse::Delete(gone)] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert!(put.prev_key().is_none());
    assert_eq!((got.kvs()[0].value(), got.kvs()[0].mod_revision()), (&b"2"[..], revision + 1));
    assert_eq!((gone.deleted(), gone.prev_kvs()[0].lease()), (1, lease));
    assert!(!nested.succeeded());
    let answers = nested.op_responses();
    let [TxnOpResponse::Get(got), TxnOpResponse::Put(_)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(names(got.kvs()), ["t/a", "t/b"]);

    // It does not hold any more; and nothing is told to be done then.
    let mut kv = client.kv_client();
    let done = kv.txn(txn).await.expect("carried out");
    assert!(!done.succeeded() && done.op_responses().is_empty());
    let twice = Txn::new().and_then([TxnOp::put("t/a", "1", None), TxnOp::put("t/a", "2", None)]);
    assert_eq!(refused(kv.txn(twice).await).message(), "etcdserver: duplicate key given in txn request");
    client.delete("t/", Some(DeleteOptions::new().with_prefix())).await.expect("deleted");
}

pub(crate) async fn history_is_compacted(members: &Members) {
    let mut client = members.client().await;
    let first = client.put("h/a", "1", None).await.expect("put").header().unwrap().revision();
    client.put("h/a", "2", None).await.expect("put");
    let third = client.put("h/a", "3", None).await.expect("put").header().unwrap().revision();
    let compacted = client.compact(third - 1, None).await.expect("compacted");
    assert!(compacted.header().unwrap().revision() >= third);
    let refusal = refused(client.get("h/a", Some(GetOptions::new().with_revision(first))).await);
    let gone = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!((refusal.code(), refusal.message()), (Code::OutOfRange, gone));
    let found = client.get("h/a", Some(GetOptions::new().with_revision(third - 1))).await.expect("read");
    assert_eq!(found.kvs()[0].value(), b"2");
    assert_eq!(refused(client.compact(third - 1, None).await).message(), gone);
    let mut kv = client.kv_client();
    kv.compact(third, Some(CompactionOptions::new().with_physical())).await.expect("compacted");
    let refusal = refused(kv.compact(third + 1000, None).await);
    assert_eq!(refusal.message(), "etcdserver: mvcc: required revision is a future revision");
}

pub(crate) async fn a_range_comes_in_pieces(members: &Members) {
    let mut client = members.client().await;
    let mut kv = client.kv_client();
    let value = vec![b'x'; 1 << 20];
    for n in 0..3 {
        kv.put(format!("p/{n}"), value.clone(), None).await.expect("put");
    }
    let pieces = kv.get_stream("p/", Some(GetOptions::new().with_prefix().with_limit(2))).await;
    if let (Err(_), false) = (&pieces, members.speaks(3, 6).await) {
        // A call of etcd 3.7.
        assert_eq!(refused(pieces).code(), Code::Unimplemented);
        return;
    }
    let mut pieces: GetStreamResponse = pieces.expect("read");
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(mut piece) = pieces.message().await.expect("read") {
        found.extend(piece.take_kvs());
        last = Some(piece);
    }
    assert_eq!(names(&found), ["p/0", "p/1"]);
    assert!(found.iter().all(|kv| kv.value() == value));
    let last = last.expect("there is one at least");
    assert_eq!((last.count(), last.more(), last.header().is_some()), (3, true, true));
    client.delete("p/", Some(DeleteOptions::new().with_prefix())).await.expect("deleted");
}

pub(crate) async fn a_namespace_is_all_there_is(members: &Members) {
    let mut client = members.client().await;
    let lease = client.lease_grant(100, None).await.expect("granted").id();
    let mut inside = KvClientPrefix::new(client.kv_client(), b"n/".to_vec());
    inside.put("a", "1", Some(PutOptions::new().with_lease(lease))).await.expect("put");
    let put = inside.put("a", "2", Some(PutOptions::new().with_prev_key().with_ignore_lease())).await.expect("put");
    assert_eq!(put.prev_key().unwrap().key(), b"a");
    assert_eq!(client.get("n/a", None).await.expect("read").kvs()[0].value(), b"2");
    let found = inside.get("a", Some(GetOptions::new().with_range("b"))).await.expect("read");
    assert_eq!(names(found.kvs()), ["a"]);
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "2")])
        .and_then([TxnOp::put("b", "3", None), TxnOp::get("b", None)]);
    let done = inside.txn(txn).await.expect("carried out");
    let answers = done.op_responses();
    let [TxnOpResponse::Put(_), TxnOpResponse::Get(got)] = &answers[..] else { panic!("{answers:?}") };
    assert!(done.succeeded() && names(got.kvs()) == ["b"]);
    let mut leases_inside = LeaseClientPrefix::new(client.lease_client(), b"n/".to_vec());
    let left = leases_inside.time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys())).await.expect("known");
    assert_eq!(left.keys(), [b"a"]);
    let gone = inside.delete("b", Some(DeleteOptions::new().with_prev_key())).await.expect("deleted");
    assert_eq!((gone.deleted(), names(gone.prev_kvs())), (1, vec!["b"]));
    client.lease_revoke(lease).await.expect("revoked");
}
