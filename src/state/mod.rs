//! The state machine.

pub mod applied;
pub mod command;
