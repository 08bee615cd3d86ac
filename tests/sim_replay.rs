//! The same seed gives the same run, byte for byte, in two processes.

mod support;

use std::process::Command;

fn simulate(arguments: &[&str]) -> String {
    let output = Command::new(support::program())
        .arg("sim")
        .args(arguments)
        .output()
        .expect("run holdfast sim");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_seed_gives_the_same_trace_in_two_processes() {
    let arguments = ["--seed", "7", "--seconds", "6", "--trace"];
    let (first, second) = (simulate(&arguments), simulate(&arguments));
    let lines = |text: &str| text.lines().filter(|line| !line.contains("real time")).count();
    assert!(lines(&first) > 1000, "a trace has a line for everything");
    let differs = first.lines().zip(second.lines()).find(|(one, other)| one != other);
    let differs = differs.filter(|(one, _)| !one.contains("real time"));
    assert_eq!((differs, lines(&first)), (None, lines(&second)));
}
