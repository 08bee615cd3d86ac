//! Which authorities a pod trusts, and when one may sign for pods. Pure.
//!
//! While an authority is replaced, every pod must accept every other one at any time (rule
//! `pods-accept-each-other`). So a pod trusts the new one long before a certificate of it is
//! presented, and the old one until nobody presents a certificate of that. The catalog's leader
//! learns from reports how far pods are.

use crate::control::state::CatalogState;
use crate::control::state::rows::TrustedRoot;
use crate::planted::planted;
use crate::security::secret::bytes_from_hex;
use crate::security::token::sha256;
use crate::security::trust::ROOTS_MAX;
use crate::types::PodId;

/// SHA-256 of an authority's certificate.
pub type RootHash = [u8; 32];

/// Whom a pod trusts and what it presents, as it says to the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusting {
    /// The revision of the catalog that it has followed in this.
    pub revision: u64,
    pub trusts: Vec<RootHash>,
    /// The authority of its certificate; `None`: it has none.
    pub presents: Option<RootHash>,
}

/// What the catalog says of authorities. The first one signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told<T> {
    pub roots: Vec<T>,
    /// Others that are trusted stay so.
    pub others: bool,
}

impl<T> Default for Told<T> {
    fn default() -> Told<T> {
        Told { roots: Vec::new(), others: false }
    }
}

/// What a pod has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due<T> {
    Nothing,
    /// Trust these from now on.
    Trust(Vec<T>),
    /// Get a certificate of the authority that signs.
    Renew,
}

/// Decides for a pod whose certificate is by `own`.
pub fn due<T: Clone + PartialEq>(own: &T, trusted: &[T], told: &Told<T>) -> Due<T> {
    let Some(signer) = told.roots.first() else { return Due::Nothing };
    let mut wanted = told.roots.clone();
    // Others accept this pod by it.
    let kept = if told.others { trusted } else { &[] };
    for root in std::iter::once(own).chain(kept) {
        if !wanted.contains(root) && wanted.len() < ROOTS_MAX {
            wanted.push(root.clone());
        }
    }
    if wanted.len() != trusted.len() || !wanted.iter().all(|root| trusted.contains(root)) {
        return Due::Trust(wanted);
    }
    if signer == own { Due::Nothing } else { Due::Renew }
}

/// The hash of an authority that the catalog has.
pub fn hash_of(root: &TrustedRoot) -> RootHash {
    sha256(&bytes_from_hex(&root.certificate).unwrap_or_default())
}

/// The pods that may not trust this authority, except those on lost nodes.
pub fn not_trusting<'a>(
    state: &CatalogState,
    said: impl Fn(PodId) -> Option<&'a Trusting>,
    root: &RootHash,
) -> Vec<PodId> {
    match planted!(AuthoritySignsEarly) {
        true => Vec::new(),
        false => pods_without(state, said, |it| it.trusts.contains(root)),
    }
}

/// The pods that a certificate of the authority that signs could shut out. A switch has proved that
/// there are none; only after a restore pods may trust others.
pub fn not_trusting_signer<'a>(
    state: &CatalogState,
    said: impl Fn(PodId) -> Option<&'a Trusting>,
) -> Vec<PodId> {
    match state.cluster.roots.first().filter(|_| state.cluster.others_trusted) {
        Some(signs) => not_trusting(state, said, &hash_of(signs)),
        None => Vec::new(),
    }
}

/// The pods that may present a certificate of another authority, except those on lost nodes.
pub fn not_presenting<'a>(
    state: &CatalogState,
    said: impl Fn(PodId) -> Option<&'a Trusting>,
    root: &RootHash,
) -> Vec<PodId> {
    match planted!(AuthorityRetiredEarly) {
        true => Vec::new(),
        false => pods_without(state, said, |it| it.presents.as_ref() == Some(root)),
    }
}

/// What a pod said before it followed the newest decision about authorities may be outdated.
fn pods_without<'a>(
    state: &CatalogState,
    said: impl Fn(PodId) -> Option<&'a Trusting>,
    is_ready: impl Fn(&Trusting) -> bool,
) -> Vec<PodId> {
    let lost = |node: &str| state.nodes.get(node).is_some_and(|node| node.is_lost());
    let pods = state.pods.iter().filter(|(_, pod)| !lost(&pod.node));
    let is_current = |it: &&Trusting| it.revision >= state.cluster_revision;
    let waits = pods.filter(|(pod, _)| !said(**pod).filter(is_current).is_some_and(&is_ready));
    waits.map(|(pod, _)| *pod).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::control::command::{Authority, AuthorityStep, CatalogCommand, Hidden};
    use crate::control::state::rebirth::Rebirth;
    use crate::control::state::rows::RowKey;
    use crate::planted::{Mistake, assert_found};
    use crate::testing::catalog_fixture::cluster;
    use crate::types::Uuid;

    const PODS: u8 = 3;

    /// What happens, in any order and any number of times.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Replace,
        Step(AuthorityStep),
        /// A pod hears of the newest state, does what is due, tells the leader.
        Follow(u8),
        Act(u8),
        Report(u8),
        /// Another leader has heard nothing.
        Elected,
        BackUp,
        Restore,
    }

    #[derive(Clone, Debug)]
    struct Pod {
        own: String,
        trusted: Vec<String>,
        told: (u64, Told<String>),
    }

    struct Model {
        state: CatalogState,
        backup: CatalogState,
        made: u8,
        pods: BTreeMap<u8, Pod>,
        said: BTreeMap<PodId, Trusting>,
    }

    fn authority(number: u8) -> Authority {
        let (certificate, key) = (format!("{number:02x}"), Hidden("00".to_owned()));
        Authority { certificate, key, sealed: String::new(), created_ms: 0 }
    }

    fn hash(certificate: &str) -> RootHash {
        hash_of(&TrustedRoot { number: 0, certificate: certificate.to_owned() })
    }

    impl Model {
        fn new() -> Model {
            let mut state = cluster(PODS);
            let set = CatalogCommand::SetAuthority { authority: authority(0) };
            state.apply(1, set).outcome.unwrap();
            let own = authority(0).certificate;
            let pod = Pod { trusted: vec![own.clone()], own, told: Default::default() };
            let pods = (1..=PODS).map(|number| (number, pod.clone())).collect();
            Model { backup: state.clone(), state, made: 0, pods, said: BTreeMap::new() }
        }

        fn signer(&self) -> String {
            self.state.cluster.roots[0].certificate.clone()
        }

        fn trusting(&self) -> Vec<PodId> {
            not_trusting_signer(&self.state, |pod| self.said.get(&pod))
        }

        /// As the API decides.
        fn may(&self, step: AuthorityStep) -> bool {
            let said = |pod| self.said.get(&pod);
            let roots = &self.state.cluster.roots;
            let newest = roots.iter().max_by_key(|root| root.number).unwrap();
            match step {
                AuthorityStep::Switch => {
                    not_trusting(&self.state, said, &hash_of(newest)).is_empty()
                }
                AuthorityStep::Finish => {
                    not_presenting(&self.state, said, &hash_of(&roots[0])).is_empty()
                }
                AuthorityStep::Abandon => true,
            }
        }

        fn restore(&mut self) {
            let restores = self.state.cluster.restores + 1;
            let mut ancestors = self.state.cluster.ancestors.clone();
            ancestors.push(self.state.cluster.history);
            let history = Uuid([u8::try_from(100 + restores).unwrap(); 16]);
            let rebirth = Rebirth { history, ancestors, restores, pod: PodId(1), now_ms: 5 };
            let is_kept = |key: &RowKey| !matches!(key, RowKey::Head | RowKey::CatalogMember(_));
            let rows = self.backup.rows().filter(|(key, _)| is_kept(key));
            self.state = CatalogState::reborn(rows, rebirth).unwrap();
            self.said.clear();
        }

        fn happen(&mut self, event: Event) {
            match event {
                Event::Replace => {
                    self.made += 1;
                    let authority = authority(self.made);
                    let replace = CatalogCommand::ReplaceAuthority { authority };
                    let _refused_sometimes = self.state.apply(1, replace).outcome;
                }
                Event::Step(step) if self.may(step) => {
                    let based_on = self.state.cluster_revision;
                    let step = CatalogCommand::MoveAuthority { step, based_on };
                    let _refused_sometimes = self.state.apply(1, step).outcome;
                }
                Event::Step(_) => {}
                Event::Follow(pod) => {
                    let cluster = &self.state.cluster;
                    let roots = cluster.roots.iter().map(|root| root.certificate.clone());
                    let told = Told { roots: roots.collect(), others: cluster.others_trusted };
                    self.pods.get_mut(&pod).unwrap().told = (self.state.revision(), told);
                }
                Event::Act(number) => {
                    let (signer, all_trust) = (self.signer(), self.trusting().is_empty());
                    let pod = self.pods.get_mut(&number).unwrap();
                    match due(&pod.own, &pod.trusted, &pod.told.1) {
                        Due::Trust(roots) => pod.trusted = roots,
                        // It does not take what it does not trust.
                        Due::Renew if all_trust && pod.trusted.contains(&signer) => {
                            pod.own = signer;
                        }
                        Due::Renew | Due::Nothing => {}
                    }
                }
                Event::Report(number) => {
                    let pod = &self.pods[&number];
                    if matches!(due(&pod.own, &pod.trusted, &pod.told.1), Due::Trust(_)) {
                        return;
                    }
                    let said = Trusting {
                        revision: pod.told.0,
                        trusts: pod.trusted.iter().map(|root| hash(root)).collect(),
                        presents: Some(hash(&pod.own)),
                    };
                    self.said.insert(PodId(number.into()), said);
                }
                Event::Elected => self.said.clear(),
                Event::BackUp => self.backup = self.state.clone(),
                Event::Restore => self.restore(),
            }
            for (one, Pod { own, .. }) in &self.pods {
                for (other, Pod { trusted, .. }) in &self.pods {
                    assert!(trusted.contains(own), "{other} does not accept {one} ({own})");
                }
            }
        }

        fn settle(&mut self) {
            let mut all = |event: fn(u8) -> Event| {
                (1..=PODS).for_each(|pod| self.happen(event(pod)));
            };
            for _ in 0..3 {
                all(Event::Follow);
                all(Event::Act);
                all(Event::Report);
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        use AuthorityStep::{Abandon, Finish, Switch};
        let pod = 1..=PODS;
        prop_oneof![
            2 => Just(Event::Replace),
            3 => proptest::sample::select(vec![Switch, Finish, Abandon]).prop_map(Event::Step),
            9 => pod.clone().prop_map(Event::Follow),
            9 => pod.clone().prop_map(Event::Act),
            9 => pod.prop_map(Event::Report),
            1 => Just(Event::Elected),
            1 => Just(Event::BackUp),
            1 => Just(Event::Restore),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever happens, all pods accept each other; and in the end a replacement that was
        /// begun can be finished.
        #[test]
        fn pods_accept_each_other(events in proptest::collection::vec(event(), 0..60)) {
            let mut model = Model::new();
            events.into_iter().for_each(|event| model.happen(event));
            model.settle();
            if model.state.cluster.roots.len() == 2 {
                model.happen(Event::Step(AuthorityStep::Switch));
            }
            model.settle();
            model.happen(Event::Step(AuthorityStep::Finish));
            model.settle();
            let signer = vec![model.signer()];
            prop_assert!(model.state.cluster.roots.len() == 1);
            for pod in model.pods.values() {
                prop_assert_eq!(&pod.trusted, &signer);
                prop_assert_eq!(&pod.own, &signer[0]);
            }
        }
    }

    /// An authority is replaced, as fast as the leader lets it.
    fn in_haste() {
        let mut model = Model::new();
        model.settle();
        model.happen(Event::Replace);
        for pod in 1..=2 {
            for event in [Event::Follow(pod), Event::Act(pod), Event::Report(pod)] {
                model.happen(event);
            }
        }
        let switch = Event::Step(AuthorityStep::Switch);
        let finish = Event::Step(AuthorityStep::Finish);
        for event in [switch, Event::Follow(1), Event::Act(1), finish] {
            model.happen(event);
        }
        model.settle();
        model.happen(switch);
        for pod in 1..=PODS {
            [Event::Follow(pod), Event::Report(pod)].into_iter().for_each(|it| model.happen(it));
        }
        // The first pod has a new certificate, and the others have not.
        for event in [Event::Act(1), Event::Report(1), finish, Event::Follow(1), Event::Act(1)] {
            model.happen(event);
        }
    }

    #[test]
    fn haste_does_no_harm() {
        in_haste();
    }

    #[test]
    fn an_authority_that_signs_early_or_retires_early_is_found() {
        assert_found(Mistake::AuthoritySignsEarly, in_haste);
        assert_found(Mistake::AuthorityRetiredEarly, in_haste);
    }

    #[test]
    fn a_pod_on_a_lost_node_is_not_waited_for() {
        let mut model = Model::new();
        let root = hash_of(&model.state.cluster.roots[0]);
        let waits = |state: &CatalogState| not_trusting(state, |_| None, &root);
        assert_eq!(waits(&model.state), [1, 2, 3].map(PodId));
        let lost = CatalogCommand::DeclareLost { node: "node-3".into(), boot_id: "boot".into() };
        model.state.apply(1, lost).outcome.unwrap();
        assert_eq!(waits(&model.state), [1, 2].map(PodId));
    }
}
