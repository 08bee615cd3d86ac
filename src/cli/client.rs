//! A connection to a pod's API.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::cli::exit::{CallError, UsageError};
use crate::control::connector::connector;
use crate::control::identity::random_uuid;
use crate::control::local;
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::catalog_admin_client::CatalogAdminClient;
use crate::control::proto::classes_client::ClassesClient;
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::credentials_client::CredentialsClient;
use crate::control::proto::disks_client::DisksClient;
use crate::control::proto::events_client::EventsClient;
use crate::control::proto::nodes_client::NodesClient;
use crate::control::proto::pods_client::PodsClient;
use crate::control::proto::shards_client::ShardsClient;
use crate::control::proto::volumes_client::VolumesClient;
use crate::security::credentials::{Credentials, Tls};

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
    /// A client without credentials.
    pub fn new(endpoint: &str) -> anyhow::Result<Client> {
        Client::with_credentials(endpoint, None)
    }

    /// A client of `host:port`, under TLS if it has credentials, or of `unix:PATH`.
    pub fn with_credentials(
        endpoint: &str,
        credentials: Option<&Credentials>,
    ) -> anyhow::Result<Client> {
        let no_endpoint = || {
            let what = "is not an endpoint, such as 127.0.0.1:7400 or unix:/PATH/api.sock";
            UsageError(format!("{endpoint:?} {what}"))
        };
        let built = |channel| Client { endpoint: endpoint.to_owned(), channel };
        if let Some(path) = endpoint.strip_prefix("unix:") {
            let path = local::short(Path::new(path)).context("could not find the socket")?;
            let uri = format!("unix:{}", path.display());
            let parsed = Endpoint::from_shared(uri).map_err(|_| no_endpoint())?;
            return Ok(built(limited(parsed).connect_lazy()));
        }
        let (scheme, address) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let parsed =
            Endpoint::from_shared(format!("http://{address}")).map_err(|_| no_endpoint())?;
        parsed.uri().port().ok_or_else(no_endpoint)?;
        match (scheme, credentials) {
            ("" | "https", Some(credentials)) => {
                let tls = Tls::new(credentials, credentials.trust())?;
                Ok(built(limited(parsed).connect_with_connector_lazy(connector(&tls)?)))
            }
            ("" | "http", _) => Ok(built(limited(parsed).connect_lazy())),
            ("https", None) => Err(UsageError(
                "https needs credentials: give --credentials, or --cert, --key and --ca".to_owned(),
            )
            .into()),
            _ => Err(no_endpoint().into()),
        }
    }

    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone())
    }

    pub fn catalog_admin(&self) -> CatalogAdminClient<Channel> {
        CatalogAdminClient::new(self.channel.clone())
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

    pub fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
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

    pub fn credentials(&self) -> CredentialsClient<Channel> {
        CredentialsClient::new(self.channel.clone())
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

fn limited(endpoint: Endpoint) -> Endpoint {
    endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT)
}

/// A new request id; keep it over retries of the request.
pub fn request_id() -> anyhow::Result<String> {
    Ok(random_uuid().context("could not draw a request id")?.to_string())
}
