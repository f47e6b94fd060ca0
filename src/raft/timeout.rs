//! Election timeouts as a function of a seed.
//!
//! The crate draws them from the thread's random generator, whenever a member changes its role. That makes a run
//! impossible to repeat, so after every call the drawn value is replaced by one computed here from what it should
//! depend on. Only the next tick reads it, so replacing it in time is exact.

/// What a timeout depends on. Members with the same seed differ by `id`; one that campaigns in vain gets another
/// timeout each time because `campaigns` grows.
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) id: u64,
    pub(super) term: u64,
    pub(super) role: u64,
    pub(super) leader: u64,
    pub(super) campaigns: u64,
}

impl Draw {
    /// Ticks without a word of the leader before the member campaigns: at least `election_ticks`, less than twice that.
    pub(super) fn ticks(&self, election_ticks: usize) -> usize {
        let mut hash = 0;
        for word in [self.seed, self.id, self.term, self.role, self.leader, self.campaigns] {
            hash = mix(hash ^ word);
        }
        election_ticks + (hash % election_ticks as u64) as usize
    }
}

/// Spreads every bit of `word` over the whole result (the finishing steps of splitmix64).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_repeat_for_a_seed_and_spread_over_the_range() {
        let draw = |id, campaigns| Draw { seed: 7, id, term: 3, role: 0, leader: 0, campaigns }.ticks(10);
        assert_eq!(draw(1, 0), draw(1, 0));
        let mut seen: Vec<_> = (0..200).map(|campaigns| draw(1, campaigns)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (10..20).collect::<Vec<_>>());
        assert!((0..20).any(|campaigns| draw(1, campaigns) != draw(2, campaigns)));
    }
}
