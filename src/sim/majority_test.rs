//! A majority is lost while requests may wait for a bounded time only.

use super::*;
use crate::limits::Budgets;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Routers look at waiting requests so often, and clocks are fast or slow.
const MARGIN: Duration = Duration::from_millis(300);
const AWAY_FOR: Duration = Duration::from_secs(10);

/// All pods but one lose their power, and come back. `None`: the seed draws budgets so small that
/// requests wait in the sockets, where no router sees them.
fn loses_its_majority(seed: u64) -> Option<Result<(), Violation>> {
    let (only, io_timeout) = (Some(Vec::new()), Some(TIMEOUT));
    let reads = Some(ReadMode::Lease);
    let options = Options::new(seed, Duration::from_secs(5));
    let options = Options { only, io_timeout, reads, ..options };
    (options.shape().budgets == Budgets::default()).then(|| fails_in_time(&options))
}

fn fails_in_time(options: &Options) -> Result<(), Violation> {
    let mut run = Run::new(options);
    while run.faults_on {
        run.step()?;
    }
    run.world.answers();
    let before = run.world.shared.timed_out;
    for host in 1..run.world.shape.pods {
        run.world.crash(host, Loss::Power);
    }
    run.step_for(AWAY_FOR)?;
    let timed_out = run.world.shared.timed_out - before;
    assert!(timed_out > 0, "there is a client that has lost its shards");
    let slowest = run.world.answers().into_iter().map(|(_, slowest)| slowest).max();
    assert!(slowest <= Some(TIMEOUT + MARGIN), "an answer came after {slowest:?}");
    run.heal(&[]);
    run.all_answer(&[], None)?;
    run.check_history()?;
    run.settle()?;
    Ok(())
}

#[test]
fn without_a_majority_requests_fail_in_time_and_go_on_when_it_is_back() {
    let mut runs = 0;
    for seed in 1..=40 {
        match loses_its_majority(seed) {
            None => {}
            Some(Ok(_)) => runs += 1,
            Some(Err(violation)) => panic!("{violation}"),
        }
    }
    assert!(runs >= 5, "only {runs} of the seeds have such budgets");
}
