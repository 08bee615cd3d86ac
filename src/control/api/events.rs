//! The history of objects.

use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::objects::{self, page, watch_within};
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::objects::describe::{Object as _, about};
use crate::control::objects::key::ObjectKey;
use crate::control::proto::events_client::EventsClient;
use crate::control::proto::events_server::Events;
use crate::control::proto::{
    Event, ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
};

pub struct EventsService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Events for EventsService {
    async fn list(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let ListEventsRequest { query, object_kind: kind, object_name: name } = request;
                let within = about(&kind, &name);
                let page = page::<Event>(&self.node, &catalog, query, &within, |source, after| {
                    if name.is_empty() {
                        return Ok(source.keys_after(Event::KIND, after));
                    }
                    let after = after.cloned();
                    let events = source.events_of(&kind, &name).map(ObjectKey::Event);
                    Ok(Box::new(events.filter(move |key| after.as_ref().is_none_or(|it| key > it))))
                });
                let page = page.await?;
                Ok(ListEventsResponse {
                    events: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { EventsClient::new(channel).list(call).await },
        )
        .await
    }

    type WatchStream = objects::Events<WatchEventsResponse>;

    async fn watch(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let WatchEventsRequest { query, object_kind, object_name, resume_token } = request;
                let within = about(&object_kind, &object_name);
                let events =
                    watch_within::<Event>(&self.node, catalog, query, &within, &resume_token)
                        .await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = EventsClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: objects::Event<Event>) -> WatchEventsResponse {
    let objects::Event { change, object, resume_token } = event;
    WatchEventsResponse { change: change.into(), event: object, resume_token }
}
