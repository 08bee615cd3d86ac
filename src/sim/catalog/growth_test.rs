//! A volume grows, shard after shard, while its holder writes, and hands over to the next one, and
//! pods die, the catalog's leader among them. At last it is deleted, and comes back. Every checker
//! runs all the time: what a holder does after its fence is never seen, in old shards or new ones.

use std::time::Duration;

use super::call::What;
use super::scenarios_test::Scenario;
use super::{Host, NewVolume};
use crate::control::state::CatalogState;
use crate::planted::{Mistake, assert_found};
use crate::sim::client::Target;
use crate::sim::disk::Loss;
use crate::sim::rng::Rng;
use crate::sim::world::World;
use crate::types::{Uuid, VolumeId};

const PODS: usize = 4;
const NAME: &str = "grows";
const BLOCKS_PER_SHARD: u64 = 20;
const GROWTHS: usize = 5;
/// Far from the registers of other volumes.
const FIRST_REGISTER: u64 = 1 << 60;
const RETENTION_MS: u64 = 24 * 60 * 60 * 1000;

/// A node that has the volume, and its client.
#[derive(Clone, Copy)]
struct Holder {
    host: Host,
    attachment: Uuid,
    client: usize,
}

struct Growth {
    scenario: Scenario,
    rng: Rng,
    volume: VolumeId,
    shards: u64,
    holder: Option<Holder>,
    published: u8,
    down: Option<Host>,
}

fn state(world: &World) -> &CatalogState {
    world.catalog.check.state()
}

fn blocks(world: &World) -> u64 {
    let (_, volume) = state(world).volume_by_name(NAME).expect("it is there");
    volume.size_bytes / volume.stripe_bytes * BLOCKS_PER_SHARD
}

/// Gives a client to an attachment. Returns the client's number.
fn attach(world: &mut World, attachment: Uuid) -> usize {
    let target = Target {
        export: attachment.to_string(),
        first_register: FIRST_REGISTER,
        region: 0..BLOCKS_PER_SHARD,
        blocks: BLOCKS_PER_SHARD,
        blocks_per_shard: BLOCKS_PER_SHARD,
        load: world.shape.load,
        half: None,
        may_be_full: false,
        may_be_lost: false,
        may_time_out: false,
        read_only: false,
        is_one_line: false,
    };
    let client = world.add_client(target, NAME, 0, true);
    grow_client(world, client, blocks(world));
    client
}

/// A client may use so many blocks from now on.
fn grow_client(world: &mut World, client: usize, blocks: u64) {
    world.attached[client].client.grow(blocks);
    let host = world.shape.pods + client;
    world.kernel.borrow_mut().wake(host, Duration::from_millis(1));
}

/// A client may be fenced from now on.
fn may_be_fenced(world: &mut World, client: usize) {
    world.attached[client].client.may_be_fenced = true;
}

/// A client is fenced in every shard.
fn fenced(world: &mut World, client: usize) {
    let now = world.kernel.borrow().now;
    world.shared.history.fenced(world.attached[client].client.writer(), now);
}

impl Growth {
    /// A closed volume of one shard.
    fn new(seed: u64) -> Growth {
        let mut scenario = Scenario::new(seed, PODS);
        let (name, number, closed) = (NAME.to_owned(), Some(0), true);
        let (shards, blocks_per_shard) = (1, BLOCKS_PER_SHARD);
        let new = NewVolume { name, number, shards, blocks_per_shard, closed, io_timeout_ms: 0 };
        scenario.world.catalog.ask(What::Create(new));
        scenario.until("the volume is there", |world| world.catalog.all_answered());
        let volume = state(&scenario.world).volume_by_name(NAME).expect("it was made").0;
        let (holder, down) = (None, None);
        Growth { scenario, rng: Rng::new(seed), volume, shards, holder, published: 0, down }
    }

    fn ask(&mut self, what: What) {
        self.scenario.world.catalog.ask(what);
    }

    fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        self.scenario.until(what, holds);
    }

    /// Asks for another holder. `None`: there was none.
    fn begin_handover(&mut self) -> (Option<Holder>, Host, Uuid) {
        let volume = self.volume;
        let before = self.holder.take();
        if let Some(Holder { host, client, .. }) = before {
            may_be_fenced(&mut self.scenario.world, client);
            self.ask(What::Unpublish { volume, host });
            self.until("it is unpublished", |world| world.catalog.all_answered());
        }
        self.published += 1;
        let (host, uid) = (self.rng.index(PODS), Uuid([self.published; 16]));
        self.ask(What::Publish { volume, host, uid });
        (before, host, uid)
    }

    /// The old holder is fenced in every shard, and the new one gets a client.
    fn end_handover(&mut self, (before, host, attachment): (Option<Holder>, Host, Uuid)) {
        self.until("every shard knows the new holder", |world| {
            let of = |uid| state(world).index.attachments_by_uid.get(&uid);
            let is_active = |uid| of(uid).is_some_and(|key| state(world).attachments[key].active);
            is_active(attachment) && before.is_none_or(|before| of(before.attachment).is_none())
        });
        let world = &mut self.scenario.world;
        if let Some(before) = before {
            fenced(world, before.client);
        }
        let client = attach(world, attachment);
        self.holder = Some(Holder { host, attachment, client });
    }

    fn begin_growth(&mut self) {
        self.shards += self.rng.between(1, 3);
        let (name, shards) = (NAME.to_owned(), self.shards);
        self.ask(What::Grow { name, shards });
    }

    fn end_growth(&mut self) {
        let wanted = self.shards * BLOCKS_PER_SHARD;
        self.until("clients may use the new size", |world| blocks(world) == wanted);
        if let Some(holder) = self.holder {
            grow_client(&mut self.scenario.world, holder.client, wanted);
        }
    }

    /// A pod dies, often the one that leads the catalog, and comes back some time later.
    fn kill_somebody(&mut self) {
        if let Some(host) = self.down.take() {
            self.scenario.world.start(host);
        }
        let leader = self.scenario.leader().filter(|_| self.rng.one_in(2));
        let host = leader.unwrap_or_else(|| self.rng.index(PODS));
        self.scenario.world.crash(host, Loss::Power);
        self.down = Some(host);
    }

    fn run_a_while(&mut self) {
        let time = Duration::from_millis(self.rng.below(1_500));
        self.scenario.run_for(time);
    }

    /// All that is on the volume is read, and can be explained.
    fn end(mut self) {
        if let Some(host) = self.down.take() {
            self.scenario.world.start(host);
        }
        self.until("everybody knows everything", |world| world.catalog.unsettled().is_none());
        self.scenario.run_for(Duration::from_secs(1));
        let holder = self.holder.expect("somebody has the volume");
        let blocks = blocks(&self.scenario.world);
        grow_client(&mut self.scenario.world, holder.client, blocks);
        self.run_a_while();
        self.scenario.world.read_all(&[]);
        self.until("everything is read", |world| world.all_read(None));
        let world = &self.scenario.world;
        world.shared.history.check().unwrap_or_else(|what| panic!("{what}"));
        assert_eq!(world.errors(), 0, "no request fails but those of fenced clients");
    }
}

/// Holders come and go while the volume grows.
fn a_volume_grows_while_its_holders_change() {
    for seed in 1..=8 {
        let mut it = Growth::new(seed);
        let first = it.begin_handover();
        it.end_handover(first);
        for round in 0..GROWTHS {
            it.run_a_while();
            // The first growth finds an access set that nothing changes.
            let begins_before = round > 0 && it.rng.one_in(3);
            let handover = begins_before.then(|| it.begin_handover());
            it.begin_growth();
            if it.rng.one_in(2) {
                it.run_a_while();
            }
            it.kill_somebody();
            let begins_now = round > 0 && handover.is_none() && it.rng.one_in(2);
            let handover = handover.or_else(|| begins_now.then(|| it.begin_handover()));
            if let Some(handover) = handover {
                it.end_handover(handover);
            }
            it.end_growth();
        }
        it.end();
    }
}

#[test]
fn new_shards_are_used_when_they_know_who_may() {
    a_volume_grows_while_its_holders_change();
}

#[test]
fn shards_that_are_not_ready_are_noticed() {
    assert_found(Mistake::GrownEarly, a_volume_grows_while_its_holders_change);
    assert_found(Mistake::BornOutdated, a_volume_grows_while_its_holders_change);
}

/// A volume is deleted while its holder writes, and comes back. What was acknowledged is there, and
/// the holder does nothing any more.
#[test]
fn a_deleted_volume_comes_back_as_it_was() {
    for seed in 1..=6 {
        let mut it = Growth::new(seed);
        it.begin_growth();
        let first = it.begin_handover();
        it.end_handover(first);
        it.end_growth();
        it.scenario.run_for(Duration::from_secs(2));
        let before = it.holder.take().expect("it was just admitted");
        may_be_fenced(&mut it.scenario.world, before.client);
        let (volume, name) = (it.volume, NAME.to_owned());
        it.ask(What::Delete { name, volume, retention_ms: RETENTION_MS });
        it.run_a_while();
        it.kill_somebody();
        it.until("the holder is fenced", |world| {
            world.catalog.all_answered() && state(world).attachments.is_empty()
        });
        fenced(&mut it.scenario.world, before.client);
        it.run_a_while();
        let name = NAME.to_owned();
        it.ask(What::Undelete { name, volume });
        it.until("it is back", |world| {
            let found = state(world).volume_by_name(NAME);
            world.catalog.all_answered() && found.is_some_and(|(_, it)| !it.is_withheld())
        });
        let next = it.begin_handover();
        it.end_handover(next);
        it.scenario.run_for(Duration::from_secs(1));
        it.end();
    }
}
