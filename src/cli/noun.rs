//! The calls that all kinds of objects have in common, for commands that do the same with each.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::cli::client::Client;
use crate::cli::exit::CallError;
use crate::cli::render::Rows;
use crate::control::proto::{
    Attachment, Change, Class, Disk, Event, GetAttachmentRequest, GetClassRequest, GetDiskRequest,
    GetNodeRequest, GetPodRequest, GetShardRequest, GetVolumeRequest, ListAttachmentsRequest,
    ListClassesRequest, ListDisksRequest, ListEventsRequest, ListNodesRequest, ListPodsRequest,
    ListShardsRequest, ListVolumesRequest, Node, Pod, Query, Shard, Volume,
    WatchAttachmentsRequest, WatchClassesRequest, WatchDisksRequest, WatchEventsRequest,
    WatchNodesRequest, WatchPodsRequest, WatchVolumesRequest,
};

/// Some of the objects, and the token of the next page.
pub type Page<T> = (Vec<T>, String);

/// What a watch tells.
#[derive(Clone, Debug)]
pub struct Told<T> {
    pub change: Change,
    pub object: Option<T>,
    pub resume_token: String,
}

/// What a watch gives.
pub type Telling<T> = Pin<Box<dyn Stream<Item = Result<Told<T>, Status>> + Send>>;

/// A kind of object that can be listed and shown. `within`: the object that it must belong to;
/// empty: any.
pub trait Noun: Rows {
    fn page(
        client: &Client,
        query: Query,
        within: &str,
    ) -> impl Future<Output = Result<Page<Self>, CallError>>;

    fn get(client: &Client, name: &str) -> impl Future<Output = Result<Self, CallError>>;
}

/// A kind of object that can be watched.
pub trait Watched: Noun {
    fn watch(
        client: &Client,
        query: Query,
        within: &str,
        resume_token: String,
    ) -> impl Future<Output = Result<Telling<Self>, CallError>>;
}

/// All objects that a query selects, page by page.
pub async fn all<T: Noun>(
    client: &Client,
    query: Query,
    within: &str,
) -> Result<Vec<T>, CallError> {
    let (mut objects, mut query) = (Vec::new(), Query { page_size: 1000, ..query });
    loop {
        let (page, next) = T::page(client, query.clone(), within).await?;
        objects.extend(page);
        if next.is_empty() {
            return Ok(objects);
        }
        query.page_token = next;
    }
}

macro_rules! noun {
    ($noun:ident, $nouns:ident, $get:ident, $list:ident { $($field:ident: $value:expr),* }) => {
        impl Noun for $noun {
            // Few nouns belong to others.
            #[allow(unused_variables)]
            async fn page(
                client: &Client,
                query: Query,
                within: &str,
            ) -> Result<Page<$noun>, CallError> {
                let request = $list { query: Some(query), $($field: $value(within)),* };
                let answer = client.$nouns().list(request).await;
                let page = client.check(format!("list the {}", stringify!($nouns)), answer)?;
                Ok((page.$nouns, page.next_page_token))
            }

            // Most requests have the name alone.
            #[allow(clippy::needless_update)]
            async fn get(client: &Client, name: &str) -> Result<$noun, CallError> {
                let request = $get { name: name.to_owned(), ..$get::default() };
                let answer = client.$nouns().get(request).await;
                client.check(format!("show {} {name}", $noun::WORD), answer)
            }
        }
    };
}

macro_rules! watched {
    ($noun:ident, $nouns:ident, $field:ident, $watch:ident { $($of:ident: $value:expr),* }) => {
        impl Watched for $noun {
            #[allow(unused_variables)]
            async fn watch(
                client: &Client,
                query: Query,
                within: &str,
                resume_token: String,
            ) -> Result<Telling<$noun>, CallError> {
                let query = Some(query);
                let request = $watch { query, resume_token, $($of: $value(within)),* };
                let answer = client.$nouns().watch(request).await;
                let events = client.check(format!("watch the {}", stringify!($nouns)), answer)?;
                Ok(Box::pin(events.map(|event| {
                    event.map(|event| Told {
                        change: event.change(),
                        object: event.$field,
                        resume_token: event.resume_token,
                    })
                })))
            }
        }
    };
}

noun!(Node, nodes, GetNodeRequest, ListNodesRequest {});
noun!(Pod, pods, GetPodRequest, ListPodsRequest {});
noun!(Disk, disks, GetDiskRequest, ListDisksRequest { pod: number });
noun!(Class, classes, GetClassRequest, ListClassesRequest {});
noun!(Volume, volumes, GetVolumeRequest, ListVolumesRequest {});
noun!(
    Attachment,
    attachments,
    GetAttachmentRequest,
    ListAttachmentsRequest { volume: volume_of, node: node_of }
);
noun!(Shard, shards, GetShardRequest, ListShardsRequest { volume: str::to_owned });
watched!(Node, nodes, node, WatchNodesRequest {});
watched!(Pod, pods, pod, WatchPodsRequest {});
watched!(Disk, disks, disk, WatchDisksRequest {});
watched!(Class, classes, class, WatchClassesRequest {});
watched!(Attachment, attachments, attachment, WatchAttachmentsRequest {});
watched!(Volume, volumes, volume, WatchVolumesRequest {});
watched!(Event, events, event, WatchEventsRequest { object_kind: kind_of, object_name: name_of });

/// Events are listed, not shown one by one.
impl Noun for Event {
    async fn page(client: &Client, query: Query, within: &str) -> Result<Page<Event>, CallError> {
        let (object_kind, object_name) = (kind_of(within), name_of(within));
        let request = ListEventsRequest { query: Some(query), object_kind, object_name };
        let answer = client.events().list(request).await;
        let page = client.check("list the events", answer)?;
        Ok((page.events, page.next_page_token))
    }

    async fn get(client: &Client, name: &str) -> Result<Event, CallError> {
        let query = Query { name: name.to_owned(), ..Query::default() };
        let (events, _) = Event::page(client, query, "").await?;
        let none = || Status::not_found(format!("there is no event named {name:?}"));
        let found = events.into_iter().next().map(tonic::Response::new).ok_or_else(none);
        client.check(format!("show event {name}"), found)
    }
}

/// The parts of `KIND/NAME`, of which the name may be missing.
fn kind_of(within: &str) -> String {
    within.split_once('/').map_or(within, |(kind, _)| kind).to_owned()
}

fn name_of(within: &str) -> String {
    within.split_once('/').map(|(_, name)| name.to_owned()).unwrap_or_default()
}

/// The parts of `VOLUME/NODE`, of which each may be empty.
fn volume_of(within: &str) -> String {
    within.split_once('/').map(|(volume, _)| volume.to_owned()).unwrap_or_default()
}

fn node_of(within: &str) -> String {
    within.split_once('/').map(|(_, node)| node.to_owned()).unwrap_or_default()
}

/// The number of a pod; 0 for none.
fn number(within: &str) -> u64 {
    within.parse().unwrap_or(0)
}
