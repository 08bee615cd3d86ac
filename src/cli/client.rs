//! A connection to a pod's API.

use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::cli::exit::{CallError, UsageError};
use crate::control::identity::random_uuid;
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::classes_client::ClassesClient;
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::disks_client::DisksClient;
use crate::control::proto::nodes_client::NodesClient;
use crate::control::proto::pods_client::PodsClient;
use crate::control::proto::shards_client::ShardsClient;
use crate::control::proto::volumes_client::VolumesClient;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than a pod looks for the catalog's leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one pod; connects at the first call.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: String,
    channel: Channel,
}

impl Client {
    pub fn new(endpoint: &str) -> anyhow::Result<Client> {
        let uri = match endpoint.contains("://") {
            true => endpoint.to_owned(),
            false => format!("http://{endpoint}"),
        };
        let no_endpoint =
            || UsageError(format!("{endpoint:?} is not an endpoint, such as 127.0.0.1:7400"));
        let parsed = Endpoint::from_shared(uri).map_err(|_| no_endpoint())?;
        parsed.uri().port().ok_or_else(no_endpoint)?;
        let channel = parsed.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).connect_lazy();
        Ok(Client { endpoint: endpoint.to_owned(), channel })
    }

    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    pub fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(self.channel.clone())
    }

    pub fn disks(&self) -> DisksClient<Channel> {
        DisksClient::new(self.channel.clone())
    }

    pub fn attachments(&self) -> AttachmentsClient<Channel> {
        AttachmentsClient::new(self.channel.clone())
    }

    pub fn nodes(&self) -> NodesClient<Channel> {
        NodesClient::new(self.channel.clone())
    }

    pub fn classes(&self) -> ClassesClient<Channel> {
        ClassesClient::new(self.channel.clone())
    }

    pub fn shards(&self) -> ShardsClient<Channel> {
        ShardsClient::new(self.channel.clone())
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// Unwraps a call's answer. An error says what was being done.
    pub fn check<T>(
        &self,
        doing: impl Into<String>,
        answer: Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        self.told(doing, answer.map(Response::into_inner))
    }

    /// Unwraps what a watch tells.
    pub fn told<T>(
        &self,
        doing: impl Into<String>,
        told: Result<T, Status>,
    ) -> Result<T, CallError> {
        told.map_err(|status| CallError::new(doing.into(), &self.endpoint, status))
    }
}

/// A new request id; keep it over retries of the request.
pub fn request_id() -> anyhow::Result<String> {
    Ok(random_uuid().context("could not draw a request id")?.to_string())
}
