//! What the settings mean: [`Config`], validated, with real types.
//!
//! `flags.rs` reads what was typed, from one table, `file.rs` a config file, with the same names, and `features.rs` turns feature
//! gates into flags; this file gives them meaning and refuses what makes no sense, in etcd's words where etcd has some. Nothing here
//! touches files or sockets. Whether the founding members are well described is only asked of a member that has no data yet
//! ([`Config::founders`]): on a restart `--initial-cluster` is not looked at.

mod discovery;
mod features;
mod file;
pub mod flags;
mod rotation;
mod tls;
mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use discovery::{Discovery, Dns, Registry};
pub use flags::{Error, Request, Values};
pub use tls::Tls;
pub use url::{Founders, Scheme, Url};

/// Everything a member is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this member.
    pub name: String,
    /// Directory of everything it keeps.
    pub data_dir: PathBuf,
    /// Directory of the raft log, if it is not in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// The keys that both are sealed with, if they are.
    pub encryption_key_file: Option<PathBuf>,
    /// Where other members connect to.
    pub listen_peer_urls: Vec<Url>,
    /// Where clients connect to, with gRPC and HTTP.
    pub listen_client_urls: Vec<Url>,
    /// Where HTTP alone is served. If there are any, `listen_client_urls` serve gRPC alone.
    pub listen_client_http_urls: Vec<Url>,
    /// Where `/metrics` and the health endpoints alone are served.
    pub listen_metrics_urls: Vec<Url>,
    /// TLS of all that clients connect to.
    pub client_tls: Tls,
    /// TLS between members.
    pub peer_tls: Tls,
    /// What the other members are told as this member's peer URLs.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// What clients are told as this member's client URLs.
    pub advertise_client_urls: Vec<Url>,
    /// The founding members as typed (or this member alone); see [`Config::founders`].
    pub initial_cluster: String,
    /// Whether this member founds a cluster or joins one.
    pub initial_cluster_state: ClusterState,
    /// Whom to ask for the founding members, if they were not typed.
    pub discovery: Option<Discovery>,
    /// Keeps clusters with equal addresses apart.
    pub initial_cluster_token: String,
    /// Whether a member with data goes on without the others, for good.
    pub force_new_cluster: bool,
    /// The leader's heartbeat, which is also raft's tick.
    pub heartbeat_interval: Duration,
    /// Time without a leader before an election.
    pub election_timeout: Duration,
    /// Whether a member asks first whether it could win an election.
    pub pre_vote: bool,
    /// Whether changes of members are refused that would leave no working majority.
    pub strict_reconfig_check: bool,
    /// Most members that do not vote.
    pub learners_max: u32,
    /// Applied entries between two truncations of the raft log.
    pub snapshot_count: u64,
    /// Entries kept after a truncation for members that are behind.
    pub snapshot_catchup_entries: u64,
    /// Size of the backend in bytes that raises NOSPACE; none: never.
    pub quota_bytes: Option<u64>,
    /// Whether NOSPACE stays until an operator takes it back.
    pub quota_manual_disarm: bool,
    /// Longest wait before the backend commits.
    pub backend_batch_interval: Duration,
    /// Most writes before the backend commits.
    pub backend_batch_max: usize,
    /// Bytes of one file of the raft log; none: the usual. There is no flag for it, as in etcd; tests like many small ones.
    pub wal_segment_bytes: Option<u64>,
    /// Most operations in one txn.
    pub txn_ops_max: usize,
    /// Largest request a client may send.
    pub request_bytes_max: usize,
    /// Most connections of clients; none: no limit.
    pub client_connections_max: Option<usize>,
    /// Whether connections with many writes under way may be held for the sake of others.
    pub hold_busy_clients: bool,
    /// Most watchers of one stream, and of all; none: no limit.
    pub watchers_per_stream_max: Option<usize>,
    /// See above.
    pub watchers_max: Option<usize>,
    /// Most open calls on one client connection.
    pub concurrent_streams_max: u32,
    /// Time between our pings to a client; none: no pings.
    pub keepalive_interval: Option<Duration>,
    /// How long a client may leave a ping unanswered.
    pub keepalive_timeout: Duration,
    /// How soon a client's ping may follow another.
    pub keepalive_min_time: Duration,
    /// Time between two progress notices of an idle watcher that asked for them.
    pub watch_progress_notify_interval: Duration,
    /// Application of an entry that takes longer is logged.
    pub warning_apply_duration: Duration,
    /// Most revisions that one step of compaction removes.
    pub compaction_batch_max: usize,
    /// What of the past is kept when nobody asks for compaction; none: all of it.
    pub auto_compaction: Option<AutoCompaction>,
    /// When members compare what they hold.
    pub corrupt_checks: CorruptChecks,
    /// Bytes of the backend's file that are kept in memory.
    pub backend_cache_bytes: usize,
    /// How long compacted history is kept for watches that are reading it.
    pub watch_compaction_grace: Duration,
    /// Whether a watch that runs goes on when its user may no longer read its keys.
    pub watch_outlives_rights: bool,
    /// What bcrypt is told about how long a password takes to hash.
    pub bcrypt_cost: u32,
    /// What users are known by once they have logged in.
    pub auth_token: AuthToken,
    /// How long a simple token lives after it was last used.
    pub auth_token_lifetime: Duration,
    /// Whether `/metrics` has histograms of gRPC calls.
    pub metrics_extensive: bool,
    /// Prefixes whose keys and bytes `/metrics` shows.
    pub metrics_key_prefixes: Vec<String>,
    /// Where log lines go and how they look.
    pub log: LogConfig,
    /// Where it is noted who changed what; none: nowhere.
    pub audit_log: Option<LogOutput>,
    /// Origins whose pages may read what is answered by HTTP.
    pub cors: Vec<String>,
    /// Names of this host that requests by HTTP may ask for.
    pub host_whitelist: Vec<String>,
    /// Whether the methods of gRPC are there for JSON, too.
    pub grpc_gateway: bool,
    /// Whether who reaches a client URL may see where CPU time goes.
    pub pprof: bool,
    /// Threads that serve connections; none: chosen by the number of CPUs.
    pub edge_threads: Option<usize>,
    /// What should be logged, once, about the settings.
    pub remarks: Remarks,
}

/// What users are known by once they have logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthToken {
    /// Random letters that the members remember.
    Simple,
    /// Signed claims.
    Jwt {
        /// File of the key that verifies, unless the method is symmetric.
        public_key: Option<PathBuf>,
        /// File of the key that signs; without it nobody can log in here.
        private_key: Option<PathBuf>,
        /// The method's name in the standard.
        method: String,
        /// How long a token lives.
        lifetime: Duration,
    },
}

impl AuthToken {
    /// As etcd writes it: a kind, and then options, `name=value`, by commas.
    fn parse(text: &str) -> Result<AuthToken, Error> {
        let refused = |why: &str| invalid(format!("auth: invalid auth options: --auth-token={text:?}: {why}"));
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options = BTreeMap::new();
        for part in parts {
            match part.split_once('=') {
                Some((name, value)) if !value.contains('=') && options.insert(name, value).is_none() => {}
                _ => return refused("options are name=value, each once"),
            }
        }
        if kind == "simple" {
            return Ok(AuthToken::Simple);
        }
        if kind != "jwt" {
            return refused("the kinds are simple and jwt");
        }
        let mut take = |name| options.remove(name);
        let path = |text: Option<&str>| text.map(PathBuf::from);
        let (public_key, private_key) = (path(take("pub-key")), path(take("priv-key")));
        let method = take("sign-method").unwrap_or_default().to_owned();
        let lifetime = match take("ttl").map(flags::read_duration) {
            None => JWT_LIFETIME_DEFAULT,
            Some(Ok(lifetime)) if !lifetime.is_zero() => lifetime,
            Some(_) => return refused("its ttl is not a duration"),
        };
        if let Some(unknown) = options.keys().next() {
            return refused(&format!("no option {unknown}"));
        }
        Ok(AuthToken::Jwt { public_key, private_key, method, lifetime })
    }
}

/// Whether a member founds its cluster or joins one that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// It founds the cluster, together with the other members of `--initial-cluster`.
    New,
    /// It was added to a running cluster.
    Existing,
}

/// What of the past is kept when nobody asks for compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// What is younger than this.
    Periodic(Duration),
    /// So many revisions.
    Revisions(u64),
}

/// When members compare what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptChecks {
    /// After compactions: time between two looks whether there was one; none: not.
    pub after_compaction: Option<Duration>,
    /// Time between two comparisons besides; none: none.
    pub every: Option<Duration>,
    /// Before this member serves.
    pub before_serving: bool,
}

/// Where log lines go and how they look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The lowest level that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Where lines go, each of them.
    pub outputs: Vec<LogOutput>,
}

/// Levels of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator may want to read later.
    Info,
    /// What an operator should look at.
    Warn,
    /// What went wrong.
    Error,
    /// What ends the member.
    Fatal,
}

/// Looks of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, with etcd's keys.
    Json,
    /// For people.
    Console,
}

/// A place for log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// What should be logged, once, about the settings.
#[derive(Clone, Debug, Default)]
pub struct Remarks {
    /// Flags that were given and take no effect yet.
    pub without_effect: Vec<&'static str>,
    /// `ETCD_*` variables that name no flag.
    pub unknown_variables: Vec<String>,
    /// Keys of the config file that name no setting.
    pub unknown_keys: Vec<String>,
    /// Whether the data directory was chosen by default.
    pub default_data_dir: bool,
}

/// etcd's default quota.
const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
const BCRYPT_COST_DEFAULT: u32 = 10;
const JWT_LIFETIME_DEFAULT: Duration = Duration::from_secs(300);
/// A shorter interval than this is lengthened to it, as in etcd: every notice costs every watcher.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;

impl Config {
    /// Gives the settings their meaning.
    pub fn new(values: &Values) -> Result<Config, Error> {
        let heartbeat = values.unsigned("heartbeat-interval");
        let election = values.unsigned("election-timeout");
        check_timing(heartbeat, election)?;
        let name = values.text("name").to_owned();
        let (data_dir, default_data_dir) = match values.text("data-dir") {
            "" => (PathBuf::from(format!("{name}.everwatch")), true),
            directory => (PathBuf::from(directory), false),
        };
        let discovery = Discovery::new(values)?;
        let own_urls = values.urls("initial-advertise-peer-urls");
        let initial_cluster = match (&discovery, values.is_given("initial-cluster")) {
            // Until more is known.
            (Some(_), _) => listed(own_urls.iter().map(|url| format!("{name}={url}"))),
            (None, true) => values.text("initial-cluster").to_owned(),
            (None, false) => format!("{}=http://localhost:2380", if name.is_empty() { "default" } else { &name }),
        };
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let config = Config {
            data_dir,
            wal_dir: Some(values.text("wal-dir")).filter(|path| !path.is_empty()).map(PathBuf::from),
            encryption_key_file: Some(values.text("encryption-key-file"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            listen_peer_urls: own_addresses(values, "listen-peer-urls")?,
            listen_client_urls: own_addresses(values, "listen-client-urls")?,
            listen_client_http_urls: own_addresses(values, "listen-client-http-urls")?,
            listen_metrics_urls: own_addresses(values, "listen-metrics-urls")?,
            client_tls: Tls::new(values, &tls::OF_CLIENTS)?,
            peer_tls: Tls::new(values, &tls::OF_MEMBERS)?,
            initial_advertise_peer_urls: own_urls,
            advertise_client_urls: values.urls("advertise-client-urls"),
            initial_cluster,
            initial_cluster_state: match values.text("initial-cluster-state") {
                "existing" => ClusterState::Existing,
                _ => ClusterState::New,
            },
            initial_cluster_token: match &discovery {
                Some(Discovery::Registry(registry)) => registry.token.clone(),
                _ => values.text("initial-cluster-token").to_owned(),
            },
            discovery,
            force_new_cluster: values.switch("force-new-cluster"),
            heartbeat_interval: Duration::from_millis(heartbeat),
            election_timeout: Duration::from_millis(election),
            pre_vote: values.switch("pre-vote"),
            strict_reconfig_check: values.switch("strict-reconfig-check"),
            learners_max: u32::try_from(values.integer("max-learners")).unwrap_or(0),
            snapshot_count: or(values.unsigned("snapshot-count"), 10_000),
            snapshot_catchup_entries: values.unsigned("snapshot-catchup-entries"),
            quota_bytes: match values.integer("quota-backend-bytes") {
                0 => Some(QUOTA_BYTES_DEFAULT),
                bytes => u64::try_from(bytes).ok(),
            },
            quota_manual_disarm: values.switch("quota-manual-disarm"),
            backend_batch_interval: duration_or(values, "backend-batch-interval", Duration::from_millis(100)),
            backend_batch_max: size(values.integer("backend-batch-limit"), 10_000),
            wal_segment_bytes: None,
            txn_ops_max: usize::try_from(values.unsigned("max-txn-ops")).unwrap_or(usize::MAX),
            request_bytes_max: usize::try_from(values.unsigned("max-request-bytes")).unwrap_or(usize::MAX),
            client_connections_max: some_of(values, "max-client-connections"),
            hold_busy_clients: values.switch("hold-busy-clients"),
            watchers_per_stream_max: some_of(values, "max-watchers-per-stream"),
            watchers_max: some_of(values, "max-watchers"),
            concurrent_streams_max: u32::try_from(values.unsigned("max-concurrent-streams")).unwrap_or(u32::MAX),
            keepalive_interval: Some(values.duration("grpc-keepalive-interval")).filter(|time| !time.is_zero()),
            keepalive_timeout: duration_or(values, "grpc-keepalive-timeout", Duration::from_secs(20)),
            // etcd then leaves it to gRPC, which has this for a default.
            keepalive_min_time: duration_or(values, "grpc-keepalive-min-time", Duration::from_secs(300)),
            watch_progress_notify_interval: duration_or(
                values,
                "watch-progress-notify-interval",
                Duration::from_secs(600),
            )
            .max(PROGRESS_INTERVAL_MIN),
            warning_apply_duration: values.duration("warning-apply-duration"),
            compaction_batch_max: size(values.integer("compaction-batch-limit"), 1000),
            auto_compaction: auto_compaction(values)?,
            corrupt_checks: corrupt_checks(values)?,
            backend_cache_bytes: usize::try_from(values.unsigned("backend-cache-bytes")).unwrap_or(usize::MAX),
            watch_compaction_grace: values.duration("watch-compaction-grace"),
            watch_outlives_rights: values.switch("watch-outlives-rights"),
            // etcd, too, takes its defaults where a value makes no sense.
            bcrypt_cost: u32::try_from(values.unsigned("bcrypt-cost"))
                .ok()
                .filter(|cost| (4..=31).contains(cost))
                .unwrap_or(BCRYPT_COST_DEFAULT),
            auth_token: AuthToken::parse(values.text("auth-token"))?,
            auth_token_lifetime: Duration::from_secs(
                or(values.unsigned("auth-token-ttl"), 300).min(u64::from(u32::MAX)),
            ),
            metrics_extensive: values.text("metrics") == "extensive",
            metrics_key_prefixes: list(values.text("metrics-key-prefixes")).map(str::to_owned).collect(),
            log: LogConfig::new(values)?,
            audit_log: match values.text("audit-log-output") {
                "" => None,
                "stderr" => Some(LogOutput::Stderr),
                "stdout" => Some(LogOutput::Stdout),
                path => Some(LogOutput::File(PathBuf::from(path))),
            },
            cors: list(values.text("cors")).map(str::to_owned).collect(),
            host_whitelist: list(values.text("host-whitelist")).map(str::to_owned).collect(),
            grpc_gateway: values.switch("enable-grpc-gateway"),
            pprof: values.switch("enable-pprof"),
            edge_threads: usize::try_from(values.unsigned("edge-threads")).ok().filter(|threads| *threads > 0),
            remarks: Remarks {
                without_effect: values.without_effect(),
                unknown_variables: values.unknown_variables.clone(),
                unknown_keys: values.unknown_keys.clone(),
                default_data_dir,
            },
            name,
        };
        config.check(values)?;
        Ok(config)
    }

    fn check(&self, values: &Values) -> Result<(), Error> {
        // Not asked of a file, as in etcd.
        if !values.from_file && values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
            return invalid("--advertise-client-urls is required when --listen-client-urls is set explicitly");
        }
        if let Some(shared) = self.listen_client_http_urls.iter().find(|url| self.listen_client_urls.contains(url)) {
            return invalid(format!("--listen-client-http-urls shares {shared} with --listen-client-urls"));
        }
        self.peer_tls.serves(&self.listen_peer_urls, true)?;
        for urls in [&self.listen_client_urls, &self.listen_client_http_urls, &self.listen_metrics_urls] {
            self.client_tls.serves(urls, false)?;
        }
        for (flag, urls) in [
            ("listen-peer-urls", &self.listen_peer_urls),
            ("listen-client-urls", &self.listen_client_urls),
            ("initial-advertise-peer-urls", &self.initial_advertise_peer_urls),
            ("advertise-client-urls", &self.advertise_client_urls),
        ] {
            if urls.is_empty() {
                return invalid(format!("--{flag} must name at least one URL"));
            }
        }
        Ok(())
    }

    /// The founding members, this one among them with the URLs it advertises. Asked only by a member without data.
    pub fn founders(&self) -> Result<Founders, Error> {
        let founders = url::parse_founders(&self.initial_cluster)
            .map_err(|why| Error::Invalid(format!("error setting up initial cluster: {why}")))?;
        let Some((_, own)) = founders.iter().find(|(name, _)| *name == self.name) else {
            return invalid(format!("couldn't find local name {:?} in the initial cluster configuration", self.name));
        };
        let mut all: Vec<&Url> = founders.iter().flat_map(|(_, urls)| urls).collect();
        all.sort();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return invalid(format!("initial cluster {} has duplicate url", self.initial_cluster));
        }
        if *own != self.initial_advertise_peer_urls {
            return invalid(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
                listed(own.iter().map(|url| format!("{}={url}", self.name))),
                listed(self.initial_advertise_peer_urls.iter().map(Url::to_string)),
            ));
        }
        Ok(founders)
    }
}

impl LogConfig {
    /// What is used before the settings are known.
    pub const fn before_settings() -> LogConfig {
        LogConfig { level: LogLevel::Info, format: LogFormat::Json, outputs: Vec::new() }
    }

    fn new(values: &Values) -> Result<LogConfig, Error> {
        match values.text("logger") {
            "zap" => {}
            "capnslog" => return invalid("--logger=capnslog is removed in v3.5"),
            other => return invalid(format!("unknown logger option {other:?}")),
        }
        let mut outputs = Vec::new();
        let named = || list(values.text("log-outputs"));
        if named().count() > 1 && named().any(|output| output == "default") {
            return invalid("multi logoutput for \"default\" is not supported yet");
        }
        for output in named() {
            let output = match output {
                "default" | "stderr" | "systemd/journal" => LogOutput::Stderr,
                "stdout" => LogOutput::Stdout,
                path => LogOutput::File(PathBuf::from(path)),
            };
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
        let files = outputs.iter().filter(|output| matches!(output, LogOutput::File(_))).count();
        if values.switch("enable-log-rotation") && (files > 1 || files == 0 && outputs.len() == 1) {
            return invalid("--log-outputs requires a single file path when --log-rotate-config-json is defined");
        }
        if values.switch("enable-log-rotation") {
            rotation::check(values.text("log-rotation-config-json")).map_err(Error::Invalid)?;
        }
        Ok(LogConfig {
            level: match values.text("log-level") {
                "debug" => LogLevel::Debug,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                "panic" | "fatal" => LogLevel::Fatal,
                _ => LogLevel::Info,
            },
            format: if values.text("log-format") == "console" { LogFormat::Console } else { LogFormat::Json },
            outputs,
        })
    }
}

fn check_timing(heartbeat_ms: u64, election_ms: u64) -> Result<(), Error> {
    if heartbeat_ms == 0 {
        return invalid("--heartbeat-interval must be >0 (set to 0ms)");
    }
    if election_ms == 0 {
        return invalid("--election-timeout must be >0 (set to 0ms)");
    }
    if heartbeat_ms.saturating_mul(5) > election_ms {
        return invalid(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
        ));
    }
    if election_ms > ELECTION_TIMEOUT_MAX_MS {
        return invalid(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MAX_MS}ms"
        ));
    }
    Ok(())
}

fn corrupt_checks(values: &Values) -> Result<CorruptChecks, Error> {
    let some = |name| Some(values.duration(name)).filter(|time| !time.is_zero());
    let after_compaction = some("compact-hash-check-time").filter(|_| values.switch("compact-hash-check-enabled"));
    if values.switch("compact-hash-check-enabled") && after_compaction.is_none() {
        return invalid("--compact-hash-check-time must be >0 (set to 0s)");
    }
    let (every, before_serving) = (some("corrupt-check-time"), values.switch("initial-corrupt-check"));
    Ok(CorruptChecks { after_compaction, every, before_serving })
}

/// As etcd reads it: a number counts hours or revisions, what has a unit is a time (nanoseconds, if revisions are counted). Nothing
/// and zero keep everything.
fn auto_compaction(values: &Values) -> Result<Option<AutoCompaction>, Error> {
    let (mode, retention) = (values.text("auto-compaction-mode"), values.text("auto-compaction-retention"));
    if !matches!(mode, "" | "periodic" | "revision") {
        return invalid(format!("unknown auto-compaction-mode {mode:?}"));
    }
    let kept = match retention.parse::<u64>() {
        _ if retention.is_empty() => None,
        Ok(count) if mode == "revision" => Some(AutoCompaction::Revisions(count)),
        // A number alone has no meaning without a mode.
        Ok(_) if mode.is_empty() => None,
        Ok(hours) => Some(AutoCompaction::Periodic(Duration::from_secs(hours.saturating_mul(3600)))),
        Err(_) => {
            let time = flags::read_duration(retention)
                .map_err(|why| Error::Invalid(format!("error parsing CompactionRetention: {why}")))?;
            match mode {
                "revision" => Some(AutoCompaction::Revisions(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))),
                "periodic" => Some(AutoCompaction::Periodic(time)),
                _ => return invalid("unsupported compaction mode "),
            }
        }
    };
    let everything = [AutoCompaction::Revisions(0), AutoCompaction::Periodic(Duration::ZERO)];
    Ok(kept.filter(|kept| !everything.contains(kept)))
}

/// URLs one can listen on.
fn own_addresses(values: &Values, name: &'static str) -> Result<Vec<Url>, Error> {
    let urls = values.urls(name);
    for url in &urls {
        if !url.names_own_address() {
            return invalid(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(urls)
}

fn duration_or(values: &Values, name: &'static str, default: Duration) -> Duration {
    Some(values.duration(name)).filter(|time| !time.is_zero()).unwrap_or(default)
}

/// A bound whose zero stands for none.
fn some_of(values: &Values, name: &'static str) -> Option<usize> {
    Some(usize::try_from(values.unsigned(name)).unwrap_or(usize::MAX)).filter(|bound| *bound > 0)
}

/// What stands between commas.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// A limit whose zero, or less, stands for a default.
fn size(value: i64, default: usize) -> usize {
    usize::try_from(value).ok().filter(|value| *value > 0).unwrap_or(default)
}

fn listed(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

fn invalid<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::Invalid(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<Config, Error> {
        match Values::read(line.split_whitespace().map(str::to_owned), [])? {
            Request::Run(values) => Config::new(&values),
            other => panic!("{line:?} asks for {other:?}"),
        }
    }

    fn refusal(line: &str) -> String {
        config(line).and_then(|config| config.founders().map(drop)).expect_err(line).to_string()
    }

    #[test]
    fn settings_of_auth_that_make_no_sense_are_etcds_defaults() {
        let of = |line| {
            let config = config(line).expect("they are taken");
            (config.bcrypt_cost, config.auth_token_lifetime.as_secs())
        };
        assert_eq!(of(""), (10, 300));
        assert_eq!(of("--bcrypt-cost 4 --auth-token-ttl 5 --auth-token simple"), (4, 5));
        assert_eq!(of("--bcrypt-cost 3 --auth-token-ttl 0"), (10, 300));
        assert_eq!(of("--bcrypt-cost 32 --auth-token-ttl 18446744073709551615"), (10, u64::from(u32::MAX)));
        for line in ["jwt,sign-method", "jwt,ttl=x", "jwt,ttl=1m,ttl=2m", "jwt,key=a", "other", ""] {
            assert!(refusal(&format!("--auth-token={line}")).contains("invalid auth options"), "{line}");
        }
        let jwt = config("--auth-token jwt,pub-key=a,priv-key=b,sign-method=RS256,ttl=10m").expect("etcd's example");
        let (public_key, private_key) = (Some("a".into()), Some("b".into()));
        let lifetime = Duration::from_secs(600);
        assert_eq!(jwt.auth_token, AuthToken::Jwt { public_key, private_key, method: "RS256".into(), lifetime });
    }

    #[test]
    fn without_flags_there_is_one_member_on_localhost() {
        let config = config("").expect("defaults are valid");
        assert_eq!(config.data_dir, PathBuf::from("default.everwatch"));
        let founders = config.founders().expect("this member alone");
        assert_eq!(founders.len(), 1);
        assert_eq!(founders[0].1, config.initial_advertise_peer_urls);
        assert_eq!(config.quota_bytes, Some(2_147_483_648));
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(600));
        // Watchers of a client that fell silent are gone within a minute: watch_cases.txt, S-05.
        let asked = config.keepalive_interval.expect("clients are asked whether they are there");
        assert!(asked + config.keepalive_timeout <= Duration::from_secs(60));
        assert_eq!(config.log.outputs, [LogOutput::Stderr]);
    }

    #[test]
    fn a_member_of_three_is_described_as_for_etcd() {
        let config = config(
            "--name b --data-dir /d --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls http://b:2380 \
             --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://b:2379 --initial-cluster-state=new \
             --initial-cluster a=http://a:2380,b=http://b:2380,c=http://c:2380 --initial-cluster-token=t \
             --quota-backend-bytes=-1 --experimental-watch-progress-notify-interval=1ms --log-outputs=stdout,/x",
        )
        .expect("valid");
        assert_eq!(config.founders().expect("three").len(), 3);
        assert_eq!(config.quota_bytes, None);
        assert_eq!(config.watch_progress_notify_interval, Duration::from_millis(100));
        assert_eq!(config.log.outputs, [LogOutput::Stdout, LogOutput::File(PathBuf::from("/x"))]);
    }

    #[test]
    fn auto_compaction_is_read_as_etcd_reads_it() {
        let hour = Duration::from_secs(3600);
        for (line, kept) in [
            ("", None),
            ("--auto-compaction-retention=", None),
            ("--auto-compaction-retention=0", None),
            ("--auto-compaction-mode=revision", None),
            ("--auto-compaction-mode= --auto-compaction-retention=1", None),
            ("--auto-compaction-retention=24", Some(AutoCompaction::Periodic(24 * hour))),
            ("--auto-compaction-retention=1h30m", Some(AutoCompaction::Periodic(hour * 3 / 2))),
            ("--auto-compaction-mode=revision --auto-compaction-retention=1000", Some(AutoCompaction::Revisions(1000))),
            ("--auto-compaction-mode=revision --auto-compaction-retention=1us", Some(AutoCompaction::Revisions(1000))),
        ] {
            assert_eq!(config(line).expect(line).auto_compaction, kept, "{line}");
        }
    }

    /// Texts compared with etcd 3.5.1.
    #[test]
    fn contradictions_are_refused_in_etcd_s_words() {
        for (line, text) in [
            (
                "--election-timeout=200",
                "--election-timeout[200ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            ),
            (
                "--election-timeout=60000",
                "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            ),
            ("--heartbeat-interval=0", "--heartbeat-interval must be >0 (set to 0ms)"),
            (
                "--listen-client-urls=http://127.0.0.1:1",
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            (
                "--listen-client-urls=http://foo.com:1 --advertise-client-urls=http://a:1",
                "expected IP in URL for binding (http://foo.com:1)",
            ),
            ("--logger=capnslog", "--logger=capnslog is removed in v3.5"),
            ("--log-outputs=default,stderr", "multi logoutput for \"default\" is not supported yet"),
            (
                "--log-outputs=a,b --enable-log-rotation",
                "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            ),
            (
                "--enable-log-rotation",
                "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            ),
            (
                "--log-outputs=a --enable-log-rotation --log-rotation-config-json=[]",
                "invalid log rotation config: json: cannot unmarshal array into Go value of type \
                 embed.logRotationConfig",
            ),
            (
                "--log-outputs=stderr --enable-log-rotation --log-rotation-config-json=[",
                "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            ),
            ("--compact-hash-check-time=0", "--compact-hash-check-time must be >0 (set to 0s)"),
            ("--auto-compaction-mode=foo", "unknown auto-compaction-mode \"foo\""),
            ("--auto-compaction-retention=abc", "error parsing CompactionRetention: time: invalid duration \"abc\""),
            (
                "--auto-compaction-retention=-1",
                "error parsing CompactionRetention: time: missing unit in duration \"-1\"",
            ),
            (
                "--auto-compaction-retention=5x",
                "error parsing CompactionRetention: time: unknown unit \"x\" in duration \"5x\"",
            ),
            (
                "--initial-cluster=default=http://localhost:2380 --discovery-srv=example.com",
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\", \
                 \"discovery-endpoints\" or \"discovery-srv\"",
            ),
            (
                "--discovery=http://a/x --discovery-srv=example.com",
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\", \
                 \"discovery-endpoints\" or \"discovery-srv\"",
            ),
            ("--discovery-token=t", "both --discovery-token and --discovery-endpoints must be set"),
            ("--discovery-endpoints=a:1", "both --discovery-token and --discovery-endpoints must be set"),
            (
                "--discovery-token=t --discovery-endpoints=a:1,,b:2",
                "--discovery-endpoints must not contain empty endpoints",
            ),
            (
                "--discovery-proxy=http://a --discovery-user=u",
                "both v2 discovery settings (discovery, discovery-proxy) and v3 discovery settings (discovery-token, \
                 discovery-endpoints, discovery-cert, discovery-key, discovery-cacert, discovery-user, \
                 discovery-password) are set",
            ),
            (
                "--initial-cluster=a=http://localhost:2380",
                "couldn't find local name \"default\" in the initial cluster configuration",
            ),
            (
                "--initial-cluster=default=b",
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: b",
            ),
            (
                "--initial-cluster=b=http://localhost:2380,default=http://localhost:2380",
                "initial cluster b=http://localhost:2380,default=http://localhost:2380 has duplicate url",
            ),
            (
                "--initial-advertise-peer-urls=http://1.2.3.4:5",
                "--initial-cluster has default=http://localhost:2380 but missing from \
                 --initial-advertise-peer-urls=http://1.2.3.4:5",
            ),
        ] {
            assert_eq!(refusal(line), text, "{line}");
        }
        assert!(refusal("--discovery=http://a/x").contains("give --discovery-token and --discovery-endpoints"));
        let local =
            config("--listen-client-urls=unix:///run/e.sock,unix://localhost:1 --advertise-client-urls=unix://a");
        let paths: Vec<_> =
            local.unwrap().listen_client_urls.iter().map(|url| url.socket_path().unwrap().to_owned()).collect();
        assert_eq!(paths, [PathBuf::from("/run/e.sock"), PathBuf::from("localhost:1")]);
        assert!(refusal("--listen-peer-urls=unixs://x").contains("cannot listen on TLS for x"));
        assert!(refusal("--listen-metrics-urls=unixs://x").ends_with("client url unixs://x with HTTPS scheme"));
    }
}
