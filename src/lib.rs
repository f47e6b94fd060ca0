//! Everwatch: a replicated key-value store, wire-compatible with etcd v3.

pub mod pb;
pub mod types;
pub mod version;

pub mod storage;

pub mod mvcc;

pub mod state;

pub mod config;
pub mod http;
pub mod listen;
pub mod logging;
pub mod metrics;
