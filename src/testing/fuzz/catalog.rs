//! One run of a fuzzer over what the members of the catalog read: the commands in its log and its
//! whole state, from a disk or from another pod.

use crate::control::command::{
    Addresses, CatalogCommand, Envelope, NewDisk, Placement, Ticket, decode, encode,
};
use crate::control::state::CatalogState;
use crate::testing::fuzz::Seeds;
use crate::types::{MemberId, PodId, Uuid, VolumeId};

const GIB: u64 = 1 << 30;

/// Reads `input`: its first byte chooses what the rest is: 0 a command, which is then carried out,
/// 1 the state, on which some commands are carried out. Panics when something is wrong with the
/// reader.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    if mode % 2 == 1 {
        if let Ok(state) = decode::<CatalogState>(rest) {
            assert_eq!(decode::<CatalogState>(&encode(&state)).ok().as_ref(), Some(&state));
            // One that contradicts itself is refused by its receiver.
            if state.check().is_ok() {
                commands().into_iter().for_each(|(_, command)| carry_out(state.clone(), command));
            }
        }
        return;
    }
    if let Ok(envelope) = decode::<Envelope>(rest) {
        assert_eq!(decode::<Envelope>(&encode(&envelope)).ok().as_ref(), Some(&envelope));
        carry_out(three_pods(), envelope.command);
    }
}

fn carry_out(mut state: CatalogState, command: CatalogCommand) {
    let before = state.clone();
    match state.apply(command) {
        Ok(_) => {
            state.check_invariants();
            let is_newer = state.revision > before.revision;
            assert!(is_newer || state == before, "every change has a revision");
            assert_eq!(state.view().volumes.len(), state.volumes.len());
        }
        Err(_) => assert_eq!(state, before, "an error changes nothing"),
    }
}

fn addresses(port: u16) -> Addresses {
    let at = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Addresses { api: at(port), peer: at(port + 1), nbd: Some(at(port + 2)) }
}

fn commands() -> [(&'static str, CatalogCommand); 10] {
    let create = |name: &str| CatalogCommand::CreateVolume {
        request_id: format!("create {name}"),
        name: name.to_owned(),
        size_bytes: 2 * GIB,
        stripe_bytes: GIB,
        placement: Placement {
            disks: [1, 2, 3].map(|number| Uuid([number; 16])).to_vec(),
            shards: vec![vec![0, 1, 2], vec![2, 0, 1]],
        },
    };
    let register = |number: u8| CatalogCommand::Register {
        pod: PodId(u64::from(number)),
        addresses: addresses(1000 * u16::from(number)),
        disks: vec![NewDisk {
            disk: Uuid([number; 16]),
            path: format!("/disk-{number}"),
            capacity_bytes: 1 << 40,
        }],
    };
    let delete = CatalogCommand::DeleteVolume {
        request_id: "d".to_owned(),
        name: "old".to_owned(),
        volume: VolumeId(1),
    };
    let members = [2, 3, 4].map(MemberId).to_vec();
    [
        ("join-two", CatalogCommand::Join { join_id: Uuid([2; 16]), addresses: addresses(2000) }),
        ("join-three", CatalogCommand::Join { join_id: Uuid([3; 16]), addresses: addresses(3000) }),
        ("register-one", register(1)),
        ("register-two", register(2)),
        ("register-three", register(3)),
        ("add-members", CatalogCommand::AddCatalogMembers { pods: vec![PodId(1), PodId(2)] }),
        ("create", create("old")),
        ("created", CatalogCommand::Created { volumes: vec![VolumeId(1)] }),
        ("delete", delete),
        ("destroyed", CatalogCommand::Destroyed { disk: Uuid([1; 16]), members }),
    ]
}

/// A cluster with a volume that is being deleted and one in use.
fn three_pods() -> CatalogState {
    let mut state = CatalogState::new(Uuid([9; 16]), Uuid([1; 16]), addresses(1000));
    for (name, command) in commands() {
        assert!(state.apply(command).is_ok(), "{name}");
    }
    state
}

/// Good inputs by name, for a fuzzer to start from.
pub fn fuzz_seeds() -> Seeds {
    let removal = ("remove-member", CatalogCommand::RemoveCatalogMember { member: MemberId(2) });
    let mut seeds: Vec<_> = commands()
        .into_iter()
        .chain([removal])
        .map(|(name, command)| {
            let envelope = Envelope { ticket: Ticket { run: 7, number: 1 }, command };
            (name, [&[0], &encode(&envelope)[..]].concat())
        })
        .collect();
    seeds.push(("state", [&[1], &encode(&three_pods())[..]].concat()));
    seeds
}
