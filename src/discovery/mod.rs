//! Who founds the cluster with this member, if it was not told: it asks a registry, or name servers. [`endpoints`] asks those where
//! clients reach a cluster.
//!
//! ```text
//! --discovery-endpoints, --discovery-token   ──▶ registry  ─┐
//! --discovery-srv                            ──▶ srv, dns  ─┴─▶ what --initial-cluster would have said
//! ```
//!
//! Only a member without data asks, and from then on all is as if it had been told: whether it may found the cluster
//! is still asked of the others ([`cluster::founding`](crate::cluster::founding)). So what was discovered is never trusted with more than a flag.
//!
//! Deliberately missing: discovery by a service of etcd v2 (`--discovery`), members that find no place in the cluster and become
//! proxies.

use std::fmt;

use slog::{Logger, info};

use crate::config::{ClusterState, Config, Discovery};

mod dns;
pub mod endpoints;
mod registry;
mod srv;

/// Why it is not known.
#[derive(Debug)]
pub enum Error {
    /// The registry does not say how many founders there are.
    SizeNotFound,
    /// What it says is no number of founders.
    BadSize,
    /// There are as many founders as there will be, without this one.
    Full,
    /// A founder left something that is no list of URLs.
    InvalidUrl,
    /// The registry cannot be asked like this; why.
    Registry(String),
    /// Name servers know nothing of a cluster that this member is one of; why.
    Dns(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Error::Dns(why) => return write!(f, "error setting up initial cluster: {why}"),
            Error::SizeNotFound => "discovery: size key not found",
            Error::BadSize => "discovery: size key is bad",
            Error::Full => "discovery: cluster is full",
            Error::InvalidUrl => "discovery: invalid peer URL",
            Error::Registry(why) => why,
        };
        write!(f, "failed to join discovery cluster ({what})")
    }
}

impl std::error::Error for Error {}

/// Whether this member is to discover something, if it has no data. Founders register; name servers tell one that joins as well.
pub fn is_asked_for(config: &Config) -> bool {
    match &config.discovery {
        None => false,
        Some(Discovery::Registry(_)) => config.initial_cluster_state == ClusterState::New,
        Some(Discovery::Dns(_)) => true,
    }
}

/// The settings with what was discovered. Takes as long as the other founders take to come.
pub async fn discover(config: &Config, logger: &Logger) -> Result<Config, Error> {
    let mut config = config.clone();
    match &config.discovery {
        None => {}
        Some(Discovery::Registry(asked)) => {
            config.initial_cluster = registry::join(asked, &config, logger).await?;
        }
        Some(Discovery::Dns(asked)) => {
            let found = srv::look_up(asked, &config, logger).await?;
            config.initial_cluster = found.list;
            // By its name in DNS the others know this one. What it advertises is at the same address.
            config.initial_advertise_peer_urls = found.own;
        }
    }
    if config.discovery.is_some() {
        info!(logger, "discovered who founds the cluster"; "initial-cluster" => &config.initial_cluster);
    }
    Ok(config)
}
