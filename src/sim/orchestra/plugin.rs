//! What the plugin of a node does with a volume, in the order of `src/csi/node/stage.rs`: it
//! claims the volume, looks what is on it, makes a file system if there never was one, and lets the
//! workload use it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::control::state::rows::FileSystem;
use crate::csi::node::making::{Found, Plan, Record, plan};
use crate::sim::catalog::{Order, boot_id, node_name};
use crate::sim::checks::history::Value;
use crate::sim::client::{Step, Target};
use crate::sim::orchestra::workload::Stage;
use crate::sim::orchestra::{Device, Orchestra, wrong};
use crate::sim::world::{VOLUME_SHIFT, WORKLOADS, World};
use crate::types::{FileSystemKind, Uuid};

/// How long a workload stays, at most.
const STAYS_MS: u64 = 2_500;
/// A plugin that has died begins again within this time.
const DEAD_MS: u64 = 500;

impl Orchestra {
    pub(super) fn claim(&mut self, number: usize, world: &mut World) {
        let workload = &self.workloads[number];
        let (volume, node) = (workload.volume(), node_name(workload.node));
        let boot_id = boot_id(workload.node, self.nodes[workload.node].boot);
        let order = Order::Claim { volume, node, boot_id };
        self.ask(number, order, Stage::Claiming, world);
    }

    pub(super) fn record(&mut self, number: usize, made: bool, world: &mut World) {
        let workload = &self.workloads[number];
        let (volume, node) = (workload.volume(), node_name(workload.node));
        let attachment = self.devices[self.device(number)].uid;
        let order = Order::Record { volume, node, attachment, made };
        let next = if made { Stage::Recording } else { Stage::Beginning };
        self.ask(number, order, next, world);
    }

    /// The present device of a workload.
    fn device(&self, number: usize) -> usize {
        let node = self.workloads[number].node;
        let mut all = self.devices.iter();
        let found = all.rposition(|it| it.workload == number && it.node == node && !it.is_gone);
        found.expect("it was opened")
    }

    /// Makes a device for an attachment, if there is none. What is left of others goes.
    pub(super) fn open(&mut self, number: usize, uid: Uuid, world: &mut World) {
        let workload = &self.workloads[number];
        let node = workload.node;
        let mine = |it: &&mut Device| it.workload == number && it.node == node && !it.is_gone;
        let mut is_there = false;
        for device in self.devices.iter_mut().filter(mine) {
            is_there |= device.uid == uid;
            if device.uid != uid {
                device.is_gone = true;
                world.attached[device.client].client.retire();
            }
        }
        if is_there {
            return;
        }
        let blocks = workload.shards * workload.blocks_per_shard;
        let target = Target {
            export: format!("{uid}?line=0"),
            first_register: (WORKLOADS + number as u64) << VOLUME_SHIFT,
            // The first block is the file system's.
            region: 1..blocks,
            blocks,
            blocks_per_shard: workload.blocks_per_shard,
            load: world.shape.load,
            half: None,
            may_be_full: false,
            may_be_lost: false,
            may_time_out: world.shape.io_timeout.is_some(),
            read_only: false,
            is_one_line: true,
        };
        let may_end = workload.holds(uid).is_none_or(|grant| grant.may_end);
        let client = world.add_client(target, &workload.name(), 0, true);
        world.attached[client].client.may_be_fenced = may_end;
        world.attached[client].client.close();
        let (leaves_at, is_gone, making) = (None, false, 0);
        let workload = number;
        self.devices.push(Device { uid, workload, node, client, making, leaves_at, is_gone });
    }

    pub(super) fn tell(
        &mut self,
        number: usize,
        uid: Uuid,
        steps: Vec<Step>,
        making: u64,
        world: &mut World,
    ) {
        let device = self.device(number);
        let device = &mut self.devices[device];
        assert_eq!(device.uid, uid, "it is the present one");
        device.making = making;
        world.attached[device.client].client.tell(steps);
        world.wake_client(device.client);
    }

    /// What the device has read or written, when that is done. If that failed, the plugin begins
    /// anew.
    pub(super) fn stepped(&mut self, number: usize, world: &mut World) -> Option<Vec<Value>> {
        let client = &world.attached[self.devices[self.device(number)].client].client;
        if client.has_failed {
            let workload = &mut self.workloads[number];
            workload.stage = if client.is_refused { Stage::Leaving } else { Stage::Published };
            return None;
        }
        client.told().map(<[Value]>::to_vec)
    }

    /// The plugin has seen what is on the device.
    pub(super) fn probed(
        &mut self,
        number: usize,
        record: Option<FileSystem>,
        values: &[Value],
        world: &mut World,
    ) {
        let workload = &self.workloads[number];
        let name = workload.name();
        let first = *values.last().expect("a volume has a block");
        let found = match first {
            0 => Found::Nothing,
            of if workload.written.contains_key(&of) => Found::FileSystem(FileSystemKind::Ext4),
            other => Found::Other(other.to_string()),
        };
        let record = match record {
            None => Record::None,
            Some(FileSystem { kind, made: true }) => Record::Made(kind),
            Some(FileSystem { kind, .. }) => Record::Begun(kind),
        };
        match plan(record, &found, None, false) {
            Ok(Plan::Use { is_news: false, .. }) => self.found(number, values, world),
            Ok(Plan::MakeIfBlank(_)) if values.iter().any(|value| *value != 0) => {
                wrong(world, format!("{name} was written to before its first file system"));
            }
            Ok(Plan::MakeIfBlank(_) | Plan::MakeOverOurs(_)) => {
                if workload.is_made {
                    wrong(world, format!("{name} has a file system, and gets another: {record:?}"));
                }
                self.record(number, false, world);
            }
            Ok(Plan::Use { .. }) => {
                wrong(world, format!("{name} has a file system that the catalog does not know"));
            }
            Err(error) => wrong(world, format!("{name}: {error}")),
        }
    }

    /// The file system that is there is used: it must be the one that was made.
    fn found(&mut self, number: usize, values: &[Value], world: &mut World) {
        let device = self.device(number);
        let stays = Duration::from_millis(self.rng.below(STAYS_MS));
        let (now, is_closing) = (world.now(), world.catalog.is_closing);
        let workload = &mut self.workloads[number];
        let (name, first) = (workload.name(), *values.last().expect("a volume has a block"));
        let makings: BTreeSet<_> = values.iter().map(|it| workload.written.get(it)).collect();
        match workload.in_use {
            // Nobody has written to it yet.
            None if makings.len() > 1 => {
                return wrong(world, format!("{name} has parts of the file systems {makings:?}"));
            }
            Some(before) if before != first => {
                return wrong(world, format!("{name} has file system {first}, and had {before}"));
            }
            _ => {}
        }
        (workload.in_use, workload.is_made) = (Some(first), true);
        (workload.stage, workload.leaves_at) = (Stage::Used, now + stays);
        let client = &mut world.attached[self.devices[device].client].client;
        client.work();
        if is_closing {
            client.read_all();
        }
        world.wake_client(self.devices[device].client);
    }

    /// Begins to make a file system, after the catalog has taken note.
    pub(super) fn make(&mut self, number: usize, world: &mut World) {
        let workload = &mut self.workloads[number];
        if workload.is_made {
            let name = workload.name();
            return wrong(world, format!("{name} has a file system, and another is begun"));
        }
        workload.makings += 1;
        workload.stage = Stage::Making;
        let (making, steps) = (workload.makings, workload.system_blocks().map(Step::Write));
        let uid = self.devices[self.device(number)].uid;
        self.tell(number, uid, steps.collect(), making, world);
    }

    /// The workload is there. Sometimes it is taken away while it writes.
    pub(super) fn use_it(&mut self, number: usize, world: &mut World) {
        let now = world.now();
        let device = &self.devices[self.device(number)];
        let client = &mut world.attached[device.client].client;
        let workload = &mut self.workloads[number];
        if client.is_refused {
            workload.stage = Stage::Leaving;
        } else if self.is_finishing {
            match (client.is_done(), workload.is_last) {
                (false, _) => {}
                (true, true) => workload.stage = Stage::Final,
                (true, false) => workload.stage = Stage::Leaving,
            }
        } else if now >= workload.leaves_at && !world.catalog.is_closing {
            if self.rng.one_in(2) {
                client.close();
            }
            workload.stage = Stage::Leaving;
        }
    }

    /// The node has started anew: of a workload, only the attachment is left.
    pub(super) fn stage_again(&mut self, number: usize) {
        let workload = &mut self.workloads[number];
        if workload.is_staged() {
            workload.ask.take().map(|ask| self.asks.remove(&ask));
            (workload.answer, workload.stage) = (None, Stage::Published);
        }
    }

    /// The plugin of a node dies, and leaves its work as it is.
    pub(super) fn plugin_dies(&mut self, number: usize, world: &mut World) {
        let after = Duration::from_millis(self.rng.below(DEAD_MS));
        if !self.workloads[number].is_in_plugin() {
            return;
        }
        self.abandon(number, world);
        let workload = &mut self.workloads[number];
        (workload.stage, workload.acts_at) = (Stage::Published, world.now() + after);
        let mine = |it: &&Device| it.workload == number && !it.is_gone;
        for device in self.devices.iter().filter(mine) {
            world.attached[device.client].client.tell([]);
        }
    }
}
