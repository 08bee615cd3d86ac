//! Reduces a failing run to one with fewer faults and requests.

use std::time::{Duration, Instant};

use crate::sim::run::{Options, Violation, run};

/// After this time, the search ends with the smallest run so far.
const PATIENCE: Duration = Duration::from_secs(120);

/// Leaves out faults as long as the run still fails, halves first, then smaller parts (delta
/// debugging: Zeller and Hildebrandt, 2002), and then requests from the end. Returns the smallest
/// failing run and its violation; `None` when the run does not fail. Any violation counts, not only
/// the first one.
pub fn shrink(options: &Options) -> Option<(Options, Violation)> {
    let violation = run(options).err()?;
    let until = Instant::now() + PATIENCE;
    let (fewer_faults, violation) = leave_out_faults(options, violation, until);
    Some(leave_out_requests(fewer_faults, violation, until))
}

fn leave_out_faults(
    options: &Options,
    mut violation: Violation,
    until: Instant,
) -> (Options, Violation) {
    let mut kept: Vec<usize> = options.faults().into_iter().map(|(number, _)| number).collect();
    let mut parts = 2;
    while !kept.is_empty() {
        let len = kept.len().div_ceil(parts);
        let parts_left = (0..kept.len()).step_by(len).take_while(|_| Instant::now() < until);
        let smaller = { parts_left }.find_map(|start| {
            let end = (start + len).min(kept.len());
            let only: Vec<usize> = [&kept[..start], &kept[end..]].concat();
            let failed = run(&Options { only: Some(only.clone()), ..options.clone() }).err()?;
            Some((only, failed))
        });
        match smaller {
            Some((only, failed)) => {
                (kept, violation) = (only, failed);
                parts = 2.max(parts - 1);
            }
            None if len == 1 || Instant::now() >= until => break,
            None => parts = (2 * parts).min(kept.len()),
        }
    }
    (Options { only: Some(kept), ..options.clone() }, violation)
}

/// Finds the smallest sufficient number of requests by halving.
fn leave_out_requests(
    mut options: Options,
    mut violation: Violation,
    until: Instant,
) -> (Options, Violation) {
    let (mut too_few, mut enough) = (0, 1 << 24);
    while too_few + 1 < enough && Instant::now() < until {
        let between = too_few + (enough - too_few) / 2;
        let fewer = Options { requests: Some(between), ..options.clone() };
        match run(&fewer) {
            Ok(_) => too_few = between,
            Err(failed) => {
                enough = between;
                (options, violation) = (fewer, failed);
            }
        }
    }
    (options, violation)
}
