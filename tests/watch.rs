//! Watches of a cluster of real processes, through our own client.

mod processes;

use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::client::resume::News;
use everwatch::client::{Client, Heard, Keepalive, Want, Watch};
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{PutRequest, RangeRequest};
use everwatch::pb::mvccpb::KeyValue;
use processes::{Cluster, PATIENCE, Process, READY};
use tokio::runtime::Runtime;
use tokio::time::timeout;

const KEY: &str = "watched";

fn founded() -> (Cluster, Vec<Process>, Runtime, Client) {
    let cluster = Cluster::new(3);
    let members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // A member that stands still shall not be waited for long.
    let keepalive = Keepalive { interval: Duration::from_millis(500), timeout: Duration::from_secs(1) };
    // Connections live on the runtime.
    let client = runtime.block_on(async { Client::with_keepalive(&cluster.clients, 1, keepalive) }).expect("addresses");
    (cluster, members, runtime, client)
}

/// What is said of the first watcher next, whatever happens to its stream.
async fn news(watch: &mut Watch) -> News {
    loop {
        let heard = timeout(PATIENCE, watch.next()).await.expect("something is heard").expect("nobody refuses");
        if let Heard::Of(0, news) = heard.expect("the watcher exists") {
            return news;
        }
    }
}

/// Changes, until that of this version.
async fn follow(watch: &mut Watch, version: i64) -> Vec<KeyValue> {
    let mut seen: Vec<KeyValue> = Vec::new();
    while seen.last().is_none_or(|kv| kv.version < version) {
        match news(watch).await {
            News::Events(events) => seen.extend(events.into_iter().filter_map(|event| event.kv)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

#[test]
fn now_is_not_behind_what_was_acknowledged_elsewhere() {
    let (_cluster, _members, runtime, client) = founded();
    runtime.block_on(async {
        for n in 0..200 {
            let (writer, watcher) = (n % 3, (n + 1 + n / 3 % 2) % 3);
            let put = PutRequest { key: KEY.into(), ..Default::default() };
            let put = KvClient::new(client.channel(writer, 0)).put(put).await.expect("a majority is there");
            let acknowledged = put.into_inner().header.expect("there is one").revision;
            let want = Want { key: Bytes::from(KEY), ..Default::default() };
            match news(&mut Watch::new(client.clone(), [want], watcher, 0)).await {
                News::Created { revision } => assert!(revision >= acknowledged, "{n}: {revision}, not {acknowledged}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_watch_goes_on_where_its_member_died_and_misses_and_repeats_nothing() {
    let (_cluster, mut members, runtime, client) = founded();
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client.clone(), [want], 0, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    (0..20).for_each(|_| members[1].put(KEY));
    let mut seen = runtime.block_on(follow(&mut watch, 10));

    drop(members.remove(0));
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..20 {
        // While there is no leader it is unknown what becomes of a put: the store says how many there were.
        while members[1].try_put(KEY).is_err() {
            assert!(Instant::now() < deadline, "nobody leads");
        }
    }
    let range = RangeRequest { key: KEY.into(), ..Default::default() };
    let stored = members[0].ask(async |channel| KvClient::new(channel).range(range).await);
    let last = stored.expect("a majority is there").into_inner().kvs[0].version;
    assert!(last >= 40);
    seen.extend(runtime.block_on(follow(&mut watch, last)));
    let versions: Vec<i64> = seen.iter().map(|kv| kv.version).collect();
    assert_eq!(versions, (1..=last).collect::<Vec<i64>>());
    assert!(seen.is_sorted_by(|a, b| a.mod_revision < b.mod_revision));
    // Nothing follows, and the stream is alive.
    watch.ask_progress();
    let progress = runtime.block_on(async { timeout(Duration::from_secs(60), news(&mut watch)).await });
    assert!(matches!(progress, Ok(News::Progress { .. })), "{progress:?}");
}

#[test]
fn a_watch_leaves_a_member_that_stands_still() {
    let (_cluster, members, runtime, client) = founded();
    let want = Want { key: Bytes::from(KEY), ..Default::default() };
    let mut watch = Watch::new(client, [want], 0, 0);
    assert!(matches!(runtime.block_on(news(&mut watch)), News::Created { .. }));
    members[0].signal("-STOP");
    let deadline = Instant::now() + PATIENCE;
    // Perhaps it led.
    while members[1].try_put(KEY).is_err() {
        assert!(Instant::now() < deadline, "nobody leads");
    }
    let seen = runtime.block_on(follow(&mut watch, 1));
    members[0].signal("-CONT");
    assert_eq!(seen[0].version, 1);
    assert_eq!(watch.repeated(), 0);
}
