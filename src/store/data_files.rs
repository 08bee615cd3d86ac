//! How the slots of a disk are spread over data files. Pure.
//!
//! File systems have a largest file: 16 TiB on ext4. So a large disk has several data files, and
//! slot N is in file N / (slots per file). The lane sees one row of bytes, and each of its reads
//! and writes lies within one file. A sync covers all files.

use crate::store::messages::Slot;
use crate::types::EXTENT_BYTES;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFiles {
    data_bytes: u64,
    /// A multiple of the size of a slot.
    file_bytes: u64,
}

impl DataFiles {
    /// `data_bytes` in files of `file_bytes`; 0: all in one file. `None` if a slot would lie in two
    /// files.
    pub fn new(data_bytes: u64, file_bytes: u64) -> Option<DataFiles> {
        let slot = EXTENT_BYTES as u64;
        match file_bytes {
            0 => Some(DataFiles { data_bytes, file_bytes: u64::MAX / slot * slot }),
            _ => file_bytes.is_multiple_of(slot).then_some(DataFiles { data_bytes, file_bytes }),
        }
    }

    /// Number of files, at least 1.
    pub fn count(self) -> usize {
        self.data_bytes.div_ceil(self.file_bytes).max(1) as usize
    }

    /// Largest size of a file in bytes.
    pub fn bytes_of(self, file: usize) -> u64 {
        self.data_bytes.saturating_sub(self.start_of(file)).min(self.file_bytes)
    }

    /// The offset of the first byte of a file in the row of all.
    pub fn start_of(self, file: usize) -> u64 {
        (file as u64).saturating_mul(self.file_bytes)
    }

    /// The file that has this range, and its offset in it. Panics if the range is in two files.
    pub fn locate(self, offset: u64, len: usize) -> (usize, u64) {
        let (file, within) = (offset / self.file_bytes, offset % self.file_bytes);
        assert!(within + len as u64 <= self.file_bytes, "a transfer is within one data file");
        (file as usize, within)
    }

    /// True when `slot` is the first one of a file.
    pub fn begins_file(self, slot: Slot) -> bool {
        slot.offset().is_multiple_of(self.file_bytes)
    }

    /// Runs of neighbouring slots of one file, for one write or read each: position of the first,
    /// and count.
    pub(crate) fn runs(self, slots: &[Slot]) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, slot) in slots.iter().enumerate() {
            let may_join = !self.begins_file(*slot);
            match runs.last_mut() {
                Some((_, count)) if may_join && slots[at - 1].0 + 1 == slot.0 => *count += 1,
                _ => runs.push((at, 1)),
            }
        }
        runs
    }
}

/// The name of a data file.
pub fn data_file_name(file: usize) -> String {
    match file {
        0 => "data".to_owned(),
        _ => format!("data-{file}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::DATA_FILE_BYTES;

    const SLOT: u64 = EXTENT_BYTES as u64;

    #[test]
    fn every_slot_is_in_one_file_and_files_add_up() {
        for (slots, per_file) in [(0, 3), (1, 3), (3, 3), (4, 3), (9, 3), (10, 3), (10, 0)] {
            let files = DataFiles::new(slots * SLOT, per_file * SLOT).unwrap();
            let sizes: Vec<u64> = (0..files.count()).map(|file| files.bytes_of(file)).collect();
            assert_eq!(sizes.iter().sum::<u64>(), slots * SLOT);
            let mut places = std::collections::BTreeSet::new();
            for slot in (0..slots as u32).map(Slot) {
                let (file, offset) = files.locate(slot.offset(), EXTENT_BYTES);
                assert!(offset + SLOT <= sizes[file] && places.insert((file, offset)));
                assert_eq!(files.start_of(file) + offset, slot.offset());
                assert_eq!(files.begins_file(slot), offset == 0);
            }
        }
        assert_eq!(DataFiles::new(SLOT, SLOT / 2), None);
        let large = DataFiles::new(40 << 40, DATA_FILE_BYTES).unwrap();
        assert_eq!((large.count(), large.bytes_of(4)), (5, 8 << 40));
    }

    #[test]
    fn a_run_ends_with_its_file() {
        let files = DataFiles::new(12 * SLOT, 3 * SLOT).unwrap();
        let slots: Vec<Slot> = [1, 2, 3, 4, 5, 6, 8, 7].map(Slot).into();
        assert_eq!(files.runs(&slots), [(0, 2), (2, 3), (5, 1), (6, 1), (7, 1)]);
        let one = DataFiles::new(12 * SLOT, 0).unwrap();
        assert_eq!(one.runs(&slots), [(0, 6), (6, 1), (7, 1)]);
    }

    #[test]
    #[should_panic(expected = "within one data file")]
    fn a_transfer_of_two_files_is_a_mistake() {
        DataFiles::new(12 * SLOT, 3 * SLOT).unwrap().locate(2 * SLOT, 2 * EXTENT_BYTES);
    }
}
