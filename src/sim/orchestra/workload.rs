//! What an orchestrator knows of a workload, and of its volume.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::state::rows::FileSystem;
use crate::sim::catalog::Told;
use crate::sim::checks::history::Value;
use crate::sim::rng::Rng;
use crate::types::{AttachmentId, Mono, Uuid, VolumeId};

/// Where a workload is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its volume is not there yet.
    Unborn,
    /// No node has it.
    Away,
    Publishing,
    /// The plugin begins.
    Published,
    Claiming,
    Probing(Option<FileSystem>),
    Beginning,
    Making,
    /// The end of the making is being recorded.
    Recording,
    /// It reads and writes.
    Used,
    /// It is about to be taken from its node.
    Leaving,
    Unpublishing,
    /// It was well at the end of the run.
    Final,
}

/// An attachment that the API has told of.
pub struct Grant {
    pub uid: Uuid,
    pub attachment: AttachmentId,
    pub node: usize,
    /// Somebody has asked for its end, or an earlier call may.
    pub may_end: bool,
    pub is_gone: bool,
}

/// See the module.
pub struct WorkloadState {
    pub number: usize,
    pub shards: u64,
    pub blocks_per_shard: u64,
    pub volume: Option<VolumeId>,
    pub stage: Stage,
    /// Where it is, or is to be.
    pub node: usize,
    pub ask: Option<usize>,
    pub answer: Option<Told>,
    /// The id and the uid of the newest request of the controller.
    pub request: (String, Uuid),
    /// Its newest requests.
    pub calls: Vec<usize>,
    pub acts_at: Mono,
    pub leaves_at: Mono,
    pub grants: Vec<Grant>,
    /// Machines for which a request was left alone by a controller that died: it may yet be carried
    /// out.
    pub loose: BTreeSet<usize>,
    /// The makings of file systems by what they write.
    pub written: BTreeMap<Value, u64>,
    pub makings: u64,
    /// The end of a making was told to the catalog. The catalog has answered.
    pub made_asked: bool,
    pub is_made: bool,
    /// The first block, since the workload was there.
    pub in_use: Option<Value>,
    /// It is brought for the last time.
    pub is_last: bool,
}

impl WorkloadState {
    pub fn draw(number: usize, rng: &mut Rng) -> WorkloadState {
        WorkloadState {
            number,
            shards: rng.between(1, 4),
            blocks_per_shard: rng.between(17, 60),
            volume: None,
            stage: Stage::Unborn,
            node: 0,
            ask: None,
            answer: None,
            request: (String::new(), Uuid([0; 16])),
            calls: Vec::new(),
            acts_at: Mono(0),
            leaves_at: Mono(0),
            grants: Vec::new(),
            loose: BTreeSet::new(),
            written: BTreeMap::new(),
            makings: 0,
            made_asked: false,
            is_made: false,
            in_use: None,
            is_last: false,
        }
    }

    pub fn name(&self) -> String {
        format!("workload-{}", self.number)
    }

    pub fn volume(&self) -> VolumeId {
        self.volume.expect("it was born")
    }

    /// Its node has it, or is about to use it.
    pub fn is_staged(&self) -> bool {
        matches!(self.stage, Stage::Published | Stage::Used) || self.is_in_plugin()
    }

    /// The plugin is busy with it.
    pub fn is_in_plugin(&self) -> bool {
        matches!(
            self.stage,
            Stage::Claiming
                | Stage::Probing(_)
                | Stage::Beginning
                | Stage::Making
                | Stage::Recording
        )
    }

    /// The blocks of a file system: the first one of each shard. That of the volume comes last.
    pub fn system_blocks(&self) -> impl Iterator<Item = u64> + use<> {
        let blocks_per_shard = self.blocks_per_shard;
        (0..self.shards).rev().map(move |shard| shard * blocks_per_shard)
    }

    pub fn holds(&self, uid: Uuid) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.uid == uid)
    }
}
