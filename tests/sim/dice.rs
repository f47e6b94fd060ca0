//! The world's one source of chance.

/// A small generator (splitmix64): all that it will ever give follows from its seed.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that does so `per_mille` times out of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A shuffled list of the numbers below `n`.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for at in (1..n).rev() {
            order.swap(at, self.below(at as u64 + 1) as usize);
        }
        order
    }

    /// Small numbers often, numbers up to `high` now and then.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let reach = self.between(low, high);
        self.between(low, reach)
    }
}

/// Spreads every bit of `word` over the whole result.
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A hash of bytes that goes on from `hash`.
pub fn hash_on(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks are exact"));
        hash = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word);
    }
    let rest = chunks.remainder().iter().fold(1, |rest, byte| rest << 8 | u64::from(*byte));
    mix(hash ^ mix(rest) ^ bytes.len() as u64)
}

/// A hash of text that is written to it piece by piece.
pub struct Hashing(pub u64);

impl std::fmt::Write for Hashing {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // Pieces are short and many.
        self.0 = text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Ok(())
    }
}
