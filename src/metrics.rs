//! Every metric, in one table, under the names and types that etcd's dashboards and alerts ask for.
//!
//! A metric is a field of [`Metrics`]: recording is one atomic addition, without looking anything up. Calls of gRPC are
//! counted in an array indexed by [`Method`]; all their series exist from the start, as in etcd. What belongs to one peer
//! is made once per peer and kept by whoever talks to it ([`Metrics::peer`]). Values that are only worth knowing when
//! somebody looks (sizes, counts) are set just before [`Metrics::expose`]. Recorded by layers 4 and 5 only.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::types::MemberId;
use crate::version;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds some.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Takes over a count that is kept elsewhere.
    pub fn set(&self, count: u64) {
        self.0.store(count, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Sets it to 1 or 0.
    pub fn set_flag(&self, value: bool) {
        self.set(i64::from(value));
    }

    /// Adds to it, or takes away.
    pub fn add(&self, value: i64) {
        self.0.fetch_add(value, Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// One of those that a gauge counts, for as long as this is there.
#[derive(Debug)]
pub struct Inflight<'a>(&'a Gauge);

impl Inflight<'_> {
    /// One more.
    pub fn add(gauge: &Gauge) -> Inflight<'_> {
        gauge.add(1);
        Inflight(gauge)
    }
}

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Counts of values by size, in buckets that double: the first holds what is at most `start`.
#[derive(Debug)]
pub struct Histogram {
    start: f64,
    buckets: Vec<AtomicU64>,
    sum_bits: AtomicU64,
}

impl Histogram {
    fn new(start: f64, buckets: usize) -> Histogram {
        // One more for what is larger than the last.
        let buckets = (0..=buckets).map(|_| AtomicU64::new(0)).collect();
        Histogram { start, buckets, sum_bits: AtomicU64::new(0f64.to_bits()) }
    }

    /// Counts a duration, in seconds.
    pub fn observe(&self, duration: Duration) {
        self.observe_value(duration.as_secs_f64());
    }

    /// Takes over counts that are kept elsewhere: of each bucket, and the sum of all values.
    pub fn set(&self, counts: impl IntoIterator<Item = u64>, sum: f64) {
        self.buckets.iter().zip(counts).for_each(|(bucket, count)| bucket.store(count, Relaxed));
        self.sum_bits.store(sum.to_bits(), Relaxed);
    }

    /// Counts a value.
    pub fn observe_value(&self, value: f64) {
        let mut bound = self.start;
        let mut at = 0;
        while value > bound && at + 1 < self.buckets.len() {
            bound *= 2.0;
            at += 1;
        }
        self.buckets[at].fetch_add(1, Relaxed);
        let _ = self.sum_bits.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + value).to_bits()));
    }
}

/// Numbers that only grow, one for each reason.
#[derive(Debug, Default)]
pub struct ByReason(Mutex<BTreeMap<&'static str, u64>>);

impl ByReason {
    /// Takes over the count of a reason.
    pub fn set(&self, reason: &'static str, count: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(reason, count);
    }
}

/// Numbers that go up and down, one for each prefix of keys.
#[derive(Debug, Default)]
pub struct ByPrefix(Mutex<BTreeMap<String, u64>>);

impl ByPrefix {
    /// Sets the number of a prefix.
    pub fn set(&self, prefix: &str, value: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(prefix.to_owned(), value);
    }
}

/// A family of series as the text form shows it.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: String,
}

/// A metric that can write its lines.
trait Series {
    const KIND: &'static str;
    /// Writes the lines of one series; `labels` is empty or ends the name in braces.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

impl Series for Counter {
    const KIND: &'static str = "counter";
    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, labels, self.get());
    }
}

impl Series for Gauge {
    const KIND: &'static str = "gauge";
    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, labels, self.get());
    }
}

impl Series for Histogram {
    const KIND: &'static str = "histogram";
    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let inner = labels.trim_start_matches('{').trim_end_matches('}');
        let comma = if inner.is_empty() { "" } else { "," };
        let (mut bound, mut count) = (self.start, 0);
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let le = if at + 1 == self.buckets.len() { "+Inf".to_owned() } else { bound.to_string() };
            line(out, &format!("{name}_bucket"), &format!("{{{inner}{comma}le=\"{le}\"}}"), count);
            bound *= 2.0;
        }
        line(out, &format!("{name}_sum"), labels, f64::from_bits(self.sum_bits.load(Relaxed)));
        line(out, &format!("{name}_count"), labels, count);
    }
}

impl Series for ByReason {
    const KIND: &'static str = "counter";
    fn write(&self, out: &mut String, name: &str, _: &str) {
        for (reason, count) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            line(out, name, &format!("{{reason=\"{reason}\"}}"), count);
        }
    }
}

impl Series for ByPrefix {
    const KIND: &'static str = "gauge";
    fn write(&self, out: &mut String, name: &str, _: &str) {
        for (prefix, value) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let prefix = prefix.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            line(out, name, &format!("{{prefix=\"{prefix}\"}}"), value);
        }
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    writeln!(out, "{name}{labels} {value}").expect("a String takes everything");
}

/// Makes the fields, their construction and their place in the text form from one line each:
/// `field: Type(arguments of its constructor), "name", "help";`
macro_rules! table {
    ($($field:ident: $kind:ident $(($start:literal, $buckets:literal))?, $name:literal, $help:literal;)*) => {
        /// All metrics of a member.
        #[derive(Debug)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
            /// Calls of gRPC, by method.
            pub grpc: Grpc,
            /// Whether histograms of gRPC calls are shown.
            extensive: bool,
            /// What is shown as labels.
            facts: Mutex<Facts>,
            peers: Mutex<BTreeMap<MemberId, Arc<PeerMetrics>>>,
        }

        impl Metrics {
            /// All at zero.
            pub fn new(extensive: bool) -> Metrics {
                Metrics {
                    $($field: table!(@new $kind $(($start, $buckets))?),)*
                    grpc: Grpc::new(),
                    extensive,
                    facts: Mutex::default(),
                    peers: Mutex::default(),
                }
            }

            fn families(&self) -> Vec<Family> {
                vec![$({
                    let mut lines = String::new();
                    self.$field.write(&mut lines, $name, "");
                    Family { name: $name, kind: <$kind as Series>::KIND, help: $help, lines }
                },)*]
            }
        }
    };
    (@new $kind:ident) => { $kind::default() };
    (@new $kind:ident ($start:literal, $buckets:literal)) => { $kind::new($start, $buckets) };
}

table! {
    has_leader: Gauge, "etcd_server_has_leader", "Whether this member knows a leader.";
    is_leader: Gauge, "etcd_server_is_leader", "Whether this member is the leader.";
    is_learner: Gauge, "etcd_server_is_learner", "Whether this member is a learner.";
    leader_changes: Counter, "etcd_server_leader_changes_seen_total", "Changes of the leader seen.";
    proposals_failed: Counter, "etcd_server_proposals_failed_total", "Proposals that failed.";
    proposals_pending: Gauge, "etcd_server_proposals_pending", "Proposals waiting to be committed.";
    proposals_committed: Gauge, "etcd_server_proposals_committed_total", "Raft index that is committed.";
    proposals_applied: Gauge, "etcd_server_proposals_applied_total", "Raft index that is applied.";
    heartbeat_send_failures: Counter, "etcd_server_heartbeat_send_failures_total", "Heartbeats sent too late.";
    slow_apply: Counter, "etcd_server_slow_apply_total", "Entries whose application took too long.";
    slow_read_indexes: Counter, "etcd_server_slow_read_indexes_total", "Linearizable reads that timed out.";
    read_indexes_failed: Counter, "etcd_server_read_indexes_failed_total", "Linearizable reads that failed.";
    snapshot_apply_in_progress: Gauge, "etcd_server_snapshot_apply_in_progress_total", "Snapshots being installed.";
    quota_bytes: Gauge, "etcd_server_quota_backend_bytes", "Quota of the backend in bytes.";
    health_success: Counter, "etcd_server_health_success", "Health checks that passed.";
    health_failures: Counter, "etcd_server_health_failures", "Health checks that failed.";
    learner_promote_successes: Counter, "etcd_server_learner_promote_successes", "Learners that became voters.";
    db_total_bytes: Gauge, "etcd_mvcc_db_total_size_in_bytes", "Size of the backend's file.";
    db_in_use_bytes: Gauge, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the backend's file in use.";
    db_open_reads: Gauge, "etcd_mvcc_db_open_read_transactions", "Open read transactions of the backend.";
    connections_refused: Counter, "everwatch_client_connections_refused_total",
        "Connections of clients that found no place.";
    throttle_waits: Counter, "everwatch_throttle_waits_total",
        "Times that clients with many writes had to wait for the sake of others.";
    audit_lines: Counter, "everwatch_audit_lines_total", "Lines written to the audit log.";
    audit_lost: Counter, "everwatch_audit_lost_total", "Lines that the audit log has lost.";
    puts: Counter, "etcd_mvcc_put_total", "Puts applied by this member.";
    deletes: Counter, "etcd_mvcc_delete_total", "Deletes applied by this member.";
    ranges: Counter, "etcd_mvcc_range_total", "Ranges served by this member.";
    txns: Counter, "etcd_mvcc_txn_total", "Txns seen by this member.";
    hash_seconds: Histogram(0.01, 15), "etcd_mvcc_hash_duration_seconds", "Time to hash the backend.";
    hash_rev_seconds: Histogram(0.01, 15), "etcd_mvcc_hash_rev_duration_seconds", "Time to hash up to a revision.";
    current_revision: Gauge, "etcd_debugging_mvcc_current_revision", "Revision of the store.";
    auth_revision: Gauge, "etcd_debugging_auth_revision", "Auth revision.";
    compact_revision: Gauge, "etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.";
    compacted_keys: Counter, "etcd_debugging_mvcc_db_compaction_keys_total", "Rows removed by compaction.";
    compacted_last: Gauge, "etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction.";
    compaction_pause_ms: Histogram(1.0, 13), "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "Time of one step of compaction.";
    compaction_total_ms: Histogram(100.0, 14), "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "Time of whole compactions.";
    events: Counter, "etcd_debugging_mvcc_events_total", "Events sent to watchers.";
    pending_events: Gauge, "etcd_debugging_mvcc_pending_events_total", "Events waiting to be sent.";
    keys: Gauge, "etcd_debugging_mvcc_keys_total", "Keys in the store.";
    put_bytes: Gauge, "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes put, keys and values.";
    slow_watchers: Gauge, "etcd_debugging_mvcc_slow_watcher_total", "Unsynced watchers.";
    watch_streams: Gauge, "etcd_debugging_mvcc_watch_stream_total", "Watch streams.";
    watchers: Gauge, "etcd_debugging_mvcc_watcher_total", "Watchers.";
    watch_delivery_seconds: Histogram(0.0001, 18), "everwatch_watch_delivery_seconds",
        "From a write's application to when its newest event, of those written together, went to a connection.";
    watch_lagging_streams: Gauge, "everwatch_watch_lagging_streams", "Streams whose clients do not read fast enough.";
    watch_queued_bytes: Gauge, "everwatch_watch_queued_bytes", "Bytes of events that wait for streams.";
    watch_caught_up_events: Counter, "everwatch_watch_caught_up_events_total", "Events sent that were read from history.";
    watch_caught_up_bytes: Counter, "everwatch_watch_caught_up_bytes_total", "Their bytes.";
    prefix_keys: ByPrefix, "everwatch_prefix_keys", "Keys under each of --metrics-key-prefixes.";
    prefix_bytes: ByPrefix, "everwatch_prefix_bytes", "Bytes of their newest key-values.";
    watch_cancels: ByReason, "everwatch_watch_cancels_total", "Watchers that ended or were not created, by reason.";
    leases_granted: Counter, "etcd_debugging_lease_granted_total", "Leases granted.";
    leases_renewed: Counter, "etcd_debugging_lease_renewed_total", "Renewals seen by the leader.";
    leases_revoked: Counter, "etcd_debugging_lease_revoked_total", "Leases revoked.";
    leases_expired: Counter, "etcd_debugging_server_lease_expired_total", "Leases that expired.";
    lease_ttl_seconds: Histogram(1.0, 24), "etcd_debugging_lease_ttl_total", "TTLs of granted leases.";
    wal_fsync_seconds: Histogram(0.001, 14), "etcd_disk_wal_fsync_duration_seconds", "Time to sync the raft log.";
    wal_write_seconds: Histogram(0.001, 14), "etcd_disk_wal_write_duration_seconds", "Time to write the raft log.";
    wal_write_bytes: Gauge, "etcd_disk_wal_write_bytes_total", "Bytes written to the raft log.";
    backend_commit_seconds: Histogram(0.001, 14), "etcd_disk_backend_commit_duration_seconds",
        "Time to commit the backend.";
    backend_snapshot_seconds: Histogram(0.01, 17), "etcd_disk_backend_snapshot_duration_seconds",
        "Time to send a snapshot of the backend.";
    backend_defrag_seconds: Histogram(0.1, 13), "etcd_disk_backend_defrag_duration_seconds",
        "Time to defragment the backend.";
    defrag_inflight: Gauge, "etcd_disk_defrag_inflight", "Whether the backend is being defragmented.";
    snapshot_save_seconds: Histogram(0.1, 10), "etcd_snap_db_save_total_duration_seconds",
        "Time to receive and save a snapshot.";
    snapshot_fsync_seconds: Histogram(0.001, 14), "etcd_snap_db_fsync_duration_seconds",
        "Time to sync a received snapshot.";
    client_received_bytes: Counter, "etcd_network_client_grpc_received_bytes_total", "Bytes received from clients.";
    client_sent_bytes: Counter, "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients.";
}

/// What is only known some time after the start; shown as labels.
#[derive(Debug, Default)]
struct Facts {
    member: Option<MemberId>,
    cluster_version: Option<String>,
    checks: BTreeMap<(&'static str, &'static str), CheckCounts>,
}

#[derive(Debug, Default)]
struct CheckCounts {
    healthy: bool,
    success: u64,
    error: u64,
}

/// What is counted about one peer.
#[derive(Debug)]
pub struct PeerMetrics {
    /// Bytes sent to it.
    pub sent_bytes: Counter,
    /// Bytes received from it.
    pub received_bytes: Counter,
    /// Messages that could not be sent to it.
    pub sent_failures: Counter,
    /// Messages from it that could not be read.
    pub received_failures: Counter,
    /// Time until it answers a ping.
    pub round_trip_seconds: Histogram,
    /// Whether it is connected.
    pub active: Gauge,
    /// Connections to it that were lost.
    pub disconnected: Counter,
    /// Snapshots sent to it.
    pub snapshot_send_success: Counter,
    /// Snapshots that could not be sent to it.
    pub snapshot_send_failures: Counter,
    /// Snapshots received from it.
    pub snapshot_receive_success: Counter,
    /// Snapshots from it that could not be received.
    pub snapshot_receive_failures: Counter,
}

impl Metrics {
    /// What is counted about a peer; the same counters at every call.
    pub fn peer(&self, peer: MemberId) -> Arc<PeerMetrics> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(PeerMetrics {
                sent_bytes: Counter::default(),
                received_bytes: Counter::default(),
                sent_failures: Counter::default(),
                received_failures: Counter::default(),
                round_trip_seconds: Histogram::new(0.0001, 16),
                active: Gauge::default(),
                disconnected: Counter::default(),
                snapshot_send_success: Counter::default(),
                snapshot_send_failures: Counter::default(),
                snapshot_receive_success: Counter::default(),
                snapshot_receive_failures: Counter::default(),
            })
        };
        peers.entry(peer).or_insert_with(new).clone()
    }

    /// Stops showing a peer that left the cluster.
    pub fn forget_peer(&self, peer: MemberId) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// This member's id is known.
    pub fn set_member(&self, member: MemberId) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).member = Some(member);
    }

    /// The cluster's version is decided, such as `3.6`.
    pub fn set_cluster_version(&self, version: &str) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).cluster_version = Some(version.to_owned());
    }

    /// A check was made: of `livez` or `readyz` by name, or of `health`, which etcd counts by itself.
    pub fn health_checked(&self, kind: &'static str, name: &'static str, healthy: bool) {
        if kind == "health" {
            (if healthy { &self.health_success } else { &self.health_failures }).inc();
            return;
        }
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = facts.checks.entry((kind, name)).or_default();
        counts.healthy = healthy;
        *(if healthy { &mut counts.success } else { &mut counts.error }) += 1;
    }

    /// Everything in Prometheus' text form, families in order of their names.
    pub fn expose(&self) -> String {
        let mut families = self.families();
        self.add_facts(&mut families);
        self.add_peers(&mut families);
        self.grpc.add_to(&mut families, self.extensive);
        add_process(&mut families);
        families.retain(|family| !family.lines.is_empty());
        families.sort_by_key(|family| family.name);
        let mut text = String::new();
        for Family { name, kind, help, lines } in families {
            write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}").expect("a String takes everything");
        }
        text
    }

    fn add_facts(&self, families: &mut Vec<Family>) {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |name, kind, help, lines| families.push(Family { name, kind, help, lines });
        let one = |label: &str, value: &str, name: &str| format!("{name}{{{label}=\"{value}\"}} 1\n");
        let name = "etcd_server_version";
        add(name, "gauge", "1 for the API version.", one("server_version", version::API, name));
        let name = "everwatch_release";
        add(name, "gauge", "1 for our own version.", one("release", version::RELEASE, name));
        if let Some(member) = facts.member {
            let name = "etcd_server_id";
            add(name, "gauge", "1 for this member's id.", one("server_id", &member.to_string(), name));
        }
        if let Some(version) = &facts.cluster_version {
            let name = "etcd_cluster_version";
            add(name, "gauge", "1 for the cluster's version.", one("cluster_version", version, name));
        }
        let (mut state, mut total) = (String::new(), String::new());
        for ((kind, check), counts) in &facts.checks {
            let labels = format!("type=\"{kind}\",name=\"{check}\"");
            line(&mut state, "etcd_server_healthcheck", &format!("{{{labels}}}"), u8::from(counts.healthy));
            for (status, count) in [("success", counts.success), ("error", counts.error)] {
                let labels = format!("{{{labels},status=\"{status}\"}}");
                line(&mut total, "etcd_server_healthchecks_total", &labels, count);
            }
        }
        add("etcd_server_healthcheck", "gauge", "Result of each health check.", state);
        add("etcd_server_healthchecks_total", "counter", "Health checks made, by result.", total);
    }

    fn add_peers(&self, families: &mut Vec<Family>) {
        let local = self.facts.lock().unwrap_or_else(PoisonError::into_inner).member;
        let local = local.map(|member| member.to_string()).unwrap_or_default();
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |name, kind, help, write: &dyn Fn(&mut String, &PeerMetrics, &str)| {
            let mut lines = String::new();
            for (peer, metrics) in peers.iter() {
                write(&mut lines, metrics, &peer.to_string());
            }
            families.push(Family { name, kind, help, lines });
        };
        /// The families of one kind, each with the label that names the peer.
        macro_rules! peer_families {
            ($($name:literal, $field:ident: $kind:ident, $label:literal, $help:literal;)*) => {$(
                add($name, <$kind as Series>::KIND, $help, &|out, metrics, peer| {
                    metrics.$field.write(out, $name, &$label.replace("LOCAL", &local).replace("PEER", peer));
                });
            )*};
        }
        peer_families! {
            "etcd_network_peer_sent_bytes_total", sent_bytes: Counter, "{To=\"PEER\"}", "Bytes sent to peers.";
            "etcd_network_peer_received_bytes_total", received_bytes: Counter, "{From=\"PEER\"}",
                "Bytes received from peers.";
            "etcd_network_peer_sent_failures_total", sent_failures: Counter, "{To=\"PEER\"}",
                "Messages that could not be sent.";
            "etcd_network_peer_received_failures_total", received_failures: Counter, "{From=\"PEER\"}",
                "Messages that could not be read.";
            "etcd_network_peer_round_trip_time_seconds", round_trip_seconds: Histogram, "{To=\"PEER\"}",
                "Time until a peer answers.";
            "etcd_network_active_peers", active: Gauge, "{Local=\"LOCAL\",Remote=\"PEER\"}", "Connected peers.";
            "etcd_network_disconnected_peers_total", disconnected: Counter, "{Local=\"LOCAL\",Remote=\"PEER\"}",
                "Lost connections to peers.";
            "etcd_network_snapshot_send_success", snapshot_send_success: Counter, "{To=\"PEER\"}", "Snapshots sent.";
            "etcd_network_snapshot_send_failures", snapshot_send_failures: Counter, "{To=\"PEER\"}",
                "Snapshots that could not be sent.";
            "etcd_network_snapshot_receive_success", snapshot_receive_success: Counter, "{From=\"PEER\"}",
                "Snapshots received.";
            "etcd_network_snapshot_receive_failures", snapshot_receive_failures: Counter, "{From=\"PEER\"}",
                "Snapshots that could not be received.";
        }
    }
}

/// Forms of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many requests, many responses.
    BidiStream,
}

/// A method of gRPC: an index into [`METHODS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(u8);

/// Every method clients can call: service, name, form.
pub const METHODS: &[(&str, &str, CallKind)] = {
    use CallKind::{BidiStream, ServerStream, Unary};
    &[
        ("etcdserverpb.KV", "Range", Unary),
        ("etcdserverpb.KV", "RangeStream", ServerStream),
        ("etcdserverpb.KV", "Put", Unary),
        ("etcdserverpb.KV", "DeleteRange", Unary),
        ("etcdserverpb.KV", "Txn", Unary),
        ("etcdserverpb.KV", "Compact", Unary),
        ("etcdserverpb.Watch", "Watch", BidiStream),
        ("etcdserverpb.Lease", "LeaseGrant", Unary),
        ("etcdserverpb.Lease", "LeaseRevoke", Unary),
        ("etcdserverpb.Lease", "LeaseKeepAlive", BidiStream),
        ("etcdserverpb.Lease", "LeaseTimeToLive", Unary),
        ("etcdserverpb.Lease", "LeaseLeases", Unary),
        ("etcdserverpb.Cluster", "MemberAdd", Unary),
        ("etcdserverpb.Cluster", "MemberRemove", Unary),
        ("etcdserverpb.Cluster", "MemberUpdate", Unary),
        ("etcdserverpb.Cluster", "MemberList", Unary),
        ("etcdserverpb.Cluster", "MemberPromote", Unary),
        ("etcdserverpb.Maintenance", "Alarm", Unary),
        ("etcdserverpb.Maintenance", "Status", Unary),
        ("etcdserverpb.Maintenance", "Defragment", Unary),
        ("etcdserverpb.Maintenance", "Hash", Unary),
        ("etcdserverpb.Maintenance", "HashKV", Unary),
        ("etcdserverpb.Maintenance", "Snapshot", ServerStream),
        ("etcdserverpb.Maintenance", "MoveLeader", Unary),
        ("etcdserverpb.Maintenance", "Downgrade", Unary),
        ("etcdserverpb.Auth", "AuthEnable", Unary),
        ("etcdserverpb.Auth", "AuthDisable", Unary),
        ("etcdserverpb.Auth", "AuthStatus", Unary),
        ("etcdserverpb.Auth", "Authenticate", Unary),
        ("etcdserverpb.Auth", "UserAdd", Unary),
        ("etcdserverpb.Auth", "UserGet", Unary),
        ("etcdserverpb.Auth", "UserList", Unary),
        ("etcdserverpb.Auth", "UserDelete", Unary),
        ("etcdserverpb.Auth", "UserChangePassword", Unary),
        ("etcdserverpb.Auth", "UserGrantRole", Unary),
        ("etcdserverpb.Auth", "UserRevokeRole", Unary),
        ("etcdserverpb.Auth", "RoleAdd", Unary),
        ("etcdserverpb.Auth", "RoleGet", Unary),
        ("etcdserverpb.Auth", "RoleList", Unary),
        ("etcdserverpb.Auth", "RoleDelete", Unary),
        ("etcdserverpb.Auth", "RoleGrantPermission", Unary),
        ("etcdserverpb.Auth", "RoleRevokePermission", Unary),
        ("v3lockpb.Lock", "Lock", Unary),
        ("v3lockpb.Lock", "Unlock", Unary),
        ("v3electionpb.Election", "Campaign", Unary),
        ("v3electionpb.Election", "Proclaim", Unary),
        ("v3electionpb.Election", "Leader", Unary),
        ("v3electionpb.Election", "Observe", ServerStream),
        ("v3electionpb.Election", "Resign", Unary),
        ("grpc.health.v1.Health", "Check", Unary),
        ("grpc.health.v1.Health", "Watch", ServerStream),
    ]
};

impl Method {
    /// The method of a request's path, `/service/method`. For where a service is built; not once per request.
    pub fn of_path(path: &str) -> Option<Method> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        Method::named(service, method)
    }

    /// The method of that name: `const PUT: Method = Method::named("etcdserverpb.KV", "Put").unwrap();`
    pub const fn named(service: &str, method: &str) -> Option<Method> {
        let mut at = 0;
        while at < METHODS.len() {
            if same(METHODS[at].0, service) && same(METHODS[at].1, method) {
                return Some(Method(at as u8));
            }
            at += 1;
        }
        None
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Names of gRPC's status codes, in order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The name of a status code of gRPC.
pub fn code_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| CODES.get(code)).unwrap_or(&CODES[2])
}

/// Calls of gRPC, by method.
#[derive(Debug)]
pub struct Grpc {
    methods: Vec<MethodMetrics>,
}

/// What is counted about one method.
#[derive(Debug)]
pub struct MethodMetrics {
    /// Calls that began.
    pub started: Counter,
    /// Messages received.
    pub received: Counter,
    /// Messages sent.
    pub sent: Counter,
    /// Time from begin to end of a call.
    pub handling_seconds: Histogram,
    handled: [Counter; CODES.len()],
}

impl MethodMetrics {
    /// A call ended with this gRPC code.
    pub fn handled(&self, code: i32) {
        let unknown = 2;
        self.handled[usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(unknown)].inc();
    }
}

impl std::ops::Index<Method> for Grpc {
    type Output = MethodMetrics;

    fn index(&self, method: Method) -> &MethodMetrics {
        &self.methods[usize::from(method.0)]
    }
}

impl Grpc {
    fn new() -> Grpc {
        let new = |_| MethodMetrics {
            started: Counter::default(),
            received: Counter::default(),
            sent: Counter::default(),
            handling_seconds: Histogram::new(0.001, 14),
            handled: Default::default(),
        };
        Grpc { methods: METHODS.iter().map(new).collect() }
    }

    fn add_to(&self, families: &mut Vec<Family>, extensive: bool) {
        let [mut started, mut handled, mut received, mut sent, mut handling] = [const { String::new() }; 5];
        for (metrics, (service, method, kind)) in self.methods.iter().zip(METHODS) {
            let kind = match kind {
                CallKind::Unary => "unary",
                CallKind::ServerStream => "server_stream",
                CallKind::BidiStream => "bidi_stream",
            };
            let inner = format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"");
            let labels = format!("{{{inner}}}");
            metrics.started.write(&mut started, "grpc_server_started_total", &labels);
            metrics.received.write(&mut received, "grpc_server_msg_received_total", &labels);
            metrics.sent.write(&mut sent, "grpc_server_msg_sent_total", &labels);
            for (count, code) in metrics.handled.iter().zip(CODES) {
                count.write(&mut handled, "grpc_server_handled_total", &format!("{{grpc_code=\"{code}\",{inner}}}"));
            }
            if extensive {
                metrics.handling_seconds.write(&mut handling, "grpc_server_handling_seconds", &labels);
            }
        }
        let mut add = |name, kind, help, lines| families.push(Family { name, kind, help, lines });
        add("grpc_server_started_total", "counter", "Calls that began.", started);
        add("grpc_server_handled_total", "counter", "Calls that ended, by status code.", handled);
        add("grpc_server_msg_received_total", "counter", "Messages received.", received);
        add("grpc_server_msg_sent_total", "counter", "Messages sent.", sent);
        add("grpc_server_handling_seconds", "histogram", "Time from begin to end of a call.", handling);
    }
}

/// What the operating system says about this process. Nothing is shown where it says nothing.
fn add_process(families: &mut Vec<Family>) {
    let mut add = |name, kind, help, value: Option<f64>| {
        if let Some(value) = value {
            families.push(Family { name, kind, help, lines: format!("{name} {value}\n") });
        }
    };
    let process = Process::read();
    let descriptors = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map(|limit| limit as f64);
    add("process_cpu_seconds_total", "counter", "CPU time spent.", process.as_ref().map(|p| p.cpu_seconds));
    add("process_start_time_seconds", "gauge", "Unix time of the start.", process.as_ref().map(|p| p.start_seconds));
    add("process_resident_memory_bytes", "gauge", "Memory in use.", process.as_ref().map(|p| p.resident_bytes));
    add("process_virtual_memory_bytes", "gauge", "Address space in use.", process.as_ref().map(|p| p.virtual_bytes));
    add("process_open_fds", "gauge", "Open file descriptors.", descriptors);
    add("process_max_fds", "gauge", "Most file descriptors.", limit);
    add("os_fd_used", "gauge", "Open file descriptors.", descriptors);
    add("os_fd_limit", "gauge", "Most file descriptors.", limit);
}

struct Process {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
}

impl Process {
    /// From `/proc/self/stat` (fields numbered as in its manual page) and the boot time in `/proc/stat`.
    fn read() -> Option<Process> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        // The second field is the program's name in parentheses, which may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Process {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            start_seconds: boot + field(22)? / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_shown_as_prometheus_reads_them() {
        let metrics = Metrics::new(false);
        metrics.leader_changes.inc();
        metrics.compact_revision.set(-1);
        metrics.wal_fsync_seconds.observe(Duration::from_millis(1));
        metrics.wal_fsync_seconds.observe(Duration::from_millis(3));
        metrics.wal_fsync_seconds.observe(Duration::from_secs(60));
        metrics.peer(MemberId(0xab)).sent_bytes.add(7);
        metrics.set_member(MemberId(0xcd));
        let put = const { Method::named("etcdserverpb.KV", "Put") }.expect("in the table");
        metrics.grpc[put].started.inc();
        metrics.grpc[put].handled(14);
        metrics.health_checked("readyz", "data_corruption", true);
        metrics.health_checked("health", "health", false);
        let text = metrics.expose();
        for line in [
            "# TYPE etcd_server_leader_changes_seen_total counter",
            "etcd_server_leader_changes_seen_total 1",
            "etcd_debugging_mvcc_compact_revision -1",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 1",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 1",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.004\"} 2",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"8.192\"} 2",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 3",
            "etcd_disk_wal_fsync_duration_seconds_count 3",
            "etcd_network_peer_sent_bytes_total{To=\"ab\"} 7",
            "etcd_network_active_peers{Local=\"cd\",Remote=\"ab\"} 0",
            "etcd_server_id{server_id=\"cd\"} 1",
            "etcd_server_health_failures 1",
            "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
            "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"} 1",
            "grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",\
             grpc_type=\"bidi_stream\"} 0",
            "etcd_server_healthchecks_total{type=\"readyz\",name=\"data_corruption\",status=\"success\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "));
        assert!(!text.contains("grpc_server_handling_seconds"));
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "families are sorted and shown once");
    }

    #[test]
    fn a_path_leads_to_its_method() {
        assert_eq!(Method::of_path("/etcdserverpb.KV/Range"), Some(Method(0)));
        assert_eq!(Method::of_path("/etcdserverpb.KV/Nope"), None);
        assert_eq!(Method::of_path("etcdserverpb.KV"), None);
    }
}
