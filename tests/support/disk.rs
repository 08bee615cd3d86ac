//! The files of a pod's disk, and ways to damage them.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Cluster, wait_until};

pub const BLOCK: usize = 4096;

/// The data file of a pod's disk.
pub fn data_file(cluster: &Cluster, pod: usize) -> PathBuf {
    cluster.pod_dir(pod).join("disk-1/lane-0/data")
}

/// The log of a pod's disk.
pub fn log_file(cluster: &Cluster, pod: usize) -> PathBuf {
    cluster.pod_dir(pod).join("disk-1/lane-0/wal")
}

/// The places of these blocks in the first `bytes` of a file, if all of them are there.
pub fn find_blocks(path: &Path, bytes: usize, content: &[u8]) -> Option<Vec<u64>> {
    let file = File::open(path).unwrap();
    let mut held = vec![0; bytes.min(file.metadata().unwrap().len() as usize)];
    file.read_exact_at(&mut held, 0).unwrap();
    let places: HashMap<&[u8], u64> = held.chunks_exact(BLOCK).zip((0..).step_by(BLOCK)).collect();
    content.chunks_exact(BLOCK).map(|block| places.get(block).copied()).collect()
}

/// Waits until every block is in the data file of a pod, and returns their places.
pub fn wait_written_back(cluster: &Cluster, pod: usize, content: &[u8]) -> Vec<u64> {
    let path = data_file(cluster, pod);
    let mut found = None;
    wait_until("everything is written back", || {
        found = find_blocks(&path, 3 * content.len(), content);
        found.is_some()
    });
    found.expect("just found")
}

/// Flips one bit in each of these blocks of a file, durably.
pub fn rot(path: &Path, blocks: &[u64]) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for (number, at) in blocks.iter().enumerate() {
        let at = at + (number * 37 % BLOCK) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1 << (number % 8);
        file.write_all_at(&byte, at).unwrap();
    }
    file.sync_all().unwrap();
}
