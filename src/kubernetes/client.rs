//! The client of the API server of Kubernetes: by `KUBECONFIG`, or by the service account of the
//! Pod that this program runs in.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::ListParams;
use kube::config::InferConfigError;
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;

/// How long the API server may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Objects per page of a list.
const PAGE: u32 = 500;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "this program runs in no Pod with a service account, and KUBECONFIG names no usable file"
    )]
    Config(#[source] Box<InferConfigError>),
    #[error("could not set up the client of the API server of Kubernetes")]
    Client(#[source] Box<kube::Error>),
}

/// Makes a client.
pub async fn open() -> Result<Client, OpenError> {
    let mut config = Config::infer().await.map_err(|it| OpenError::Config(Box::new(it)))?;
    config.connect_timeout = Some(ANSWER_WITHIN);
    config.read_timeout = Some(ANSWER_WITHIN);
    // Our loops try again by themselves.
    config.default_retry = false;
    Client::try_from(config).map_err(|it| OpenError::Client(Box::new(it)))
}

/// All objects of a kind, page by page.
pub async fn list_all<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut items, mut asked) = (Vec::new(), params.limit(PAGE));
    loop {
        let page = api.list(&asked).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => asked = asked.continue_token(&next),
            None => return Ok(items),
        }
    }
}

/// True when the API server said that there is no such object.
pub fn is_missing(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// True when somebody else has changed, or made, the object meanwhile.
pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// The HTTP status of the server's refusal.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
