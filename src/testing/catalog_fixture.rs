//! Catalog states of small clusters, and commands on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::control::command::{
    Addresses, CatalogCommand, NewDisk, NewNode, NewVolume, Outcome, Placement,
};
use crate::control::state::{CatalogError, CatalogState, NewCluster};
use crate::level::NEWEST;
use crate::types::{PodId, Uuid};

pub fn addresses(port: u16) -> Addresses {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    Addresses { api: at(port), peer: at(port + 1), nbd: Some(at(port + 2)) }
}

pub fn node(number: u8) -> NewNode {
    let name = format!("node-{number}");
    NewNode { name, boot_id: "boot".to_owned(), labels: BTreeMap::new() }
}

pub fn new_disk(number: u8) -> NewDisk {
    let disk = Uuid([number; 16]);
    NewDisk { disk, path: format!("/disk-{number}"), capacity_bytes: 1 << 40 }
}

/// The addresses of the pod with this number.
pub fn addresses_of(number: u8) -> Addresses {
    match u16::from(number) {
        number @ ..=60 => addresses(1000 * number),
        number => addresses(60_000 + 10 * number),
    }
}

pub fn join(number: u8) -> CatalogCommand {
    let (uid, addresses) = (Uuid([number; 16]), addresses_of(number));
    CatalogCommand::Join { uid, addresses, node: node(number), newest: NEWEST }
}

/// Pod `number` registers these disks.
pub fn register(number: u8, disks: &[NewDisk]) -> CatalogCommand {
    CatalogCommand::Register {
        pod: PodId(number.into()),
        uid: Uuid([number; 16]),
        addresses: addresses_of(number),
        node: node(number),
        newest: NEWEST,
        disks: disks.to_vec(),
    }
}

/// One pod without disks.
pub fn first_pod() -> CatalogState {
    CatalogState::new(NewCluster {
        uid: Uuid([9; 16]),
        history: Uuid([8; 16]),
        pod: (Uuid([1; 16]), addresses_of(1), node(1)),
        now_ms: 1_000,
    })
}

/// `count` pods on as many nodes, with one disk each.
pub fn cluster(count: u8) -> CatalogState {
    let mut state = first_pod();
    for number in 1..=count {
        for command in [join(number), register(number, &[new_disk(number)])] {
            state.apply(1_000, command).outcome.expect("everybody may join and register");
        }
    }
    state
}

/// Carries out a command, and checks all that must hold.
pub fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
    let outcome = state.apply(5, command).outcome;
    state.check_invariants();
    outcome
}

/// Three nodes, and a volume, the first one, that is closed from birth.
pub fn closed() -> CatalogState {
    let mut state = cluster(3);
    let mut create = create_on("demo", &[1, 2, 3]);
    if let CatalogCommand::CreateVolume { volume, .. } = &mut create {
        volume.open = false;
    }
    apply(&mut state, create).expect("there is room");
    state
}

/// A volume of one block with a replica on each of these disks.
pub fn create_on(name: &str, disks: &[u8]) -> CatalogCommand {
    CatalogCommand::CreateVolume {
        request_id: String::new(),
        volume: new_volume(name, 4096, 4096, disks.len() as u32),
        placement: Placement {
            disks: disks.iter().map(|disk| Uuid([*disk; 16])).collect(),
            shards: vec![(0..disks.len() as u16).collect()],
        },
    }
}

pub fn new_volume(name: &str, size_bytes: u64, stripe_bytes: u64, replicas: u32) -> NewVolume {
    NewVolume {
        uid: Uuid([7; 16]),
        name: name.to_owned(),
        class: "replicated".to_owned(),
        labels: BTreeMap::new(),
        size_bytes,
        stripe_bytes,
        replicas,
        io_timeout_ms: 0,
        open: true,
    }
}
