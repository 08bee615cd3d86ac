//! Judges objects by their records and the last reports: phase and conditions. Pure.
//!
//! A volume is *creating* until each of its shards has a leader and the replicas that can be there
//! are there. The catalog then remembers it. A shard that is without a leader later is *paused*.

use crate::config::size::ByteSize;
use crate::control::objects::condition::{Judged, Judgement, Statement, Truth, Type, Why};
use crate::control::objects::key::ObjectKey;
use crate::control::objects::seen::Seen;
use crate::control::objects::source::Source;
use crate::control::proto::Phase;
use crate::control::state::rows::{Attachment, Shard, ShardMember, Volume};
use crate::types::{PodId, Uuid, VolumeId};
use crate::view::MemberState;

/// What objects are judged by.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    pub source: Source<'a>,
    pub seen: &'a Seen,
}

/// How the replicas of one or more shards are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub shards: u64,
    pub without_leader: u64,
    pub replicas: u64,
    /// Not reported by any pod.
    pub missing: u64,
    /// Missing on disks that work.
    pub unmade: u64,
    pub resyncing: u64,
    pub faulted: u64,
}

impl<'a> Judge<'a> {
    /// `None`: the object is not there.
    pub fn judge(&self, key: &ObjectKey) -> Option<Judged> {
        let named = |revision, name: &str, judgement| {
            Some(Judged { revision, uid: name.to_owned(), name: name.to_owned(), judgement })
        };
        match key {
            ObjectKey::Node(name) => named(self.source.node(name)?.revision, name, self.node(name)),
            ObjectKey::Pod(pod) => {
                let row = self.source.pod(*pod)?;
                let (revision, uid, name) =
                    (row.revision, row.value.uid.to_string(), pod.to_string());
                Some(Judged { revision, uid, name, judgement: self.pod(*pod) })
            }
            ObjectKey::Disk(disk) => {
                let row = self.source.disk(*disk)?;
                named(row.revision, &disk.to_string(), self.disk(*disk, row.value.pod))
            }
            ObjectKey::Class(name) => {
                let judgement = Judgement { phase: Phase::Ready, statements: Vec::new() };
                named(self.source.class(name)?.revision, name, judgement)
            }
            ObjectKey::Volume(volume) => {
                let row = self.source.volume(*volume)?;
                let judgement = self.volume(&row.value);
                let Volume { uid, name, .. } = &row.value;
                let (uid, name) = (uid.to_string(), name.clone());
                Some(Judged { revision: row.revision, uid, name, judgement })
            }
            ObjectKey::Shard(shard) => {
                let row = self.source.shard(*shard)?;
                let volume = self.source.volume(row.value.volume)?;
                named(row.revision, &shard.to_string(), self.shard(&row.value, &volume.value))
            }
            ObjectKey::Event(number) => {
                let judgement = Judgement { phase: Phase::Unspecified, statements: Vec::new() };
                named(self.source.event(*number)?.revision, &number.to_string(), judgement)
            }
            ObjectKey::Attachment(attachment) => {
                let row = self.source.attachment(*attachment)?;
                let judgement = self.attachment(attachment.0, &row.value);
                named(row.revision, &row.value.uid.to_string(), judgement)
            }
        }
    }

    fn node(&self, name: &str) -> Judgement {
        let mut pods = self.source.pods_of(name).peekable();
        let is_heard = match pods.peek() {
            Some(_) => pods.any(|pod| self.seen.pod(pod).is_some()),
            None => !self.seen.is_silent(name),
        };
        let has_nothing = || self.source.attachments_on(name).next().is_none();
        if !is_heard && pods.peek().is_none() && has_nothing() {
            // Nobody misses it: it may have been taken away.
            let unknown = Statement { truth: Truth::Unknown, ..silent() };
            return Judgement { phase: Phase::Unspecified, statements: vec![unknown] };
        }
        match is_heard {
            true => Judgement {
                phase: Phase::Up,
                statements: vec![Statement::holds(Type::Reachable, Why::Reporting)],
            },
            false => Judgement { phase: Phase::Unreachable, statements: vec![silent()] },
        }
    }

    fn pod(&self, pod: PodId) -> Judgement {
        let Some(seen) = self.seen.pod(pod) else {
            let unknown = Statement::new(Type::DisksWork, Truth::Unknown, Why::PodSilent, "");
            return Judgement { phase: Phase::Unreachable, statements: vec![silent(), unknown] };
        };
        let disks = match seen.failed_disks {
            0 => Statement::holds(Type::DisksWork, Why::AllDisksWork),
            failed => {
                let message = format!("{} failed", some(failed.into(), "disk", "disks"));
                Statement::new(Type::DisksWork, Truth::False, Why::DiskFailed, message)
            }
        };
        let reachable = Statement::holds(Type::Reachable, Why::Reporting);
        if seen.catalog_failed.is_empty() {
            return Judgement { phase: Phase::Up, statements: vec![reachable, disks] };
        }
        let (kind, why) = (Type::CatalogRuns, Why::CatalogStopped);
        let stopped = Statement::new(kind, Truth::False, why, &seen.catalog_failed);
        Judgement { phase: Phase::Degraded, statements: vec![stopped, reachable, disks] }
    }

    fn disk(&self, disk: Uuid, pod: PodId) -> Judgement {
        let (phase, statement) = match self.seen.disk(disk) {
            None => {
                let message = match self.seen.pod(pod) {
                    None => format!("pod {pod} is silent"),
                    Some(_) => format!("pod {pod} does not report the disk"),
                };
                let why = Why::PodSilent;
                let unknown = Statement::new(Type::Usable, Truth::Unknown, why, message);
                (Phase::Unreachable, unknown)
            }
            Some(seen) => match &seen.report.failed {
                None => (Phase::Up, Statement::holds(Type::Usable, Why::Working)),
                Some(reason) => {
                    let failed = Statement::new(Type::Usable, Truth::False, Why::GivenUp, reason);
                    (Phase::Failed, failed)
                }
            },
        };
        Judgement { phase, statements: vec![statement] }
    }

    fn attachment(&self, volume: VolumeId, attachment: &Attachment) -> Judgement {
        let (phase, why) = match (attachment.ends_with, attachment.active) {
            (Some(_), _) => (Phase::Deleting, Why::BeingFenced),
            (None, false) => (Phase::Creating, Why::BeingAdmitted),
            (None, true) => {
                let statement = Statement::holds(Type::Settled, Why::Admitted);
                return Judgement { phase: Phase::Ready, statements: vec![statement] };
            }
        };
        let waiting = self.source.volume(volume).map(|row| self.tally_of_all(&row.value));
        let message = match waiting.unwrap_or_default() {
            Tally { without_leader: 0, .. } => "it is waited for the shards".to_owned(),
            Tally { without_leader, shards, .. } => {
                format!("{without_leader} of {shards} shards have no leader")
            }
        };
        let statement = Statement::new(Type::Settled, Truth::False, why, message);
        Judgement { phase, statements: vec![statement] }
    }

    /// How the replicas of a volume are. Those of shards that clients cannot use yet do not count.
    pub fn tally(&self, volume: &'a Volume) -> Tally {
        self.tally_of(volume, 0..volume.shards_in_use())
    }

    /// How the replicas of the shards are that a volume grows by.
    pub fn tally_of_new(&self, volume: &'a Volume) -> Tally {
        self.tally_of(volume, volume.shards_in_use()..volume.shards())
    }

    pub fn tally_of_all(&self, volume: &'a Volume) -> Tally {
        self.tally_of(volume, 0..volume.shards())
    }

    fn tally_of(&self, volume: &'a Volume, places: std::ops::Range<u64>) -> Tally {
        let mut tally = Tally::default();
        let all = self.source.shards_of(volume);
        for (_, shard) in all.filter(|(_, shard)| places.contains(&shard.place.into())) {
            self.count(shard, &mut tally);
        }
        tally
    }

    fn count(&self, shard: &Shard, tally: &mut Tally) {
        tally.shards += 1;
        tally.without_leader += u64::from(self.leader(&shard.members).is_none());
        for member in &shard.members {
            tally.replicas += 1;
            match self.seen.member(member.member, member.disk).map(|seen| seen.state) {
                Some(MemberState::Leader | MemberState::Follower) => {}
                Some(MemberState::Resyncing) => tally.resyncing += 1,
                Some(MemberState::Faulted | MemberState::Orphan) => tally.faulted += 1,
                None => {
                    tally.missing += 1;
                    tally.unmade += u64::from(self.seen.works(member.disk));
                }
            }
        }
    }

    /// The member that leads, of those that say so the one with the newest term.
    pub fn leader(&self, members: &[ShardMember]) -> Option<ShardMember> {
        let leading = members.iter().filter_map(|member| {
            let seen = self.seen.member(member.member, member.disk)?;
            (seen.state == MemberState::Leader).then_some((seen.term, *member))
        });
        leading.max_by_key(|(term, _)| *term).map(|(_, member)| member)
    }

    fn volume(&self, volume: &'a Volume) -> Judgement {
        let mut judgement = judge_tally(&self.tally(volume), Life::of(volume, volume.creating));
        judgement.statements.extend(self.growth(volume));
        judgement
    }

    /// What keeps clients from using the size that is wanted.
    fn growth(&self, volume: &'a Volume) -> Option<Statement> {
        let wanted_bytes =
            volume.growing_to.filter(|_| !volume.deleting && volume.kept.is_none())?;
        let new = self.tally_of_new(volume);
        let is = ByteSize(volume.size_bytes).rounded();
        let to = ByteSize(wanted_bytes).rounded();
        let waits = match new {
            Tally { without_leader: 0, unmade: 0, .. } => {
                "it is waited for the access set of the new shards".to_owned()
            }
            Tally { without_leader: 0, unmade, .. } => {
                format!("{} not made yet", some(unmade, "replica is", "replicas are"))
            }
            Tally { without_leader, shards, .. } => {
                format!(
                    "{without_leader} of {} no leader yet",
                    some(shards, "new shard has", "new shards have")
                )
            }
        };
        let message = format!("from {is} to {to}: {waits}");
        Some(Statement::new(Type::Grown, Truth::False, Why::NewShardsNotReady, message))
    }

    fn shard(&self, shard: &Shard, volume: &Volume) -> Judgement {
        let mut tally = Tally::default();
        self.count(shard, &mut tally);
        let is_new = u64::from(shard.place) >= volume.shards_in_use();
        judge_tally(&tally, Life::of(volume, volume.creating || is_new))
    }
}

/// What the catalog's record says of a volume, or of one of its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// `is_new`: it may not have been usable yet.
    Used {
        is_new: bool,
    },
    /// It was deleted, and can be brought back.
    Retained,
    /// It comes back.
    Restoring,
    Deleting,
}

impl Life {
    fn of(volume: &Volume, is_new: bool) -> Life {
        match volume {
            Volume { deleting: true, .. } => Life::Deleting,
            Volume { kept: Some(_), .. } => Life::Retained,
            Volume { restoring: Some(_), .. } => Life::Restoring,
            _ => Life::Used { is_new },
        }
    }
}

fn silent() -> Statement {
    Statement::new(Type::Reachable, Truth::False, Why::Silent, "it does not report")
}

/// Judges a volume or a shard by its replicas.
fn judge_tally(tally: &Tally, life: Life) -> Judgement {
    let creating = match life {
        Life::Used { is_new } => is_new,
        Life::Deleting => {
            let message = "its disks have not all given its space back";
            let of = |kind| Statement::new(kind, Truth::False, Why::BeingDeleted, message);
            let statements = vec![of(Type::Available), of(Type::Redundant)];
            return Judgement { phase: Phase::Deleting, statements };
        }
        // Whatever its replicas are like, nobody can use it. They are told of as always.
        Life::Retained => return withheld(tally, Phase::Retained, Why::Retained),
        Life::Restoring => return withheld(tally, Phase::Creating, Why::BeingRestored),
    };
    let Tally { shards, without_leader, missing, resyncing, faulted, unmade, .. } = *tally;
    let is_new = creating && (without_leader > 0 || unmade > 0);
    let available = match (without_leader, is_new) {
        (0, _) => Statement::holds(Type::Available, Why::AllShardsLed),
        (_, true) => {
            let message = format!("{without_leader} of {shards} shards have no leader yet");
            Statement::new(Type::Available, Truth::False, Why::NotMadeYet, message)
        }
        (_, false) => {
            let message =
                format!("{without_leader} of {shards} shards have no leader; their I/O waits");
            Statement::new(Type::Available, Truth::False, Why::ShardsWithoutLeader, message)
        }
    };
    let lacks = |count, what: &str| format!("{} {what}", some(count, "replica is", "replicas are"));
    let not = |why, message| Statement::new(Type::Redundant, Truth::False, why, message);
    let redundant = if is_new && unmade > 0 {
        not(Why::NotMadeYet, lacks(unmade, "not made yet"))
    } else if missing > 0 {
        not(Why::ReplicasMissing, lacks(missing, "missing"))
    } else if faulted > 0 {
        not(Why::ReplicasFaulted, lacks(faulted, "faulted"))
    } else if resyncing > 0 {
        not(Why::ReplicasResyncing, lacks(resyncing, "being brought up to date"))
    } else {
        Statement::holds(Type::Redundant, Why::AllReplicasGood)
    };
    let phase = match () {
        () if is_new => Phase::Creating,
        () if without_leader > 0 => Phase::Paused,
        () if redundant.truth != Truth::True => Phase::Degraded,
        () => Phase::Ready,
    };
    Judgement { phase, statements: vec![available, redundant] }
}

fn withheld(tally: &Tally, phase: Phase, why: Why) -> Judgement {
    let Judgement { mut statements, .. } = judge_tally(tally, Life::Used { is_new: false });
    let message = match why {
        Why::Retained => "it can be brought back".to_owned(),
        _ if tally.without_leader == 0 => "it is waited for the shards".to_owned(),
        _ => format!("{} of {} shards have no leader", tally.without_leader, tally.shards),
    };
    statements[0] = Statement::new(Type::Available, Truth::False, why, message);
    Judgement { phase, statements }
}

/// `1 disk`, `2 disks`.
pub fn some(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Tally = Tally {
        shards: 2,
        without_leader: 0,
        replicas: 6,
        missing: 0,
        unmade: 0,
        resyncing: 0,
        faulted: 0,
    };

    fn says(tally: Tally, creating: bool, deleting: bool) -> (Phase, Why, Why) {
        let life = match deleting {
            true => Life::Deleting,
            false => Life::Used { is_new: creating },
        };
        let Judgement { phase, statements } = judge_tally(&tally, life);
        let [available, redundant] = &statements[..] else { panic!("{statements:?}") };
        let kinds = (available.kind, redundant.kind);
        assert_eq!(kinds, (Type::Available, Type::Redundant));
        (phase, available.why, redundant.why)
    }

    #[test]
    fn volumes_are_what_their_replicas_are() {
        let (led, good) = (Why::AllShardsLed, Why::AllReplicasGood);
        assert_eq!(says(WELL, false, false), (Phase::Ready, led, good));
        // The catalog does not know yet that it can be used.
        assert_eq!(says(WELL, true, false), (Phase::Ready, led, good));
        let missing = Tally { missing: 1, ..WELL };
        let resyncing = Tally { resyncing: 2, ..WELL };
        let faulted = Tally { faulted: 1, resyncing: 1, ..WELL };
        let headless = Tally { without_leader: 1, missing: 2, ..WELL };
        let unmade = Tally { missing: 2, unmade: 1, ..WELL };
        for (tally, phase, available, redundant) in [
            (missing, Phase::Degraded, led, Why::ReplicasMissing),
            (resyncing, Phase::Degraded, led, Why::ReplicasResyncing),
            (faulted, Phase::Degraded, led, Why::ReplicasFaulted),
            (headless, Phase::Paused, Why::ShardsWithoutLeader, Why::ReplicasMissing),
            (unmade, Phase::Degraded, led, Why::ReplicasMissing),
        ] {
            assert_eq!(says(tally, false, false), (phase, available, redundant), "{tally:?}");
        }
        // A new volume whose third pod is away can be used without its third replica.
        assert_eq!(says(missing, true, false), (Phase::Degraded, led, Why::ReplicasMissing));
        assert_eq!(says(unmade, true, false), (Phase::Creating, led, Why::NotMadeYet));
        let new = says(headless, true, false);
        assert_eq!(new, (Phase::Creating, Why::NotMadeYet, Why::ReplicasMissing));
        let of = |life| judge_tally(&headless, life).statements[0].why;
        assert_eq!(of(Life::Retained), Why::Retained, "whatever its shards are like");
        assert_eq!(of(Life::Restoring), Why::BeingRestored);
        let gone = (Phase::Deleting, Why::BeingDeleted, Why::BeingDeleted);
        assert_eq!(says(headless, true, true), gone);
    }
}
