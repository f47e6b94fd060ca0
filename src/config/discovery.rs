//! Where a member without data asks who founds the cluster with it, if that is not said.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::flags::{Error, Values};
use super::{invalid, list};
use crate::tls;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A running cluster, in which founders leave their names under a token.
    Registry(Box<Registry>),
    /// Name servers.
    Dns(Dns),
}

/// A running cluster, Everwatch or etcd, that knows how many founders there will be.
#[derive(Clone, PartialEq, Eq)]
pub struct Registry {
    /// What the new cluster goes by there. It goes into the ids of its members, too.
    pub token: String,
    /// Where the other cluster is reached.
    pub endpoints: Vec<String>,
    /// How long a connection may take.
    pub dial_timeout: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How often a silent connection is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long it has for that.
    pub keepalive_timeout: Duration,
    /// What is shown and trusted, if connections are encrypted.
    pub tls: Option<tls::Settings>,
    /// Name and password there.
    pub user: Option<(String, String)>,
}

/// Without the password: it must not get into a log.
impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registry { token, endpoints, .. } = self;
        f.debug_struct("Registry").field("token", token).field("endpoints", endpoints).finish_non_exhaustive()
    }
}

/// A domain with records of the founders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// The domain.
    pub domain: String,
    /// What follows the usual names of the service.
    pub service_suffix: String,
    /// Who is asked; none: those that this system asks. There is no flag for it; tests have servers of their own.
    pub resolvers: Option<Vec<SocketAddr>>,
}

/// Flags that mean nothing without a registry.
const OF_REGISTRY: [&str; 6] =
    ["discovery-token", "discovery-cert", "discovery-key", "discovery-cacert", "discovery-user", "discovery-password"];

impl Discovery {
    /// What was asked for, if anything. Contradictions are refused in etcd's words.
    pub(super) fn new(values: &Values) -> Result<Option<Discovery>, Error> {
        let given = |name| !values.text(name).is_empty();
        let ways = ["initial-cluster", "discovery", "discovery-endpoints", "discovery-srv"];
        if ways.into_iter().filter(|name| given(name)).count() > 1 {
            return invalid(
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery\", \
                 \"discovery-endpoints\" or \"discovery-srv\"",
            );
        }
        let of_registry = given("discovery-endpoints") || OF_REGISTRY.into_iter().any(given);
        if given("discovery-proxy") && of_registry {
            return invalid(
                "both v2 discovery settings (discovery, discovery-proxy) and v3 discovery settings (discovery-token, \
                 discovery-endpoints, discovery-cert, discovery-key, discovery-cacert, discovery-user, discovery-password) \
                 are set",
            );
        }
        if given("discovery-token") != given("discovery-endpoints") {
            return invalid("both --discovery-token and --discovery-endpoints must be set");
        }
        if given("discovery") {
            // etcd dropped it as well, with the v2 API that it speaks.
            return invalid(
                "--discovery is not supported: it asks a discovery service of etcd v2; give --discovery-token and \
                 --discovery-endpoints of a cluster of v3",
            );
        }
        if given("discovery-endpoints") {
            return Ok(Some(Discovery::Registry(Box::new(registry(values)?))));
        }
        Ok(given("discovery-srv").then(|| {
            Discovery::Dns(Dns {
                domain: values.text("discovery-srv").to_owned(),
                service_suffix: values.text("discovery-srv-name").to_owned(),
                resolvers: None,
            })
        }))
    }
}

fn registry(values: &Values) -> Result<Registry, Error> {
    let endpoints = values.text("discovery-endpoints");
    if endpoints.split(',').any(|endpoint| endpoint.trim().is_empty()) {
        return invalid("--discovery-endpoints must not contain empty endpoints");
    }
    let path = |name| Some(values.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let settings = tls::Settings {
        certificate: path("discovery-cert"),
        key: path("discovery-key"),
        authority: path("discovery-cacert"),
        unverified: values.switch("discovery-insecure-skip-tls-verify"),
        ..Default::default()
    };
    let secure = !settings.is_empty()
        || settings.authority.is_some()
        || !values.switch("discovery-insecure-transport")
        || endpoints.contains("https://");
    let user = values.text("discovery-user");
    Ok(Registry {
        token: values.text("discovery-token").to_owned(),
        endpoints: list(endpoints).map(str::to_owned).collect(),
        dial_timeout: values.duration("discovery-dial-timeout"),
        request_timeout: values.duration("discovery-request-timeout"),
        keepalive_interval: values.duration("discovery-keepalive-time"),
        keepalive_timeout: values.duration("discovery-keepalive-timeout"),
        tls: secure.then_some(settings),
        user: (!user.is_empty()).then(|| (user.to_owned(), values.text("discovery-password").to_owned())),
    })
}
