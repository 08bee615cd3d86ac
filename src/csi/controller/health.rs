//! How a volume is: as a condition (CSI 1.12) or as its health (CSI 1.13).

use crate::control::proto::{Condition, ConditionStatus, Phase, Volume};
use crate::csi::proto::volume_health::VolumeHealthEntry;
use crate::csi::proto::{VolumeCondition, VolumeHealth, VolumeHealthErrorType};

/// What is wrong with a volume that a workload has; `None`: nothing.
fn wrong(volume: &Volume) -> Option<(VolumeHealthErrorType, Vec<&Condition>)> {
    let status = volume.status.as_ref()?;
    let kind = match status.phase() {
        Phase::Paused => VolumeHealthErrorType::Inaccessible,
        Phase::Degraded => VolumeHealthErrorType::Degraded,
        _ => return None,
    };
    let fails = |it: &&Condition| it.status() == ConditionStatus::False;
    Some((kind, status.conditions.iter().filter(fails).collect()))
}

/// The condition of a volume.
pub fn condition(volume: &Volume) -> VolumeCondition {
    match wrong(volume) {
        None => VolumeCondition { abnormal: false, message: "nothing is missing".to_owned() },
        Some((_, conditions)) => {
            let messages: Vec<&str> = conditions.iter().map(|it| it.message.as_str()).collect();
            VolumeCondition { abnormal: true, message: messages.join("; ") }
        }
    }
}

/// The health of a volume. No entry: nothing is wrong.
pub fn health(volume_id: String, volume: &Volume) -> VolumeHealth {
    let (kind, conditions) = wrong(volume).unwrap_or_default();
    let entries = conditions.into_iter().map(|condition| VolumeHealthEntry {
        status: kind.into(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    });
    VolumeHealth { volume_id, health_statuses: entries.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::VolumeStatus;

    fn volume(phase: Phase) -> Volume {
        let condition = |status: ConditionStatus, reason: &str, message: &str| Condition {
            status: status.into(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..Condition::default()
        };
        let conditions = vec![
            condition(ConditionStatus::True, "AllShardsLed", ""),
            condition(ConditionStatus::False, "ReplicasMissing", "1 replica is missing"),
        ];
        let status = VolumeStatus { phase: phase.into(), conditions, ..VolumeStatus::default() };
        Volume { status: Some(status), ..Volume::default() }
    }

    #[test]
    fn what_is_missing_is_told_as_condition_and_as_health() {
        assert!(!condition(&volume(Phase::Ready)).abnormal);
        assert!(!condition(&volume(Phase::Creating)).abnormal);
        let degraded = condition(&volume(Phase::Degraded));
        assert!(degraded.abnormal && degraded.message == "1 replica is missing");
        let healthy = health("h".to_owned(), &volume(Phase::Ready));
        assert_eq!((healthy.volume_id.as_str(), healthy.health_statuses.len()), ("h", 0));
        let entries = health(String::new(), &volume(Phase::Paused)).health_statuses;
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].status(), VolumeHealthErrorType::Inaccessible);
        assert_eq!(entries[0].reason, "ReplicasMissing");
    }
}
