//! The last changes of objects, numbered. Bounded: a reader that is too slow finds that what it
//! needs is gone, and begins anew.

use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub struct Ring<T> {
    items: VecDeque<T>,
    /// Number of the first item.
    first: u64,
    capacity: usize,
}

/// What a reader asked for is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes since then are no longer kept")]
pub struct TooOld;

impl<T> Ring<T> {
    /// Keeps the last `capacity` items; their numbers begin with 1.
    pub fn new(capacity: usize) -> Ring<T> {
        assert!(capacity > 0, "a ring keeps something");
        Ring { items: VecDeque::new(), first: 1, capacity }
    }

    /// Number of the last item; 0: there was none.
    pub fn last(&self) -> u64 {
        self.first + self.items.len() as u64 - 1
    }

    pub fn push(&mut self, item: T) {
        if self.items.len() == self.capacity {
            self.items.pop_front();
            self.first += 1;
        }
        self.items.push_back(item);
    }

    /// The items behind number `seen`, oldest first.
    pub fn since(&self, seen: u64) -> Result<impl Iterator<Item = &T>, TooOld> {
        // A number that was never given comes from another ring.
        if seen + 1 < self.first || seen > self.last() {
            return Err(TooOld);
        }
        Ok(self.items.range((seen + 1 - self.first) as usize..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A reader that comes back again and again sees every item once, or is told.
        #[test]
        fn a_reader_misses_nothing_unless_it_is_told(
            capacity in 1usize..20,
            steps in proptest::collection::vec((0u64..12, any::<bool>()), 1..40),
        ) {
            let mut ring = Ring::new(capacity);
            let (mut pushed, mut seen) = (0u64, 0u64);
            for (count, reads) in steps {
                for _ in 0..count {
                    pushed += 1;
                    ring.push(pushed);
                }
                prop_assert_eq!(ring.last(), pushed);
                if !reads {
                    continue;
                }
                let behind = pushed - seen;
                match ring.since(seen) {
                    Ok(items) => {
                        let items: Vec<u64> = items.copied().collect();
                        prop_assert_eq!(items, (seen + 1..=pushed).collect::<Vec<_>>());
                        prop_assert!(behind <= capacity as u64);
                    }
                    Err(TooOld) => prop_assert!(behind > capacity as u64),
                }
                seen = pushed;
            }
            prop_assert!(ring.since(pushed + 1).is_err());
        }
    }
}
