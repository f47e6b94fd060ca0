//! Everwatch: a replicated key-value store, wire-compatible with etcd v3.
//!
//! # Who may import whom
//!
//! Imports point down this table; a module may name what is listed and nothing else of ours. A pure module has no tokio, no
//! files, no sockets, no threads, no clock, no dice and no locks. `tests/architecture.rs` reads this table and keeps it
//! true.
//!
//! | module            | may name                                                                                   | pure |
//! | ----------------- | ------------------------------------------------------------------------------------------ | ---- |
//! | `types` `pb` `version` | –                                                                                     | yes  |
//! | `storage`         | `types` `pb`                                                                               | no   |
//! | `mvcc`            | `types` `pb` `storage::backend` `storage::schema` `storage::Result` `storage::Error`       | yes  |
//! | `lease` `auth` `cluster` | `types` `pb` `storage::backend` `storage::schema` `storage::Result` `storage::Error` | yes  |
//! | `watch`           | `types` `pb` `mvcc::change` `mvcc::revision`                                               | yes, but for the outbox |
//! | `state`           | `types` `pb` `mvcc` `lease` `auth` `cluster` `storage::backend` `storage::schema` `storage::Result` `storage::Error` | yes |
//! | `raft`            | `types`                                                                                    | yes  |
//! | `config`          | –                                                                                          | no   |
//! | `logging`         | `config`                                                                                   | no   |
//! | `metrics`         | `types` `version`                                                                          | no   |
//! | `peer`            | `types` `pb` `raft` `metrics`                                                              | no   |
//! | `server`          | `types` `pb` `version` `storage` `mvcc` `lease` `auth` `cluster` `watch` `state` `raft` `peer` `config` `metrics` | no |
//! | `api`             | `types` `pb` `version` `server` `state` `watch` `mvcc` `metrics`                           | no   |
//! | `http`            | `version`                                                                                  | no   |
//! | `listen`          | `config`                                                                                   | no   |
//! | `main`            | `config` `logging` `version` `server` `api` `http` `listen` `metrics`                       | no   |

pub mod pb;
pub mod types;
pub mod version;

pub mod storage;

pub mod cluster;
pub mod lease;
pub mod mvcc;
pub mod watch;

pub mod raft;
pub mod state;

pub mod peer;
pub mod server;

pub mod api;
pub mod http;
pub mod listen;

pub mod config;
pub mod logging;
pub mod metrics;
