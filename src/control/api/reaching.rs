//! Whether this pod can reach a machine. A machine that refuses a connection is there. Only
//! silence, and routers that say that nobody is there, count as a failure: what fails here says
//! nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::control::proto::CheckReachableResponse;

/// A machine answers much sooner. A lost first packet is sent again after a second.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Connections that are tried at the same time, for all callers together.
static TRIES: Semaphore = Semaphore::const_new(64);

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Reached,
    Silent,
    /// It could not be tried from here.
    Unknown,
}

/// Tries all addresses at the same time.
pub async fn check(addresses: Vec<SocketAddr>) -> CheckReachableResponse {
    let tries: JoinSet<Tried> = addresses.into_iter().map(attempt).collect();
    let tried = tries.join_all().await;
    CheckReachableResponse {
        tried: tried.iter().any(|tried| *tried != Tried::Unknown),
        reached: tried.contains(&Tried::Reached),
    }
}

/// True for addresses that may be those of another machine.
pub fn is_of_a_machine(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

async fn attempt(address: SocketAddr) -> Tried {
    let Ok(_turn) = TRIES.acquire().await else { return Tried::Unknown };
    match timeout(ANSWER_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Tried::Reached,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Tried::Reached,
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => Tried::Silent,
            _ => Tried::Unknown,
        },
        Err(_) => Tried::Silent,
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

    #[tokio::test]
    async fn what_cannot_be_tried_says_nothing() {
        // Nobody may connect to it.
        let tried = check(vec!["255.255.255.255:1".parse().unwrap()]).await;
        assert!(!tried.tried && !tried.reached);
        for (address, is_one) in [
            ("192.0.2.1:10250", true),
            ("[2001:db8::1]:10250", true),
            ("127.0.0.1:10250", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", false),
            ("224.0.0.1:1", false),
        ] {
            assert_eq!(is_of_a_machine(&address.parse().unwrap()), is_one, "{address}");
        }
    }
}
