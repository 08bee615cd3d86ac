//! Without a majority I/O pauses, without answers and without errors. When the majority is back,
//! the waiting requests are answered on the same connection.

mod support;

use std::io::ErrorKind;
use std::time::Duration;

use support::nbd::{Client, READ, WRITE};
use support::{Cluster, Setup};

/// Longer than a lease and an election: an answer within this time would ignore the loss of the
/// majority.
const NO_ANSWER_FOR: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);

fn start(name: &'static str) -> Cluster {
    Setup::new(name).volume("demo", "64MiB").start()
}

/// Waits for an answer that must not come.
fn expect_silence(client: &mut Client, what: &str) {
    client.stream.set_read_timeout(Some(NO_ANSWER_FOR)).unwrap();
    match client.stream.peek(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("{what} was answered without a majority: {other:?}"),
    }
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

#[test]
fn io_waits_while_two_pods_are_frozen_and_then_goes_on() {
    let cluster = start("pause_freeze");
    let mut writer = cluster.connect(1, "demo");
    let mut reader = cluster.connect(1, "demo");
    writer.write(0, &[1; 4096]).unwrap();
    cluster.freeze(2);
    cluster.freeze(3);
    let written = writer.send(WRITE, 0, 0, 4096, &[2; 4096]).unwrap();
    expect_silence(&mut writer, "a write");
    // No lease is valid any more, so a read must wait too.
    let read = reader.send(READ, 0, 0, 4096, &[]).unwrap();
    expect_silence(&mut reader, "a read");
    cluster.thaw(2);
    assert_eq!(writer.receive().unwrap(), (written, 0));
    assert_eq!(reader.receive().unwrap(), (read, 0));
    cluster.thaw(3);
    cluster.wait_healthy();
    for pod in 1..=support::PODS {
        assert_eq!(cluster.connect(pod, "demo").read(0, 4096).unwrap(), [2; 4096]);
    }
}

#[test]
fn what_waited_for_two_killed_pods_is_answered_when_they_are_back() {
    let cluster = start("pause_kill");
    let mut client = cluster.connect(1, "demo");
    client.write(0, &[1; 8192]).unwrap();
    cluster.kill(2);
    cluster.kill(3);
    // `dev` restarts the pods.
    client.write(4096, &[2; 4096]).unwrap();
    let read = client.read(0, 8192).unwrap();
    assert_eq!((&read[..4096], &read[4096..]), (&[1; 4096][..], &[2; 4096][..]));
    cluster.wait_serving(2);
    cluster.wait_serving(3);
    cluster.wait_healthy();
}

#[test]
fn a_client_of_another_pod_does_not_notice_that_the_leader_dies() {
    let cluster = start("leader_dies");
    // Leaders follow their client to pod 1 ...
    let mut first = cluster.connect(1, "demo");
    for round in 0..200u64 {
        first.write(round * 4096, &[1; 4096]).unwrap();
    }
    // ... which dies, while another one reads and writes.
    let mut second = cluster.connect(2, "demo");
    second.write(0, &[2; 4096]).unwrap();
    cluster.kill(1);
    for round in 1..200u64 {
        assert_eq!(second.read(round * 4096, 4096).unwrap(), [1; 4096]);
        second.write(round * 4096, &[2; 4096]).unwrap();
    }
    assert_eq!(second.read(0, 4096).unwrap(), [2; 4096]);
}
