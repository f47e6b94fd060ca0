//! The config file: etcd's, YAML or JSON, read into the same [`Values`] as flags.
//!
//! Keys are the names of flags. What differs from flags is as in etcd: values have types (a number in quotes is no number);
//! durations are nanoseconds (here also as text, `5m`, as newer releases write them); `log-outputs` and `cipher-suites` are lists;
//! the settings of TLS, of sockets and of discovery are maps of their own; what is empty counts as not there; what is no setting
//! is ignored, but [`Values::unknown_keys`] names it.
//!
//! Who reads the file is the caller: here is only its text.

use serde_json::{Map, Value};

use super::flags::{Error, Flag, Kind, Values, check, find};

/// Maps inside the file, and what their keys are called as flags.
const NESTED: &[(&str, &[(&str, &str)])] = &[
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-file", "client-cert-file"),
            ("client-key-file", "client-key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("auto-tls", "auto-tls"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
        ],
    ),
    (
        "peer-transport-security",
        &[
            ("cert-file", "peer-cert-file"),
            ("key-file", "peer-key-file"),
            ("client-cert-file", "peer-client-cert-file"),
            ("client-key-file", "peer-client-key-file"),
            ("client-cert-auth", "peer-client-cert-auth"),
            ("trusted-ca-file", "peer-trusted-ca-file"),
            ("auto-tls", "peer-auto-tls"),
            ("allowed-cn", "peer-cert-allowed-cn"),
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            ("skip-client-san-verification", "peer-skip-client-san-verification"),
        ],
    ),
    ("socket-options", &[("reuse-port", "socket-reuse-port"), ("reuse-address", "socket-reuse-address")]),
    ("discovery-config", &[("token", "discovery-token"), ("endpoints", "discovery-endpoints")]),
];

/// Settings that are lists. Some others may be one.
const LISTS: [&str; 2] = ["log-outputs", "cipher-suites"];
const LISTS_TOO: [&str; 4] =
    ["peer-cert-allowed-cn", "peer-cert-allowed-hostname", "client-cert-allowed-hostname", "discovery-endpoints"];

impl Values {
    /// Reads the text of a config file.
    pub fn from_file(text: &str) -> Result<Values, Error> {
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            with_snippet: false,
        };
        let file = serde_saphyr::from_str_with_options(text, options)
            .map_err(|why| Error::Invalid(format!("error converting YAML to JSON: yaml: {why}")))?;
        let mut values = Values { from_file: true, ..Values::default() };
        match file {
            Value::Null => {}
            Value::Object(file) => values.read_map(None, &file)?,
            other => return wrong(format!("{} into Go value of type embed.configYAML", kind_of(&other))),
        }
        values.open_gates()?;
        values.refuse_what_is_missing()?;
        Ok(values)
    }

    fn read_map(&mut self, nested: Option<(&str, &[(&str, &str)])>, map: &Map<String, Value>) -> Result<(), Error> {
        for (key, value) in map {
            // As in Go.
            let key = key.to_ascii_lowercase();
            if nested.is_none()
                && let Some((name, keys)) = NESTED.iter().find(|(name, _)| *name == key)
            {
                match value {
                    Value::Null => {}
                    Value::Object(map) => self.read_map(Some((name, keys)), map)?,
                    other => {
                        let kind = kind_of(other);
                        return wrong(format!(
                            "{kind} into Go struct field configYAML.{name} of type {}",
                            map_type(name)
                        ));
                    }
                }
                continue;
            }
            let name = match nested {
                None => Some(key.as_str()).filter(|name| *name != "config-file"),
                Some((_, keys)) => keys.iter().find(|(inner, _)| *inner == key).map(|(_, name)| *name),
            };
            let path = nested.map_or(key.clone(), |(outer, _)| format!("{outer}.{key}"));
            match name.and_then(find) {
                Some(flag) => self.take(flag, &path, value)?,
                None => self.unknown_keys.push(path),
            }
        }
        Ok(())
    }

    fn take(&mut self, flag: &'static Flag, path: &str, value: &Value) -> Result<(), Error> {
        let Some(text) = text_of(flag, path, value)? else { return Ok(()) };
        check(flag, &text).map_err(|why| match flag.kind {
            Kind::Urls => Error::Invalid(format!("unexpected error setting up {path}: {why}")),
            Kind::Gates => Error::Invalid(why),
            _ if flag.name == "initial-cluster-state" => Error::Invalid(format!("unexpected clusterState {text:?}")),
            _ => Error::Invalid(format!("invalid value {text:?} for {path}: {why}")),
        })?;
        self.given.insert(flag.name, text);
        Ok(())
    }
}

/// The value as a flag would have it; nothing, if it counts as not there.
fn text_of(flag: &Flag, path: &str, value: &Value) -> Result<Option<String>, Error> {
    let list = LISTS.contains(&flag.name);
    let text = match (value, flag.kind) {
        (Value::Null, _) => return Ok(None),
        (Value::Bool(on), Kind::Switch) => on.to_string(),
        (Value::Number(number), Kind::Integer) if number.is_i64() => number.to_string(),
        (Value::Number(number), Kind::Unsigned) if number.is_u64() => number.to_string(),
        (Value::Number(number), Kind::Duration) if number.is_u64() => format!("{number}ns"),
        (Value::String(text), Kind::Duration) if check(flag, text).is_ok() => text.clone(),
        (Value::String(text), _) if go_type(flag) == "string" => text.clone(),
        (Value::Array(items), _) if list || LISTS_TOO.contains(&flag.name) => {
            let items = items.iter().map(|item| match item {
                Value::String(text) => Ok(text.as_str()),
                other => wrong(format!("{} into Go struct field configYAML.{path} of type string", kind_of(other))),
            });
            items.collect::<Result<Vec<_>, Error>>()?.join(",")
        }
        (other, _) => {
            let owner = if path.contains('.') { "securityConfig" } else { "configYAML" };
            let go = go_type(flag);
            return wrong(format!("{} into Go struct field {owner}.{path} of type {go}", kind_of(other)));
        }
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// What etcd says of a value of the wrong type.
fn wrong<T>(what: String) -> Result<T, Error> {
    Err(Error::Invalid(format!("error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what}")))
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.as_i64().is_none_or(|number| number < 0) => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

fn go_type(flag: &Flag) -> &'static str {
    match flag.kind {
        _ if LISTS.contains(&flag.name) => "[]string",
        Kind::Text | Kind::Urls | Kind::Origins | Kind::OneOf(_) | Kind::NamedOneOf(_) | Kind::Gates => "string",
        Kind::Switch => "bool",
        Kind::Integer if flag.name == "quota-backend-bytes" => "int64",
        Kind::Integer => "int",
        Kind::Unsigned if flag.name.starts_with("snapshot-") => "uint64",
        Kind::Unsigned => "uint",
        Kind::Duration => "time.Duration",
    }
}

fn map_type(name: &str) -> &'static str {
    match name {
        "socket-options" => "transport.SocketOpts",
        "discovery-config" => "v3discovery.DiscoveryConfig",
        _ => "embed.securityConfig",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AutoCompaction, Config, LogOutput};
    use std::path::PathBuf;
    use std::time::Duration;

    fn config(text: &str) -> Config {
        Values::from_file(text)
            .and_then(|values| Config::new(&values))
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refusal(text: &str) -> String {
        Values::from_file(text).and_then(|values| Config::new(&values).map(drop)).expect_err(text).to_string()
    }

    #[test]
    fn a_file_says_what_flags_say() {
        let config = config(
            "name: b\n\
             data-dir: /d  # where it is\n\
             wal-dir:\n\
             snapshot-count: 5000\n\
             heartbeat-interval: 200\n\
             election-timeout: 2000\n\
             quota-backend-bytes: -1\n\
             listen-peer-urls: http://0.0.0.0:2380,http://127.0.0.1:2390\n\
             listen-client-urls: http://0.0.0.0:2379\n\
             cors:\n\
             initial-cluster: 'a=http://a:2380,b=http://b:2380'\n\
             initial-cluster-state: ''\n\
             strict-reconfig-check: no\n\
             PRE-VOTE: false\n\
             auto-compaction-mode: periodic\n\
             auto-compaction-retention: \"1\"\n\
             experimental-watch-progress-notify-interval: 60000000000\n\
             grpc-keepalive-interval: 5s\n\
             log-outputs: [stdout, /x]\n\
             client-transport-security:\n  auto-tls: false\n  cert-file: c\n\
             peer-transport-security:\n  allowed-cn: [x, y]\n\
             proxy: 'off'\n\
             socket-options:\n  reuse-port: false\n\
             what-is-this: [1]\n\
             peer-transport-security: {nor-this: 1}\n",
        );
        assert_eq!((config.name.as_str(), &config.data_dir), ("b", &PathBuf::from("/d")));
        assert_eq!(config.snapshot_count, 5000);
        assert_eq!(config.heartbeat_interval, Duration::from_millis(200));
        assert_eq!(config.quota_bytes, None);
        assert_eq!(config.listen_peer_urls.len(), 2);
        assert_eq!(config.initial_cluster, "a=http://a:2380,b=http://b:2380");
        assert!(!config.strict_reconfig_check && !config.pre_vote);
        assert_eq!(config.auto_compaction, Some(AutoCompaction::Periodic(Duration::from_secs(3600))));
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(60));
        assert_eq!(config.keepalive_interval, Some(Duration::from_secs(5)));
        assert_eq!(config.log.outputs, [LogOutput::Stdout, LogOutput::File(PathBuf::from("/x"))]);
        assert_eq!(config.remarks.unknown_keys, ["peer-transport-security.nor-this", "what-is-this"]);
        assert_eq!(config.client_tls.settings.certificate, Some(PathBuf::from("c")));
    }

    #[test]
    fn an_empty_file_is_the_defaults_and_json_is_yaml() {
        for text in ["", "# nothing\n", "{}"] {
            assert_eq!(config(text).name, "default", "{text:?}");
        }
        assert_eq!(config("{\"name\": \"x\", \"max-txn-ops\": 5}").txn_ops_max, 5);
        // The last one counts.
        assert_eq!(config("name: a\nname: b\n").name, "b");
    }

    /// Texts compared with etcd 3.5.1.
    #[test]
    fn what_makes_no_sense_is_refused_in_etcd_s_words() {
        let go = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal ";
        for (text, why) in [
            ("- a", "array into Go value of type embed.configYAML"),
            ("abc", "string into Go value of type embed.configYAML"),
            ("heartbeat-interval: abc", "string into Go struct field configYAML.heartbeat-interval of type uint"),
            ("heartbeat-interval: [1]", "array into Go struct field configYAML.heartbeat-interval of type uint"),
            ("heartbeat-interval: -1", "number -1 into Go struct field configYAML.heartbeat-interval of type uint"),
            ("heartbeat-interval: 1.5", "number 1.5 into Go struct field configYAML.heartbeat-interval of type uint"),
            (
                "strict-reconfig-check: 'yes'",
                "string into Go struct field configYAML.strict-reconfig-check of type bool",
            ),
            (
                "auto-compaction-retention: 1",
                "number into Go struct field configYAML.auto-compaction-retention of type string",
            ),
            ("log-outputs: stderr", "string into Go struct field configYAML.log-outputs of type []string"),
            ("quota-backend-bytes: x", "string into Go struct field configYAML.quota-backend-bytes of type int64"),
            ("snapshot-count: x", "string into Go struct field configYAML.snapshot-count of type uint64"),
            (
                "client-transport-security: 1",
                "number into Go struct field configYAML.client-transport-security of type embed.securityConfig",
            ),
            (
                "client-transport-security: {cert-file: 1}",
                "number into Go struct field securityConfig.client-transport-security.cert-file of type string",
            ),
            (
                "experimental-corrupt-check-time: x",
                "string into Go struct field configYAML.experimental-corrupt-check-time of type time.Duration",
            ),
        ] {
            assert_eq!(refusal(text), format!("{go}{why}"), "{text}");
        }
        for (text, why) in [
            ("initial-cluster-state: foo", "unexpected clusterState \"foo\""),
            ("auto-compaction-mode: foo", "unknown auto-compaction-mode \"foo\""),
            (
                "listen-client-urls: foo",
                "unexpected error setting up listen-client-urls: URL scheme must be http, https, unix, or unixs: foo",
            ),
        ] {
            assert_eq!(refusal(text), why, "{text}");
        }
        assert!(refusal("a: 1\n  b: c").starts_with("error converting YAML to JSON: yaml: "));
        assert!(refusal("proxy: readonly").contains("not supported by Everwatch yet"));
        assert!(refusal("discovery: http://a/x").contains("--discovery is not supported"));
        assert!(refusal("listen-client-urls: https://127.0.0.1:1").contains("must be provided"));
    }
}
