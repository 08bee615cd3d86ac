//! The HTTP server of a pod: `/metrics`, `/healthz`, `/readyz` and `/instep`. It answers whatever
//! happens to the catalog, and to everything else but the process.
//!
//! Each connection is for one request, and for a few seconds. There are few at a time; further ones
//! wait to be accepted. So slow or idle clients cost little, and are gone soon. Answers are as long
//! as the pod has disks and the API has RPCs, whoever asks.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::telemetry::Telemetry;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// From the accepted connection to the end of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries to accept, without a descriptor for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A data path that makes no round for this long is not well. It makes one with every tick.
const ROUND_WITHIN: Duration = Duration::from_secs(3);
const ROUND_LOOK: Duration = Duration::from_millis(20);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Why the HTTP server did not start.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {listen} for HTTP; free the port, or change `http.listen`")]
pub struct ListenError {
    listen: SocketAddr,
    #[source]
    source: io::Error,
}

/// A server that has its port.
pub struct Server {
    listener: TcpListener,
    telemetry: Telemetry,
    timeout: Duration,
}

impl Server {
    pub async fn bind(listen: SocketAddr, telemetry: Telemetry) -> Result<Server, ListenError> {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|source| ListenError { listen, source })?;
        Ok(Server { listener, telemetry, timeout: CONNECTION_TIMEOUT })
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/instep", get(instep))
            .with_state(self.telemetry);
        let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let bounded = Bounded { listener: self.listener, free, timeout: self.timeout };
        if let Err(error) = axum::serve(bounded, router).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    answer(StatusCode::OK, OPENMETRICS, telemetry.registry.render())
}

/// The process answers, and its data path makes rounds.
async fn healthz(State(telemetry): State<Telemetry>) -> Response {
    let before = telemetry.health.rounds();
    let until = Instant::now() + ROUND_WITHIN;
    while before.is_some() && telemetry.health.rounds() == before {
        if Instant::now() >= until {
            let seconds = ROUND_WITHIN.as_secs();
            let text = format!("the data path has made no round for {seconds} seconds\n");
            return answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text);
        }
        sleep(ROUND_LOOK).await;
    }
    answer(StatusCode::OK, TEXT, "ok\n".to_owned())
}

/// The pod serves.
async fn readyz(State(telemetry): State<Telemetry>) -> Response {
    unless(&telemetry.health.missing())
}

/// The pod serves, and its replicas are good: another pod may be stopped.
async fn instep(State(telemetry): State<Telemetry>) -> Response {
    unless(&telemetry.health.out_of_step())
}

fn unless(missing: &[String]) -> Response {
    match missing.is_empty() {
        true => answer(StatusCode::OK, TEXT, "ok\n".to_owned()),
        false => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n"),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response {
    (status, [(CONTENT_TYPE, kind), (CONNECTION, "close")], body).into_response()
}

/// A listener that accepts a bounded number of connections at a time.
struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
    timeout: Duration,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let counts = Arc::clone(&self.free).acquire_owned().await.expect("it is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let deadline = Box::pin(sleep(self.timeout));
                    return (Connection { stream, deadline, _counts: counts }, from);
                }
                Err(error) => {
                    tracing::debug!(%error, "could not accept an HTTP connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over.
struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _counts: OwnedSemaphorePermit,
}

impl Connection {
    /// What `poll` says, or an error when that is nothing and the time is over.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = poll(Pin::new(&mut self.stream), context);
        if polled.is_ready() || self.deadline.as_mut().poll(context).is_pending() {
            return polled;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request took too long")))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(context, |stream, context| stream.poll_read(context, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(context, |stream, context| stream.poll_write(context, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.in_time(context, |stream, context| stream.poll_write_vectored(context, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context, |stream, context| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn serve(timeout: Duration, telemetry: Telemetry) -> SocketAddr {
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut server = Server::bind(listen, telemetry).await.unwrap();
        server.timeout = timeout;
        let address = server.listener.local_addr().unwrap();
        tokio::spawn(server.run());
        address
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_answer_ends_its_connection_and_says_how_it_is() {
        let telemetry = Telemetry::default();
        let health = telemetry.health.clone();
        let address = serve(CONNECTION_TIMEOUT, telemetry).await;
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains(OPENMETRICS), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"), "it starts");
        let ready = ask(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("disks"), "{ready}");
        assert!(ask(address, "/else").await.starts_with("HTTP/1.1 404"));
        health.check(|| vec!["it waits for a tram".to_owned()]);
        let rounds = Arc::new(std::sync::atomic::AtomicU64::new(0));
        health.serves(rounds.clone());
        let ready = ask(address, "/readyz").await;
        assert!(
            ready.contains("503") && ready.ends_with("\r\n\r\nit waits for a tram\n"),
            "{ready}"
        );
        let instep = ask(address, "/instep").await;
        assert!(instep.contains("503") && instep.contains("tram"), "{instep}");
        let stuck = ask(address, "/healthz").await;
        assert!(stuck.starts_with("HTTP/1.1 503") && stuck.contains("no round"), "{stuck}");
    }

    #[tokio::test]
    async fn a_pod_that_serves_may_be_out_of_step() {
        let telemetry = Telemetry::default();
        let health = telemetry.health.clone();
        health.serves(Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let address = serve(CONNECTION_TIMEOUT, telemetry).await;
        assert!(ask(address, "/instep").await.starts_with("HTTP/1.1 200"));
        health.check_step(|| vec!["a replica is resynced".to_owned()]);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let instep = ask(address, "/instep").await;
        assert!(instep.contains("503") && instep.contains("a replica is resynced"), "{instep}");
    }

    #[tokio::test]
    async fn silent_clients_make_room_for_others() {
        let address = serve(Duration::from_millis(100), Telemetry::default()).await;
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, "/metrics").await.starts_with("HTTP/1.1 200"));
        // One that says only half of it.
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        // It is closed, with or without an answer.
        let _end = half.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
