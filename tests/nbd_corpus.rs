//! Replays the fuzzer's corpus: inputs that once broke the NBD session, or reach deep into it.

#[test]
fn the_nbd_session_survives_its_corpus() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/nbd");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("list the corpus") {
        let path = entry.expect("list the corpus").path();
        let input = std::fs::read(&path).expect("read a seed");
        println!("{}", path.display());
        for mode in 0..16 {
            let mut input = input.clone();
            if let Some(first) = input.first_mut() {
                *first = mode;
            }
            holdfast::front::nbd::fuzz_one(&input);
        }
        count += 1;
    }
    assert!(count >= 20, "the corpus is there");
}
