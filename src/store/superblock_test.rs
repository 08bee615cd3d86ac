use super::*;

fn sample(sequence: u64) -> Superblock {
    Superblock {
        sequence,
        cluster: Uuid(*b"a cluster for us"),
        disk: Uuid(*b"disk-for-testing"),
        incarnation: 3,
        lanes: 1,
        level: Level(1),
        features: 0,
        seed: 0x5eed,
        wal_bytes: 1 << 30,
        data_bytes_max: 1 << 40,
        data_file_bytes: 1 << 38,
        tail_seq: 12,
        tail_offset: 8192,
        durable_seq: 20 + sequence,
    }
}

fn chosen(copies: &[[u8; BLOCK_BYTES]; COPIES]) -> Result<Superblock, SuperblockError> {
    choose(&copies.each_ref().map(|copy| &copy[..]))
}

fn reseal(page: &mut [u8; BLOCK_BYTES]) {
    let crc = crc32fast::hash(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_torn_update_leaves_the_old_or_the_new() {
    let (old, new) = (encode(&sample(1)), encode(&sample(2)));
    // Any set of copies may have been written when the power went.
    for written in 0u32..16 {
        let copies = std::array::from_fn(|copy| match written & (1 << copy) {
            0 => old[copy],
            _ => new[copy],
        });
        let expected = if written.count_ones() >= 2 { 2 } else { 1 };
        assert_eq!(chosen(&copies), Ok(sample(expected)), "{written:04b}");
    }
}

#[test]
fn an_update_that_counted_survives_the_loss_of_any_copy() {
    let (old, new) = (encode(&sample(1)), encode(&sample(2)));
    for missed in 0..COPIES {
        for lost in 0..COPIES {
            let mut copies = new;
            copies[missed] = old[missed];
            copies[lost][2000] ^= 1;
            assert_eq!(chosen(&copies), Ok(sample(2)), "missed {missed}, lost {lost}");
        }
    }
}

#[test]
fn copies_that_differ_are_no_superblock() {
    let copies: [_; COPIES] = std::array::from_fn(|copy| encode(&sample(copy as u64))[copy]);
    assert_eq!(chosen(&copies), Err(SuperblockError::Damaged { intact: 4 }));
    let mut copies = encode(&sample(1));
    // A copy in the wrong place is a misdirected write.
    copies.swap(0, 1);
    copies[2][100] ^= 1;
    assert_eq!(chosen(&copies), Err(SuperblockError::Damaged { intact: 1 }));
    let unreadable: [&[u8]; COPIES] = [&[], &[], &copies[2], &copies[3]];
    assert_eq!(choose(&unreadable), Err(SuperblockError::Damaged { intact: 1 }));
}

#[test]
fn what_this_program_must_not_open_is_named() {
    let blank = [[0; BLOCK_BYTES]; COPIES];
    assert_eq!(chosen(&blank), Err(SuperblockError::NotHoldfast));
    assert_eq!(choose(&[&[]; COPIES]), Err(SuperblockError::NotHoldfast));

    let mut newer = encode(&sample(1));
    let mut features = encode(&sample(1));
    for copy in 0..COPIES {
        newer[copy][12] = 2;
        reseal(&mut newer[copy]);
        features[copy][16] = 8;
        reseal(&mut features[copy]);
    }
    let version = SuperblockError::NewerVersion { found: 2, known: 1 };
    assert_eq!(chosen(&newer), Err(version));
    let unknown = SuperblockError::UnknownFeatures { bits: 8 };
    assert_eq!(chosen(&features), Err(unknown));
}

#[test]
fn the_golden_superblock_is_read_and_written_the_same() {
    let golden = include_bytes!("../../tests/golden/v1/superblock.bin");
    let (pages, _) = golden.as_chunks::<BLOCK_BYTES>();
    let copies: [_; COPIES] = pages.try_into().unwrap();
    let superblock = chosen(&copies).unwrap();
    assert_eq!(superblock, sample(1));
    assert_eq!(encode(&superblock), copies);
}
