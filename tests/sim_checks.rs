//! The judge judged: the checkers of recorded histories pass what is right and reject what is wrong.

#[path = "sim/checks/mod.rs"]
mod checks;
#[path = "sim/checks/rights_selftest.rs"]
mod rights_selftest;
#[path = "sim/checks/selftest.rs"]
mod selftest;
