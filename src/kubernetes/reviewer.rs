//! Asks the API server of Kubernetes whose token somebody shows (TokenReview).

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{OnceCell, Semaphore};

use crate::control::catalog::chain;
use crate::control::voucher::{VouchError, Vouched, Voucher};
use crate::kubernetes::client;
use crate::kubernetes::review::{AUDIENCE, Review, decide};
use crate::security::secret::Secret;

/// Tokens that are asked about at the same time. Anybody may show some.
const QUESTIONS_MAX: usize = 8;

/// See the module.
pub struct Reviewer {
    /// Made when the first token is shown: a pod starts without Kubernetes.
    client: OnceCell<Client>,
    /// Of our service accounts.
    namespace: String,
    questions: Semaphore,
}

impl Reviewer {
    /// `namespace`: of our service accounts.
    pub fn new(namespace: String) -> Reviewer {
        let questions = Semaphore::new(QUESTIONS_MAX);
        Reviewer { client: OnceCell::new(), namespace, questions }
    }

    async fn ask(&self, token: &Secret) -> Result<Review, VouchError> {
        let unavailable = |text: String| VouchError::Unavailable(text);
        let client = self.client.get_or_try_init(client::open).await;
        let client = client.map_err(|error| unavailable(chain(&error)))?.clone();
        let token = std::str::from_utf8(token.expose());
        let token = token.map_err(|_| VouchError::Refused("this is not a token".to_owned()))?;
        let asked = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(client).create(&PostParams::default(), &asked).await;
        let answer = answer.map_err(|error| unavailable(chain(&error)))?;
        Ok(review_of(answer.status.unwrap_or_default()))
    }
}

fn review_of(status: TokenReviewStatus) -> Review {
    let user = status.user.unwrap_or_default();
    Review {
        authenticated: status.authenticated.unwrap_or(false),
        audiences: status.audiences.unwrap_or_default(),
        username: user.username.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl Voucher for Reviewer {
    async fn vouch(&self, token: &Secret) -> Result<Vouched, VouchError> {
        let full = |_| VouchError::Unavailable("too many ask at the same time".to_owned());
        let _asks = self.questions.try_acquire().map_err(full)?;
        let review = self.ask(token).await?;
        decide(&review, &self.namespace).map_err(|error| VouchError::Refused(error.to_string()))
    }
}
