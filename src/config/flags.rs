//! What was typed: etcd's flags and `ETCD_*` variables, in one table that also makes the help text.
//!
//! Promises: every flag of etcd is known by name; a flag that is not in the table is refused; a flag and its variable are
//! never both taken (that is an error, as in etcd, because nobody can say which one was meant). Syntax is that of Go's
//! `flag` package: one or two dashes, `=value` or the next argument, switches without a value.
//!
//! What the values mean together is [`super::Config`]'s business. Flags that take no effect yet are accepted if ignoring
//! them is harmless and refused if somebody would rely on them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::features;
use super::url::Url;

/// The form of a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A switch: `--flag` alone means true.
    Switch,
    /// A whole number that may be negative.
    Integer,
    /// A whole number from zero up.
    Unsigned,
    /// A duration as Go writes it (`1m30s`).
    Duration,
    /// Comma-separated URLs.
    Urls,
    /// Comma-separated URLs that are origins, or `*`.
    Origins,
    /// Feature gates, `Name=true,Name=false`.
    Gates,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// The same; one that is none of them is named once more, as some flags of etcd do.
    NamedOneOf(&'static [&'static str]),
}

/// What giving a flag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What its help says.
    Works,
    /// Nothing, which is logged once.
    None,
    /// Refusal unless the value is this one: somebody who gives it relies on it.
    Refused {
        /// The value that asks for nothing.
        unless: &'static str,
    },
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The form of its value.
    pub kind: Kind,
    /// Its value if it is not given.
    pub default: &'static str,
    /// What giving it does.
    pub effect: Effect,
    /// Whether `experimental-<name>` names it too, as in etcd up to 3.6.
    pub experimental: bool,
    /// One sentence for the help text.
    pub help: &'static str,
}

use Effect::{None as NoEffect, Refused, Works};
use Kind::{Duration as Time, Gates, Integer, NamedOneOf, OneOf, Origins, Switch, Text, Unsigned, Urls};

const fn flag(name: &'static str, kind: Kind, default: &'static str, effect: Effect, help: &'static str) -> Flag {
    Flag { name, kind, default, effect, experimental: false, help }
}

const fn graduated(name: &'static str, kind: Kind, default: &'static str, effect: Effect, help: &'static str) -> Flag {
    Flag { name, kind, default, effect, experimental: true, help }
}

/// The table: headings of the help text and the flags under them.
pub const FLAGS: &[(&str, &[Flag])] = &[
    (
        "Member",
        &[
            flag("name", Text, "default", Works, "Name of this member, unique in the cluster."),
            flag("data-dir", Text, "", Works, "Directory of everything this member keeps (default: <name>.everwatch)."),
            flag("wal-dir", Text, "", Works, "Directory of the raft log, if it shall not be in the data directory."),
            flag(
                "encryption-key-file",
                Text,
                "",
                Works,
                "File of keys that both directories are encrypted with, one a line, the newest first. Not in etcd.",
            ),
            flag(
                "snapshot-count",
                Unsigned,
                "10000",
                Works,
                "Applied entries between two truncations of the raft log.",
            ),
            graduated(
                "snapshot-catchup-entries",
                Unsigned,
                "5000",
                Works,
                "Entries kept after truncation for slow members.",
            ),
            flag("heartbeat-interval", Unsigned, "100", Works, "Milliseconds between two heartbeats of the leader."),
            flag("election-timeout", Unsigned, "1000", Works, "Milliseconds without a leader before an election."),
            flag("initial-election-tick-advance", Switch, "true", NoEffect, "Shorten the first election timeout."),
            flag("listen-peer-urls", Urls, "http://localhost:2380", Works, "Where to listen for other members."),
            flag("listen-client-urls", Urls, "http://localhost:2379", Works, "Where to listen for clients."),
            flag("listen-client-http-urls", Urls, "", Works, "Where to listen for HTTP alone, without gRPC."),
            flag("max-snapshots", Unsigned, "5", NoEffect, "Snapshot files to keep."),
            flag("max-wals", Unsigned, "5", NoEffect, "Raft log files to keep."),
            graduated("memory-mlock", Switch, "false", NoEffect, "Keep memory from being swapped out."),
            flag(
                "quota-backend-bytes",
                Integer,
                "0",
                Works,
                "Size of the store that raises NOSPACE; 0 is 2 GiB, -1 never.",
            ),
            flag(
                "quota-manual-disarm",
                Switch,
                "false",
                Works,
                "Keep NOSPACE until it is disarmed, although there is space again. Not in etcd.",
            ),
            flag(
                "backend-bbolt-freelist-type",
                OneOf(&["map", "array"]),
                "map",
                NoEffect,
                "Free list of etcd's engine.",
            ),
            flag("backend-batch-interval", Time, "0s", Works, "Longest wait before the backend commits; 0 is 100ms."),
            flag("backend-batch-limit", Integer, "0", Works, "Most writes before the backend commits; 0 is 10000."),
            flag("max-txn-ops", Unsigned, "128", Works, "Most operations in one txn."),
            flag("max-request-bytes", Unsigned, "1572864", Works, "Largest request a client may send."),
            flag("max-concurrent-streams", Unsigned, "4294967295", Works, "Most open calls on one client connection."),
            flag("grpc-keepalive-min-time", Time, "5s", Works, "Shortest time between pings of a client, without TLS."),
            flag(
                "max-client-connections",
                Unsigned,
                "0",
                Works,
                "Most connections of clients at once, 0 for no limit: what comes beyond is closed. Not in etcd.",
            ),
            flag(
                "hold-busy-clients",
                Switch,
                "true",
                Works,
                "Make clients with many writes at a time wait where those with few would have to. Not in etcd.",
            ),
            flag(
                "max-watchers-per-stream",
                Unsigned,
                "0",
                Works,
                "Most watchers of one watch stream, 0 for no limit: the next is cancelled at once. Not in etcd.",
            ),
            flag(
                "max-watchers",
                Unsigned,
                "0",
                Works,
                "Most watchers of this member, 0 for no limit: the next is cancelled at once. Not in etcd.",
            ),
            // etcd waits two hours, and holds the watchers of a client that fell silent as long.
            flag("grpc-keepalive-interval", Time, "30s", Works, "Time between our pings to a client; 0 for none."),
            flag("grpc-keepalive-timeout", Time, "20s", Works, "How long a ping may stay unanswered."),
            flag("socket-reuse-port", Switch, "false", NoEffect, "Set SO_REUSEPORT on listening sockets."),
            flag(
                "socket-reuse-address",
                Switch,
                "false",
                NoEffect,
                "Set SO_REUSEADDR on listening sockets (always on).",
            ),
            flag("enable-grpc-gateway", Switch, "true", Works, "Serve the JSON gateway."),
            flag("raft-read-timeout", Time, "5s", NoEffect, "Read timeout between members."),
            flag("raft-write-timeout", Time, "5s", NoEffect, "Write timeout between members."),
            flag("feature-gates", Gates, "", Works, "Features to switch, Name=true,Name=false."),
            flag(
                "edge-threads",
                Unsigned,
                "0",
                Works,
                "Threads that serve connections; 0 chooses by the number of CPUs. Not in etcd.",
            ),
            flag(
                "backend-cache-bytes",
                Unsigned,
                "25165824",
                Works,
                "Bytes of the backend's file that are kept in memory. Not in etcd.",
            ),
            flag(
                "watch-outlives-rights",
                Switch,
                "false",
                Works,
                "Let a running watch go on when its user may no longer read its keys, as etcd does. Not in etcd.",
            ),
            flag(
                "watch-compaction-grace",
                Time,
                "1m0s",
                Works,
                "How long compacted history is kept for watches that are reading it. Not in etcd.",
            ),
            flag(
                "config-file",
                Text,
                "",
                Works,
                "YAML file with all settings; other flags and variables are ignored then.",
            ),
        ],
    ),
    (
        "Clustering",
        &[
            flag(
                "initial-advertise-peer-urls",
                Urls,
                "http://localhost:2380",
                Works,
                "Where other members reach this one.",
            ),
            flag("initial-cluster", Text, "", Works, "Founding members, name=url,... (default: this one alone)."),
            flag("initial-cluster-state", OneOf(&["new", "existing"]), "new", Works, "Whether to found or to join."),
            flag("initial-cluster-token", Text, "etcd-cluster", Works, "Keeps clusters with equal addresses apart."),
            flag("advertise-client-urls", Urls, "http://localhost:2379", Works, "Where clients reach this member."),
            flag("discovery", Text, "", Works, "URL of a discovery service of etcd v2: refused."),
            flag("discovery-fallback", OneOf(&["exit", "proxy"]), "exit", NoEffect, "What to do if discovery fails."),
            flag("discovery-proxy", Text, "", NoEffect, "HTTP proxy on the way to discovery."),
            flag("discovery-srv", Text, "", Works, "DNS domain with SRV records of the members."),
            flag("discovery-srv-name", Text, "", Works, "Suffix of the SRV service name."),
            flag(
                "discovery-token",
                Text,
                "",
                Works,
                "What the new cluster goes by in a running one that founders ask.",
            ),
            flag("discovery-endpoints", Text, "", Works, "Endpoints of that running cluster."),
            flag("discovery-dial-timeout", Time, "2s", Works, "Discovery: time to connect."),
            flag("discovery-request-timeout", Time, "5s", Works, "Discovery: time for one request."),
            flag("discovery-keepalive-time", Time, "2s", Works, "Discovery: time between pings."),
            flag("discovery-keepalive-timeout", Time, "6s", Works, "Discovery: time for an answer to a ping."),
            flag("discovery-insecure-transport", Switch, "true", Works, "Discovery: no TLS."),
            flag("discovery-insecure-skip-tls-verify", Switch, "false", Works, "Discovery: do not verify."),
            flag("discovery-cert", Text, "", Works, "Discovery: certificate."),
            flag("discovery-key", Text, "", Works, "Discovery: key."),
            flag("discovery-cacert", Text, "", Works, "Discovery: authority."),
            flag("discovery-user", Text, "", Works, "Discovery: user."),
            flag("discovery-password", Text, "", Works, "Discovery: password."),
            flag("strict-reconfig-check", Switch, "true", Works, "Refuse member changes that would lose quorum."),
            flag("pre-vote", Switch, "true", Works, "Ask before an election whether it could be won."),
            flag("auto-compaction-mode", Text, "periodic", Works, "periodic or revision."),
            flag(
                "auto-compaction-retention",
                Text,
                "0",
                Works,
                "What is kept: hours, a time (5m), or a number of revisions; 0 keeps all.",
            ),
            flag("enable-v2", Switch, "false", NoEffect, "The v2 API, which is not there."),
            flag(
                "v2-deprecation",
                NamedOneOf(&["not-yet", "write-only", "write-only-drop-data", "gone"]),
                "not-yet",
                NoEffect,
                "Phase of the end of the v2 store.",
            ),
            flag(
                "force-new-cluster",
                Switch,
                "false",
                Works,
                "Go on as a cluster of one, with this member's data: the others are removed, for good.",
            ),
        ],
    ),
    (
        "Security",
        &[
            flag("cert-file", Text, "", Works, "Certificate for clients."),
            flag("key-file", Text, "", Works, "Key for clients."),
            flag("client-cert-file", Text, "", Works, "Certificate for calls to ourselves."),
            flag("client-key-file", Text, "", Works, "Key for calls to ourselves."),
            flag("client-cert-auth", Switch, "false", Works, "Ask clients for a certificate."),
            flag("client-crl-file", Text, "", Works, "Revoked client certificates."),
            flag("client-cert-allowed-hostname", Text, "", Works, "Host name client certificates must carry."),
            flag("trusted-ca-file", Text, "", Works, "Authority for clients."),
            flag("auto-tls", Switch, "false", Works, "Generate a certificate for clients."),
            flag("peer-cert-file", Text, "", Works, "Certificate for members."),
            flag("peer-key-file", Text, "", Works, "Key for members."),
            flag("peer-client-cert-file", Text, "", Works, "Certificate for calls to members."),
            flag("peer-client-key-file", Text, "", Works, "Key for calls to members."),
            flag("peer-client-cert-auth", Switch, "false", Works, "Ask members for a certificate."),
            flag("peer-trusted-ca-file", Text, "", Works, "Authority for members."),
            flag("peer-cert-allowed-cn", Text, "", Works, "Common name members must have."),
            flag("peer-cert-allowed-hostname", Text, "", Works, "Host name member certificates must carry."),
            flag("peer-auto-tls", Switch, "false", Works, "Generate a certificate for members."),
            graduated("peer-skip-client-san-verification", Switch, "false", Works, "Do not check members' names."),
            flag("peer-crl-file", Text, "", Works, "Revoked member certificates."),
            flag("self-signed-cert-validity", Unsigned, "1", Works, "Years a generated certificate is valid."),
            flag("cipher-suites", Text, "", Works, "TLS cipher suites."),
            flag("tls-min-version", Text, "TLS1.2", Works, "Lowest TLS version."),
            flag("tls-max-version", Text, "", Works, "Highest TLS version."),
            flag("cors", Origins, "*", Works, "Origins that browsers may come from, URLs with a port, or * for all."),
            flag("host-whitelist", Text, "*", Works, "Host names that HTTP requests may carry."),
        ],
    ),
    (
        "Auth",
        &[
            flag(
                "auth-token",
                Text,
                "simple",
                Works,
                "Kind of token: simple, or jwt,pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=5m.",
            ),
            flag("bcrypt-cost", Unsigned, "10", Works, "Cost of hashing passwords, 4 to 31."),
            flag("auth-token-ttl", Unsigned, "300", Works, "Seconds a simple token lives after it was used."),
        ],
    ),
    (
        "Logging",
        &[
            flag("logger", Text, "zap", Works, "Only zap: structured lines as etcd writes them."),
            flag("log-outputs", Text, "default", Works, "stderr, stdout or files, comma-separated."),
            flag(
                "log-level",
                OneOf(&["debug", "info", "warn", "error", "panic", "fatal"]),
                "info",
                Works,
                "Lowest level that is logged.",
            ),
            flag("log-format", OneOf(&["json", "console"]), "json", Works, "json, or console for people."),
            flag(
                "audit-log-output",
                Text,
                "",
                Works,
                "stderr, stdout or a file: a line of JSON for every change, who made it and from where. Not in etcd.",
            ),
            flag("disable-log-sampling", Switch, "false", NoEffect, "Log every line (always so)."),
            flag("enable-log-rotation", Switch, "false", NoEffect, "Rotate the log file."),
            flag(
                "log-rotation-config-json",
                Text,
                "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}",
                NoEffect,
                "How to rotate the log file.",
            ),
            graduated("warning-unary-request-duration", Time, "300ms", NoEffect, "Log requests that take longer."),
        ],
    ),
    (
        "Monitoring",
        &[
            flag(
                "enable-pprof",
                Switch,
                "false",
                Works,
                "CPU profiles of this member at /debug/pprof/ of client URLs.",
            ),
            flag("metrics", OneOf(&["basic", "extensive"]), "basic", Works, "extensive adds histograms of gRPC calls."),
            flag(
                "metrics-key-prefixes",
                Text,
                "",
                Works,
                "Prefixes, comma-separated, whose keys and bytes are metrics. Not in etcd.",
            ),
            flag("listen-metrics-urls", Urls, "", Works, "Where to listen for metrics and health alone."),
            graduated("enable-distributed-tracing", Switch, "false", NoEffect, "Send traces."),
            graduated("distributed-tracing-address", Text, "localhost:4317", NoEffect, "Where traces go."),
            graduated("distributed-tracing-service-name", Text, "etcd", NoEffect, "Service name in traces."),
            graduated("distributed-tracing-instance-id", Text, "", NoEffect, "Instance id in traces."),
            graduated("distributed-tracing-sampling-rate", Integer, "0", NoEffect, "Traces per million requests."),
        ],
    ),
    (
        "Upkeep",
        &[
            graduated("initial-corrupt-check", Switch, "false", Works, "Compare with the others before serving."),
            graduated(
                "corrupt-check-time",
                Time,
                "0s",
                Works,
                "Time between comparisons of the members' data; 0 for none.",
            ),
            // etcd's default is off.
            graduated(
                "compact-hash-check-enabled",
                Switch,
                "true",
                Works,
                "Compare the members' data after compaction.",
            ),
            graduated(
                "compact-hash-check-time",
                Time,
                "1m0s",
                Works,
                "Time between looks whether there was a compaction.",
            ),
            graduated(
                "enable-lease-checkpoint",
                Switch,
                "false",
                NoEffect,
                "Keep what is left of a lease (always on).",
            ),
            graduated(
                "enable-lease-checkpoint-persist",
                Switch,
                "false",
                NoEffect,
                "The same over restarts (always on).",
            ),
            graduated(
                "compaction-batch-limit",
                Integer,
                "0",
                Works,
                "Revisions one step of compaction removes; 0 is 1000.",
            ),
            graduated("compaction-sleep-interval", Time, "0s", NoEffect, "Pause between steps of compaction."),
            graduated("watch-progress-notify-interval", Time, "0s", Works, "Time between progress notices; 0 is 10m."),
            graduated("warning-apply-duration", Time, "100ms", Works, "Log entries whose application takes longer."),
            graduated("txn-mode-write-with-shared-buffer", Switch, "true", NoEffect, "A trait of etcd's engine."),
            graduated(
                "bootstrap-defrag-threshold-megabytes",
                Unsigned,
                "0",
                NoEffect,
                "Defragment at start if that frees so much.",
            ),
            graduated("max-learners", Integer, "1", Works, "Most learners in the cluster."),
            graduated(
                "stop-grpc-service-on-defrag",
                Switch,
                "false",
                NoEffect,
                "Turn clients away while defragmenting.",
            ),
            graduated("wait-cluster-ready-timeout", Time, "5s", NoEffect, "Time for the cluster to become ready."),
            graduated("downgrade-check-time", Time, "5s", NoEffect, "Time between looks at a downgrade."),
            graduated("set-member-localaddr", Switch, "false", NoEffect, "Local address of connections to members."),
            graduated("enable-v2v3", Text, "", NoEffect, "The v2 API over v3, which is not there."),
            flag("unsafe-no-fsync", Switch, "false", NoEffect, "Ignored: what is acknowledged is on disk."),
        ],
    ),
    (
        "Obsolete",
        &[
            flag("proxy", OneOf(&["off", "readonly", "on"]), "off", Refused { unless: "off" }, "The v2 proxy."),
            flag("proxy-failure-wait", Unsigned, "5000", NoEffect, "The v2 proxy."),
            flag("proxy-refresh-interval", Unsigned, "30000", NoEffect, "The v2 proxy."),
            flag("proxy-dial-timeout", Unsigned, "1000", NoEffect, "The v2 proxy."),
            flag("proxy-write-timeout", Unsigned, "5000", NoEffect, "The v2 proxy."),
            flag("proxy-read-timeout", Unsigned, "0", NoEffect, "The v2 proxy."),
            flag("v", Switch, "false", NoEffect, "Obsolete."),
            flag("vv", Switch, "false", NoEffect, "Obsolete."),
            flag("config", Text, "", NoEffect, "Obsolete."),
            flag("force", Switch, "false", NoEffect, "Obsolete."),
            flag("snapshot", Switch, "false", NoEffect, "Obsolete."),
            flag("cluster-active-size", Text, "", NoEffect, "Obsolete."),
            flag("cluster-remove-delay", Text, "", NoEffect, "Obsolete."),
            flag("cluster-sync-interval", Text, "", NoEffect, "Obsolete."),
            flag("max-result-buffer", Text, "", NoEffect, "Obsolete."),
            flag("max-retry-attempts", Text, "", NoEffect, "Obsolete."),
            flag("peer-heartbeat-interval", Text, "", NoEffect, "Obsolete."),
            flag("peer-election-timeout", Text, "", NoEffect, "Obsolete."),
            flag("retry-interval", Text, "", NoEffect, "Obsolete."),
            flag("test.coverprofile", Text, "", NoEffect, "Obsolete."),
            flag("test.outputdir", Text, "", NoEffect, "Obsolete."),
        ],
    ),
];

/// What a command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Run a member with these settings.
    Run(Values),
    /// Run a member with the settings of this file, see [`Values::from_file`].
    RunFile(String),
    /// Print the version and leave.
    Version,
    /// Print the help text and leave.
    Help,
    /// Ask the member at this URL for its health and leave.
    HealthCheck(String),
}

/// Why a command line cannot be carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line itself is malformed: the message, the usage, exit code 2.
    Usage(String),
    /// The settings make no sense: logged, exit code 1.
    Invalid(String),
    /// This variable and its flag are both set: logged, exit code 1.
    Conflict(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text) | Error::Invalid(text) => f.write_str(text),
            Error::Conflict(variable) => write!(
                f,
                "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment \
                 variable or disable flag): {variable}"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// A command line as it may be logged: without passwords.
pub fn shown(arguments: &[String]) -> String {
    const SECRET: &str = "discovery-password";
    let mut follows = false;
    let words = arguments.iter().map(|argument| {
        if std::mem::take(&mut follows) {
            return "***".to_owned();
        }
        let bare = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).unwrap_or_default();
        follows = bare == SECRET;
        match bare.split_once('=') {
            Some((SECRET, _)) => format!("--{SECRET}=***"),
            _ => argument.clone(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The settings as typed; each has passed the check of its form.
#[derive(Debug, Default)]
pub struct Values {
    pub(super) given: BTreeMap<&'static str, String>,
    /// `ETCD_*` variables, `NAME=value`, that name no flag.
    pub unknown_variables: Vec<String>,
    /// Keys of the config file that name no setting.
    pub unknown_keys: Vec<String>,
    /// Whether they come from a config file.
    pub from_file: bool,
}

impl Values {
    /// Reads a command line (without the program's name) and the environment.
    pub fn read(
        arguments: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Request, Error> {
        let mut values = Values::default();
        let mut positional = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" || argument == "-" || !argument.starts_with('-') {
                // Go stops looking for flags at the first argument that is none.
                positional.extend((argument != "--").then_some(argument));
                positional.extend(arguments.by_ref());
                break;
            }
            let body = argument.strip_prefix("--").unwrap_or(&argument[1..]);
            if body.is_empty() || body.starts_with(['-', '=']) {
                return Err(Error::Usage(format!("bad flag syntax: {argument}")));
            }
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let mut value = |name: &str| {
                inline
                    .clone()
                    .or_else(|| arguments.next())
                    .ok_or_else(|| Error::Usage(format!("flag needs an argument: -{name}")))
            };
            match name {
                "version" => return Ok(Request::Version),
                "help" | "h" => return Ok(Request::Help),
                "health-check" => return Ok(Request::HealthCheck(value(name)?)),
                _ => {}
            }
            let flag = find(name).ok_or_else(|| Error::Usage(format!("flag provided but not defined: -{name}")))?;
            if flag.kind == Kind::Switch {
                let value = inline.unwrap_or_else(|| "true".to_owned());
                parse_switch(&value)
                    .map_err(|why| Error::Usage(format!("invalid boolean value {value:?} for -{name}: {why}")))?;
                values.given.insert(flag.name, value);
            } else {
                let value = value(name)?;
                check(flag, &value)
                    .map_err(|why| Error::Usage(format!("invalid value {value:?} for flag -{name}: {why}")))?;
                values.given.insert(flag.name, value);
            }
        }
        if let Some(argument) = positional.first() {
            return Err(Error::Invalid(format!("'{argument}' is not a valid flag")));
        }
        let variables: BTreeMap<String, String> = environment.into_iter().collect();
        let file = values.given.get("config-file").or_else(|| variables.get("ETCD_CONFIG_FILE"));
        if let Some(file) = file.filter(|file| !file.is_empty()) {
            return Ok(Request::RunFile(file.clone()));
        }
        values.read_environment(variables)?;
        values.open_gates()?;
        values.refuse_what_is_missing()?;
        Ok(Request::Run(values))
    }

    /// In order of their names, so that the first complaint does not depend on the shell.
    fn read_environment(&mut self, variables: BTreeMap<String, String>) -> Result<(), Error> {
        let typed: Vec<&'static str> = self.given.keys().copied().collect();
        for (variable, value) in variables {
            let Some(rest) = variable.strip_prefix("ETCD_") else { continue };
            // Set by etcd's own images and by Kubernetes; it was never meant for us.
            if variable == "ETCD_VERSION" {
                continue;
            }
            let Some(flag) = find(&rest.to_ascii_lowercase().replace('_', "-")) else {
                self.unknown_variables.push(format!("{variable}={value}"));
                continue;
            };
            if typed.contains(&flag.name) {
                return Err(Error::Conflict(variable));
            }
            if value.is_empty() {
                continue;
            }
            check(flag, &value)
                .map_err(|why| Error::Invalid(format!("invalid value {value:?} for {variable}: {why}")))?;
            self.given.insert(flag.name, value);
        }
        Ok(())
    }

    pub(super) fn refuse_what_is_missing(&self) -> Result<(), Error> {
        for (name, value) in &self.given {
            let flag = find(name).expect("only flags of the table are stored");
            if let Effect::Refused { unless } = flag.effect
                && value != unless
                && !(flag.kind == Kind::Switch && parse_switch(value) == parse_switch(unless))
            {
                return Err(Error::Invalid(format!("--{name} is not supported by Everwatch yet")));
            }
        }
        Ok(())
    }

    /// Flags that were given and take no effect.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let lame = |name: &&&'static str| find(name).is_some_and(|flag| flag.effect == Effect::None);
        self.given.keys().filter(lame).copied().collect()
    }

    /// Whether a flag was given, on the command line or in the environment.
    pub fn is_given(&self, name: &'static str) -> bool {
        self.given.contains_key(name)
    }

    /// The value of a flag as typed, or its default.
    pub fn text(&self, name: &'static str) -> &str {
        self.given.get(name).map_or_else(|| lookup(name).default, String::as_str)
    }

    pub(super) fn switch(&self, name: &'static str) -> bool {
        parse_switch(self.text(name)).expect("checked when it was read")
    }

    pub(super) fn integer(&self, name: &'static str) -> i64 {
        parse_integer(self.text(name)).expect("checked when it was read")
    }

    pub(super) fn unsigned(&self, name: &'static str) -> u64 {
        parse_unsigned(self.text(name)).expect("checked when it was read")
    }

    pub(super) fn duration(&self, name: &'static str) -> Duration {
        parse_duration(self.text(name)).expect("checked when it was read")
    }

    pub(super) fn urls(&self, name: &'static str) -> Vec<Url> {
        Url::parse_list(self.text(name)).expect("checked when it was read")
    }
}

/// The help text: every flag of the table.
pub fn help() -> String {
    let mut text = format!("{USAGE}\n");
    for (heading, flags) in FLAGS {
        text.push_str(&format!("{heading}:\n"));
        for flag in *flags {
            let lame = if flag.effect == Effect::Works { "" } else { " (no effect yet)" };
            let lame = if matches!(flag.effect, Effect::Refused { .. }) { " (not supported yet)" } else { lame };
            text.push_str(&format!("  --{} '{}'\n        {}{lame}\n", flag.name, flag.default, flag.help));
        }
        text.push('\n');
    }
    text.push_str("Flags under their former names --experimental-... are understood too.\n");
    text
}

/// The short help text.
pub const USAGE: &str = "Usage:

  everwatch [flags]
    Run a member. Flags are etcd's; --name may also be given as ETCD_NAME, and so on.

  everwatch --version
    Show the API version and ours.

  everwatch --health-check URL
    Ask a running member for its health; the exit code is the answer. For containers.

  everwatch -h | --help
    Show every flag.
";

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let all = || FLAGS.iter().flat_map(|(_, flags)| flags.iter());
    all().find(|flag| flag.name == name).or_else(|| {
        let name = name.strip_prefix("experimental-")?;
        all().find(|flag| flag.experimental && flag.name == name)
    })
}

fn lookup(name: &'static str) -> &'static Flag {
    find(name).unwrap_or_else(|| panic!("flag {name} is missing from the table"))
}

pub(super) fn check(flag: &Flag, value: &str) -> Result<(), String> {
    match flag.kind {
        Kind::Text => Ok(()),
        Kind::Switch => parse_switch(value).map(drop),
        Kind::Integer => parse_integer(value).map(drop),
        Kind::Unsigned => parse_unsigned(value).map(drop),
        Kind::Duration => parse_duration(value).map(drop),
        Kind::Urls => Url::parse_list(value).map(drop),
        Kind::Origins if value == "*" => Ok(()),
        // An empty list is one with an empty URL.
        Kind::Origins => value.split(',').try_for_each(|url| Url::parse(url).map(drop)),
        Kind::Gates => features::parse(value).map(drop),
        Kind::OneOf(words) | Kind::NamedOneOf(words) if words.contains(&value) => Ok(()),
        Kind::OneOf(_) => Err("invalid value".to_owned()),
        Kind::NamedOneOf(_) => Err(format!("invalid value {value:?}")),
    }
}

const PARSE_ERROR: &str = "parse error";

pub(super) fn parse_switch(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(PARSE_ERROR.to_owned()),
    }
}

/// A number as Go reads it: decimal, or 0x, 0o, 0b, or octal after a leading zero.
fn parse_unsigned(value: &str) -> Result<u64, String> {
    let (digits, radix) = match value.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&value[2..], 16),
        [b'0', b'o' | b'O', ..] => (&value[2..], 8),
        [b'0', b'b' | b'B', ..] => (&value[2..], 2),
        [b'0', _, ..] => (&value[1..], 8),
        _ => (value, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(PARSE_ERROR.to_owned());
    }
    u64::from_str_radix(digits, radix).map_err(|_| "value out of range".to_owned())
}

fn parse_integer(value: &str) -> Result<i64, String> {
    let (negative, digits) = match value.as_bytes().first() {
        Some(b'-') => (true, &value[1..]),
        Some(b'+') => (false, &value[1..]),
        _ => (false, value),
    };
    let magnitude = i128::from(parse_unsigned(digits)?);
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| "value out of range".to_owned())
}

fn parse_duration(value: &str) -> Result<Duration, String> {
    read_duration(value).map_err(|_| PARSE_ERROR.to_owned())
}

/// A duration as Go writes it: `1h15m30.5s`, `300ms`, `0`. Not below zero, unlike Go's: none of ours may be. The error is in Go's
/// words.
pub(super) fn read_duration(value: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {value:?}");
    let mut rest = value.strip_prefix(['+', '-']).unwrap_or(value);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanoseconds = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanoseconds += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                "" => return Err(format!("time: missing unit in duration {value:?}")),
                unit => return Err(format!("time: unknown unit {unit:?} in duration {value:?}")),
            };
        rest = &rest[end..];
    }
    // Go keeps durations in 63 bits of nanoseconds.
    let possible = nanoseconds <= i64::MAX as f64 && (nanoseconds == 0.0 || !value.starts_with('-'));
    possible.then(|| Duration::from_nanos(nanoseconds as u64)).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, environment: &[(&str, &str)]) -> Result<Request, Error> {
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Values::read(line.split_whitespace().map(str::to_owned), environment)
    }

    fn run(line: &str, environment: &[(&str, &str)]) -> Values {
        match read(line, environment) {
            Ok(Request::Run(values)) => values,
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    fn refused(line: &str, environment: &[(&str, &str)]) -> Error {
        read(line, environment).expect_err(line)
    }

    #[test]
    fn defaults_have_the_form_of_their_flag_and_names_are_unique() {
        let mut names = Vec::new();
        for flag in FLAGS.iter().flat_map(|(_, flags)| flags.iter()) {
            check(flag, flag.default).unwrap_or_else(|why| panic!("default of {}: {why}", flag.name));
            names.push(flag.name);
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_command_line_is_shown_without_passwords() {
        let shown = |line: &str| shown(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(shown("--name a -discovery-password x --name=b"), "--name a -discovery-password *** --name=b");
        assert_eq!(shown("-discovery-password=x=y --name=b"), "--discovery-password=*** --name=b");
    }

    #[test]
    fn every_spelling_of_a_flag_is_understood() {
        for line in ["-name a", "--name a", "-name=a", "--name=a", "--name b --name a"] {
            assert_eq!(run(line, &[]).text("name"), "a", "{line}");
        }
        assert!(!run("--pre-vote=F", &[]).switch("pre-vote"));
        assert!(run("--pre-vote=0 --pre-vote", &[]).switch("pre-vote"));
        assert_eq!(run("--max-txn-ops 0x10", &[]).unsigned("max-txn-ops"), 16);
        assert_eq!(run("--quota-backend-bytes -1", &[]).integer("quota-backend-bytes"), -1);
        let renamed = run("--experimental-watch-progress-notify-interval=1m0.5s", &[]);
        assert_eq!(renamed.duration("watch-progress-notify-interval"), Duration::from_millis(60_500));
        assert!(matches!(read("--nope --version", &[]), Err(Error::Usage(_))));
        assert!(matches!(read("-version --nope", &[]), Ok(Request::Version)));
    }

    #[test]
    fn malformed_flags_are_refused_in_go_s_words() {
        let usage = |text: &str| Error::Usage(text.to_owned());
        assert_eq!(refused("--nope=3", &[]), usage("flag provided but not defined: -nope"));
        assert_eq!(refused("--name", &[]), usage("flag needs an argument: -name"));
        assert_eq!(refused("---name=3", &[]), usage("bad flag syntax: ---name=3"));
        assert_eq!(refused("--=3", &[]), usage("bad flag syntax: --=3"));
        let number = "invalid value \"-1\" for flag -heartbeat-interval: parse error";
        assert_eq!(refused("--heartbeat-interval -1", &[]), usage(number));
        assert_eq!(
            refused("--pre-vote=maybe", &[]),
            usage("invalid boolean value \"maybe\" for -pre-vote: parse error")
        );
        let word = "invalid value \"foo\" for flag -initial-cluster-state: invalid value";
        assert_eq!(refused("--initial-cluster-state=foo", &[]), usage(word));
        let phase = "invalid value \"foo\" for flag -v2-deprecation: invalid value \"foo\"";
        assert_eq!(refused("--v2-deprecation=foo", &[]), usage(phase));
        run("--v2-deprecation=write-only-drop-data --cors=*", &[]);
        run("--cors=https://a:1,http://b:2", &[]);
        for (origins, why) in [
            ("foo", "URL scheme must be http, https, unix, or unixs: foo"),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("*,http://a:1", "URL scheme must be http, https, unix, or unixs: *"),
            ("http://a,b", "URL address does not have the form \"host:port\": http://a"),
        ] {
            let text = format!("invalid value {origins:?} for flag -cors: {why}");
            assert_eq!(refused(&format!("--cors={origins}"), &[]), Error::Usage(text));
        }
        let url =
            "invalid value \"foo\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: foo";
        assert_eq!(refused("--listen-client-urls=foo", &[]), usage(url));
        assert_eq!(refused("--pre-vote false", &[]), Error::Invalid("'false' is not a valid flag".to_owned()));
        assert_eq!(refused("-", &[]), Error::Invalid("'-' is not a valid flag".to_owned()));
        for wrong in ["3", "5x", "-1s", "1e3s", "s"] {
            assert!(matches!(read(&format!("--warning-apply-duration={wrong}"), &[]), Err(Error::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn variables_stand_in_for_flags_but_never_against_them() {
        assert_eq!(run("", &[("ETCD_NAME", "x")]).text("name"), "x");
        assert_eq!(run("--name=y", &[("ETCD_DATA_DIR", "d")]).text("data-dir"), "d");
        assert_eq!(refused("--name=y", &[("ETCD_NAME", "x")]), Error::Conflict("ETCD_NAME".to_owned()));
        let text = "invalid value \"abc\" for ETCD_HEARTBEAT_INTERVAL: parse error";
        assert_eq!(refused("", &[("ETCD_HEARTBEAT_INTERVAL", "abc")]), Error::Invalid(text.to_owned()));
        let values = run("", &[("ETCD_FOO", "x"), ("ETCD_VERSION", "3"), ("ETCD_CERT_FILE", ""), ("OTHER", "1")]);
        assert_eq!(values.unknown_variables, ["ETCD_FOO=x"]);
        assert!(!values.is_given("cert-file"));
    }

    #[test]
    fn a_config_file_stands_instead_of_everything_else() {
        let file = |line: &str, environment: &[(&str, &str)]| match read(line, environment) {
            Ok(Request::RunFile(path)) => path,
            other => panic!("{line:?} gave {other:?}"),
        };
        assert_eq!(file("--config-file=x --name=y", &[("ETCD_NAME", "z"), ("ETCD_CONFIG_FILE", "u")]), "x");
        assert_eq!(file("--force-new-cluster", &[("ETCD_CONFIG_FILE", "u")]), "u");
        assert!(matches!(read("--config-file=x --nope", &[]), Err(Error::Usage(_))));
        assert!(matches!(read("--config-file=x stray", &[]), Err(Error::Invalid(_))));
        run("", &[("ETCD_CONFIG_FILE", "")]);
    }

    #[test]
    fn flags_that_somebody_would_rely_on_are_refused_and_others_confessed() {
        assert!(matches!(refused("--proxy=on", &[]), Error::Invalid(_)));
        run("--discovery= --proxy=off", &[]);
        assert_eq!(run("--max-wals=3 --name=x --max-snapshots=3", &[]).without_effect(), ["max-snapshots", "max-wals"]);
    }
}
