//! Whether this pod can reach a machine. A machine that refuses a connection is there: only
//! silence, and routers that say that nobody is there, count as a failure.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::control::proto::CheckReachableResponse;

/// A machine answers much sooner. A lost first packet is sent again after a second.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);

/// Tries all addresses at the same time.
pub async fn check(addresses: Vec<SocketAddr>) -> CheckReachableResponse {
    let tried = !addresses.is_empty();
    let mut tries: JoinSet<bool> = addresses.into_iter().map(is_there).collect();
    let mut reached = false;
    while let Some(done) = tries.join_next().await {
        reached |= done.unwrap_or(false);
    }
    CheckReachableResponse { tried, reached }
}

async fn is_there(address: SocketAddr) -> bool {
    match timeout(ANSWER_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_that_refuses_is_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(check(vec![address]).await.reached);
        drop(listener);
        assert!(check(vec![address]).await.reached);
        let nobody = check(Vec::new()).await;
        assert!(!nobody.tried && !nobody.reached);
    }
}
