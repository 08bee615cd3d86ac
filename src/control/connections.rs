//! Connections to the API: a bounded number of them, and each must say something soon (rule
//! `every-handshake-has-a-deadline`). Beyond the bound, new ones wait to be accepted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::limits::{HANDSHAKE_TIMEOUT, TICK};

/// An accepted connection, which counts against the bound until it is dropped.
pub struct Connection {
    stream: TcpStream,
    /// Until the first bytes arrive.
    deadline: Option<Pin<Box<Sleep>>>,
    _counts: OwnedSemaphorePermit,
}

/// Accepts at most `count_max` connections at a time.
pub fn accept(
    listener: TcpListener,
    count_max: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    accept_within(listener, count_max, HANDSHAKE_TIMEOUT)
}

fn accept_within(
    listener: TcpListener,
    count_max: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let free = Arc::new(Semaphore::new(count_max));
    TcpListenerStream::new(listener).then(move |accepted| {
        let free = Arc::clone(&free);
        async move {
            let counts = free.acquire_owned().await.map_err(io::Error::other)?;
            if accepted.is_err() {
                // It may stay: without a descriptor, every attempt fails at once.
                sleep(TICK).await;
            }
            let stream = accepted?;
            stream.set_nodelay(true)?;
            let deadline = Some(Box::pin(sleep(patience)));
            Ok(Connection { stream, deadline, _counts: counts })
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buf);
        if read.is_ready() {
            self.deadline = None;
            return read;
        }
        if let Some(deadline) = &mut self.deadline {
            ready!(deadline.as_mut().poll(context));
            let silent = io::Error::new(io::ErrorKind::TimedOut, "nothing was ever sent");
            return Poll::Ready(Err(silent));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_silent_connection_makes_room_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = accept_within(listener, 1, Duration::from_millis(20));
        tokio::pin!(accepted);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut talks = TcpStream::connect(address).await.unwrap();
        talks.write_all(b"x").await.unwrap();
        let mut first = accepted.next().await.unwrap().unwrap();
        let read = first.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(first);
        let mut second = accepted.next().await.unwrap().unwrap();
        assert_eq!(second.read_u8().await.unwrap(), b'x');
    }
}
