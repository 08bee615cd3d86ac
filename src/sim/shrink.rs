//! From a run that fails to one that fails with fewer faults.

use crate::sim::run::{Options, Violation, run};

/// Leaves out faults for as long as the run fails without them, halves first, then smaller parts
/// (delta debugging: Zeller and Hildebrandt, 2002). Returns the smallest that was found and how it
/// fails; `None` when the run does not fail at all. Any failure counts, not only the first one.
pub fn shrink(options: &Options) -> Option<(Options, Violation)> {
    let mut violation = run(options).err()?;
    let mut kept: Vec<usize> = options.faults().into_iter().map(|(number, _)| number).collect();
    let mut parts = 2;
    while !kept.is_empty() {
        let len = kept.len().div_ceil(parts);
        let smaller = (0..kept.len()).step_by(len).find_map(|start| {
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
            None if len == 1 => break,
            None => parts = (2 * parts).min(kept.len()),
        }
    }
    Some((Options { only: Some(kept), ..options.clone() }, violation))
}
