//! The conventions of the API, on a cluster of three pods in one process: pages, watches, reasons,
//! deadlines, health, reflection. Calls go to a pod that does not lead.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Code, Request, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_types::StatusExt as _;

use crate::control::cluster_test::{SIZE, TestPod, all_up, three_pods};
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::{
    CapacityRequest, Change, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest, Phase,
    Query, StatusRequest, StatusResponse, UpdateVolumeRequest, Volume, WatchVolumesRequest,
    WatchVolumesResponse,
};
use crate::control::reason::{DOMAIN, Reason};

fn reason(status: &tonic::Status) -> Option<Reason> {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no details: {status}"));
    assert_eq!(info.domain, DOMAIN);
    Reason::of(&info.reason)
}

/// A pod that does not lead.
async fn follower(pods: &[TestPod]) -> &TestPod {
    let leads = |status: &StatusResponse| status.leader_pod > 0 && all_up(status, 3);
    let leader = pods[0].until("there is a leader", leads).await.leader_pod;
    pods.iter().find(|pod| pod.server.is_some() && pod.id() != leader).unwrap()
}

async fn list(pod: &TestPod, query: Query) -> Result<(Vec<String>, String, String), tonic::Status> {
    let request = ListVolumesRequest { query: Some(query) };
    let page = pod.volumes().await.list(request).await?.into_inner();
    let names = page.volumes.into_iter().map(|volume| volume.meta.unwrap().name).collect();
    Ok((names, page.next_page_token, page.resume_token))
}

async fn watch(
    pod: &TestPod,
    query: Query,
    resume_token: &str,
) -> Result<Streaming<WatchVolumesResponse>, tonic::Status> {
    let resume_token = resume_token.to_owned();
    let request = WatchVolumesRequest { query: Some(query), resume_token };
    Ok(pod.volumes().await.watch(request).await?.into_inner())
}

/// The next thing that is told; panics when the watch ends.
async fn told(watch: &mut Streaming<WatchVolumesResponse>) -> (Change, Option<Volume>, String) {
    let told = watch.message().await.unwrap().expect("the watch goes on");
    (told.change(), told.volume, told.resume_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_keeps_its_conventions() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = three_pods(root.path()).await;
    let pod = follower(&pods).await;
    for name in ["a", "b", "c", "d", "e"] {
        pod.create(name, "", SIZE).await.unwrap();
    }
    pages_hold_each_object_once(pod).await;
    refusals_have_reasons(pod).await;
    volumes_are_found_by_uid(pod).await;
    updates_name_what_they_are_based_on(pod).await;
    let capacity = ClusterClient::connect(pod.endpoint()).await.unwrap();
    capacity_is_told_by_class(capacity).await;
    health_and_definitions_are_told(pod).await;
    let token = a_watch_tells_every_change(pod).await;
    let token = a_watch_is_resumed(pod, &token).await;
    let status = pod.until("there is a leader", |status| status.leader_pod > 0).await;
    let leads = |pod: &TestPod| pod.id() == status.leader_pod;
    let leader = pods.iter().position(leads).unwrap();
    pods[leader].stop().await;
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    a_watch_goes_on_under_another_leader(&pods[others[0]], status.leader_pod, &token).await;
    pods[others[1]].stop().await;
    deadlines_are_kept_and_told(&pods[others[0]]).await;
    pods[others[0]].stop().await;
}

async fn pages_hold_each_object_once(pod: &TestPod) {
    let (mut found, mut query) = (Vec::new(), Query { page_size: 2, ..Query::default() });
    loop {
        let (names, next, _) = list(pod, query.clone()).await.unwrap();
        assert!(names.len() <= 2);
        found.extend(names);
        if next.is_empty() {
            break;
        }
        query.page_token = next;
    }
    assert_eq!(found, ["a", "b", "c", "d", "e"]);
    let named = Query { name: "d".to_owned(), ..Query::default() };
    assert_eq!(list(pod, named).await.unwrap().0, ["d"]);
    let deleting = Query { phases: vec![Phase::Deleting.into()], ..Query::default() };
    assert!(list(pod, deleting).await.unwrap().0.is_empty());
    let labelled = Query { selector: "tier=gold".to_owned(), ..Query::default() };
    assert!(list(pod, labelled).await.unwrap().0.is_empty());

    let other = Query { name: "d".to_owned(), ..query.clone() };
    assert_eq!(reason(&list(pod, other).await.unwrap_err()), Some(Reason::BadPage));
    let large = Query { page_size: 1001, ..Query::default() };
    assert_eq!(reason(&list(pod, large).await.unwrap_err()), Some(Reason::BadPage));
    let wrong = Query { page_token: "12".to_owned(), ..Query::default() };
    assert_eq!(reason(&list(pod, wrong).await.unwrap_err()), Some(Reason::BadPage));
    let wrong = Query { selector: "a in b".to_owned(), ..Query::default() };
    assert_eq!(reason(&list(pod, wrong).await.unwrap_err()), Some(Reason::BadSelector));
}

async fn refusals_have_reasons(pod: &TestPod) {
    let error = pod.create("a", "", 2 * SIZE).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::AlreadyExists, Some(Reason::NameTaken)));
    let error = pod.create("-a", "", SIZE).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::BadName));
    let error = pod.create("odd", "", 4095).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::BadSize));
    // Each pod has a disk of 1 TiB, which may promise twice that.
    let error = pod.create("large", "", 3 << 40).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::ResourceExhausted, Some(Reason::NoCapacity)));
    let numbers = error.get_details_error_info().unwrap().metadata;
    assert_eq!(numbers["wanted_bytes"], (3u64 << 40).to_string());
    let largest: u64 = numbers["largest_bytes"].parse().unwrap();
    assert!((1 << 40..2 << 40).contains(&largest), "{error}");
    let mut volumes = pod.volumes().await;
    let error = volumes
        .get(GetVolumeRequest { name: "x".to_owned(), uid: String::new() })
        .await
        .unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::NotFound, Some(Reason::NoSuchVolume)));
    let about = error.get_details_resource_info().unwrap();
    assert_eq!((about.resource_type.as_str(), about.resource_name.as_str()), ("volume", "x"));
    let error = watch(pod, Query::default(), "12").await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::BadResumeToken));
}

async fn volumes_are_found_by_uid(pod: &TestPod) {
    let mut volumes = pod.volumes().await;
    let of_name = GetVolumeRequest { name: "e".to_owned(), uid: String::new() };
    let volume = volumes.get(of_name).await.unwrap().into_inner();
    let of_uid = |uid: &str| GetVolumeRequest { name: String::new(), uid: uid.to_owned() };
    let uid = volume.meta.clone().unwrap().uid;
    assert_eq!(volumes.get(of_uid(&uid)).await.unwrap().into_inner().meta, volume.meta);
    assert_eq!(volume.status.unwrap().replica_nodes.len(), 3);
    for unknown in [&"0".repeat(32), "nonsense"] {
        let error = volumes.get(of_uid(unknown)).await.unwrap_err();
        assert_eq!(reason(&error), Some(Reason::NoSuchVolume));
        // Callers tell by this that the pod has looked at the uid.
        assert_eq!(error.get_details_resource_info().unwrap().resource_name, unknown);
    }
}

async fn updates_name_what_they_are_based_on(pod: &TestPod) {
    let mut volumes = pod.volumes().await;
    let name = || "e".to_owned();
    let before = volumes
        .get(GetVolumeRequest { name: name(), uid: String::new() })
        .await
        .unwrap()
        .into_inner();
    let revision = before.meta.unwrap().revision;
    let update = |tier: &str, revision| UpdateVolumeRequest {
        name: name(),
        revision,
        labels: [("tier".to_owned(), tier.to_owned())].into(),
        request_id: String::new(),
        size_bytes: 0,
    };
    let after = volumes.update(update("gold", revision)).await.unwrap().into_inner();
    assert_eq!(after.meta.unwrap().labels["tier"], "gold");
    let error = volumes.update(update("silver", revision)).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::Aborted, Some(Reason::RevisionConflict)));
    let gold = Query { selector: "tier in (gold,silver)".to_owned(), ..Query::default() };
    assert_eq!(list(pod, gold).await.unwrap().0, ["e"]);
    let error = volumes.update(update("-", 0)).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::BadLabels));
}

async fn capacity_is_told_by_class(mut cluster: ClusterClient<tonic::transport::Channel>) {
    let answer = cluster.capacity(CapacityRequest::default()).await.unwrap().into_inner();
    let of = |name: &str| answer.classes.iter().find(|it| it.class == name).unwrap();
    assert_eq!(of("replicated").disks, 3);
    assert!(of("local").available_bytes > of("replicated").available_bytes);
    let request = CapacityRequest { class: "none".to_owned(), nodes: Vec::new() };
    let error = cluster.capacity(request).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::NoSuchClass));
}

/// Without a majority, a call would look for a leader for ten seconds.
async fn deadlines_are_kept_and_told(pod: &TestPod) {
    let mut cluster = ClusterClient::connect(pod.endpoint()).await.unwrap();
    let mut ask = async || {
        let mut request = Request::new(StatusRequest {});
        request.set_timeout(Duration::from_secs(2));
        cluster.status(request).await
    };
    // A leader may answer until it notices that it has no majority.
    let error = loop {
        if let Err(error) = ask().await {
            break error;
        }
    };
    assert_eq!(reason(&error), Some(Reason::DeadlineExceeded), "{error}");
    assert!(error.get_details_retry_info().is_some());
}

async fn health_and_definitions_are_told(pod: &TestPod) {
    let channel = Endpoint::from_shared(pod.endpoint()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "holdfast.v1.Volumes"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, health_check_response::ServingStatus::Serving, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let message = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: BTreeSet<String> = services.service.into_iter().map(|it| it.name).collect();
    assert!(names.contains("holdfast.v1.Volumes"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
}

/// Returns the token behind which `b` is deleted.
async fn a_watch_tells_every_change(pod: &TestPod) -> String {
    let mut all = watch(pod, Query::default(), "").await.unwrap();
    let mut present = Vec::new();
    let token = loop {
        match told(&mut all).await {
            (Change::Present, Some(volume), _) => present.push(volume.meta.unwrap().name),
            (Change::Bookmark, None, token) => break token,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(present, ["a", "b", "c", "d", "e"]);
    let named = Query { name: "f".to_owned(), ..Query::default() };
    let mut one = watch(pod, named, "").await.unwrap();
    assert_eq!(told(&mut one).await.0, Change::Bookmark);

    pod.create("f", "", SIZE).await.unwrap();
    loop {
        let (change, volume, token) = told(&mut one).await;
        assert_eq!((change, token.is_empty()), (Change::Updated, false));
        let volume = volume.unwrap();
        assert_eq!(volume.meta.as_ref().unwrap().name, "f");
        if volume.status.as_ref().unwrap().phase() == Phase::Ready {
            break;
        }
    }
    let name = "b".to_owned();
    let delete =
        DeleteVolumeRequest { name, retention_s: Some(0), ..DeleteVolumeRequest::default() };
    pod.volumes().await.delete(delete).await.unwrap();
    until_deleted(&mut all, "b").await;
    token
}

async fn until_deleted(watch: &mut Streaming<WatchVolumesResponse>, name: &str) -> String {
    loop {
        let (change, volume, token) = told(watch).await;
        let meta = volume.and_then(|volume| volume.meta).unwrap_or_default();
        if change == Change::Deleted && meta.name == name {
            assert!(!meta.uid.is_empty());
            return token;
        }
    }
}

/// From a token, what came behind it is told. Returns the token behind that.
async fn a_watch_is_resumed(pod: &TestPod, token: &str) -> String {
    let mut resumed = watch(pod, Query::default(), token).await.unwrap();
    let (change, volume, _) = told(&mut resumed).await;
    assert_ne!(change, Change::Present, "{volume:?}");
    let behind = until_deleted(&mut resumed, "b").await;
    let only_a = Query { name: "a".to_owned(), ..Query::default() };
    let mut quiet = watch(pod, only_a, &behind).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(300), quiet.message()).await;
    assert!(waited.is_err(), "nothing has changed: {waited:?}");
    behind
}

/// Another leader does not know what was told: it tells what is there again, and goes on.
async fn a_watch_goes_on_under_another_leader(pod: &TestPod, old_leader: u64, token: &str) {
    let elected =
        |status: &StatusResponse| status.leader_pod > 0 && status.leader_pod != old_leader;
    pod.until("there is another leader", elected).await;
    let only_a = Query { name: "a".to_owned(), ..Query::default() };
    let mut resumed = watch(pod, only_a, token).await.unwrap();
    let (mut known, mut is_hurt) = (Vec::new(), false);
    // A pod is away, which the leader notices sooner or later.
    while !is_hurt || !known.contains(&Change::Bookmark) {
        let (change, volume, _) = told(&mut resumed).await;
        known.push(change);
        if let Some(volume) = volume {
            assert_eq!(volume.meta.as_ref().unwrap().name, "a");
            is_hurt = volume.status.unwrap().phase() != Phase::Ready;
        }
    }
    assert_eq!(known[0], Change::Present, "{known:?}");
}
