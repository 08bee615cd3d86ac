//! A cluster is upgraded pod by pod, to a program with a newer feature level, while clients work.
//! Programs of both kinds work together until the level is raised. A pod that goes back to the
//! older program opens no disk.

use std::time::Duration;

use super::call::What;
use super::scenarios_test::Scenario;
use super::{Host, NewVolume};
use crate::level::{Level, NEWEST};
use crate::sim::disk::Loss;
use crate::sim::world::World;

const NEXT: Level = Level(NEWEST.0 + 1);
const PODS: usize = 3;

/// The pod starts with another program.
fn restart(scenario: &mut Scenario, host: Host, newest: Level) {
    scenario.world.crash(host, Loss::Power);
    scenario.world.catalog.pods[host].newest = newest;
    scenario.world.start(host);
}

fn level(scenario: &Scenario) -> Level {
    scenario.world.catalog.check.state().cluster.level
}

fn answers(world: &World) -> u64 {
    world.attached.iter().map(|attached| attached.client.answers).sum()
}

/// Clients get more answers.
fn clients_go_on(scenario: &mut Scenario) {
    let before = answers(&scenario.world);
    scenario.run_for(Duration::from_secs(1));
    scenario.until("clients get answers", |world| answers(world) >= before + 20);
}

#[test]
fn a_cluster_is_upgraded_pod_by_pod_and_does_not_go_back() {
    for seed in 1..=6 {
        let mut scenario = Scenario::new(seed, PODS);
        scenario.world.catalog.ask(What::RaiseLevel(NEXT));
        let raise = scenario.world.catalog.asks.len() - 1;
        for host in 0..PODS {
            clients_go_on(&mut scenario);
            assert_eq!(level(&scenario), NEWEST, "pod {host} is still old, seed {seed}");
            restart(&mut scenario, host, NEXT);
        }
        scenario.until_done(raise);
        assert_eq!(level(&scenario), NEXT);
        scenario.until("every pod knows it", |world| {
            (0..PODS).all(|host| world.catalog.stored_view(host).level == NEXT)
        });
        // A pod that loses its power may lose the last thing that it was told.
        let (name, number) = ("next".to_owned(), Some(0));
        let (shards, blocks_per_shard, io_timeout_ms, closed) = (1, 16, 0, true);
        let next = NewVolume { name, number, shards, blocks_per_shard, io_timeout_ms, closed };
        scenario.world.catalog.ask(What::Create(next));
        let made = scenario.world.catalog.asks.len() - 1;
        scenario.until_done(made);
        clients_go_on(&mut scenario);
        restart(&mut scenario, 1, NEWEST);
        scenario.run_for(Duration::from_secs(3));
        assert!(!scenario.world.is_up(1), "it is too old, seed {seed}");
        scenario.world.catalog.pods[1].newest = NEXT;
        scenario.world.start(1);
        scenario.until("it is back", |world| world.is_up(1));
        clients_go_on(&mut scenario);
        scenario.end();
    }
}
