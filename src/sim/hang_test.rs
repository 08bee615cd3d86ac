//! A disk that never answers again. The shards that do not need it go on.

use super::*;

/// Leaders on a disk that hangs have stepped down by then.
const HANGS_FOR: Duration = Duration::from_secs(15);

/// One disk hangs, and with even seeds another pod loses its power for good. Returns how many
/// volumes need neither; all of them must answer. Some of them need the other disks of the pod
/// whose disk hangs.
fn answers_beside_a_hanging_disk(seed: u64) -> Result<usize, Violation> {
    let only = Some(Vec::new());
    let mut run = Run::new(&Options { only, ..Options::new(seed, Duration::from_secs(5)) });
    while run.faults_on {
        run.step()?;
    }
    let pods = run.world.shape.pods;
    let disk = {
        let mut kernel = run.world.kernel.borrow_mut();
        let disk = seed as usize % kernel.disks.len();
        kernel.disks[disk].sick.stuck_until = Mono(u64::MAX);
        disk
    };
    let host = run.world.host_of(disk);
    run.step_for(HANGS_FOR)?;
    // Alone, the hanging disk stops nothing. Beside a lost pod, the other disks of its pod are
    // needed.
    let lost: &[Host] = if seed.is_multiple_of(2) { &[(host + 1) % pods] } else { &[] };
    for pod in lost {
        run.world.crash(*pod, Loss::Power);
    }
    run.step_for(SETTLED_AFTER)?;
    let volumes = run.world.answering_without(lost);
    run.all_answer(lost, Some(&volumes))?;
    run.check_history()?;
    Ok(volumes.len())
}

#[test]
fn a_disk_that_hangs_for_ever_stops_its_own_shards_only() {
    let mut answered = 0;
    for seed in 1..=12 {
        answered += answers_beside_a_hanging_disk(seed).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(answered > 0, "every volume needed the disk");
}
