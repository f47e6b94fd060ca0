//! The server's own queues of proposals, waiters and reads, compiled here as they are: they are private to it.

#![allow(dead_code)]

use everwatch::server::error;

#[path = "../../src/server/pending.rs"]
mod pending;
#[path = "../../src/server/reads.rs"]
mod reads;
#[path = "../../src/server/waiters.rs"]
mod waiters;

pub(crate) use pending::Pending;
pub(crate) use reads::Reads;
pub(crate) use waiters::Waiters;
