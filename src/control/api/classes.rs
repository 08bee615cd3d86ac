//! What a user may ask for.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::objects::{Event, Events, get, page, watch};
use crate::control::api::requests::{checked, name_request};
use crate::control::api::route::on_leader;
use crate::control::command::{CatalogCommand, NewClass};
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::proto::classes_client::ClassesClient;
use crate::control::proto::classes_server::Classes;
use crate::control::proto::{
    Class, ClassSpec, CreateClassRequest, DeleteClassRequest, DeleteClassResponse, GetClassRequest,
    ListClassesRequest, ListClassesResponse, UpdateClassRequest, WatchClassesRequest,
    WatchClassesResponse,
};

pub struct ClassesService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Classes for ClassesService {
    async fn list(
        &self,
        request: Request<ListClassesRequest>,
    ) -> Result<Response<ListClassesResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let page =
                    page::<Class>(&self.node, &catalog, request.query, "", |source, after| {
                        Ok(source.keys_after(Class::KIND, after))
                    })
                    .await?;
                Ok(ListClassesResponse {
                    classes: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { ClassesClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetClassRequest>) -> Result<Response<Class>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { ClassesClient::new(channel).get(call).await },
        )
        .await
    }

    async fn create(
        &self,
        mut request: Request<CreateClassRequest>,
    ) -> Result<Response<Class>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let CreateClassRequest { name, spec, labels, request_id } = request;
                let class = new_class(spec, labels)?;
                let command = CatalogCommand::CreateClass { request_id, name: name.clone(), class };
                catalog.propose(command).await?;
                get(&self.node, &catalog, &name).await
            },
            |channel, call| async move { ClassesClient::new(channel).create(call).await },
        )
        .await
    }

    async fn update(
        &self,
        mut request: Request<UpdateClassRequest>,
    ) -> Result<Response<Class>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let UpdateClassRequest { name, revision, spec, labels, request_id } = request;
                let class = new_class(spec, labels)?;
                let (known, based_on) = (name.clone(), revision);
                let command = CatalogCommand::UpdateClass { request_id, name, class, based_on };
                catalog.propose(command).await?;
                get(&self.node, &catalog, &known).await
            },
            |channel, call| async move { ClassesClient::new(channel).update(call).await },
        )
        .await
    }

    async fn delete(
        &self,
        mut request: Request<DeleteClassRequest>,
    ) -> Result<Response<DeleteClassResponse>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let DeleteClassRequest { name, request_id } = request;
                catalog.propose(CatalogCommand::DeleteClass { request_id, name }).await?;
                Ok(DeleteClassResponse {})
            },
            |channel, call| async move { ClassesClient::new(channel).delete(call).await },
        )
        .await
    }

    type WatchStream = Events<WatchClassesResponse>;

    async fn watch(
        &self,
        request: Request<WatchClassesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events = watch::<Class>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = ClassesClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: Event<Class>) -> WatchClassesResponse {
    let Event { change, object, resume_token } = event;
    WatchClassesResponse { change: change.into(), class: object, resume_token }
}

/// What a request asks for.
fn new_class(spec: Option<ClassSpec>, labels: HashMap<String, String>) -> Result<NewClass, Status> {
    let spec = spec.unwrap_or_default();
    let limits = spec.limits.unwrap_or_default();
    Ok(NewClass {
        replicas: spec.replicas,
        failure_domain: spec.failure_domain,
        disk_class: spec.disk_class,
        overcommit_percent: spec.overcommit_percent,
        io_timeout_ms: spec.io_timeout_ms,
        iops_max: limits.iops,
        bytes_per_second_max: limits.bytes_per_second,
        labels: checked(labels)?,
    })
}
