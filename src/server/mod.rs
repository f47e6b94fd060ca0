//! The loops that pump the machines.

pub mod watch_loop;
