//! Leases: time granted to a client, and the keys that go when it runs out.
//!
//! A lease has two halves, and they never meet in one struct.
//!
//! * The [`Table`] is replicated: which leases exist, their lengths, their keys, and the last *recorded rest* of each. It
//!   changes in apply alone and holds no clock, so every member has the same one.
//! * The [`Lessor`] is the leader's clock: when each lease runs out. Only the leader has one; it is made from the table when
//!   leadership begins and forgotten when it ends. It decides nothing by itself: what it offers for expiry becomes a command.
//!
//! ```text
//!            grant, revoke (log)                       promote, granted, revoked, remaining_changed
//!   clients ────────────────────▶ apply ──▶ Table ────────────────────────────────────▶ Lessor ◀──── renew (no log)
//!                                   ▲                                                      │
//!                                   └──────── LeaseExpire, LeaseRemaining (log) ◀──────────┘ expired, checkpoints
//! ```
//!
//! **Rests.** So that a new leader does not start every lease over, the leader records what is left: of a lease that was never
//! renewed every twentieth of its length, of one that is being renewed only once half its length has passed without a
//! renewal. Clients renew every third, so those leases never cost an entry in the log.
//! A recorded rest is a promise to the next leader that less is left than the full length. Renewing breaks it, so a renewal
//! of such a lease is not answered before the record is gone ([`Renewed::NeedsLog`]): otherwise a new leader could end a
//! lease that a client was just told it holds.
//!
//! Deliberately missing: any bound on expiries per second (they travel together in one entry), and the keys' values.

use std::time::Duration;

pub mod lessor;
pub mod table;

pub use lessor::{Lessor, Renewed};
pub use table::{Lease, Table};

/// The longest a lease can be granted for, in seconds. The edge refuses more.
pub const TTL_MAX: i64 = 9_000_000_000;

/// The shortest length a lease can have, in seconds; the proposer of a grant raises shorter ones to it. One and a half
/// elections: a lease shall not end because there was no leader to renew it.
pub fn ttl_min(election_ticks: u32, heartbeat: Duration) -> i64 {
    let time = heartbeat.saturating_mul(election_ticks.saturating_mul(3) / 2);
    i64::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(TTL_MAX)
}

/// Why the table did not do what a command asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The id is taken.
    Exists,
    /// There is no such lease.
    NotFound,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_lease_outlasts_an_election() {
        assert_eq!(ttl_min(10, Duration::from_millis(100)), 2);
        assert_eq!(ttl_min(50, Duration::from_millis(500)), 38);
        assert_eq!(ttl_min(1, Duration::from_millis(1)), 1);
    }
}
