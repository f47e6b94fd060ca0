//! Every metric that etcd's dashboard and alerts ask for is there, of its type, and says what happens.

mod processes;

use std::collections::BTreeMap;
use std::time::Instant;

use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{
    DefragmentRequest, HashKvRequest, HashRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
};
use processes::{Cluster, PATIENCE, Process, READY};

/// What they ask for, and its type: 0 while nothing has gone wrong, and more in the life of these members.
const QUIET: [(&str, &str); 2] =
    [("etcd_server_proposals_failed_total", "counter"), ("etcd_server_proposals_pending", "gauge")];
const BUSY: [(&str, &str); 25] = [
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_network_peer_round_trip_time_seconds", "histogram"),
    ("etcd_network_peer_sent_failures_total", "counter"),
    ("etcd_network_peer_sent_bytes_total", "counter"),
    ("etcd_network_peer_received_bytes_total", "counter"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_msg_received_total", "counter"),
    ("grpc_server_msg_sent_total", "counter"),
    ("grpc_server_handling_seconds", "histogram"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_cpu_seconds_total", "counter"),
    ("process_open_fds", "gauge"),
    ("process_max_fds", "gauge"),
    ("process_start_time_seconds", "gauge"),
];

/// By name: the type, and the sum of all series; of a histogram, how many values it has.
fn read(member: &Process) -> BTreeMap<String, (String, f64)> {
    let text = member.get("/metrics");
    let mut families = BTreeMap::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').expect("a name and a type");
            families.insert(name.to_owned(), (kind.to_owned(), 0.0));
        } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
            let name = series.split('{').next().expect("a name");
            let family = families.get_mut(name.strip_suffix("_count").unwrap_or(name));
            if let (Some((_, sum)), Ok(value)) = (family, value.parse::<f64>()) {
                *sum += value;
            }
        }
    }
    families
}

/// The value of one series.
fn series(member: &Process, name: &str, labels: &[&str]) -> f64 {
    let text = member.get("/metrics");
    let is_it = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
    let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} with {labels:?}"));
    line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
}

#[test]
fn what_dashboards_and_alerts_ask_for_is_counted() {
    let mut cluster = Cluster::new(3);
    cluster.flags = &["--metrics=extensive"];
    let [one, two, other] = [0, 1, 2].map(|n| cluster.start(n));
    for member in [&one, &two, &other] {
        member.says(READY);
    }
    // Members ask each other for a sign of life once they are connected.
    one.put("k");
    one.ask(async |channel| {
        let mut leases = LeaseClient::new(channel);
        let lease = LeaseGrantRequest { ttl: 60, id: 7 };
        leases.lease_grant(lease).await.expect("granted");
        let renewals = tokio_stream::iter([LeaseKeepAliveRequest { id: 7 }, LeaseKeepAliveRequest { id: 7 }]);
        let mut answers = leases.lease_keep_alive(renewals).await.expect("a stream").into_inner();
        let mut renewed = 0;
        while let Some(answer) = answers.message().await.expect("renewed") {
            renewed += i32::from(answer.ttl == 60);
        }
        assert_eq!(renewed, 2);
    });
    drop(other);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = read(&one);
        let missing = |asked: &(&str, &str)| found.get(asked.0).is_none_or(|(kind, _)| kind != asked.1);
        let missing: Vec<_> = QUIET.iter().chain(&BUSY).filter(|asked| missing(asked)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let still: Vec<_> = BUSY.iter().filter(|asked| found[asked.0].1 <= 0.0).collect();
        if still.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "nothing was counted of {still:?}");
    }
    let upkeep = [
        "etcd_mvcc_hash_duration_seconds_count",
        "etcd_mvcc_hash_rev_duration_seconds_count",
        "etcd_disk_backend_defrag_duration_seconds_count",
    ];
    assert_eq!(upkeep.map(|name| series(&one, name, &[])), [0.0; 3]);
    one.ask(async |channel| {
        let mut maintenance = MaintenanceClient::new(channel);
        maintenance.hash(HashRequest {}).await.expect("hashed");
        maintenance.hash_kv(HashKvRequest::default()).await.expect("hashed");
        maintenance.defragment(DefragmentRequest {}).await.expect("nothing is left to do");
    });
    assert_eq!(upkeep.map(|name| series(&one, name, &[])), [1.0; 3]);
    assert_eq!(series(&one, "etcd_disk_defrag_inflight", &[]), 0.0);
    assert!(QUIET.iter().all(|(name, _)| series(&one, name, &[]) == 0.0));
    // A stream's messages are counted, not the stream; and bytes as they come.
    let renewals = ["grpc_method=\"LeaseKeepAlive\""];
    assert_eq!(series(&one, "grpc_server_started_total", &renewals), 1.0);
    assert_eq!(series(&one, "grpc_server_msg_received_total", &renewals), 2.0);
    assert_eq!(series(&one, "grpc_server_msg_sent_total", &renewals), 2.0);
    // The member that was dropped may have led: then what is asked before there is another leader may go with it.
    while one.try_put("k").is_err() {
        assert!(Instant::now() < deadline, "nobody leads");
    }
    let before = series(&one, "etcd_network_client_grpc_received_bytes_total", &[]);
    one.put(&"k".repeat(1000));
    let received = series(&one, "etcd_network_client_grpc_received_bytes_total", &[]) - before;
    assert!((1000.0..1100.0).contains(&received), "{received} bytes for a key of 1000");
    drop(two);
}
