//! Chooses the blocks to read and write, and their order. Pure.

use clap::ValueEnum;

use crate::sim::rng::Rng;
use crate::types::mix64;

/// How blocks are chosen, and whether they are read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Read blocks at random
    Randread,
    /// Write blocks at random
    Randwrite,
    /// Read one block after the other
    Read,
    /// Write one block after the other
    Write,
    /// Read and write blocks at random
    Randrw,
}

impl Pattern {
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Randread => "randread",
            Pattern::Randwrite => "randwrite",
            Pattern::Read => "read",
            Pattern::Write => "write",
            Pattern::Randrw => "randrw",
        }
    }

    /// True when the pattern changes the volume.
    pub fn writes(self) -> bool {
        matches!(self, Pattern::Randwrite | Pattern::Write | Pattern::Randrw)
    }

    fn is_sequential(self) -> bool {
        matches!(self, Pattern::Read | Pattern::Write)
    }
}

/// The next request to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub is_write: bool,
    pub offset: u64,
}

/// An endless sequence of requests for one connection.
#[derive(Clone, Debug)]
pub struct Requests {
    pattern: Pattern,
    read_percent: u64,
    block_bytes: u64,
    /// The part of the volume for this connection, in blocks.
    first: u64,
    count: u64,
    rng: Rng,
    made: u64,
}

impl Requests {
    /// Requests for connection `number` of `connections`. In sequential patterns each has its own
    /// part of the volume. `None`: the volume has fewer blocks than connections.
    pub fn new(
        pattern: Pattern,
        read_percent: u32,
        (size_bytes, block_bytes): (u64, u32),
        (number, connections): (u32, u32),
        seed: u64,
    ) -> Option<Requests> {
        let block_bytes = u64::from(block_bytes);
        let blocks = size_bytes / block_bytes;
        let (first, count) = match pattern.is_sequential() {
            true => {
                let part = blocks / u64::from(connections);
                (u64::from(number) * part, part)
            }
            false => (0, blocks),
        };
        let rng = Rng::new(seed ^ mix64(u64::from(number)));
        let read_percent = u64::from(read_percent);
        (count > 0).then_some(Requests {
            pattern,
            read_percent,
            block_bytes,
            first,
            count,
            rng,
            made: 0,
        })
    }
}

impl Iterator for Requests {
    type Item = Next;

    fn next(&mut self) -> Option<Next> {
        let block = match self.pattern.is_sequential() {
            true => self.made % self.count,
            false => self.rng.below(self.count),
        };
        let is_write = match self.pattern {
            Pattern::Randrw => self.rng.below(100) >= self.read_percent,
            pattern => pattern.writes(),
        };
        self.made += 1;
        Some(Next { is_write, offset: (self.first + block) * self.block_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(pattern: Pattern, place: (u32, u32)) -> Requests {
        Requests::new(pattern, 70, (40_960, 4096), place, 3).unwrap()
    }

    #[test]
    fn sequential_requests_go_through_a_part_and_begin_again() {
        let offsets: Vec<u64> =
            requests(Pattern::Write, (1, 3)).take(4).map(|next| next.offset / 4096).collect();
        assert_eq!(offsets, [3, 4, 5, 3]);
    }

    #[test]
    fn random_requests_reach_every_block_and_nothing_else() {
        let mut seen = [0; 10];
        for next in requests(Pattern::Randread, (0, 1)).take(1000) {
            assert!(!next.is_write && next.offset.is_multiple_of(4096));
            seen[(next.offset / 4096) as usize] += 1;
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }

    #[test]
    fn a_mix_has_its_share_of_both() {
        let count = |percent| {
            let requests = Requests::new(Pattern::Randrw, percent, (40_960, 4096), (0, 1), 1);
            requests.unwrap().take(1000).filter(|next| next.is_write).count()
        };
        assert_eq!((count(100), count(0)), (0, 1000));
        assert!((200..400).contains(&count(70)), "{}", count(70));
    }

    #[test]
    fn connections_differ_and_a_volume_can_be_too_small() {
        let [one, two] = [0, 1].map(|number| requests(Pattern::Randread, (number, 2)).take(50));
        assert!(one.zip(two).any(|(one, two)| one != two));
        assert!(Requests::new(Pattern::Read, 0, (4096, 4096), (0, 2), 1).is_none());
        assert!(Requests::new(Pattern::Randread, 0, (100, 4096), (0, 1), 1).is_none());
    }
}
