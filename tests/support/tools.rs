//! Runs other programs. A missing tool fails the test: `scripts/setup.sh test` installs all.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a program to its end and returns its output; panics when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program to its end, with any exit status.
pub fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("run {program} (scripts/setup.sh test installs it): {error}")
    })
}

/// Like [`run`], as root, which mounting needs.
pub fn run_as_root(program: &str, arguments: &[&str]) -> String {
    match rustix::process::geteuid().is_root() {
        true => run(program, arguments),
        false => run("sudo", &[&["-n", program], arguments].concat()),
    }
}

/// Like [`try_run`], as root.
pub fn try_run_as_root(program: &str, arguments: &[&str]) -> Output {
    match rustix::process::geteuid().is_root() {
        true => try_run(program, arguments),
        false => try_run("sudo", &[&["-n", program], arguments].concat()),
    }
}

/// Pseudorandom bytes of a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut state = seed;
    while bytes.len() < len {
        state = state.wrapping_add(1);
        bytes.extend(holdfast::types::mix64(state ^ seed.rotate_left(32)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A file of noise with some long runs of zeroes, like a disk image.
pub fn write_image(path: &Path, seed: u64, len: usize) {
    let mut bytes = noise(seed, len);
    for (number, piece) in bytes.chunks_mut(1 << 20).enumerate() {
        if number % 5 == 3 {
            piece.fill(0);
        }
    }
    fs::write(path, bytes).unwrap();
}

/// The path as text, for arguments.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}
