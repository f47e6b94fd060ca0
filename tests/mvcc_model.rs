//! Random calls to the store, compared with a model of it (`mvcc_model/store.rs`). A failure prints the seed:
//! `SEED=… cargo test --test mvcc_model` plays it alone.

use everwatch::mvcc::Store;
use everwatch::pb::etcdserverpb::compare::TargetUnion;
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::*;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch};
use everwatch::types::Revision;

#[path = "mvcc_model/store.rs"]
mod store;

use store::Harness;

#[test]
fn store_does_as_the_model_does() {
    let seeds = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in seeds.map_or(1..=60, |seed: u64| seed..=seed) {
        println!("SEED={seed}");
        // How much of what the backend has stays in memory: all, a little, nothing.
        let recent_max = [usize::MAX, 1000, 0][(seed % 3) as usize];
        Harness::new(seed, recent_max).run(250);
    }
}

#[test]
fn nonsense_is_refused_or_does_nothing() {
    let (mut store, _) = Store::open(MemoryBackend::new().reader().unwrap()).unwrap();
    let numbers = [i64::MIN, -1, 0, 1, 2, 3, i64::MAX];
    let ranges = [("", ""), ("", "\0"), ("b", "a"), ("a", "a"), ("a", "\0"), ("a", "b")];
    let put = |key: &'static str| Request::RequestPut(PutRequest { key: key.into(), ..Default::default() });
    let delete = Request::RequestDeleteRange(DeleteRangeRequest { range_end: "\0".into(), ..Default::default() });
    let op = |request| RequestOp { request: Some(request) };
    // A key twice in one transaction: the edge refuses this.
    let success = vec![op(put("a")), op(put("a")), op(put("")), op(delete), op(put("a"))];
    store.txn(&TxnRequest { success, ..Default::default() }, &|_| false).unwrap();
    let ignore = PutRequest { key: "a".into(), ignore_value: true, ignore_lease: true, ..Default::default() };
    store.put(&PutRequest { key: "a".into(), lease: i64::MIN, ..Default::default() }).unwrap();
    store.put(&ignore).unwrap();
    for (key, range_end) in ranges {
        for n in numbers {
            for m in numbers {
                let request = RangeRequest {
                    key: key.into(),
                    range_end: range_end.into(),
                    limit: n,
                    revision: m,
                    sort_order: n as i32,
                    sort_target: m as i32,
                    min_mod_revision: n,
                    max_create_revision: m,
                    ..Default::default()
                };
                let _ = store.range(&request);
                let compare = Compare {
                    result: n as i32,
                    target: m as i32,
                    key: key.into(),
                    range_end: range_end.into(),
                    target_union: Some(TargetUnion::Lease(n)),
                };
                let txn = TxnRequest {
                    compare: vec![compare],
                    success: vec![op(Request::RequestRange(request))],
                    ..Default::default()
                };
                let _ = store.txn(&txn, &|_| false);
                let _ = store.read_txn(&txn);
            }
            let _ = store.history(Revision(n), 0);
            let _ = store.hash_kv(Revision(n));
            let _ = store.previous(key.as_bytes(), Revision(n));
        }
    }
    for n in numbers {
        let _ = store.compact(Revision(n), &mut Batch::default());
        while store.compact_step(1, &mut Batch::default()).unwrap() {}
    }
    assert_eq!((store.revision(), store.compacted()), (Revision(4), Revision(3)));
}
