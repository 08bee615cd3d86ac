//! Routers that come and go.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::level::Levels;
use crate::limits::{Budgets, SocketLimits};
use crate::planted::{Mistake, assert_found};
use crate::replica::messages::ReadMode;

use crate::types::{BLOCK_BYTES, BlockOp, PodId, Uuid};
use crate::volume::ConnId;
use crate::worker::pod_fixture::volume;

const KEY: RouterKey = (VolumeId(1), AttachmentId(1));
const CONN: ConnId = ConnId(1);

fn routers() -> Routers {
    let config = WorkerConfig {
        cluster: Uuid([7; 16]),
        pod: PodId(1),
        levels: Levels::OWN,
        process: 1,
        seed: 1,
        log_tail_bytes: 0,
        leaders_follow_clients: false,
        reads: ReadMode::Lease,
        budgets: Budgets::default(),
        sockets: SocketLimits::default(),
    };
    let mut routers = Routers::new(&config, Arc::default());
    routers.update_view(&Arc::new(volume(1, "v", &[1, 2, 3])));
    routers
}

/// A client of a new router asks for a block. Returns who asks a shard for it.
fn asks(routers: &mut Routers) -> Asker {
    routers.open(KEY);
    let op = BlockOp::Read { offset: 0, len: BLOCK_BYTES as u32 };
    routers.at(KEY).expect("it was opened").request(Mono(1), CONN, 1, op);
    let mut outputs = Vec::new();
    routers.poll(Mono(1), KEY, &mut outputs);
    let sent = outputs.iter().find_map(|output| match output {
        VolumeOutput::Send { ticket, .. } => Some(*ticket),
        _ => None,
    });
    routers.asker(KEY, sent.expect("somebody is asked"))
}

fn is_asking(routers: &mut Routers) -> bool {
    routers.at(KEY).is_some_and(|router| router.needs_ticks())
}

/// The client goes, what it asked for is given up, and it comes back.
fn answers_find_their_asker() {
    let mut routers = routers();
    let first = asks(&mut routers);
    let router = routers.at(KEY).expect("it is there");
    router.close_connection(CONN);
    // Nobody has answered.
    router.tick(Mono(1) + Duration::from_secs(60));
    routers.poll(Mono(1) + Duration::from_secs(60), KEY, &mut Vec::new());
    routers.retire(KEY);
    assert!(routers.at(KEY).is_none(), "nobody uses it");
    let second = asks(&mut routers);
    assert_eq!((first.router, first.ticket), (second.router, second.ticket), "numbers begin anew");
    let answer = || Err(BlockError::Unknown);
    routers.answered(Mono(2), first, MemberId(11), 1, answer());
    assert!(is_asking(&mut routers), "the answer is another router's");
    routers.answered(Mono(2), second, MemberId(11), 1, answer());
    assert!(!is_asking(&mut routers));
}

#[test]
fn an_answer_is_for_the_router_that_asked() {
    answers_find_their_asker();
    assert_found(Mistake::LateAnswersTaken, answers_find_their_asker);
}
