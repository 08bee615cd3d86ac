//! The gRPC services, one file per noun. Every pod answers; the leader carries out calls that need
//! it (see [`route`]). [`objects`] has what all nouns have in common, [`errors`] what callers are
//! told when they are refused.

pub mod attachments;
mod authorities;
pub mod catalog;
pub mod catalog_admin;
pub mod classes;
pub mod cluster;
pub mod credentials;
pub mod deadline;
pub mod disks;
pub mod errors;
pub mod events;
pub mod guard;
pub mod health;
pub mod joining;
pub mod nodes;
pub mod objects;
pub mod pods;
pub mod reaching;
pub mod requests;
pub mod rights;
pub mod rounds;
pub mod route;
pub mod shards;
pub mod telling;
pub mod volumes;

use tonic::Status;

use crate::control::api::errors::Refusal;
use crate::control::command::{Addresses, NewNode};
use crate::control::proto::internal::NodeSpec;
use crate::control::reason::Reason;

/// The machine of a pod that joins or registers.
fn parse_node(node: Option<NodeSpec>) -> Result<NewNode, Status> {
    let none = || Status::from(Refusal::new(Reason::BadRequest, "the pod names no node"));
    let NodeSpec { name, boot_id, labels } = node.ok_or_else(none)?;
    Ok(NewNode { name, boot_id, labels: labels.into_iter().collect() })
}

impl From<NewNode> for NodeSpec {
    fn from(node: NewNode) -> NodeSpec {
        let NewNode { name, boot_id, labels } = node;
        NodeSpec { name, boot_id, labels: labels.into_iter().collect() }
    }
}

/// Parses the addresses of a request.
fn parse_addresses(api: &str, peer: &str, nbd: &str) -> Result<Addresses, Status> {
    let parse = |what: &str, text: &str| {
        text.parse().map_err(|_| {
            let message = format!("the {what} address {text:?} is not ip:port");
            Status::from(Refusal::new(Reason::BadRequest, message))
        })
    };
    Ok(Addresses {
        api: parse("API", api)?,
        peer: parse("peer", peer)?,
        nbd: if nbd.is_empty() { None } else { Some(parse("NBD", nbd)?) },
    })
}
