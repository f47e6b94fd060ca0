//! `/health`, `/livez`, `/readyz`: whether this member is well, in etcd's words.
//!
//! `/health` is the old form, one JSON object. `/livez` and `/readyz` run named checks, which can be left out
//! (`?exclude=name`), asked for one by one (`/readyz/name`) and listed (`?verbose`). Answers were compared with etcd 3.5.1
//! where it has them. What is true of the member is asked of a [`Probe`].

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, Response, StatusCode, header};

use super::Endpoints;

/// What the endpoints ask a member. Reads give up by themselves, as every request does.
pub trait Probe: Send + Sync + 'static {
    /// A read of one key after asking a quorum. The error is the text a client would see.
    fn linearizable_read(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// A read of one key from what is here.
    fn serializable_read(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether a leader is known.
    fn has_leader(&self) -> bool;
    /// Whether this member is a learner.
    fn is_learner(&self) -> bool;
    /// The alarms that are raised, on any member.
    fn alarms(&self) -> Vec<ActiveAlarm>;
    /// The cluster's version, such as `3.6.0`, once it is decided.
    fn cluster_version(&self) -> Option<String>;
    /// All metrics in Prometheus' text form.
    fn metrics(&self) -> String;
    /// A check named `check` of `/health`, `/livez` or `/readyz` (`kind` without the slash) came out so.
    fn checked(&self, kind: &'static str, check: &'static str, healthy: bool);
}

/// A kind of alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveAlarm {
    /// The quota is used up.
    NoSpace,
    /// Members hold different data.
    Corrupt,
    /// One that we do not know.
    Unknown,
}

impl ActiveAlarm {
    fn name(self) -> &'static str {
        match self {
            ActiveAlarm::NoSpace => "NOSPACE",
            ActiveAlarm::Corrupt => "CORRUPT",
            ActiveAlarm::Unknown => "UNKNOWN",
        }
    }
}

/// The parameters of a request, in order. None of the names and values we know needs percent signs, so there are none.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &RawQuery) -> Parameters {
        let pairs = query.0.as_deref().unwrap_or_default().split('&');
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        };
        Parameters(pairs.map(pair).collect())
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    fn excluded(&self) -> Vec<&str> {
        let named = self.0.iter().filter(|(name, value)| name == "exclude" && !value.is_empty());
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// `GET /health`.
pub(super) async fn health<P: Probe>(State(endpoints): State<Arc<Endpoints<P>>>, query: RawQuery) -> Response<Body> {
    let parameters = Parameters::parse(&query);
    let probe = &endpoints.probe;
    let excluded = parameters.excluded();
    let serializable = parameters.first("serializable") == Some("true");
    let reason = if let Some(alarm) = probe.alarms().into_iter().find(|alarm| !excluded.contains(&alarm.name())) {
        Some(format!("ALARM {}", alarm.name()))
    } else if !serializable && !probe.has_leader() {
        Some("RAFT NO LEADER".to_owned())
    } else {
        let read = if serializable { probe.serializable_read().await } else { probe.linearizable_read().await };
        read.err().map(|why| format!("RANGE ERROR:{why}"))
    };
    probe.checked("health", "health", reason.is_none());
    match reason {
        None => super::text(StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()),
        Some(reason) => {
            let reason = serde_json::Value::from(reason);
            let body = format!("{{\"health\":\"false\",\"reason\":{reason}}}");
            slog::warn!(endpoints.logger, "/health error"; "output" => &body, "status-code" => 503);
            super::error(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

const SERIALIZABLE_READ: &str = "serializable_read";
const LINEARIZABLE_READ: &str = "linearizable_read";
const DATA_CORRUPTION: &str = "data_corruption";
const NON_LEARNER: &str = "non_learner";

/// What `/livez` checks: whether a restart could help.
const LIVE: [&str; 1] = [SERIALIZABLE_READ];
/// What `/readyz` checks: whether clients should come.
const READY: [&str; 4] = [DATA_CORRUPTION, SERIALIZABLE_READ, LINEARIZABLE_READ, NON_LEARNER];

/// `GET /livez`.
pub(super) async fn livez<P: Probe>(state: State<Arc<Endpoints<P>>>, query: RawQuery) -> Response<Body> {
    all(&state.0, "livez", &LIVE, &Parameters::parse(&query)).await
}

/// `GET /readyz`.
pub(super) async fn readyz<P: Probe>(state: State<Arc<Endpoints<P>>>, query: RawQuery) -> Response<Body> {
    all(&state.0, "readyz", &READY, &Parameters::parse(&query)).await
}

/// `GET /livez/<check>`.
pub(super) async fn livez_one<P: Probe>(
    state: State<Arc<Endpoints<P>>>,
    name: Path<String>,
    query: RawQuery,
) -> Response<Body> {
    one(&state.0, "livez", &LIVE, &name, &Parameters::parse(&query)).await
}

/// `GET /readyz/<check>`.
pub(super) async fn readyz_one<P: Probe>(
    state: State<Arc<Endpoints<P>>>,
    name: Path<String>,
    query: RawQuery,
) -> Response<Body> {
    one(&state.0, "readyz", &READY, &name, &Parameters::parse(&query)).await
}

async fn all<P: Probe>(
    endpoints: &Endpoints<P>,
    kind: &'static str,
    checks: &[&'static str],
    parameters: &Parameters,
) -> Response<Body> {
    let excluded = parameters.excluded();
    for name in excluded.iter().filter(|name| !checks.contains(name)) {
        slog::warn!(endpoints.logger, "some health checks cannot be excluded"; "missing-health-checks" => *name);
    }
    let chosen: Vec<&'static str> = checks.iter().copied().filter(|check| !excluded.contains(check)).collect();
    run(endpoints, kind, &chosen, parameters).await
}

async fn one<P: Probe>(
    endpoints: &Endpoints<P>,
    kind: &'static str,
    checks: &[&'static str],
    name: &str,
    parameters: &Parameters,
) -> Response<Body> {
    match checks.iter().copied().find(|check| *check == name) {
        Some(check) => run(endpoints, kind, &[check], parameters).await,
        None => super::not_found(),
    }
}

async fn run<P: Probe>(
    endpoints: &Endpoints<P>,
    kind: &'static str,
    checks: &[&'static str],
    parameters: &Parameters,
) -> Response<Body> {
    let mut report = String::new();
    let mut healthy = true;
    for check in checks.iter().copied() {
        let outcome = outcome(&endpoints.probe, check).await;
        endpoints.probe.checked(kind, check, outcome.is_ok());
        healthy &= outcome.is_ok();
        report.push_str(&match outcome {
            Ok(()) => format!("[+]{check} ok\n"),
            Err(why) => format!("[-]{check} failed: {why}\n"),
        });
    }
    if !healthy {
        slog::error!(endpoints.logger, "Health check error";
            "path" => format!("/{kind}"), "reason" => &report, "status-code" => 503);
        return super::error(StatusCode::SERVICE_UNAVAILABLE, &report);
    }
    let shown = if parameters.first("verbose").is_some() { report } else { String::new() };
    let mut response = super::text(StatusCode::OK, format!("{shown}ok\n"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn outcome<P: Probe>(probe: &P, check: &'static str) -> Result<(), String> {
    match check {
        SERIALIZABLE_READ => probe.serializable_read().await,
        LINEARIZABLE_READ => probe.linearizable_read().await,
        DATA_CORRUPTION if probe.alarms().contains(&ActiveAlarm::Corrupt) => Err("alarm activated: CORRUPT".to_owned()),
        NON_LEARNER if probe.is_learner() => Err("not supported for learner".to_owned()),
        _ => Ok(()),
    }
}
