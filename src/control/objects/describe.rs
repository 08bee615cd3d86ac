//! Describes objects for the API. Pure: from the records, the last reports, and what the observer
//! remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::control::command::Addresses;
use crate::control::objects::condition::{Judgement, Statement};
use crate::control::objects::judge::{Judge, Tally};
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::objects::ledger::Ledger;
use crate::control::objects::observer::Observer;
use crate::control::objects::seen::Seen;
use crate::control::objects::source::Source;
use crate::control::proto::{
    AccessMode, Attachment, AttachmentSpec, AttachmentStatus, Class, ClassSpec, ClassStatus,
    Condition, Disk, DiskStatus, Event, EventSeverity, FileSystem, Limits, Meta, Node, NodeStatus,
    Phase, Pod, PodStatus, Progress, Replica, Shard, ShardStatus, View, Volume, VolumeSpec,
    VolumeStatus,
};
use crate::control::reconcile::Group;
use crate::control::state::rows;
use crate::types::{self, MemberId, PodId, Uuid, VolumeId};
use crate::view::{DiskReport, MemberState};

/// NBD addresses that a volume shows at most.
const ADDRESSES_MAX: usize = 8;
/// Pods that a node shows at most.
const PODS_MAX: usize = 16;
/// Nodes with replicas that a volume shows at most.
const REPLICA_NODES_MAX: usize = 16;

/// The inputs of a description.
#[derive(Clone, Copy)]
pub struct Describe<'a> {
    pub source: Source<'a>,
    pub seen: &'a Seen,
    pub ledger: &'a Ledger,
    /// The catalog's members and their pods.
    pub catalog: Catalog<'a>,
    /// The pod that leads the catalog.
    pub leader: PodId,
    pub now_ms: u64,
}

/// The catalog's own group, as its leader knows it.
#[derive(Clone, Copy)]
pub struct Catalog<'a> {
    pub group: &'a Group,
    pub source: Source<'a>,
}

/// A kind of object that is listed and watched.
pub trait Object: Sized + Clone + Send + 'static {
    const KIND: Kind;

    /// `None`: there is no such object.
    fn describe(from: &Describe<'_>, key: &ObjectKey, view: View) -> Option<Self>;
    fn of_meta(meta: Meta) -> Self;
    fn meta(&self) -> &Meta;
    fn phase(&self) -> Phase;

    /// True when the object belongs to what a request asks for besides its query. Most lists find
    /// these objects by their keys.
    fn is_within(&self, _within: &str) -> bool {
        true
    }
}

macro_rules! object {
    ($object:ident, $describe:ident) => {
        impl Object for $object {
            const KIND: Kind = Kind::$object;

            fn describe(from: &Describe<'_>, key: &ObjectKey, view: View) -> Option<$object> {
                from.$describe(key, view)
            }

            fn of_meta(meta: Meta) -> $object {
                $object { meta: Some(meta), ..$object::default() }
            }

            fn meta(&self) -> &Meta {
                self.meta.as_ref().expect("a description has it")
            }

            fn phase(&self) -> Phase {
                self.status.as_ref().map_or(Phase::Unspecified, |status| status.phase())
            }
        }
    };
}

object!(Node, node);
object!(Pod, pod);
object!(Disk, disk);
object!(Class, class);
object!(Volume, volume);
object!(Shard, shard);
object!(Attachment, attachment);

impl Object for Event {
    const KIND: Kind = Kind::Event;

    fn describe(from: &Describe<'_>, key: &ObjectKey, _: View) -> Option<Event> {
        let ObjectKey::Event(number) = key else { return None };
        let row = from.source.event(*number)?;
        let rows::Event { kind, name, uid, condition, reason, message, .. } = row.value.clone();
        let rows::Event { warns, count, first_ms, last_ms, .. } = row.value;
        let severity = if warns { EventSeverity::Warning } else { EventSeverity::Normal };
        let number = number.to_string();
        Some(Event {
            meta: Some(meta(&number, &number, row.revision, last_ms)),
            object_kind: kind,
            object_name: name,
            object_uid: uid,
            condition,
            reason,
            message,
            severity: severity.into(),
            count,
            first_unix_ms: first_ms,
            last_unix_ms: last_ms,
        })
    }

    fn of_meta(meta: Meta) -> Event {
        Event { meta: Some(meta), ..Event::default() }
    }

    fn meta(&self) -> &Meta {
        self.meta.as_ref().expect("a description has it")
    }

    /// Events have none.
    fn phase(&self) -> Phase {
        Phase::Unspecified
    }

    fn is_within(&self, within: &str) -> bool {
        match within.split_once('/') {
            None => within.is_empty() || within == self.object_kind,
            Some(object) => object == (&self.object_kind, &self.object_name),
        }
    }
}

/// The object, or the kind of objects, that events are asked for: `volume/demo`, `volume`; empty:
/// all.
pub fn about(kind: &str, name: &str) -> String {
    match name {
        "" => kind.to_owned(),
        _ => format!("{kind}/{name}"),
    }
}

impl<'a> Describe<'a> {
    pub fn new(
        source: Source<'a>,
        observer: &'a Observer,
        group: &'a Group,
        leader: PodId,
        now_ms: u64,
    ) -> Describe<'a> {
        let (seen, ledger) = (observer.seen(), observer.ledger());
        Describe { source, seen, ledger, catalog: Catalog { group, source }, leader, now_ms }
    }

    fn judge(&self) -> Judge<'a> {
        Judge { source: self.source, seen: self.seen }
    }

    /// Phase and conditions of an object that is there.
    fn state(&self, key: &ObjectKey) -> (Phase, Vec<Condition>) {
        let Some(judged) = self.judge().judge(key) else {
            return (Phase::Unspecified, Vec::new());
        };
        let Judgement { phase, statements } = judged.judgement;
        (phase, statements.iter().map(|it| self.condition(key, it)).collect())
    }

    fn condition(&self, key: &ObjectKey, statement: &Statement) -> Condition {
        // Of shards that are well, nobody remembers since when.
        let unknown = if key.kind() == Kind::Shard { 0 } else { self.now_ms };
        Condition {
            r#type: statement.kind.word().to_owned(),
            status: statement.truth.status().into(),
            reason: statement.why.word().to_owned(),
            message: statement.message.clone(),
            since_unix_ms: self.ledger.since_ms(key, statement).unwrap_or(unknown),
            observed_generation: 1,
        }
    }

    fn node(&self, key: &ObjectKey, _: View) -> Option<Node> {
        let ObjectKey::Node(name) = key else { return None };
        let row = self.source.node(name)?;
        let (phase, conditions) = self.state(key);
        let status = NodeStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            boot_id: row.value.boot_id.clone(),
            pods: self.source.pods_of(name).take(PODS_MAX).map(|pod| pod.0).collect(),
            lost: row.value.is_lost(),
        };
        let meta = meta(name, name, row.revision, row.value.created_ms);
        let meta = Meta { labels: row.value.labels.clone(), ..meta };
        Some(Node { meta: Some(meta), status: Some(status) })
    }

    fn pod(&self, key: &ObjectKey, _: View) -> Option<Pod> {
        let ObjectKey::Pod(pod) = key else { return None };
        let row = self.source.pod(*pod)?;
        let Addresses { api, peer, nbd } = row.value.addresses;
        let (phase, conditions) = self.state(key);
        let disks: Vec<Uuid> = self.source.disks_of(*pod).collect();
        let status = PodStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            api: api.to_string(),
            peer: peer.to_string(),
            nbd: nbd.map(|nbd| nbd.to_string()).unwrap_or_default(),
            catalog: self.catalog.part(*pod, self.leader).to_owned(),
            disks: u32::try_from(disks.len()).unwrap_or(u32::MAX),
            replicas: disks.iter().map(|disk| self.source.replicas_on(*disk)).sum(),
            version: self.seen.pod(*pod).map(|seen| seen.version.clone()).unwrap_or_default(),
            node: row.value.node.clone(),
        };
        let uid = row.value.uid.to_string();
        let meta = meta(&uid, &pod.to_string(), row.revision, row.value.created_ms);
        Some(Pod { meta: Some(meta), status: Some(status) })
    }

    fn disk(&self, key: &ObjectKey, _: View) -> Option<Disk> {
        let ObjectKey::Disk(disk) = key else { return None };
        let row = self.source.disk(*disk)?;
        let (phase, conditions) = self.state(key);
        let silent =
            DiskReport { capacity_bytes: row.value.capacity_bytes, ..DiskReport::default() };
        let report = self.seen.disk(*disk).map_or(&silent, |seen| &seen.report);
        let status = DiskStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            pod: row.value.pod.0,
            path: row.value.path.clone(),
            capacity_bytes: report.capacity_bytes,
            used_bytes: report.used_bytes,
            replicas: self.source.replicas_on(*disk),
            log_bytes: report.log_bytes,
            log_used_bytes: report.log_used_bytes,
            dirty_bytes: report.dirty_bytes,
            read_bytes: report.read_bytes,
            read_dirty_bytes: report.read_dirty_bytes,
            resyncs: report.resyncs,
        };
        let name = disk.to_string();
        let meta = meta(&name, &name, row.revision, row.value.created_ms);
        Some(Disk { meta: Some(meta), status: Some(status) })
    }

    fn class(&self, key: &ObjectKey, _: View) -> Option<Class> {
        let ObjectKey::Class(name) = key else { return None };
        let row = self.source.class(name)?;
        let class = &row.value;
        let spec = ClassSpec {
            replicas: class.replicas,
            failure_domain: class.failure_domain.clone(),
            disk_class: class.disk_class.clone(),
            overcommit_percent: class.overcommit_percent,
            io_timeout_ms: class.io_timeout_ms,
            limits: Some(Limits {
                iops: class.iops_max,
                bytes_per_second: class.bytes_per_second_max,
            }),
        };
        let status = ClassStatus {
            phase: Phase::Ready.into(),
            conditions: Vec::new(),
            observed_generation: class.generation,
        };
        let meta = meta(name, name, row.revision, class.created_ms);
        let meta = Meta { labels: class.labels.clone(), generation: class.generation, ..meta };
        Some(Class { meta: Some(meta), spec: Some(spec), status: Some(status) })
    }

    fn volume(&self, key: &ObjectKey, view: View) -> Option<Volume> {
        let ObjectKey::Volume(id) = key else { return None };
        let row = self.source.volume(*id)?;
        let volume = &row.value;
        let (phase, conditions) = self.state(key);
        let status = VolumeStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            progress: progress(phase, self.judge(), volume),
            shards: volume.shards(),
            stripe_bytes: volume.stripe_bytes,
            nbd: match view {
                View::Full if !volume.is_withheld() => self.addresses(volume),
                _ => Vec::new(),
            },
            id: id.0,
            size_bytes: volume.size_bytes,
            deleted_unix_ms: volume.kept.map_or(0, |kept| kept.deleted_ms),
            purge_unix_ms: volume.kept.map_or(0, |kept| kept.purge_ms),
            io_timeout_ms: volume.io_timeout_ms,
            nodes: self.nodes_with(*id),
            replica_nodes: self.replica_nodes(*id),
            file_system: volume
                .file_system
                .map(|it| FileSystem { kind: it.kind.name().to_owned(), made: it.made }),
        };
        let meta = Meta {
            labels: volume.labels.clone(),
            deleting: volume.deleting,
            ..meta(&volume.uid.to_string(), &volume.name, row.revision, volume.created_ms)
        };
        let spec = VolumeSpec {
            size_bytes: volume.wanted_bytes(),
            class: volume.class.clone(),
            replicas: volume.replicas,
            closed: !volume.access.open,
        };
        Some(Volume { meta: Some(meta), spec: Some(spec), status: Some(status) })
    }

    /// The nodes that have a volume, or are about to have or to lose it.
    fn nodes_with(&self, volume: VolumeId) -> Vec<String> {
        let rows = self.source.attachments_of(volume).filter_map(|key| self.source.attachment(key));
        let nodes: BTreeSet<&String> = rows.map(|row| &row.value.node).collect();
        nodes.into_iter().cloned().collect()
    }

    /// The nodes on which a volume's data lies.
    fn replica_nodes(&self, volume: VolumeId) -> Vec<String> {
        let pods = self.source.disks_with(volume).filter_map(|disk| self.pod_of(disk));
        let rows = pods.filter_map(|pod| self.source.pod(pod));
        let nodes: BTreeSet<&String> = rows.map(|row| &row.value.node).collect();
        nodes.into_iter().take(REPLICA_NODES_MAX).cloned().collect()
    }

    /// NBD addresses of the pods that hold a volume, those that lead most of it first.
    fn addresses(&self, volume: &'a rows::Volume) -> Vec<String> {
        let mut pods: HashMap<PodId, u64> = HashMap::new();
        for (_, shard) in self.source.shards_of(volume) {
            for pod in shard.members.iter().filter_map(|member| self.pod_of(member.disk)) {
                pods.entry(pod).or_default();
            }
            let leader = self.judge().leader(&shard.members);
            if let Some(pod) = leader.and_then(|leader| self.pod_of(leader.disk)) {
                *pods.entry(pod).or_default() += 1;
            }
        }
        let mut pods: Vec<(PodId, u64)> = pods.into_iter().collect();
        pods.sort_by_key(|(pod, leads)| (std::cmp::Reverse(*leads), *pod));
        let nbd = pods.iter().filter_map(|(pod, _)| self.source.pod(*pod)?.value.addresses.nbd);
        nbd.take(ADDRESSES_MAX).map(|nbd| nbd.to_string()).collect()
    }

    fn pod_of(&self, disk: Uuid) -> Option<PodId> {
        self.source.disk(disk).map(|row| row.value.pod)
    }

    fn shard(&self, key: &ObjectKey, _: View) -> Option<Shard> {
        let ObjectKey::Shard(id) = key else { return None };
        let row = self.source.shard(*id)?;
        let shard = &row.value;
        let volume = &self.source.volume(shard.volume)?.value;
        let (phase, conditions) = self.state(key);
        let leader = self.judge().leader(&shard.members);
        let status = ShardStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            volume: volume.name.clone(),
            position: shard.place.into(),
            leader_pod: leader.and_then(|it| self.pod_of(it.disk)).map_or(0, |pod| pod.0),
            replicas: shard.members.iter().map(|it| self.replica(it.member, it.disk)).collect(),
        };
        let name = id.to_string();
        let meta = meta(&name, &name, row.revision, volume.created_ms);
        let meta = Meta { deleting: volume.deleting, ..meta };
        Some(Shard { meta: Some(meta), status: Some(status) })
    }

    fn attachment(&self, key: &ObjectKey, _: View) -> Option<Attachment> {
        let ObjectKey::Attachment(key_of) = key else { return None };
        let row = self.source.attachment(*key_of)?;
        let volume = &self.source.volume(key_of.0)?.value;
        let (phase, conditions) = self.state(key);
        let status = AttachmentStatus {
            phase: phase.into(),
            conditions,
            observed_generation: 1,
            id: key_of.1.0,
        };
        let mode = match row.value.mode {
            types::AccessMode::ReadWrite => AccessMode::ReadWrite,
            types::AccessMode::ReadOnly => AccessMode::ReadOnly,
            types::AccessMode::Raw => AccessMode::Raw,
        };
        let spec = AttachmentSpec {
            volume: volume.name.clone(),
            node: row.value.node.clone(),
            mode: mode.into(),
            io_timeout_ms: row.value.io_timeout_ms,
        };
        let name = row.value.uid.to_string();
        let meta = meta(&name, &name, row.revision, row.value.created_ms);
        let meta = Meta { deleting: row.value.ends_with.is_some(), ..meta };
        Some(Attachment { meta: Some(meta), spec: Some(spec), status: Some(status) })
    }

    fn replica(&self, member: MemberId, disk: Uuid) -> Replica {
        let state = match self.seen.member(member, disk).map(|seen| seen.state) {
            Some(MemberState::Follower) => "follower",
            Some(MemberState::Leader) => "leader",
            Some(MemberState::Resyncing) => "resyncing",
            Some(MemberState::Faulted) => "faulted",
            Some(MemberState::Orphan) => "orphan",
            None => "unreported",
        };
        Replica {
            member: member.0,
            pod: self.pod_of(disk).map_or(0, |pod| pod.0),
            disk: disk.to_string(),
            state: state.to_owned(),
        }
    }
}

impl Catalog<'_> {
    /// A pod's role in the catalog.
    fn part(&self, pod: PodId, leader: PodId) -> &'static str {
        match self.source.catalog_member(pod) {
            None => "",
            Some(member) if self.group.voters.contains(&member) => match pod == leader {
                true => "leader",
                false => "voter",
            },
            Some(member) if self.group.learners.contains(&member) => "learner",
            Some(_) => "joining",
        }
    }
}

fn meta(uid: &str, name: &str, revision: u64, created_unix_ms: u64) -> Meta {
    Meta {
        uid: uid.to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        generation: 1,
        revision,
        created_unix_ms,
        deleting: false,
    }
}

/// How far a volume has come that is not ready, or that grows.
fn progress<'a>(phase: Phase, judge: Judge<'a>, volume: &'a rows::Volume) -> Option<Progress> {
    let tally = judge.tally(volume);
    let (done, total) = match phase {
        Phase::Creating => (tally.replicas - tally.missing, tally.replicas),
        Phase::Degraded if tally.resyncing > 0 => {
            let Tally { replicas, resyncing, missing, faulted, .. } = tally;
            (replicas - resyncing - missing - faulted, replicas)
        }
        Phase::Deleting => {
            let total = volume.shards() * u64::from(volume.replicas);
            (total.saturating_sub(judge.tally_of_all(volume).replicas), total)
        }
        _ if volume.growing_to.is_some() => {
            let new = judge.tally_of_new(volume);
            (new.replicas - new.missing, new.replicas)
        }
        _ => return None,
    };
    let unit = "replicas".to_owned();
    Some(Progress { done, total, unit })
}
