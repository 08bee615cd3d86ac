//! For how long kubelets have not renewed their Leases. A Lease says when it was renewed by the
//! clock of its node, which may be wrong: so what counts is for how long it was seen not to change.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// See the module. Times are of one clock that only grows.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// By node: what its Lease said, and since when.
    seen: BTreeMap<String, (String, Duration)>,
    /// When that was.
    now: Duration,
}

impl Leases {
    /// Takes what all Leases say at `now`.
    pub fn see(&mut self, now: Duration, leases: BTreeMap<String, String>) {
        self.now = now;
        let before = std::mem::take(&mut self.seen);
        let since = |node: &String, said: &String| {
            before.get(node).filter(|(known, _)| known == said).map_or(now, |(_, since)| *since)
        };
        self.seen = leases
            .into_iter()
            .map(|(node, said)| {
                let since = since(&node, &said);
                (node, (said, since))
            })
            .collect();
    }

    /// For how long the Lease of a node had not changed when they were seen; `None`: it has none.
    /// The time since then says nothing of the node.
    pub fn age(&self, node: &str) -> Option<Duration> {
        self.seen.get(node).map(|(_, since)| self.now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_change_grows_old() {
        let mut leases = Leases::default();
        let at = Duration::from_secs;
        let say = |node: &str, said: &str| (node.to_owned(), said.to_owned());
        leases.see(at(10), [say("a", "1"), say("b", "1")].into());
        leases.see(at(15), [say("a", "1"), say("b", "2")].into());
        leases.see(at(17), [say("a", "1"), say("b", "2")].into());
        assert_eq!(leases.age("a"), Some(at(7)));
        assert_eq!(leases.age("b"), Some(at(2)));
        leases.see(at(20), [say("b", "2")].into());
        assert_eq!(leases.age("a"), None);
        // A new Lease is a sign of life, whatever it says.
        leases.see(at(30), [say("a", "1")].into());
        assert_eq!(leases.age("a"), Some(at(0)));
    }
}
