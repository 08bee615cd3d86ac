//! The fail-over: looks at the catalog and at Kubernetes, decides by
//! [`crate::kubernetes::failover`], and carries the steps out. Everything that it knows between two
//! looks is how old the Leases are.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::control::catalog::chain;
use crate::csi::api::{ApiError, OpenError as ApiOpenError};
use crate::csi::handle::hash_of;
use crate::kubernetes::catalog_view::{Catalog, CatalogView};
use crate::kubernetes::client::{self, OpenError};
use crate::kubernetes::failover::{
    KubeNode, LEASE_AGE_MAX, Node, Probes, Seen, Step, acts, decide, suspects,
};
use crate::kubernetes::kube_view::{About, Inventory, KubeError, Kubernetes, Told};
use crate::kubernetes::leases::Leases;
use crate::kubernetes::patience::Patience;
use crate::kubernetes::storage_of::Claim;
use crate::kubernetes::strangers::{MeetError, Strangers};

/// Interval of looks while all is well.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// And while something is being done about a node. It doubles while there is nothing to do.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(500);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Interval of looks at the taints of all nodes.
const TAINTS_EVERY: Duration = Duration::from_secs(30);
/// What people were told is remembered up to this many times.
const TOLD_MAX: usize = 1000;
/// Nodes that are probed in one look. If more are silent, the fault is elsewhere.
const PROBED_MAX: usize = 4;

/// Whether nodes are declared lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    On,
    Off,
    /// What would be done is told, and nothing is done.
    DryRun,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Mode, Self::Err> {
        match text {
            "on" => Ok(Mode::On),
            "off" => Ok(Mode::Off),
            "dry-run" => Ok(Mode::DryRun),
            _ => Err("write on, off or dry-run"),
        }
    }
}

/// Where the controller is.
#[derive(Clone, Debug)]
pub struct Setting {
    pub mode: Mode,
    /// Node of this instance.
    pub node: String,
    /// Namespace of all instances.
    pub namespace: String,
    /// Labels of their Pods.
    pub selector: String,
    /// Name of the CSI driver.
    pub driver: String,
}

/// Why a look, or a step, failed. The next look repeats it.
#[derive(Debug, thiserror::Error)]
pub enum FailOverError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Kube(#[from] KubeError),
    #[error("could not ask the cluster")]
    Api(#[from] ApiError),
    #[error("could not connect to a pod")]
    Pod(#[from] ApiOpenError),
    #[error(transparent)]
    Meet(#[from] MeetError),
}

/// See the module.
pub struct FailOver {
    setting: Setting,
    catalog: Catalog,
    kubernetes: Option<Kubernetes>,
    leases: Leases,
    /// The clock of the Leases.
    began: Instant,
    /// The nodes that had our taint, and when that was looked at last.
    tainted: (Vec<String>, Option<Instant>),
    /// Keys of what people were told. What stands for long is not told at every look.
    told: BTreeSet<String>,
    /// The nodes that were not well at the last look, and the pause after the next one.
    unwell: BTreeSet<String>,
    pause: Duration,
    strangers: Strangers,
    /// Counts looks, so that suspects take turns.
    turn: usize,
}

/// The claims of Pods, by the uids of the Pods.
type Claims = BTreeMap<String, Vec<Claim>>;

impl FailOver {
    pub fn new(setting: Setting, catalog: Catalog) -> FailOver {
        FailOver {
            setting,
            catalog,
            kubernetes: None,
            leases: Leases::default(),
            began: Instant::now(),
            tainted: (Vec::new(), None),
            told: BTreeSet::new(),
            unwell: BTreeSet::new(),
            pause: LOOK_CLOSELY_EVERY,
            strangers: Strangers::default(),
            turn: 0,
        }
    }

    /// Looks and acts for as long as the process runs.
    pub async fn run(mut self) {
        let mut patience = Patience::default();
        loop {
            match self.round().await {
                Ok(pause) => {
                    patience.renew();
                    sleep(pause).await;
                }
                Err(error) => patience.wait(&format!("the fail-over: {}", chain(&error))).await,
            }
        }
    }

    /// One look, and what follows from it. Returns the pause until the next.
    async fn round(&mut self) -> Result<Duration, FailOverError> {
        let kubernetes = self.kubernetes().await?;
        // Every instance knows how old the Leases are, so that any can take over at once.
        let asked_at = self.began.elapsed();
        let leases = kubernetes.leases().await?;
        self.leases.see(asked_at, leases);
        let view = self.catalog.view().await?;
        self.strangers.meet(&kubernetes, &self.catalog, &view).await?;
        self.look_at_taints(&kubernetes).await?;
        let unwell = view.nodes.iter().filter(|(name, node)| !self.is_well(name, node));
        let unwell: BTreeSet<String> = unwell.map(|(name, _)| name.clone()).collect();
        if unwell != self.unwell {
            self.pause = LOOK_CLOSELY_EVERY;
            self.unwell = unwell;
        }
        if self.unwell.is_empty() {
            return Ok(LOOK_EVERY);
        }
        let soon = self.until_a_lease_ends(&view);
        let Setting { namespace, selector, node, .. } = &self.setting;
        let controllers = kubernetes.nodes_of_pods(namespace, selector).await?;
        let mut has_acted = false;
        if acts(node, view.leader.as_deref(), &controllers, &view.nodes) {
            has_acted = self.act(&kubernetes, view).await?;
        }
        let pause = if has_acted { LOOK_CLOSELY_EVERY } else { self.pause };
        self.pause = (pause * 2).min(LOOK_AGAIN_MAX);
        Ok(soon.map_or(pause, |soon| soon.max(LOOK_CLOSELY_EVERY).min(pause)))
    }

    /// Looks closely, and does what is to be done; false: nothing was. A step that fails does not
    /// keep the others from being carried out.
    async fn act(
        &mut self,
        kubernetes: &Kubernetes,
        view: CatalogView,
    ) -> Result<bool, FailOverError> {
        let (seen, claims) = self.look(kubernetes, view).await?;
        let (mut has_acted, mut first) = (false, Ok(()));
        for step in decide(&seen) {
            has_acted |= step.is_change() && self.setting.mode == Mode::On;
            let taken = self.take(kubernetes, &step, &claims).await;
            first = first.and(taken);
        }
        first.map(|()| has_acted)
    }

    fn is_well(&self, name: &str, node: &Node) -> bool {
        let is_tainted = self.tainted.0.iter().any(|it| it == name);
        !node.is_silent && !node.is_lost && !is_tainted
    }

    /// The time until a Lease may be old enough whose node is silent, if there is one.
    fn until_a_lease_ends(&self, view: &CatalogView) -> Option<Duration> {
        let silent = view.nodes.iter().filter(|(_, node)| node.is_silent && !node.is_lost);
        let left = silent.filter_map(|(name, _)| {
            let age = self.leases.age(name)?;
            LEASE_AGE_MAX.checked_sub(age)
        });
        left.min()
    }

    async fn kubernetes(&mut self) -> Result<Kubernetes, FailOverError> {
        if let Some(kubernetes) = &self.kubernetes {
            return Ok(kubernetes.clone());
        }
        let made = Kubernetes::new(client::open().await?, self.setting.driver.clone());
        Ok(self.kubernetes.insert(made).clone())
    }

    async fn look_at_taints(&mut self, kubernetes: &Kubernetes) -> Result<(), FailOverError> {
        let (tainted, looked) = &self.tainted;
        let is_due = !tainted.is_empty() || looked.is_none_or(|at| at.elapsed() >= TAINTS_EVERY);
        if is_due {
            self.tainted = (kubernetes.tainted().await?, Some(Instant::now()));
        }
        Ok(())
    }

    /// All that matters of nodes that are silent, lost or tainted.
    async fn look(
        &mut self,
        kubernetes: &Kubernetes,
        mut view: CatalogView,
    ) -> Result<(Seen, Claims), FailOverError> {
        let mut nodes = std::mem::take(&mut view.nodes);
        let mut claims = Claims::new();
        let inventory = match nodes.values().any(|node| node.is_lost) {
            true => kubernetes.inventory().await?,
            false => Inventory::default(),
        };
        for (name, node) in &mut nodes {
            let lease_age = self.leases.age(name);
            let tainted = self.tainted.0.contains(name);
            node.kube = Some(KubeNode { tainted, lease_age, ..KubeNode::default() });
            let is_older = |limit| lease_age.is_none_or(|age| age >= limit);
            if node.is_lost {
                claims.extend(self.look_at_lost(kubernetes, &view, &inventory, name, node).await?);
            } else if node.is_silent && is_older(LEASE_AGE_MAX) {
                match kubernetes.kubelet_of(name).await? {
                    Some(addresses) => self.strangers.lives_at(name, addresses),
                    None => {
                        node.kube = None;
                        node.is_unused = self.catalog.attached(name).await?.is_empty();
                    }
                }
            }
        }
        let mut seen = Seen { nodes, since_last: None };
        let mut suspects = suspects(&seen);
        if !suspects.is_empty() {
            seen.since_last = self.catalog.since_last().await?;
            let first = self.turn % suspects.len();
            suspects.rotate_left(first);
            self.turn = self.turn.wrapping_add(PROBED_MAX);
        }
        let mut tried = 0;
        for suspect in suspects {
            let addresses = self.strangers.addresses(&suspect);
            let is_podless = view.podless.contains(&suspect);
            let mut probes = Probes { is_placeless: true, ..Probes::default() };
            if !is_podless || !addresses.is_empty() {
                tried += 1;
                if tried > PROBED_MAX {
                    continue;
                }
                probes = self.catalog.probe(&view, &suspect, addresses).await?;
            }
            probes.is_stranger = is_podless && self.strangers.is_one(&suspect);
            let Probes { catalog, catalog_failed, reached, .. } = probes;
            tracing::info!(
                node = suspect,
                catalog,
                catalog_failed,
                reached,
                "a node is silent, and its Lease has ended"
            );
            if let Some(node) = seen.nodes.get_mut(&suspect) {
                node.probes = Some(probes);
            }
        }
        Ok((seen, claims))
    }

    /// Fills in all that matters of a lost node. Returns the claims of its Pods.
    async fn look_at_lost(
        &self,
        kubernetes: &Kubernetes,
        view: &CatalogView,
        inventory: &Inventory,
        name: &str,
        node: &mut Node,
    ) -> Result<Claims, FailOverError> {
        let found = kubernetes.of_node(name, inventory).await?;
        let of_pods = found.pods.iter().flat_map(|pod| &pod.volumes);
        let of_attachments = found.attachments.iter().map(|(_, volume)| volume);
        let in_use = found.kube.iter().flat_map(|kube| &kube.in_use);
        let volumes: BTreeSet<_> = of_pods.chain(of_attachments).chain(in_use).cloned().collect();
        let attached = self.catalog.attached(name).await?;
        node.is_unused = attached.is_empty();
        node.holds = self.catalog.held(view, &attached, &volumes).await?;
        (node.kube, node.attachments, node.pods) = (found.kube, found.attachments, found.pods);
        Ok(found.claims)
    }

    /// Carries a step out, and tells of it.
    async fn take(
        &mut self,
        kubernetes: &Kubernetes,
        step: &Step,
        claims: &Claims,
    ) -> Result<(), FailOverError> {
        if self.setting.mode != Mode::On {
            return self.announce(kubernetes, step, claims).await;
        }
        // Once a Pod is gone, nobody knows whose claims it had.
        if matches!(step, Step::DeletePod { .. })
            && let Err(error) = self.announce(kubernetes, step, claims).await
        {
            // A namespace that is being deleted takes no events, and its Pods have to go, too.
            tracing::warn!("nobody was told of a Pod that is deleted: {}", chain(&error));
        }
        self.carry_out(kubernetes, step).await?;
        self.announce(kubernetes, step, claims).await
    }

    /// Tells people of a step, unless they were told of it.
    async fn announce(
        &mut self,
        kubernetes: &Kubernetes,
        step: &Step,
        claims: &Claims,
    ) -> Result<(), FailOverError> {
        let is_done = self.setting.mode == Mode::On;
        let key = hash_of(&format!("{step:?} {is_done}"));
        if self.told.contains(&key) {
            return Ok(());
        }
        let said = words(step, is_done);
        tracing::info!("{}", said.message);
        let is_taint = matches!(step, Step::Taint { .. } | Step::Untaint { .. });
        if !is_taint {
            self.tell(kubernetes, step, &said, &key, claims).await?;
        }
        // A taint that was set is not set again, before the node is lost once more.
        if !(is_taint && is_done) {
            if self.told.len() >= TOLD_MAX {
                self.told.clear();
            }
            self.told.insert(key);
        }
        Ok(())
    }

    /// Tells of a step where people look: at the Node, the Pod and its claims.
    async fn tell(
        &self,
        kubernetes: &Kubernetes,
        step: &Step,
        said: &Said<'_>,
        key: &str,
        claims: &Claims,
    ) -> Result<(), FailOverError> {
        let about = About { kind: "Node", namespace: "", name: said.node };
        kubernetes.tell(about, Told { key, ..said.told() }).await?;
        let (Step::DeletePod { pod, .. } | Step::LeavePod { pod, .. }) = step else {
            return Ok(());
        };
        let of_pod = claims.get(&pod.uid).into_iter().flatten();
        let mut abouts: Vec<(&str, &str, &str)> = of_pod
            .map(|(namespace, name)| ("PersistentVolumeClaim", namespace.as_str(), name.as_str()))
            .collect();
        // One that is deleted is looked at by nobody.
        if matches!(step, Step::LeavePod { .. }) {
            abouts.push(("Pod", &pod.namespace, &pod.name));
        }
        for (kind, namespace, name) in abouts {
            let key = hash_of(&format!("{key} {kind} {namespace} {name}"));
            let about = About { kind, namespace, name };
            kubernetes.tell(about, Told { key: &key, ..said.told() }).await?;
        }
        Ok(())
    }

    async fn carry_out(
        &mut self,
        kubernetes: &Kubernetes,
        step: &Step,
    ) -> Result<(), FailOverError> {
        match step {
            Step::DeclareLost { node, boot_id } => {
                self.catalog.declare_lost(node, boot_id).await?;
            }
            Step::Taint { node } => {
                kubernetes.set_taint(node, true).await?;
                self.tainted.0.push(node.clone());
            }
            Step::Untaint { node } => {
                kubernetes.set_taint(node, false).await?;
                self.tainted.0.retain(|it| it != node);
            }
            Step::RemoveInUse { node, volumes } => kubernetes.remove_in_use(node, volumes).await?,
            Step::DeleteAttachment { attachment, .. } => {
                kubernetes.delete_attachment(attachment).await?;
            }
            Step::DeletePod { pod, .. } => kubernetes.delete_pod(pod).await?,
            Step::LeavePod { .. } | Step::Refuse { .. } => {}
        }
        Ok(())
    }
}

/// A step in words.
struct Said<'a> {
    node: &'a str,
    reason: &'static str,
    message: String,
    is_warning: bool,
}

impl Said<'_> {
    fn told(&self) -> Told<'_> {
        let Said { reason, message, is_warning, .. } = self;
        Told { key: "", reason, message, is_warning: *is_warning }
    }
}

fn words(step: &Step, is_done: bool) -> Said<'_> {
    let (node, reason, message, is_warning) = match step {
        Step::DeclareLost { node, .. } => {
            let why = "no pod reaches it, and its Lease has ended";
            (node, "HoldfastNodeLost", format!("node {node} is declared lost: {why}"), true)
        }
        Step::Taint { node } => {
            (node, "HoldfastTainted", format!("node {node} gets the taint of lost nodes"), false)
        }
        Step::Untaint { node } => {
            let message = format!("node {node} is not lost any more: the taint is taken away");
            (node, "HoldfastNodeBack", message, false)
        }
        Step::RemoveInUse { node, volumes } => {
            let count = volumes.len();
            let message = format!("{count} volumes of lost node {node} are fenced: not in use");
            (node, "HoldfastVolumesFenced", message, false)
        }
        Step::DeleteAttachment { node, attachment } => {
            let name = &attachment.name;
            let message = format!("a volume of lost node {node} is fenced: {name} is deleted");
            (node, "HoldfastVolumeDetached", message, false)
        }
        Step::DeletePod { node, pod } => {
            let (namespace, name) = (&pod.namespace, &pod.name);
            let message = format!(
                "the volumes of Pod {namespace}/{name} on lost node {node} are fenced: it is \
                 deleted, so that another one can run elsewhere"
            );
            (node, "HoldfastPodDeleted", message, true)
        }
        Step::LeavePod { node, pod, others } => {
            let (namespace, name, others) = (&pod.namespace, &pod.name, others.join(", "));
            let message = format!(
                "Pod {namespace}/{name} on lost node {node} is not deleted: it may still write to \
                 storage of others, its volumes {others}; if the node is off, run `kubectl delete \
                 pod --force`"
            );
            (node, "HoldfastPodLeft", message, true)
        }
        Step::Refuse { node, why } => {
            let message = format!("node {node} is cut off, and is not declared lost: {why}");
            (node, "HoldfastNotDeclaredLost", message, true)
        }
    };
    let message = if is_done { message } else { format!("dry run, nothing is done: {message}") };
    Said { node, reason, message, is_warning }
}
