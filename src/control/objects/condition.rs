//! Statements about objects, with the one list of reasons. docs/api.md has the list for readers; a
//! test compares the two.

use crate::control::proto;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// A pod reports to the catalog's leader.
    Reachable,
    /// All disks of a pod work.
    DisksWork,
    /// The member of the catalog that a pod has runs. Only said when it does not.
    CatalogRuns,
    /// A disk can be used.
    Usable,
    /// Every shard of a volume has a leader: I/O goes on.
    Available,
    /// Every replica is there and has caught up.
    Redundant,
    /// Every shard knows an attachment as the catalog wants it.
    Settled,
    /// Clients can use the whole size that is wanted. Only said when they cannot.
    Grown,
}

/// Truth of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

/// Why a condition is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    Reporting,
    Silent,
    AllDisksWork,
    DiskFailed,
    CatalogStopped,
    Working,
    GivenUp,
    PodSilent,
    AllShardsLed,
    NotMadeYet,
    ShardsWithoutLeader,
    AllReplicasGood,
    ReplicasMissing,
    ReplicasResyncing,
    ReplicasFaulted,
    BeingDeleted,
    Retained,
    BeingRestored,
    NewShardsNotReady,
    Admitted,
    BeingAdmitted,
    BeingFenced,
}

/// A reason in words.
pub struct Explained {
    /// What it means.
    pub means: &'static str,
    /// What the cluster does about it; empty: nothing is wrong.
    pub doing: &'static str,
    /// What a person could do.
    pub advice: &'static str,
}

impl Type {
    pub const ALL: [Type; 8] = [
        Type::Reachable,
        Type::DisksWork,
        Type::CatalogRuns,
        Type::Usable,
        Type::Available,
        Type::Redundant,
        Type::Settled,
        Type::Grown,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Type::Reachable => "Reachable",
            Type::DisksWork => "DisksWork",
            Type::CatalogRuns => "CatalogRuns",
            Type::Usable => "Usable",
            Type::Available => "Available",
            Type::Redundant => "Redundant",
            Type::Settled => "Settled",
            Type::Grown => "Grown",
        }
    }
}

impl Why {
    pub const ALL: [Why; 22] = [
        Why::Reporting,
        Why::Silent,
        Why::AllDisksWork,
        Why::DiskFailed,
        Why::CatalogStopped,
        Why::Working,
        Why::GivenUp,
        Why::PodSilent,
        Why::AllShardsLed,
        Why::NotMadeYet,
        Why::ShardsWithoutLeader,
        Why::AllReplicasGood,
        Why::ReplicasMissing,
        Why::ReplicasResyncing,
        Why::ReplicasFaulted,
        Why::BeingDeleted,
        Why::Retained,
        Why::BeingRestored,
        Why::NewShardsNotReady,
        Why::Admitted,
        Why::BeingAdmitted,
        Why::BeingFenced,
    ];

    /// Never changes: programs compare it.
    pub fn word(self) -> &'static str {
        match self {
            Why::Reporting => "Reporting",
            Why::Silent => "Silent",
            Why::AllDisksWork => "AllDisksWork",
            Why::DiskFailed => "DiskFailed",
            Why::CatalogStopped => "CatalogStopped",
            Why::Working => "Working",
            Why::GivenUp => "GivenUp",
            Why::PodSilent => "PodSilent",
            Why::AllShardsLed => "AllShardsLed",
            Why::NotMadeYet => "NotMadeYet",
            Why::ShardsWithoutLeader => "ShardsWithoutLeader",
            Why::AllReplicasGood => "AllReplicasGood",
            Why::ReplicasMissing => "ReplicasMissing",
            Why::ReplicasResyncing => "ReplicasResyncing",
            Why::ReplicasFaulted => "ReplicasFaulted",
            Why::BeingDeleted => "BeingDeleted",
            Why::Retained => "Retained",
            Why::BeingRestored => "BeingRestored",
            Why::NewShardsNotReady => "NewShardsNotReady",
            Why::Admitted => "Admitted",
            Why::BeingAdmitted => "BeingAdmitted",
            Why::BeingFenced => "BeingFenced",
        }
    }

    /// The reason of a word; `None` for a word of a newer version.
    pub fn of(word: &str) -> Option<Why> {
        Why::ALL.into_iter().find(|why| why.word() == word)
    }

    /// True when a condition that becomes so is recorded as an event. The others belong to the life
    /// of an object, of which its decisions tell, or follow from another object's condition.
    pub fn makes_history(self) -> bool {
        !matches!(
            self,
            Why::PodSilent
                | Why::NotMadeYet
                | Why::BeingDeleted
                | Why::Retained
                | Why::BeingRestored
                | Why::NewShardsNotReady
                | Why::Admitted
                | Why::BeingAdmitted
                | Why::BeingFenced
        )
    }

    pub fn explained(self) -> Explained {
        let well = |means| Explained { means, doing: "", advice: "" };
        match self {
            Why::Reporting => well("the pod reports to the catalog's leader"),
            Why::AllDisksWork => well("all disks of the pod work"),
            Why::Working => well("the disk works"),
            Why::AllShardsLed => well("every shard has a leader"),
            Why::AllReplicasGood => well("every replica is there and has caught up"),
            Why::Admitted => well("every shard has admitted the attachment"),
            other => other.explained_bad(),
        }
    }

    fn explained_bad(self) -> Explained {
        let (means, doing, advice) = match self {
            Why::Silent => (
                "the pod has not reported for several seconds",
                "its shards go on with their replicas on other pods where these are a majority; \
                 nothing is moved away from the pod",
                "see whether its machine and network are up, and start `holdfast serve` there; \
                 what it missed is copied to it then",
            ),
            Why::DiskFailed => (
                "a disk of the pod was given up",
                "the replicas on it have stopped, and the others go on",
                "`holdfast disk list` shows which disk, and why",
            ),
            Why::CatalogStopped => (
                "the pod's member of the catalog does not run; its disks and clients do",
                "the other members go on; the pod tries to start its own again",
                "see whether the file system of the pod's `data` is full or broken",
            ),
            Why::GivenUp => (
                "the disk failed and was given up until the pod starts again",
                "the replicas on it have stopped, and the others go on",
                "look at the device and the log of the kernel; when it works again, restart the \
                 pod",
            ),
            Why::PodSilent => (
                "the pod of the disk is silent, so nothing is known of the disk",
                "nothing until the pod is back",
                "`holdfast explain pod` tells more of the pod",
            ),
            Why::NotMadeYet => (
                "it is new, and its replicas are being made",
                "the pods make the replicas, which then elect their leaders",
                "wait a moment; if that is not enough, see whether all pods are up",
            ),
            Why::ShardsWithoutLeader => (
                "some shards have no leader: less than a majority of their replicas answers",
                "their I/O waits, without errors, and goes on by itself",
                "bring back the pods and disks that are missing",
            ),
            Why::ReplicasMissing => (
                "some replicas are not reported by any pod",
                "the others serve the data; nothing is lost while a majority is left",
                "bring back the pods and disks that are missing",
            ),
            Why::ReplicasResyncing => (
                "some replicas were away and are being brought up to date",
                "the missing data is copied to them",
                "wait; the disks that resync are busy meanwhile",
            ),
            Why::ReplicasFaulted => (
                "some replicas found that their own data cannot be trusted, and have stopped",
                "the others serve the data",
                "look at the log of the pod that has the replica, and at its disk",
            ),
            Why::BeingDeleted => (
                "it was deleted, and not all of its disks have given the space back yet",
                "the replicas are destroyed as their pods answer",
                "nothing, unless a pod or disk with replicas of it is away for good",
            ),
            Why::Retained => (
                "it was deleted, and is kept for a while",
                "when its time is over, its replicas are destroyed and its name is free",
                "`holdfast volume undelete` brings it back; `holdfast volume delete --purge` frees \
                 its space now",
            ),
            Why::BeingRestored => (
                "it was deleted and comes back; some shards do not let clients in yet",
                "the shards are asked again until all have; a shard without a leader keeps it \
                 waiting",
                "see whether pods with replicas of it are unreachable",
            ),
            Why::NewShardsNotReady => (
                "the volume is to be larger, and its new shards are not ready",
                "clients can use the new size when every new shard has a leader that knows who \
                 may use the volume; until then they go on with the old one",
                "see whether pods or disks that got new replicas are unreachable",
            ),
            Why::BeingAdmitted => (
                "some shards have not admitted the attachment yet",
                "the shards are asked again until all have; a shard without a leader keeps it \
                 waiting",
                "see whether the volume is paused: `holdfast explain volume` tells what is missing",
            ),
            Why::BeingFenced => (
                "some shards have not fenced the attachment yet",
                "the shards are asked again until all have; those that have refuse the node",
                "see whether the volume is paused: `holdfast explain volume` tells what is missing",
            ),
            Why::Reporting
            | Why::Admitted
            | Why::AllDisksWork
            | Why::Working
            | Why::AllShardsLed
            | Why::AllReplicasGood => unreachable!("nothing is wrong"),
        };
        Explained { means, doing, advice }
    }
}

/// A condition as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub kind: Type,
    pub truth: Truth,
    pub why: Why,
    pub message: String,
}

impl Statement {
    pub fn new(kind: Type, truth: Truth, why: Why, message: impl Into<String>) -> Statement {
        Statement { kind, truth, why, message: message.into() }
    }

    pub fn holds(kind: Type, why: Why) -> Statement {
        Statement::new(kind, Truth::True, why, "")
    }
}

/// The state of an object as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub phase: proto::Phase,
    pub statements: Vec<Statement>,
}

/// An object that was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Revision of its record.
    pub revision: u64,
    pub uid: String,
    pub name: String,
    pub judgement: Judgement,
}

/// How urgent a phase is; 0: nothing is wrong.
pub fn severity(phase: proto::Phase) -> u8 {
    match phase {
        proto::Phase::Paused => 4,
        proto::Phase::Failed => 3,
        proto::Phase::Unreachable => 2,
        proto::Phase::Degraded => 1,
        _ => 0,
    }
}

impl Truth {
    pub fn status(self) -> proto::ConditionStatus {
        match self {
            Truth::True => proto::ConditionStatus::True,
            Truth::False => proto::ConditionStatus::False,
            Truth::Unknown => proto::ConditionStatus::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_everything_wrong_is_explained() {
        for why in Why::ALL {
            assert_eq!(Why::of(why.word()), Some(why));
            let Explained { means, doing, advice } = why.explained();
            assert!(!means.is_empty(), "{why:?}");
            assert_eq!(doing.is_empty(), advice.is_empty(), "{why:?}");
        }
        assert_eq!(Why::of("Nonsense"), None);
    }

    #[test]
    fn the_page_of_the_api_lists_all_conditions() {
        let page = include_str!("../../../docs/api.md");
        for why in Why::ALL {
            let row = format!("| `{}` | {} |", why.word(), why.explained().means);
            assert!(page.contains(&row), "docs/api.md lacks: {row}");
        }
        for kind in Type::ALL {
            let row = format!("| `{}` |", kind.word());
            assert!(page.contains(&row), "docs/api.md lacks: {row}");
        }
    }
}
