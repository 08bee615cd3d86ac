//! System calls that may wait in the kernel for requests of a device, each in a thread of its own
//! and with a deadline. Threads of the runtime would be waited for at the end of the process.

use std::io;
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// Does the work. After the deadline it goes on, and this is an error of the kind `TimedOut`.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (say, said) = oneshot::channel();
    Builder::new().name("device".to_owned()).spawn(move || {
        // Nobody listens any more when it is late.
        let _sent = say.send(work());
    })?;
    match timeout(limit, said).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(io::Error::other("the thread ended before its work")),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
