//! Connections whose handshake has not ended (rule
//! `every-handshake-has-a-deadline`). A part of clients and of peers.
//!
//! There is a cap in all, and one per source, so that nobody keeps others out: beyond a cap, the
//! oldest one of the fullest kind is given up. A real client ends its handshake soon.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::limits::{HANDSHAKE_TIMEOUT, SocketLimits};
use crate::planted::planted;
use crate::types::Mono;
use crate::worker::token::ConnKey;

/// Unfinished handshakes. A newer connection has a higher key.
#[derive(Default)]
pub struct Handshakes {
    limits: SocketLimits,
    unfinished: BTreeMap<ConnKey, Unfinished>,
    of_source: FxHashMap<IpAddr, usize>,
    /// Those of connections that we opened: they have a deadline, and no cap.
    dialled: BTreeMap<ConnKey, Mono>,
}

struct Unfinished {
    since: Mono,
    /// `None`: a unix socket.
    source: Option<IpAddr>,
}

impl Handshakes {
    pub fn new(limits: SocketLimits) -> Handshakes {
        Handshakes { limits, ..Handshakes::default() }
    }

    pub fn len(&self) -> usize {
        self.unfinished.len()
    }

    /// We begin a handshake.
    pub fn dialled(&mut self, now: Mono, conn: ConnKey) {
        self.dialled.insert(conn, now);
    }

    /// Somebody else begins a handshake. Returns the connection to close, which may be the new one.
    pub fn begin(&mut self, now: Mono, conn: ConnKey, source: Option<IpAddr>) -> Option<ConnKey> {
        let source = source.map(network_of);
        self.unfinished.insert(conn, Unfinished { since: now, source });
        let of_source = source.map_or(0, |source| {
            let count = self.of_source.entry(source).or_default();
            *count += 1;
            *count
        });
        let is_full = of_source > self.limits.handshakes_of_source;
        let oldest = match is_full {
            true => self.unfinished.iter().find(|(_, found)| found.source == source),
            false if self.len() > self.limits.handshakes => self.unfinished.first_key_value(),
            false => None,
        };
        oldest.map(|(conn, _)| *conn).filter(|_| !planted!(HandshakesWithoutEnd))
    }

    /// The handshake ended, or its connection did.
    pub fn end(&mut self, conn: ConnKey) {
        self.dialled.remove(&conn);
        let Some(ended) = self.unfinished.remove(&conn) else { return };
        let Some(source) = ended.source else { return };
        if let Some(count) = self.of_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
    }

    /// Handshakes that have lasted too long.
    pub fn overdue(&self, now: Mono) -> Vec<ConnKey> {
        if planted!(HandshakesWithoutEnd) {
            return Vec::new();
        }
        let overdue = |(conn, since): (&ConnKey, &Mono)| {
            (now.since(*since) > HANDSHAKE_TIMEOUT).then_some(*conn)
        };
        // They began in this order.
        let accepted = self.unfinished.iter().map(|(conn, found)| (conn, &found.since));
        accepted.map_while(overdue).chain(self.dialled.iter().map_while(overdue)).collect()
    }
}

/// Who counts as one source: an IPv4 address, or the network of an IPv6 address, of which a
/// machine has as many addresses as it likes.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Mono = Mono(1);

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn few() -> Handshakes {
        let limits =
            SocketLimits { handshakes: 5, handshakes_of_source: 3, ..SocketLimits::default() };
        Handshakes::new(limits)
    }

    #[test]
    fn a_flood_takes_the_place_of_itself() {
        let mut open = few();
        assert_eq!(open.begin(START, 1, address("10.0.0.1")), None);
        for conn in 2..5 {
            assert_eq!(open.begin(START, conn, address("10.0.0.2")), None);
        }
        for conn in 5..100 {
            let given_up = open.begin(START, conn, address("10.0.0.2"));
            assert_eq!(given_up, Some(conn - 3), "the oldest of this source");
            open.end(conn - 3);
        }
        assert_eq!(open.begin(START, 100, None), None);
        assert_eq!(open.begin(START, 101, None), Some(1), "the oldest of all");
    }

    #[test]
    fn an_ended_handshake_counts_no_more() {
        let mut open = few();
        for conn in 1..100 {
            assert_eq!(open.begin(START, conn, address("2001:db8::1")), None);
            open.end(conn);
            open.end(conn);
        }
        assert_eq!((open.len(), open.of_source.len()), (0, 0));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let mut open = few();
        for (conn, last) in (1..4).zip(["1", "2", "aaaa:1"]) {
            assert_eq!(open.begin(START, conn, address(&format!("2001:db8::{last}"))), None);
        }
        assert_eq!(open.begin(START, 4, address("2001:db8::4")), Some(1));
        assert_eq!(open.begin(START, 5, address("2001:db8:0:1::4")), None);
    }

    #[test]
    fn handshakes_end_with_their_deadline() {
        let mut open = few();
        open.begin(START, 1, None);
        open.begin(START + Duration::from_secs(1), 2, None);
        assert!(open.overdue(START + HANDSHAKE_TIMEOUT).is_empty());
        let late = START + HANDSHAKE_TIMEOUT + Duration::from_millis(1);
        assert_eq!(open.overdue(late), [1]);
        open.dialled(START, 3);
        assert_eq!(open.overdue(late), [1, 3]);
        open.end(3);
        assert_eq!(open.overdue(late), [1]);
    }
}
