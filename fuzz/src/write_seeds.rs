//! Writes the good inputs that the code makes into a folder: `write_seeds TARGET FOLDER`.

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, target, folder] = &arguments[..] else {
        panic!("write_seeds TARGET FOLDER");
    };
    let seeds = match target.as_str() {
        "peer" => holdfast_fuzz::testing::fuzz::peer::fuzz_seeds(),
        "disk" => holdfast_fuzz::testing::fuzz::disk::fuzz_seeds(),
        "index" => holdfast_fuzz::testing::fuzz::index::fuzz_seeds(),
        "catalog" => holdfast_fuzz::testing::fuzz::catalog::fuzz_seeds(),
        _ => Vec::new(),
    };
    for (name, bytes) in seeds {
        std::fs::write(Path::new(folder).join(name), bytes).expect("write a seed");
    }
}
