//! How long to wait before the next try: longer each time, and never all clients at once.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// Pauses between tries.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next pause; the first is none: another member is probably there. Half of a pause is drawn, so that clients which
    /// lost the same member do not come back together.
    pub(super) fn pause(&mut self) -> Duration {
        let tries = self.tries;
        self.tries = tries.saturating_add(1);
        if tries == 0 {
            return Duration::ZERO;
        }
        let chance = getrandom::u32().map_or(1.0, |number| f64::from(number) / f64::from(u32::MAX));
        let full = SHORTEST.saturating_mul(1 << tries.min(10)).min(LONGEST);
        full.mul_f64(0.5 + 0.5 * chance)
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= SHORTEST && pauses[0] <= 2 * SHORTEST, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST) && pauses[19] >= LONGEST / 2, "{pauses:?}");
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::ZERO);
    }
}
