//! The two version numbers: what we are, and which etcd we speak like.
//!
//! Clients decide what they may ask for by the API version (Kubernetes wants at least 3.5.13), so it is what `/version`,
//! `Maintenance.Status` and `--version` report. Our own number stands beside it where there is room.

/// The level of etcd's API that this server implements.
pub const API: &str = "3.6.5";

/// The API level with its patch number dropped: what members of a cluster agree on.
pub const CLUSTER: &str = "3.6.0";

/// Our own release.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
