//! Keys of parts with unpolled inputs, each once.

use std::hash::Hash;

use rustc_hash::FxHashSet;

/// See the module. The newest comes out first.
#[derive(Debug)]
pub struct Touched<K> {
    queue: Vec<K>,
    has: FxHashSet<K>,
}

impl<K> Default for Touched<K> {
    fn default() -> Touched<K> {
        Touched { queue: Vec::new(), has: FxHashSet::default() }
    }
}

impl<K: Copy + Eq + Hash> Touched<K> {
    pub fn push(&mut self, key: K) {
        if self.has.insert(key) {
            self.queue.push(key);
        }
    }

    pub fn pop(&mut self) -> Option<K> {
        let key = self.queue.pop()?;
        self.has.remove(&key);
        Some(key)
    }
}
