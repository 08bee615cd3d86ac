//! A map from the extents of a shard. Every write looks its extents up several times, at places
//! outside any cache. A table of tables finds an extent in few steps, where a tree takes many. The
//! values are boxed: random writes to a large shard use few places of each inner table.

use std::ops::{Bound, RangeBounds};

use crate::types::Extent;

/// Extents of one inner table: one bit each in `taken`.
const CHUNK: u32 = 64;

pub(crate) struct ExtentMap<T> {
    /// The inner table at place `n` has the extents from `n * CHUNK` on; `None`: it is empty.
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// Inner tables in use.
    used: usize,
    len: usize,
}

struct Chunk<T> {
    /// One bit for each used place.
    taken: u64,
    places: [Option<Box<T>>; CHUNK as usize],
}

/// The inner table of an extent, and the place in it.
fn place_of(extent: Extent) -> (usize, usize) {
    ((extent.0 / CHUNK) as usize, (extent.0 % CHUNK) as usize)
}

impl<T> Default for ExtentMap<T> {
    fn default() -> ExtentMap<T> {
        ExtentMap { chunks: Vec::new(), used: 0, len: 0 }
    }
}

impl<T> ExtentMap<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of both kinds of tables, and of the values.
    pub(crate) fn bytes(&self) -> usize {
        const ALLOCATION_BYTES: usize = 8;
        let values = self.len * (size_of::<T>() + ALLOCATION_BYTES);
        let tables = self.chunks.len() * size_of::<Option<Box<Chunk<T>>>>();
        self.used * size_of::<Chunk<T>>() + tables + values
    }

    pub(crate) fn get(&self, extent: Extent) -> Option<&T> {
        let (chunk, place) = place_of(extent);
        self.chunks.get(chunk)?.as_ref()?.places[place].as_deref()
    }

    pub(crate) fn get_mut(&mut self, extent: Extent) -> Option<&mut T> {
        let (chunk, place) = place_of(extent);
        self.chunks.get_mut(chunk)?.as_mut()?.places[place].as_deref_mut()
    }

    /// The value of this extent; inserts the default if there is none.
    pub(crate) fn get_or_default(&mut self, extent: Extent) -> &mut T
    where
        T: Default,
    {
        let (chunk, place) = place_of(extent);
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk].get_or_insert_with(|| {
            self.used += 1;
            Box::new(Chunk { taken: 0, places: [const { None }; 64] })
        });
        let bit = 1 << place;
        if chunk.taken & bit == 0 {
            chunk.taken |= bit;
            self.len += 1;
        }
        chunk.places[place].get_or_insert_default()
    }

    pub(crate) fn remove(&mut self, extent: Extent) -> Option<T> {
        let (number, place) = place_of(extent);
        let chunk = self.chunks.get_mut(number)?.as_mut()?;
        let gone = chunk.places[place].take()?;
        chunk.taken &= !(1 << place);
        self.len -= 1;
        if chunk.taken == 0 {
            self.chunks[number] = None;
            self.used -= 1;
        }
        if self.len == 0 {
            self.chunks = Vec::new();
        }
        Some(*gone)
    }

    /// The extents of this range with their values, in order.
    pub(crate) fn range(
        &self,
        extents: impl RangeBounds<Extent>,
    ) -> impl Iterator<Item = (Extent, &T)> {
        let first = match extents.start_bound() {
            Bound::Included(extent) => extent.0 / CHUNK,
            Bound::Excluded(extent) => extent.0 / CHUNK,
            Bound::Unbounded => 0,
        };
        let chunks = self.chunks.iter().enumerate().skip(first as usize);
        chunks
            .filter_map(|(number, chunk)| Some((number as u32, chunk.as_ref()?)))
            .flat_map(|(number, chunk)| {
                let places = (0..CHUNK).zip(&chunk.places);
                places.filter_map(move |(place, found)| {
                    Some((Extent(number * CHUNK + place), found.as_deref()?))
                })
            })
            .skip_while({
                let start = extents.start_bound().cloned();
                move |(extent, _)| !(start, Bound::Unbounded).contains(extent)
            })
            .take_while(move |(extent, _)| (Bound::Unbounded, extents.end_bound()).contains(extent))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_map(
            steps in prop::collection::vec((0..300u32, any::<bool>()), 0..200),
            (from, to) in (0..320u32, 0..320u32),
        ) {
            let (mut map, mut model) = (ExtentMap::<u64>::default(), BTreeMap::new());
            for (number, (at, put)) in steps.into_iter().enumerate() {
                let extent = Extent(at);
                if put {
                    *map.get_or_default(extent) += number as u64 + 1;
                    *model.entry(extent).or_insert(0) += number as u64 + 1;
                } else {
                    prop_assert_eq!(map.remove(extent), model.remove(&extent));
                }
                prop_assert_eq!(map.get(extent), model.get(&extent));
                prop_assert_eq!(map.get_mut(extent), model.get_mut(&extent));
                prop_assert_eq!(map.is_empty(), model.is_empty());
            }
            let pairs = |bounds: (Bound<Extent>, Bound<Extent>)| {
                let ours = map.range(bounds).map(|(at, it)| (at, *it)).collect();
                let theirs = model.range(bounds).map(|(at, it)| (*at, *it)).collect();
                (ours, theirs)
            };
            let (from, to) = (Extent(from.min(to)), Extent(from.max(to)));
            for bounds in [
                (Bound::Unbounded, Bound::Unbounded),
                (Bound::Included(from), Bound::Excluded(to)),
                (Bound::Included(from), Bound::Included(to)),
                (Bound::Excluded(from), Bound::Unbounded),
            ] {
                let (ours, theirs): (Vec<_>, Vec<_>) = pairs(bounds);
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn what_is_empty_takes_no_memory() {
        let mut map = ExtentMap::<u64>::default();
        *map.get_or_default(Extent(1000)) = 1;
        assert!(map.chunks.iter().flatten().count() == 1);
        let bytes = map.bytes();
        assert!(bytes > 64 * 8 && bytes < 1024, "{bytes}");
        *map.get_or_default(Extent(0)) = 1;
        map.remove(Extent(1000));
        assert!(map.chunks.iter().flatten().count() == 1 && map.bytes() == bytes);
        map.remove(Extent(0));
        assert_eq!((map.bytes(), map.chunks.capacity()), (0, 0));
    }
}
