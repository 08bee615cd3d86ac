//! Floods of connections that say nothing (rule `every-handshake-has-a-deadline`).

use std::time::Duration;

use super::pod_fixture::{Client, Pod, view, volume};
use crate::limits::{Budgets, HANDSHAKE_TIMEOUT, SocketLimits};
use crate::net::handshake::Purpose;
use crate::planted::{Mistake, assert_found};
use crate::types::{BLOCK_BYTES, MemberId};
use crate::view::MemberState;

/// More than a pod serves.
const FLOOD: usize = 5000;

fn serving() -> Pod {
    let mut pod = Pod::new(Budgets::default());
    pod.view(view(1, vec![volume(1, "v", &[1]), volume(2, "shared", &[1, 2, 3])]));
    pod.run_until("the only replica leads", |pod| {
        pod.state_of(MemberId(11)) == Some(MemberState::Leader)
    });
    pod
}

fn write_and_read(pod: &mut Pod, client: &Client) {
    client.write(pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
    assert_eq!(client.read_byte(pod, 0), b'x');
}

fn a_flood_locks_nobody_out(connect: fn(&mut Pod) -> Client) {
    let mut pod = serving();
    let before = pod.connect("v");
    for _ in 0..FLOOD {
        connect(&mut pod);
        pod.round();
    }
    let capped = SocketLimits::default().handshakes;
    assert!(pod.open_connections() <= capped + 2, "{} are open", pod.open_connections());
    // In the middle of it:
    let client = pod.connect("v");
    write_and_read(&mut pod, &client);
    pod.link_from(2, Purpose::Data);
    pod.run(HANDSHAKE_TIMEOUT + Duration::from_secs(1));
    assert!(pod.open_connections() <= 3, "{} are still open", pod.open_connections());
    write_and_read(&mut pod, &before);
    write_and_read(&mut pod, &client);
}

fn silent_clients_lock_nobody_out() {
    a_flood_locks_nobody_out(Pod::connect_silently);
}

fn silent_peers_lock_nobody_out() {
    a_flood_locks_nobody_out(Pod::dial_silently);
}

#[test]
fn silent_connections_lock_nobody_out() {
    silent_clients_lock_nobody_out();
    silent_peers_lock_nobody_out();
    assert_found(Mistake::HandshakesWithoutEnd, silent_clients_lock_nobody_out);
    assert_found(Mistake::HandshakesWithoutEnd, silent_peers_lock_nobody_out);
}

/// A byte now and then is no handshake.
#[test]
fn a_handshake_that_goes_on_for_ever_ends() {
    let mut pod = serving();
    let slow = [pod.connect_silently(), pod.dial_silently()];
    pod.run_until("they are given up", |pod| {
        for (client, byte) in slow.iter().zip([0, b'H']) {
            if !client.is_closed(pod) && pod.is_after_tick() {
                client.say(pod, &[byte]);
            }
        }
        slow.iter().all(|client| client.is_closed(pod))
    });
}
