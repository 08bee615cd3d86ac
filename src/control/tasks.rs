//! Permanent tasks of a pod's control plane: it follows the catalog, registers and reports to the
//! leader, and reconciles if it leads.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::control::api::catalog::CatalogService;
use crate::control::api::telling::SILENT_MAX;
use crate::control::catalog::chain;
use crate::control::command::CatalogCommand;
use crate::control::data_path::DataPath;
use crate::control::membership;
use crate::control::node::Node;
use crate::control::objects::source::Source;
use crate::control::observed::{is_telling, unix_ms};
use crate::control::proto::internal as proto;
use crate::control::proto::internal::catalog_server::Catalog as _;
use crate::control::reconcile::{Action, Facts, VOTER_LOST_AFTER, decide};
use crate::control::recover::offer;
use crate::control::registration::{REGISTER_AGAIN_AFTER, is_registered};
use crate::control::state::CatalogState;
use crate::control::sync::follower::Idle;
use crate::control::sync::update::Update;
use crate::control::trusting::Trusting;
use crate::io::clock;
use crate::level::NEWEST;
use crate::types::{PodId, VolumeId, mix64};
use crate::view::{ClusterView, PodReport};

/// A stream from which nothing comes for so long has ended.
const SYNC_SILENT_AFTER: Duration = Duration::from_secs(10);
/// Events that are recorded by one command.
const EVENTS_AT_ONCE: usize = 128;
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Interval of checks when nothing wakes a task earlier.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A report is repeated at this interval, and sent at most ten times as often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const REPORT_EVERY_LEAST: Duration = Duration::from_millis(100);

/// Follows this pod's own member of the catalog.
pub async fn follow_own_member(node: Arc<Node>) {
    let mut wanted = node.wanted.subscribe();
    let mut follower = node.follower();
    let (mut told_at, mut seen) = (Instant::now(), 0);
    loop {
        let Some(catalog) = node.catalog() else {
            sleep(LOOK_EVERY).await;
            continue;
        };
        let mut published = catalog.published.clone();
        drop(catalog);
        let now = published.borrow_and_update().clone();
        follower.want((**wanted.borrow_and_update()).clone());
        if follower.position() != node.position() {
            // Another pod was followed meanwhile.
            follower = node.follower();
        }
        if let Some(state) = now.state {
            let is_due = told_at.elapsed() >= SILENT_MAX || node.position().revision == 0;
            let idle = if is_due { Idle::Now } else { Idle::Later };
            if let Some(update) = follower.next(&state, idle) {
                take(&node, update);
                told_at = Instant::now();
            }
            if state.revision() != seen {
                seen = state.revision();
                node.wake.notify_one();
            }
        }
        tokio::select! {
            // The member may be replaced, so look again after a while.
            changed = timeout(LOOK_EVERY, published.changed()) => {
                if let Ok(Err(_)) = changed {
                    sleep(LOOK_EVERY).await;
                }
            }
            _ = wanted.changed() => {}
        }
    }
}

/// Takes an update. One that does not fit is logged; the pod stays with what it knows, and asks for
/// everything if that can help.
fn take(node: &Node, update: Update) {
    if let Err(error) = node.take_update(update) {
        tracing::error!("what the catalog says is not followed: {}", chain(&error));
    }
}

/// Follows other pods while this pod has no member that knows a leader.
pub async fn follow_others(node: Arc<Node>) {
    let mut next = 0;
    loop {
        // A pod that recovers the catalog has to be followed.
        if node.knows_leader() || node.recovery().is_some() {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let targets = targets(&node).await;
        if targets.is_empty() {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let target = targets[next % targets.len()];
        let ended = sync(&node, target).await;
        tracing::debug!(%target, "the catalog cannot be followed there: {}", ended.message());
        next += 1;
        sleep(RETRY_AFTER).await;
    }
}

/// Other pods that may have a view, the likeliest first.
async fn targets(node: &Node) -> Vec<SocketAddr> {
    let leader = node.leader().map(|(_, api)| api);
    let known = node.peers.all().into_iter().filter(|(pod, _)| *pod != node.identity.pod);
    let mut targets: Vec<SocketAddr> = leader.into_iter().chain(known.map(|it| it.1)).collect();
    for seed in &node.seeds {
        match tokio::net::lookup_host(seed).await {
            Ok(found) => targets.extend(found),
            Err(error) => tracing::debug!("could not look up {seed}: {error}"),
        }
    }
    targets.retain(|target| *target != node.addresses.api);
    targets
}

/// Follows the catalog through another pod until that ends.
async fn sync(node: &Arc<Node>, target: SocketAddr) -> Status {
    match follow(node, target).await {
        Ok(()) => Status::unavailable("the stream has ended"),
        Err(status) => status,
    }
}

async fn follow(node: &Arc<Node>, target: SocketAddr) -> Result<(), Status> {
    let (requests, waiting) = mpsc::channel(1);
    let mut wanted = node.wanted.subscribe();
    let first = first_request(node, &wanted.borrow_and_update());
    let says = async move {
        let mut request = first;
        // The stream ends with its task, or the pod's wants do.
        while requests.send(request).await.is_ok() && wanted.changed().await.is_ok() {
            let wants = Some(wants(&wanted.borrow_and_update()));
            request = proto::SyncRequest { wants, ..proto::SyncRequest::default() };
        }
    };
    let mut said = JoinSet::new();
    said.spawn(says);
    let requests = ReceiverStream::new(waiting);
    let mut messages = node.peers.streaming(target).sync(requests).await?.into_inner();
    let (mut rows, mut has_offered) = (Vec::new(), false);
    let silence = || Status::deadline_exceeded("the stream has gone silent");
    loop {
        let message = timeout(SYNC_SILENT_AFTER, messages.message()).await;
        let Some(message) = message.map_err(|_| silence())?? else { return Ok(()) };
        if let Some(recovering) = message.recovering {
            // Another pod may have a catalog that works.
            if recovering.told {
                return Err(Status::unavailable("it recovers the catalog"));
            }
            if !std::mem::replace(&mut has_offered, true) {
                let history = recovering.history.parse();
                let history = history.map_err(|_| Status::internal("a history is malformed"))?;
                offer(node, target, history).await?;
            }
            continue;
        }
        if let Ok(api) = message.leader_api.parse() {
            node.set_leader(Some((PodId(message.leader_pod), api)));
        }
        if let Some(mut piece) = message.update {
            rows.append(&mut piece.rows);
            if message.more {
                continue;
            }
            piece.rows = std::mem::take(&mut rows);
            let update = Update::from_message(piece);
            let update = update.map_err(|error| Status::internal(chain(&error)))?;
            let taken = node.take_update(update);
            taken.map_err(|error| Status::internal(chain(&error)))?;
        }
        let (revision, members) = node.catalog_members();
        if let Err(error) = membership::follow(node, revision, &members).await {
            tracing::error!("{}", chain(&error));
            return Err(Status::unavailable("this pod's part of the catalog cannot be made"));
        }
        if node.knows_leader() {
            return Ok(());
        }
    }
}

/// What this pod has and wants.
fn first_request(node: &Node, wanted: &BTreeSet<VolumeId>) -> proto::SyncRequest {
    let (position, volumes) = node.known();
    proto::SyncRequest {
        cluster: node.identity.cluster.to_string(),
        pod: node.identity.pod.0,
        api: node.addresses.api.to_string(),
        position: Some(position.into()),
        volumes: volumes.iter().map(|volume| volume.0).collect(),
        wants: Some(wants(wanted)),
        newest_level: NEWEST.0,
    }
}

fn wants(wanted: &BTreeSet<VolumeId>) -> proto::SyncWants {
    proto::SyncWants { volumes: wanted.iter().map(|volume| volume.0).collect() }
}

/// Gives the data path the newest view after each change.
pub async fn hand_over_views(node: Arc<Node>, data_path: Arc<dyn DataPath>) {
    let mut views = node.view.subscribe();
    loop {
        let view = views.borrow_and_update().clone();
        if view.revision > 0 {
            data_path.set_view(view.clone());
            node.handed_over.send_replace(view);
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Registers this pod's addresses and disks, once they are known, until the catalog accepts them.
/// Registers again whenever a view differs from them.
pub async fn register(node: Arc<Node>) {
    let service = CatalogService { node: node.clone() };
    let mut disks = node.disks.subscribe();
    let Ok(disks) = disks.wait_for(Option::is_some).await.map(|disks| disks.clone()) else {
        return;
    };
    let disks = disks.unwrap_or_default();
    let request = proto::RegisterRequest {
        cluster: node.identity.cluster.to_string(),
        pod: node.identity.pod.0,
        api: node.addresses.api.to_string(),
        peer: node.addresses.peer.to_string(),
        nbd: node.addresses.nbd.map(|nbd| nbd.to_string()).unwrap_or_default(),
        uid: node.uid().to_string(),
        node: Some(node.machine.clone().into()),
        newest_level: NEWEST.0,
        disks: disks
            .iter()
            .map(|disk| proto::RegisterDisk {
                disk: disk.disk.to_string(),
                path: disk.path.clone(),
                capacity_bytes: disk.capacity_bytes,
            })
            .collect(),
    };
    let mut views = node.view.subscribe();
    loop {
        while let Err(status) = service.register(Request::new(request.clone())).await {
            tracing::warn!("could not register with the catalog: {}", status.message());
            sleep(REGISTER_AGAIN_AFTER).await;
        }
        tracing::info!("registered with the catalog");
        sleep(REGISTER_AGAIN_AFTER).await;
        let (pod, addresses) = (node.identity.pod, &node.addresses);
        let otherwise = |view: &Arc<ClusterView>| !is_registered(view, pod, addresses, &disks);
        if views.wait_for(otherwise).await.is_err() {
            return;
        }
        tracing::warn!("the catalog has other addresses or disks of this pod: registering again");
    }
}

/// Sends the data path's report to the leader, after changes and every second. Until the disks are
/// open it only shows that the pod is alive.
pub async fn report(node: Arc<Node>) {
    let service = CatalogService { node: node.clone() };
    let mut reports = node.report.subscribe();
    let mut trustings = node.trusting.subscribe();
    // The last report that a leader has, and its id. Few change while nothing happens.
    let mut told: Option<(PodReport, u64, String)> = None;
    loop {
        let report = reports.borrow_and_update().clone();
        let trusting = trustings.borrow_and_update().clone();
        let catalog_failed = node.catalog_lost.borrow().clone().unwrap_or_default();
        let same = told
            .take()
            .filter(|(last, _, failed)| Some(last) == report.as_ref() && *failed == catalog_failed);
        let is_same = same.is_some();
        let report_id = same.map_or_else(new_report_id, |(_, id, _)| id);
        let member = node
            .catalog()
            .map(|catalog| (catalog.row.member, catalog.published.borrow().applied_index));
        let request = proto::ReportRequest {
            cluster: node.identity.cluster.to_string(),
            pod: node.identity.pod.0,
            report: match (&report, is_same) {
                (Some(report), false) => to_json(report).into(),
                _ => Default::default(),
            },
            catalog_member: member.map_or(0, |(member, _)| member.0),
            catalog_applied: member.map_or(0, |(_, applied)| applied),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            report_id,
            is_same,
            catalog_failed: catalog_failed.clone(),
            trusting: Some(trusting.into()),
        };
        match service.report(Request::new(request)).await {
            Ok(answer) if answer.get_ref().is_unknown => continue,
            Ok(_) => told = report.map(|report| (report, report_id, catalog_failed)),
            Err(status) => {
                tracing::debug!("could not report to the catalog: {}", status.message());
            }
        }
        sleep(REPORT_EVERY_LEAST).await;
        // Changed or not, the report is due again.
        tokio::select! {
            _ = sleep(REPORT_EVERY - REPORT_EVERY_LEAST) => {}
            _ = reports.changed() => {}
            _ = trustings.changed() => {}
        }
    }
}

impl From<Trusting> for proto::Trusting {
    fn from(it: Trusting) -> proto::Trusting {
        proto::Trusting {
            revision: it.revision,
            trusts: it.trusts.iter().map(|hash| hash.to_vec().into()).collect(),
            presents: it.presents.map(|hash| hash.to_vec().into()).unwrap_or_default(),
        }
    }
}

/// Another one for each report of each process.
fn new_report_id() -> u64 {
    mix64(clock::now().0 ^ mix64(u64::from(std::process::id())))
}

fn to_json(report: &PodReport) -> Vec<u8> {
    serde_json::to_vec(report).expect("our own types have a JSON form")
}

/// On the leader: carries out what the state and the reports demand.
pub async fn reconcile(node: Arc<Node>) {
    loop {
        // Woken or not, decide again.
        let _woken = timeout(LOOK_EVERY, node.wake.notified()).await;
        let leading = node.leading();
        node.reports.set_leading(leading.is_some());
        let Some(catalog) = leading else { continue };
        let published = catalog.published.borrow().clone();
        let Some(state) = &published.state else {
            continue;
        };
        node.reports.expect_nodes(|| podless(state));
        let (group, applied) = (&published.group, published.applied_index);
        let now_ms = unix_ms();
        let actions = node.reports.with(|pods| {
            let lost_after = VOTER_LOST_AFTER;
            decide(state, &Facts::new(state, group, applied, pods, lost_after, now_ms))
        });
        for action in actions {
            tracing::info!("reconciling: {action}");
            match action {
                Action::Change(change) => catalog.change(change),
                Action::Propose(command) => {
                    if let Err(error) = catalog.propose(command).await {
                        tracing::info!("could not carry out a decision: {}", chain(&error));
                    }
                }
            }
        }
    }
}

/// The nodes without pods.
fn podless(state: &CatalogState) -> Vec<String> {
    let has_pods = |name: &String| state.index.pods_by_node.contains_key(name);
    state.nodes.keys().filter(|name| !has_pods(name)).cloned().collect()
}

/// On the leader: records which conditions of objects have become others.
pub async fn record_events(node: Arc<Node>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(catalog) = node.leading() else { continue };
        let Some(state) = catalog.published.borrow().state.clone() else { continue };
        // A new leader takes pods for silent from which it has not heard yet.
        if !node.reports.with(|pods| is_telling(&state, pods)) {
            continue;
        }
        let source = Source::new(&state);
        let seen = node
            .observed
            .look(&state, &node.reports, |observer, _| observer.take_news(source, EVENTS_AT_ONCE));
        if seen.is_empty() {
            continue;
        }
        let command = CatalogCommand::RecordEvents { seen: seen.clone() };
        if let Err(error) = catalog.propose(command).await {
            tracing::info!("could not record events: {}", chain(&error));
            node.observed.look(&state, &node.reports, |observer, _| {
                observer.give_back(source, &seen);
            });
        }
    }
}
