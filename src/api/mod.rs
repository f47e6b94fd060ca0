//! What clients see.

pub mod watch;
