//! One run of a fuzzer over what the members of the catalog read: the commands in its log and its
//! whole state, from a disk or from another pod.

use bytes::Bytes;

use crate::control::command::{
    CatalogCommand, Deletion, Envelope, Placement, Ticket, VolumeUpdate, decode, encode,
};
use crate::control::state::CatalogState;
use crate::control::state::rows::RowKey;
use crate::control::state::view::view;
use crate::testing::catalog_fixture::{first_pod, join, new_disk, new_volume, register};
use crate::testing::fuzz::Seeds;
use crate::types::{MemberId, PodId, Uuid, VolumeId};

const GIB: u64 = 1 << 30;
/// The length of a key, and of a row, before it in the input.
const LEN_BYTES: usize = 4;

/// Reads `input`: its first byte chooses what the rest is: 0 a command, which is then carried out,
/// 1 the rows of a state, on which some commands are carried out. Panics when something is wrong
/// with the reader.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    if mode % 2 == 1 {
        let Some(rows) = rows(rest) else { return };
        // Rows that contradict each other are refused.
        if let Ok(state) = CatalogState::from_rows(rows) {
            let again = CatalogState::from_rows(state.rows()).expect("our own rows");
            assert_eq!(again, state);
            commands().into_iter().for_each(|(_, command)| carry_out(state.clone(), command));
        }
        return;
    }
    if let Ok(envelope) = decode::<Envelope>(rest) {
        assert_eq!(decode::<Envelope>(&encode(&envelope)).ok().as_ref(), Some(&envelope));
        carry_out(three_pods(), envelope.command);
    }
}

/// The rows in an input: length and bytes of each key and row.
fn rows(mut input: &[u8]) -> Option<Vec<(RowKey, Bytes)>> {
    let mut rows = Vec::new();
    while !input.is_empty() {
        let key = RowKey::decode(&part(&mut input)?).ok()?;
        rows.push((key, part(&mut input)?));
    }
    Some(rows)
}

fn part(input: &mut &[u8]) -> Option<Bytes> {
    let (len, rest) = input.split_first_chunk::<LEN_BYTES>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    *input = rest;
    Some(Bytes::copy_from_slice(part))
}

fn carry_out(mut state: CatalogState, command: CatalogCommand) {
    let before = state.clone();
    match state.apply(7, command).outcome {
        Ok(_) => {
            state.check_invariants();
            let is_newer = state.revision() > before.revision();
            assert!(is_newer || state == before, "every change has a revision");
            assert_eq!(view(&state).volumes.len(), state.volumes.len());
        }
        Err(_) => assert_eq!(state, before, "an error changes nothing"),
    }
}

fn commands() -> [(&'static str, CatalogCommand); 11] {
    let create = |name: &str| CatalogCommand::CreateVolume {
        request_id: format!("create {name}"),
        volume: new_volume(name, 2 * GIB, GIB, 3),
        placement: Placement {
            disks: [1, 2, 3].map(|number| Uuid([number; 16])).to_vec(),
            shards: vec![vec![0, 1, 2], vec![2, 0, 1]],
        },
    };
    let register = |number: u8| register(number, &[new_disk(number)]);
    let delete = CatalogCommand::DeleteVolume {
        request_id: "d".to_owned(),
        name: "old".to_owned(),
        volume: VolumeId(1),
        how: Deletion::default(),
    };
    let grow = CatalogCommand::UpdateVolume {
        request_id: "g".to_owned(),
        volume: VolumeId(1),
        update: VolumeUpdate { based_on: 0, labels: Default::default(), size_bytes: 3 * GIB },
        placement: Placement {
            disks: [1, 2, 3].map(|number| Uuid([number; 16])).to_vec(),
            shards: vec![vec![1, 2, 0]],
        },
    };
    let members = [2, 3, 4].map(MemberId).to_vec();
    [
        ("join-two", join(2)),
        ("join-three", join(3)),
        ("register-one", register(1)),
        ("register-two", register(2)),
        ("register-three", register(3)),
        ("add-members", CatalogCommand::AddCatalogMembers { pods: vec![PodId(1), PodId(2)] }),
        ("create", create("old")),
        ("grow", grow),
        ("created", CatalogCommand::Created { volumes: vec![VolumeId(1)] }),
        ("delete", delete),
        ("destroyed", CatalogCommand::Destroyed { disk: Uuid([1; 16]), members }),
    ]
}

/// A cluster with a volume that is being deleted and one in use.
fn three_pods() -> CatalogState {
    let mut state = first_pod();
    for (name, command) in commands() {
        assert!(state.apply(1, command).outcome.is_ok(), "{name}");
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
            let ticket = Ticket { run: 7, number: 1 };
            let envelope = Envelope { ticket, at_ms: 1, command };
            (name, [&[0], &encode(&envelope)[..]].concat())
        })
        .collect();
    let mut state = vec![1];
    for (key, row) in three_pods().rows() {
        for part in [&key.encode()[..], &row] {
            state.extend_from_slice(&(part.len() as u32).to_be_bytes());
            state.extend_from_slice(part);
        }
    }
    seeds.push(("state", state));
    seeds
}
