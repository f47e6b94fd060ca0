//! What every request runs through, again and again, for a tool that counts instructions: `scripts/bench-guard.sh`.
//!
//!     hot_paths PATH COUNT
//!
//! Whoever counts runs a path with two counts: the difference is what it costs, without what it takes to get there.

use std::hint::black_box;
use std::process::ExitCode;

use bytes::Bytes;
use everwatch::mvcc::Store;
use everwatch::mvcc::change::SharedChanges;
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use everwatch::pb::everwatchpb::{Command, command::Kind};
use everwatch::state::command::{ProposalWriter, decode_proposal, encode_command};
use everwatch::storage::backend::Backend;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::types::{KeyRange, Revision};
use everwatch::watch::{CatchUp, Filters, Hub, Outbox, Round, Slice, Spec};

const KEYS: u64 = 20_000;
const COUNT_MAX: u64 = 3_000;

type Run = fn(u64);

/// Each runs so many times, after the same beginnings.
const PATHS: [(&str, Run); 10] = [
    ("put", put),
    ("range", range),
    ("page", page),
    ("count", count),
    ("txn", txn),
    ("propose", propose),
    ("publish-to-one", publish_to_one),
    ("publish-to-many", publish_to_many),
    ("create-watcher", create_watcher),
    ("catch-up", catch_up),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let path = arguments.first().and_then(|name| PATHS.iter().find(|(path, _)| path == name));
    let count = arguments.get(1).and_then(|count| count.parse().ok());
    let (Some((_, run)), Some(count)) = (path, count) else {
        PATHS.iter().for_each(|(path, _)| println!("{path}"));
        return ExitCode::from(if arguments.is_empty() { 0 } else { 2 });
    };
    run(COUNT_MAX.min(count));
    ExitCode::SUCCESS
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/default/{:010}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS))
}

fn put_request(number: u64) -> PutRequest {
    PutRequest { key: key(number), value: vec![b'v'; 256].into(), ..Default::default() }
}

fn store() -> Store {
    let (mut store, _) =
        Store::open(MemoryBackend::new().reader().expect("an empty backend")).expect("an empty backend");
    for number in 0..KEYS {
        store.put(&put_request(number)).expect("a put");
    }
    store
}

fn put(count: u64) {
    let mut store = store();
    for number in 0..count {
        black_box(store.put(&put_request(number)).expect("a put"));
    }
}

/// As the server answers it, from the records as they are.
fn read(store: &Store, request: &RangeRequest) {
    let mut scan = store.scan(request).expect("a range");
    while store.scan_more(&mut scan, usize::MAX).expect("nothing is compacted") {}
    black_box(scan.finish().expect("all records are there"));
}

fn range(count: u64) {
    let store = store();
    for number in 0..count {
        read(&store, &RangeRequest { key: key(number), ..Default::default() });
    }
}

/// Of a hundred keys.
fn page(count: u64) {
    let store = store();
    for number in 0..count {
        let request = RangeRequest { key: key(number), range_end: "0".into(), limit: 100, ..Default::default() };
        read(&store, &request);
    }
}

fn count(count: u64) {
    let store = store();
    for number in 0..count {
        let request = RangeRequest { key: key(number), range_end: "0".into(), count_only: true, ..Default::default() };
        read(&store, &request);
    }
}

fn txn(count: u64) {
    let mut store = store();
    for number in 0..count {
        let put = RequestOp { request: Some(Request::RequestPut(put_request(number))) };
        let request = TxnRequest { success: vec![put], ..Default::default() };
        black_box(store.txn(&request, &|_| true).expect("a txn"));
    }
}

/// A command encoded, put into a proposal with others, and read from there.
fn propose(count: u64) {
    const TOGETHER: u64 = 10;
    for first in (0..count).step_by(TOGETHER as usize) {
        let mut proposal = ProposalWriter::new(1, 2, 4096);
        for number in first..count.min(first + TOGETHER) {
            let command = Command { id: number, kind: Some(Kind::Put(put_request(number))), ..Default::default() };
            proposal.push(&encode_command(&command));
        }
        black_box(decode_proposal(proposal.finish()).expect("what was just written"));
    }
}

fn spec(range: KeyRange, start: Revision) -> Spec {
    let filters = Filters::default();
    Spec { range, start, filters, prev_kv: false, progress_notify: false, fragment: false, id: None }
}

/// What as many writes change as anybody counts with: however many of them are used, making them takes the same.
fn changes(store: &mut Store) -> Vec<SharedChanges> {
    let mut change = |number| store.put(&put_request(number)).expect("a put").changes.expect("something changed");
    (0..COUNT_MAX).map(&mut change).collect()
}

fn drain(outbox: &Outbox) {
    while let Some(next) = outbox.try_next() {
        black_box(next);
    }
}

/// Every key that is written has its own watcher.
fn publish_to_one(count: u64) {
    let mut store = store();
    let mut hub = Hub::new(store.revision(), Revision(-1));
    let (stream, outbox) = hub.open_stream();
    for number in 0..COUNT_MAX {
        hub.create(stream, spec(KeyRange::single(key(number)), Revision(0)));
    }
    drain(&outbox);
    for change in changes(&mut store).iter().take(count as usize) {
        hub.publish(change, &mut |_| None);
        drain(&outbox);
    }
}

/// A thousand watchers on ten streams have everything.
fn publish_to_many(count: u64) {
    let mut store = store();
    let mut hub = Hub::new(store.revision(), Revision(-1));
    let streams: Vec<_> = (0..10).map(|_| hub.open_stream()).collect();
    for (stream, outbox) in &streams {
        for _ in 0..100 {
            hub.create(*stream, spec(KeyRange::from_wire("/".into(), "0".into()), Revision(0)));
        }
        drain(outbox);
    }
    for change in changes(&mut store).iter().take(count as usize) {
        hub.publish(change, &mut |_| None);
        streams.iter().for_each(|(_, outbox)| drain(outbox));
    }
}

/// And cancelled.
fn create_watcher(count: u64) {
    let mut hub = Hub::new(Revision(1), Revision(-1));
    let (stream, outbox) = hub.open_stream();
    for number in 0..count {
        hub.create(stream, spec(KeyRange::single(key(number)), Revision(0)));
        hub.cancel(stream, number as i64);
        drain(&outbox);
    }
}

/// So many events, a hundred at a time.
fn catch_up(count: u64) {
    let mut store = store();
    let start = store.revision().next();
    let sets = changes(&mut store);
    let mut hub = Hub::new(store.revision(), Revision(-1));
    let (stream, outbox) = hub.open_stream();
    hub.create(stream, spec(KeyRange::from_wire("/".into(), "0".into()), start));
    for piece in sets[..count as usize].chunks(100) {
        let job: CatchUp = hub.next_catch_up().expect("it is late");
        let slice = Slice::new(&job, piece.to_vec());
        for order in hub.orders(&slice, Round::default()).0 {
            hub.deliver(&order.pack(&slice)).clear();
        }
        drain(&outbox);
    }
}
