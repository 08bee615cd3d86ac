//! One line in the log for every request that the driver gets: what was asked, of which volume, and
//! how it ended. Parameters and secrets are never logged.

use std::io;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use crate::control::identity::random_uuid;
use crate::control::reason::code_name;
use crate::csi::api::Deadline;

/// Characters of a text from outside that the log shows.
const SHOWN_MAX: usize = 128;

/// A request that is being carried out. Its end is logged, also when the caller goes away.
pub struct Call {
    method: &'static str,
    volume: String,
    id: String,
    began: Instant,
    pub deadline: Deadline,
    is_done: bool,
}

impl Call {
    /// Begins a request. `volume`: its id or, of a volume that is to be made, its name.
    pub fn begin(
        method: &'static str,
        volume: &str,
        metadata: &MetadataMap,
    ) -> Result<Call, Status> {
        let no_id = |error: io::Error| {
            Status::internal(format!("could not give the request an id: {error}"))
        };
        Ok(Call {
            method,
            volume: volume.chars().take(SHOWN_MAX).collect(),
            id: random_uuid().map_err(no_id)?.to_string(),
            began: Instant::now(),
            deadline: Deadline::of(metadata),
            is_done: false,
        })
    }

    /// The id of this request, as the log has it.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    /// The id of one of several changes that this request makes.
    pub fn id_of(&self, part: usize) -> String {
        format!("{}-{part}", self.id)
    }

    /// Ends the request.
    pub fn end<T>(mut self, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        self.is_done = true;
        self.log(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer.map(Response::new)
    }

    fn log(&self, code: Code) {
        let duration_ms = self.began.elapsed().as_millis() as u64;
        let Call { method, volume, id, .. } = self;
        let code = code_name(code);
        tracing::info!(method, volume, request = id, code, duration_ms, "served");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_done {
            self.log(Code::Cancelled);
        }
    }
}

/// Carries a request out, and logs its end. `$volume`: the field that names its volume.
macro_rules! served {
    ($request:ident, $method:literal, $volume:ident, |$call:ident, $inner:ident| $work:expr) => {{
        let (metadata, _, $inner) = $request.into_parts();
        let $call = Call::begin($method, &$inner.$volume, &metadata)?;
        let answer = $work.await;
        $call.end(answer)
    }};
    ($request:ident, $method:literal, |$call:ident, $inner:ident| $work:expr) => {{
        let (metadata, _, $inner) = $request.into_parts();
        let $call = Call::begin($method, "", &metadata)?;
        let answer = $work.await;
        $call.end(answer)
    }};
}
pub(in crate::csi) use served;
