//! The gRPC services, one file per noun. Every pod answers; the leader carries out calls that need
//! it (see [`route`]).

pub mod catalog;
pub mod cluster;
pub mod disks;
pub mod pods;
pub mod route;
pub mod volumes;

use tonic::Status;

use crate::control::catalog::chain;
use crate::control::command::{Addresses, NewNode};
use crate::control::proto;

/// Parses the addresses of a request.
fn parse_addresses(api: &str, peer: &str, nbd: &str) -> Result<Addresses, Status> {
    let parse = |what: &str, text: &str| {
        text.parse().map_err(|_| {
            Status::invalid_argument(format!("the {what} address {text:?} is not ip:port"))
        })
    };
    Ok(Addresses {
        api: parse("API", api)?,
        peer: parse("peer", peer)?,
        nbd: if nbd.is_empty() { None } else { Some(parse("NBD", nbd)?) },
    })
}

/// The machine of a pod that joins or registers.
fn parse_node(node: Option<proto::NodeSpec>) -> Result<NewNode, Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the pod names no node"))?;
    let proto::NodeSpec { name, boot_id, labels } = node;
    Ok(NewNode { name, boot_id, labels: labels.into_iter().collect() })
}

impl From<NewNode> for proto::NodeSpec {
    fn from(node: NewNode) -> proto::NodeSpec {
        let NewNode { name, boot_id, labels } = node;
        proto::NodeSpec { name, boot_id, labels: labels.into_iter().collect() }
    }
}

/// A request with invalid content.
fn invalid(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(chain(error))
}
