//! Free ports: `--port-offset` moves all ports of a cluster together.

use std::net::{Ipv4Addr, TcpListener};

use super::PODS;

pub const API_PORT: u16 = 7400;
pub const PEER_PORT: u16 = 7401;
pub const HTTP_PORT: u16 = 7480;
pub const NBD_PORT: u16 = 10809;

/// Below the kernel's range for outgoing connections (32768 and up).
const OFFSET_MAX: u16 = 32_000 - NBD_PORT - 100 * PODS as u16;
/// Leaves the default ports to clusters outside the tests.
const OFFSET_MIN: u16 = 1000;
const STEP: u16 = 100 * PODS as u16 + 7;

/// A port of pod `pod` (from 1).
pub fn port_of(base: u16, pod: usize, offset: u16) -> u16 {
    base + 100 * (pod as u16 - 1) + offset
}

/// An offset at which every port of a cluster is free now. Test programs that start at the same
/// moment begin the search at different offsets.
pub fn free_offset() -> u16 {
    let places = (OFFSET_MAX - OFFSET_MIN) / STEP;
    let first = (std::process::id() % u32::from(places)) as u16;
    (0..places)
        .map(|step| OFFSET_MIN + (first + step) % places * STEP)
        .find(|offset| is_free(*offset))
        .expect("some offset at which every port is free")
}

/// True when every port of a cluster could be bound now.
pub fn is_free(offset: u16) -> bool {
    let ports = (1..=PODS).flat_map(|pod| {
        [API_PORT, PEER_PORT, HTTP_PORT, NBD_PORT].map(|base| port_of(base, pod, offset))
    });
    // All are held at once, so that no port counts twice.
    let bound: Result<Vec<TcpListener>, _> =
        ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect();
    bound.is_ok()
}
