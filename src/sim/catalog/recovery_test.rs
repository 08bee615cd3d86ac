//! All members of the catalog are lost while clients write, again and again. Each time one pod
//! recovers it from an old copy and from what pods were told; a pod that is away then follows
//! later. Every checker runs all the time: no id is given twice, no volume that was removed comes
//! back, and what was acknowledged is read.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::call::What;
use super::scenarios_test::Scenario;
use super::store::Database;
use super::{Catalog, Host, NewVolume, pod_id};
use crate::control::membership::first;
use crate::control::recovery::format::Copy;
use crate::control::recovery::gathering::Gathering;
use crate::control::recovery::plan::{Loaded, copy_of, copy_of_told, new_plan};
use crate::control::reports::Table;
use crate::control::state::CatalogState;
use crate::sim::disk::Loss;
use crate::sim::rng::Rng;
use crate::sim::world::World;
use crate::types::Uuid;

const PODS: usize = 4;
const RECOVERIES: u8 = 3;

fn state(world: &World) -> &CatalogState {
    world.catalog.check.state()
}

fn copy(state: &CatalogState) -> Copy {
    let (head, rows) = copy_of(state, 1, true);
    Copy { head, rows: rows.collect() }
}

/// What a pod was told, as it is on its disk.
fn told(catalog: &Catalog, host: Host) -> Copy {
    let whole = catalog.pods[host].mirrors[1].whole();
    copy_of_told(whole, catalog.check.state().cluster.uid, 1)
}

/// The catalog is lost but for the member of `away`, and made again on `host`.
fn recover(catalog: &mut Catalog, number: u8, backup: Copy, host: Host, away: Option<Host>) {
    let plan = new_plan(Uuid([number; 16]), 1);
    let loaded = Loaded { plan, backup: Some(backup), member: None };
    let mut gathering = Gathering::new(loaded, pod_id(host)).unwrap();
    for other in (0..PODS).filter(|other| Some(*other) != away) {
        let knows = told(catalog, other);
        gathering.hear(pod_id(other), false, knows).unwrap();
    }
    assert_eq!(gathering.is_complete(), away.is_none());
    if let Some(away) = away {
        assert!(gathering.leave_out(&[pod_id(away)]));
    }
    let state = gathering.finish(catalog.wall_ms()).unwrap().state;
    for (_, pod) in catalog.pods.iter_mut().enumerate().filter(|(other, _)| Some(*other) != away) {
        (pod.member, pod.database, pod.leader_hint) = (None, None, None);
        pod.waiting.clear();
        pod.places.clear();
        pod.to_do.clear();
        pod.reports = Table::default();
        pod.outbox.0.borrow_mut().clear();
    }
    let member = *state.catalog.keys().next().expect("one member");
    let (row, snapshot) = first(member, state.clone());
    catalog.check.reborn(state);
    let (now, kept, run) = (catalog.local_time(host), catalog.kept, catalog.rng.next());
    let pod = &mut catalog.pods[host];
    pod.database = Some(Rc::new(RefCell::new(Database::create(row, &snapshot))));
    pod.resume(now, kept, run);
}

fn ask(scenario: &mut Scenario, what: What) {
    scenario.world.catalog.ask(what);
    scenario.until("it is done", |world| world.catalog.all_answered());
}

/// A volume that nobody uses. Every pod has heard of the catalog after that.
fn create(scenario: &mut Scenario, number: u8) {
    let (name, shards, blocks_per_shard) = (format!("v{number}"), 1, 20);
    let number = Some(number.into());
    let new = NewVolume { name, number, shards, blocks_per_shard, closed: true, io_timeout_ms: 0 };
    ask(scenario, What::Create(new));
    heard(scenario);
}

fn heard(scenario: &mut Scenario) {
    let revision = state(&scenario.world).revision();
    scenario.until("every pod has heard", |world| {
        world.catalog.pods.iter().all(|pod| pod.view().revision >= revision)
    });
}

fn delete(scenario: &mut Scenario, number: u8) {
    let name = format!("v{number}");
    let (volume, _) = state(&scenario.world).volume_by_name(&name).expect("it is there");
    ask(scenario, What::Delete { name: name.clone(), volume, retention_ms: 0 });
    scenario.until("it is gone", |world| state(world).volume_by_name(&name).is_none());
    heard(scenario);
}

#[test]
fn a_catalog_that_is_lost_again_and_again_loses_nothing() {
    for seed in 1..=8 {
        let (mut scenario, mut rng) = (Scenario::new(seed, PODS), Rng::new(seed));
        create(&mut scenario, 0);
        for round in 1..=RECOVERIES {
            let backup = copy(state(&scenario.world));
            create(&mut scenario, round);
            delete(&mut scenario, round - 1);
            scenario.run_for(Duration::from_millis(rng.below(2_000)));
            let away = rng.one_in(2).then(|| rng.index(PODS));
            if let Some(away) = away {
                scenario.world.crash(away, Loss::Power);
            }
            let hosts: Vec<Host> = (0..PODS).filter(|host| Some(*host) != away).collect();
            let host = hosts[rng.index(hosts.len())];
            recover(&mut scenario.world.catalog, round, backup, host, away);
            let history = Uuid([round; 16]);
            assert_eq!(state(&scenario.world).cluster.history, history);
            scenario.run_for(Duration::from_millis(rng.below(2_000)));
            if let Some(away) = away {
                scenario.world.start(away);
            }
            scenario.until("everybody follows the new catalog", |world| {
                world.catalog.pods.iter().all(|pod| pod.mirrors[1].position().history == history)
            });
        }
        scenario.world.read_all(&[]);
        scenario.until("everything is read", |world| world.all_read(None));
        let history = &scenario.world.shared.history;
        history.check().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        scenario.end();
    }
}
