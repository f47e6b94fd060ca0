//! How members talk to each other, on their peer URLs.

pub mod codec;
