//! Checks every request of a pod with a certificate before its method sees it.

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::service::Routes;

use crate::control::api::rights::check;
use crate::control::connections::{Caller, Who};
use crate::security::issue::now_s;
use crate::security::trust::Trust;

/// Puts the check before all services. `trust`: `None` lets everybody do everything, for a pod
/// without a certificate.
pub fn guarded(routes: Routes, trust: Option<Trust>) -> Routes {
    match trust {
        None => routes,
        Some(trust) => routes.into_axum_router().layer(from_fn_with_state(trust, guard)).into(),
    }
}

async fn guard(State(trust): State<Trust>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    let who = caller.map_or(&Who::Nobody, Caller::who);
    match check(who, request.uri().path(), &trust, now_s()) {
        Ok(()) => next.run(request).await,
        Err(status) => status.into_http(),
    }
}
