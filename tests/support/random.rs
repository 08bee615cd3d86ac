//! Random numbers that depend on the seed only.

use holdfast::types::mix64;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(mix64(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix64(self.0)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }
}
