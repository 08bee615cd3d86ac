//! The leadership of a volume moves to the pod through which it is used, and moves again with the
//! client. No data is lost on the way.

mod support;

use support::{PODS, Setup};

#[test]
fn the_leader_goes_where_the_client_is() {
    let cluster = Setup::new("leader_follows").volume("demo", "64MiB").start();
    for pod in [3, 1, 2] {
        cluster.connect(pod, "demo").write(pod as u64 * 4096, &[pod as u8; 4096]).unwrap();
        cluster.lead_from(pod, "demo");
        assert_eq!(cluster.leader("demo"), Some(pod));
        for through in 1..=PODS {
            let read = cluster.connect(through, "demo").read(pod as u64 * 4096, 4096).unwrap();
            assert_eq!(read, [pod as u8; 4096]);
        }
    }
}
