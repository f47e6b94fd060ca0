//! A CPU profile of a busy member, read as a tool for Go's profiles reads it: by the fields of the format alone.

mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use everwatch::pb::etcdserverpb::PutRequest;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use processes::{Cluster, PATIENCE, READY};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<Numbers>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Numbers>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, tag = "12")]
    period: i64,
}

/// Messages whose first two fields are numbers.
#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(int64, tag = "1")]
    first: i64,
    #[prost(int64, tag = "2")]
    second: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Numbers>,
}

/// The first line and the body of an answer.
fn get(address: &str, path: &str) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(address).expect("it listens");
    connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: m\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("answered");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("the end of the head");
    let line = answer.split(|byte| *byte == b'\r').next().expect("a first line");
    (String::from_utf8_lossy(line).into_owned(), answer[end + 4..].to_vec())
}

#[test]
fn a_profile_shows_where_a_busy_member_spends_its_time() {
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--enable-pprof"];
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    let enough = Arc::new(AtomicBool::new(false));
    let writing = std::thread::spawn({
        let (address, enough) = (format!("http://{}", member.client), enough.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut kv = KvClient::connect(address).await.expect("it listens");
                while !enough.load(Ordering::Relaxed) {
                    let put = PutRequest { key: "k".into(), ..Default::default() };
                    kv.put(put).await.expect("a profile disturbs nobody");
                }
            });
        }
    });
    // One at a time, as in Go: of two that are asked for together one is taken.
    let ask = |address: String| std::thread::spawn(move || get(&address, "/debug/pprof/profile?seconds=2"));
    let mut answers = [ask(member.client.clone()), ask(member.client.clone())].map(|asking| asking.join().unwrap());
    enough.store(true, Ordering::Relaxed);
    writing.join().expect("every put is acknowledged");
    answers.sort();
    let [(taken, profile), (refused, why)] = &answers;
    assert_eq!((&taken[9..12], &refused[9..12]), ("200", "500"));
    assert_eq!(&why[..], b"Could not enable CPU profiling: cpu profiling already in use\n");

    let profile = Profile::decode(&profile[..]).expect("a profile");
    let text = |number: i64| profile.string_table[number as usize].as_str();
    let types: Vec<_> = profile.sample_type.iter().map(|kind| (text(kind.first), text(kind.second))).collect();
    assert_eq!((text(0), &types[..]), ("", &[("samples", "count"), ("cpu", "nanoseconds")][..]));
    assert!(profile.duration_nanos >= 2_000_000_000, "{}", profile.duration_nanos);
    let locations: BTreeSet<u64> = profile.location.iter().map(|location| location.id).collect();
    let functions: BTreeSet<i64> = profile.function.iter().map(|function| function.first).collect();
    for sample in &profile.sample {
        assert!(!sample.location_id.is_empty() && sample.location_id.iter().all(|id| locations.contains(id)));
        assert_eq!(sample.value[1], sample.value[0] * profile.period);
    }
    let known = |line: &Numbers| functions.contains(&line.first);
    assert!(profile.location.iter().all(|location| !location.line.is_empty() && location.line.iter().all(known)));
    // Whoever looks at a stack is not part of it.
    let names: BTreeMap<i64, &str> =
        profile.function.iter().map(|function| (function.first, text(function.second))).collect();
    let lines: BTreeMap<u64, &[Numbers]> = profile.location.iter().map(|at| (at.id, &at.line[..])).collect();
    let innermost = |sample: &Sample| lines[&sample.location_id[0]].iter().map(|line| names[&line.first]);
    let looking = profile.sample.iter().flat_map(innermost).find(|name| name.contains("pprof::"));
    assert_eq!(looking, None);
    let ours = profile.function.iter().filter(|function| text(function.second).contains("everwatch::")).count();
    let seen: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert!(ours > 0 && seen > 0, "{ours} functions of ours in {seen} samples");
}
