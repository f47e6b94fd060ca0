//! Multi-version storage of keys.

pub mod change;
pub mod revision;
