//! Bits flip in the data file of one replica. Every read through every pod still returns the
//! written data, and the replica is whole again afterwards. Blocks that rot in all replicas are
//! lost: an error, never a wrong byte.

mod support;

use support::disk::{BLOCK, data_file, find_blocks, rot, wait_written_back};
use support::nbd::NbdError;
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const BYTES: usize = 8 << 20;
const PIECE: usize = 1 << 20;
const EIO: u32 = 5;

/// A volume whose log names no slots: all content of the data file was written back.
fn written_back(name: &'static str, seed: u64) -> (Cluster, Vec<u8>) {
    written(Setup::new(name).set("wal_bypass=false"), seed)
}

fn written(setup: Setup, seed: u64) -> (Cluster, Vec<u8>) {
    let cluster = setup.volume("demo", "64MiB").start();
    let content = noise(seed, BYTES);
    let mut client = cluster.connect(1, "demo");
    for (number, piece) in content.chunks(PIECE).enumerate() {
        client.write((number * PIECE) as u64, piece).unwrap();
    }
    for pod in 1..=PODS {
        wait_written_back(&cluster, pod, &content);
    }
    (cluster, content)
}

fn read_through_every_pod(cluster: &Cluster, content: &[u8]) {
    for pod in 1..=PODS {
        let mut client = cluster.connect(pod, "demo");
        for (number, piece) in content.chunks(PIECE).enumerate() {
            let read = client.read((number * PIECE) as u64, PIECE).unwrap();
            assert!(read == piece, "MiB {number} is wrong through pod {pod}");
        }
    }
}

#[test]
fn a_replica_with_flipped_bits_is_read_around_and_repaired() {
    let (mut cluster, content) = written_back("bit_rot_stopped", 1);
    let victim = 2;
    cluster.stop();
    let places = wait_written_back(&cluster, victim, &content);
    let bad: Vec<u64> = places.iter().copied().step_by(3).collect();
    rot(&data_file(&cluster, victim), &bad);
    assert_eq!(find_blocks(&data_file(&cluster, victim), 3 * BYTES, &content), None);
    cluster.start_again();
    read_through_every_pod(&cluster, &content);
    cluster.lead_from(victim, "demo");
    read_through_every_pod(&cluster, &content);
    // All content is in its data file again; reading it needs no other replica.
    wait_written_back(&cluster, victim, &content);
    cluster.kill_everything();
    wait_written_back(&cluster, victim, &content);
    cluster.start_again();
    cluster.lead_from(victim, "demo");
    read_through_every_pod(&cluster, &content);
}

#[test]
fn bits_that_flip_under_a_leader_at_work_are_noticed_and_repaired() {
    let (cluster, content) = written_back("bit_rot_live", 2);
    for victim in 1..=PODS {
        cluster.lead_from(victim, "demo");
        let places = wait_written_back(&cluster, victim, &content);
        rot(&data_file(&cluster, victim), &places[..64]);
        let mut client = cluster.connect(victim, "demo");
        assert!(client.read(0, PIECE).unwrap() == content[..PIECE]);
        // Writes a part of a block whose rest is bad.
        client.write(65 * BLOCK as u64 + 7, b"x").unwrap();
        let mut expected = content[65 * BLOCK..66 * BLOCK].to_vec();
        expected[7] = b'x';
        assert_eq!(client.read(65 * BLOCK as u64, BLOCK).unwrap(), expected);
        client.write(65 * BLOCK as u64, &content[65 * BLOCK..66 * BLOCK]).unwrap();
        wait_written_back(&cluster, victim, &content);
    }
    read_through_every_pod(&cluster, &content);
}

/// Large writes bypass the WAL: the log names their slots for a while. Bad blocks in them are read
/// from elsewhere, and moved by a read once the log no longer names them.
#[test]
fn bits_that_flip_in_slots_that_the_log_names_are_repaired_later() {
    let (cluster, mut content) = written(Setup::new("bit_rot_named"), 4);
    cluster.lead_from(1, "demo");
    let mut client = cluster.connect(1, "demo");
    content[..PIECE].copy_from_slice(&noise(5, PIECE));
    client.write(0, &content[..PIECE]).unwrap();
    let places = wait_written_back(&cluster, 1, &content);
    rot(&data_file(&cluster, 1), &places[..64]);
    wait_until("every block is in the data file again", || {
        assert!(client.read(0, PIECE).unwrap() == content[..PIECE]);
        find_blocks(&data_file(&cluster, 1), 3 * BYTES, &content).is_some()
    });
    read_through_every_pod(&cluster, &content);
}

#[test]
fn a_block_that_is_bad_everywhere_is_an_error_until_it_is_written_again() {
    let (mut cluster, content) = written_back("bit_rot_everywhere", 3);
    cluster.stop();
    for pod in 1..=PODS {
        let places = wait_written_back(&cluster, pod, &content);
        rot(&data_file(&cluster, pod), &places[5..6]);
    }
    cluster.start_again();
    for pod in 1..=PODS {
        let mut client = cluster.connect(pod, "demo");
        let lost = client.read(5 * BLOCK as u64, BLOCK);
        assert!(matches!(lost, Err(NbdError::Server(EIO))), "{lost:?}");
        for other in [4, 6] {
            let read = client.read((other * BLOCK) as u64, BLOCK).unwrap();
            assert!(read == content[other * BLOCK..(other + 1) * BLOCK]);
        }
    }
    let mut client = cluster.connect(1, "demo");
    client.write(5 * BLOCK as u64, &content[5 * BLOCK..6 * BLOCK]).unwrap();
    read_through_every_pod(&cluster, &content);
    wait_until("nothing needs attention", || cluster.is_healthy());
}
