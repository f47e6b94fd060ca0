//! Everwatch: a replicated key-value store, wire-compatible with etcd v3.

pub mod pb;
pub mod types;

pub mod storage;

pub mod mvcc;

pub mod state;

pub mod peer;
