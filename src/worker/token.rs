//! What a driver's completion belongs to, packed into its token.

use crate::io::driver::Token;
use crate::store::messages::OpId;

/// Number of a socket's owner (a client, a peer connection, a listener). Never reused.
pub type ConnKey = u32;

/// The owner of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An I/O of a lane, by the lane's place in the worker.
    Lane(u8, OpId),
    /// As `Lane`, for a sync.
    LaneSync(u8, OpId),
    /// Of a listener, by its place in the worker.
    Accept(u8),
    ClientRecv(ConnKey),
    ClientSend(ConnKey),
    PeerConnect(ConnKey),
    PeerRecv(ConnKey),
    PeerSend(ConnKey),
    /// The end of a socket that nobody waits for.
    Closed,
}

const KIND_SHIFT: u32 = 56;
const LANE_SHIFT: u32 = 48;
const OP_MASK: u64 = (1 << LANE_SHIFT) - 1;

impl Target {
    pub fn token(self) -> Token {
        let pack = |kind: u64, rest: u64| Token(kind << KIND_SHIFT | rest);
        match self {
            Target::Lane(lane, op) => pack(1, pack_op(lane, op)),
            Target::LaneSync(lane, op) => pack(9, pack_op(lane, op)),
            Target::Accept(listener) => pack(2, u64::from(listener)),
            Target::ClientRecv(conn) => pack(3, u64::from(conn)),
            Target::ClientSend(conn) => pack(4, u64::from(conn)),
            Target::PeerConnect(conn) => pack(5, u64::from(conn)),
            Target::PeerRecv(conn) => pack(6, u64::from(conn)),
            Target::PeerSend(conn) => pack(7, u64::from(conn)),
            Target::Closed => pack(8, 0),
        }
    }

    pub fn of(token: Token) -> Target {
        let conn = token.0 as u32;
        let (lane, op) = ((token.0 >> LANE_SHIFT) as u8, OpId(token.0 & OP_MASK));
        match token.0 >> KIND_SHIFT {
            1 => Target::Lane(lane, op),
            9 => Target::LaneSync(lane, op),
            2 => Target::Accept(token.0 as u8),
            3 => Target::ClientRecv(conn),
            4 => Target::ClientSend(conn),
            5 => Target::PeerConnect(conn),
            6 => Target::PeerRecv(conn),
            7 => Target::PeerSend(conn),
            8 => Target::Closed,
            kind => panic!("a completion with a token that nobody made: kind {kind}"),
        }
    }
}

fn pack_op(lane: u8, op: OpId) -> u64 {
    assert!(op.0 <= OP_MASK, "a lane has run 2^48 operations");
    u64::from(lane) << LANE_SHIFT | op.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_survives_its_token() {
        for target in [
            Target::Lane(255, OpId(OP_MASK)),
            Target::Lane(0, OpId(1)),
            Target::LaneSync(3, OpId(77)),
            Target::Accept(3),
            Target::ClientRecv(u32::MAX),
            Target::ClientSend(0),
            Target::PeerConnect(7),
            Target::PeerRecv(8),
            Target::PeerSend(9),
            Target::Closed,
        ] {
            assert_eq!(Target::of(target.token()), target);
        }
    }
}
