//! The kernel's own NBD client, in a virtual machine: a file system on it sees no error when the
//! pod, `holdfast attach` or all pods go, and grows while it is used. A node that has lost its
//! volume gets errors, and harms nothing of those who have it then.
//!
//! `HOLDFAST_TEST_KERNELS="6.1 6.12"` tests these kernels of Debian; `scripts/setup.sh test`
//! fetches the same. `HOLDFAST_TEST_OUTAGE_S` is how long no pod answers.

mod support;
mod vm;

use std::thread;
use std::time::Duration;

use support::{Cluster, Setup, wait_until};
use vm::elsewhere::Elsewhere;
use vm::node::Node;

/// Longer than the timer of the kernel's requests ([`LOOK_MS`]).
///
/// [`LOOK_MS`]: holdfast::attach::kernel::device::LOOK_MS
const OUTAGE_S: u64 = 8;
/// Tries to grow a device while its requests wait.
const TRIES_MAX: u64 = 8;

#[test]
fn a_file_system_on_the_kernels_client_sees_no_error() {
    on_kernels(|kernel| {
        let setup = Setup::new("kernel_nbd").volume("demo", "64MiB").restart_after("never");
        let cluster = setup.start();
        let attachment = cluster.publish("db");
        let mut node = Node::start(kernel, 1024, &cluster, attachment);
        assert_eq!(node.path, "/dev/nbd0");
        let device = node.device();
        assert_eq!((&device["kind"], &device["volume"]), (&"kernel".into(), &"db".into()));
        node.make_files();
        node.start_writer();
        node.wait_writes("nothing happens");
        let close = format!("holdfast device close {}", node.attachment);
        let refused = node.machine.try_run(&close);
        assert!(refused.0 != 0 && refused.1.contains("in use"), "{refused:?}");
        grows(&cluster, &mut node);
        node.restart_attach();
        assert_eq!(node.device()["volume"], "db", "the device is known by its identifier");
        node.wait_writes("attach was killed");
        grows_while_its_pod_dies(&cluster, &mut node, kernel);
        let pod = node.device()["pod"].as_str().unwrap().to_owned();
        let dead = cluster.nbd_address(node.local).port().to_string();
        assert!(!pod.is_empty() && !pod.ends_with(&dead), "{pod}");
        outage(&cluster, &mut node);
        node.end_writer();
        node.check_files();
        is_lost(&cluster, &mut node);
    });
}

/// Runs a test with each kernel that is there.
fn on_kernels(test: impl Fn(&str)) {
    let kernels = std::env::var("HOLDFAST_TEST_KERNELS").unwrap_or_else(|_| "6.12".to_owned());
    for kernel in kernels.split_whitespace() {
        match vm::lacks(kernel) {
            None => test(kernel),
            Some(why) => eprintln!("SKIPPED, kernel {kernel}: {why} (scripts/setup.sh test)"),
        }
    }
}

/// The volume and its file system grow while files are written.
fn grows(cluster: &Cluster, node: &mut Node) {
    let before = space_kib(node);
    cluster.ask(&["volume", "resize", "db", "128MiB"]).expect("the volume grows");
    node.machine.run(&format!("holdfast device grow {} --size 128MiB", node.attachment));
    assert_eq!(node.device()["size_bytes"], 128 << 20);
    node.machine.run(&format!("resize2fs {} 2>&1", node.path));
    let after = space_kib(node);
    assert!(after > before * 3 / 2, "{before} KiB grew to {after} KiB");
    // Behind the old end.
    node.machine.run("dd if=/dev/urandom of=/mnt/large bs=1M count=70 conv=fsync 2>/dev/null");
    node.machine.run("cd /mnt && sha256sum large >>/tmp/sums; cd /");
    node.wait_writes("the device has grown");
}

fn space_kib(node: &mut Node) -> u64 {
    node.machine.run("df -k /mnt | tail -n 1 | awk '{print $2}'").trim().parse().unwrap()
}

/// The kernel waits for all requests of a device before it changes the size. Its pod is killed
/// just then, while the requests wait for a majority: they go on at another pod.
fn grows_while_its_pod_dies(cluster: &Cluster, node: &mut Node, kernel: &str) {
    let is_in = "grep -q blk_mq_freeze /proc/$attach/task/*/wchan";
    // Kernels before 6.9 do not wait.
    let waits = kernel != "6.1";
    let mut size_mib = 128;
    let is_caught = (0..TRIES_MAX).any(|_| {
        size_mib += 32;
        begin_to_grow(cluster, node, size_mib);
        node.machine.until("the kernel waits", &format!("{is_in} || ! kill -0 $grow"));
        let is_caught = node.machine.try_run(is_in).0 == 0;
        if is_caught || !waits {
            cluster.kill(node.local);
        }
        node.others().for_each(|pod| cluster.thaw(pod));
        let (code, said) =
            node.machine.try_run("wait $grow; code=$?; cat /tmp/grow; [ $code = 0 ]");
        eprintln!("a growth to {size_mib} MiB ended with {code}, caught: {is_caught}: {said}");
        if is_caught {
            assert_eq!(code, 0, "{said}");
        }
        is_caught || !waits
    });
    assert!(is_caught || !waits, "the kernel never waited for requests");
    node.wait_writes("the pod was killed while the kernel waited for requests");
    // The growth of an older kernel may have met the dead pod.
    node.machine.run(&format!("holdfast device grow {} --size {size_mib}MiB", node.attachment));
    assert_eq!(node.device()["size_bytes"], size_mib << 20);
    node.machine.run(&format!("resize2fs {} 2>&1", node.path));
}

/// Begins to grow the device at the moment when its pod, which leads, has no majority any more: it
/// reads while its lease lasts, and writes wait.
fn begin_to_grow(cluster: &Cluster, node: &mut Node, size_mib: u64) {
    // It follows the reads.
    let mut client = cluster.connect(node.local, &node.attachment);
    wait_until("the leader is where the client is", || {
        for block in 0..200 {
            client.read(block * 4096, 4096).expect("read while leaders move");
        }
        cluster.leader("db") == Some(node.local)
    });
    drop(client);
    node.machine.run("kill -STOP $attach");
    let size = format!("{size_mib}MiB");
    cluster.ask(&["volume", "resize", "db", &size]).expect("the volume grows");
    let grow = format!("holdfast device grow {} --size {size}", node.attachment);
    node.machine.run(&format!("{grow} >/tmp/grow 2>&1 & grow=$!"));
    // The listening socket has the first line.
    node.machine
        .until("the request is on its way", "[ $(grep -c attach.sock /proc/net/unix) -gt 1 ]");
    wait_until("the pod knows of the size", || {
        cluster.connect(node.local, &node.attachment).size_bytes == size_mib << 20
    });
    node.others().for_each(|pod| cluster.freeze(pod));
    node.machine.run("kill -CONT $attach");
}

/// No pod answers for longer than the kernel waits before it looks at a request; `holdfast attach`
/// is killed meanwhile.
fn outage(cluster: &Cluster, node: &mut Node) {
    let seconds = std::env::var("HOLDFAST_TEST_OUTAGE_S").ok().and_then(|text| text.parse().ok());
    for pod in node.others() {
        cluster.freeze(pod);
    }
    node.restart_attach();
    thread::sleep(Duration::from_secs(seconds.unwrap_or(OUTAGE_S)));
    assert_eq!(node.device()["pod"], "");
    assert_ne!(node.machine.try_run("cat /tmp/failed").0, 0, "requests wait");
    for pod in node.others() {
        cluster.thaw(pod);
    }
    node.wait_writes("no pod answered");
}

/// The node is declared lost while it writes, and another one uses the volume. When the old one
/// goes on, it gets errors, and nothing of it reaches the volume. Its device can be taken away.
fn is_lost(cluster: &Cluster, node: &mut Node) {
    node.machine.run(&format!("mount {} /mnt", node.path));
    node.start_writer();
    node.wait_writes("mounted again");
    // Its requests are on their way for as long as the other node needs.
    node.machine.run("kill -STOP $attach");
    let sums = node.durable_sums();
    let attachment = published_elsewhere(cluster);
    let elsewhere = match Elsewhere::lacks() {
        None => Some(Elsewhere::mount(cluster, attachment)),
        Some(why) => {
            eprintln!("SKIPPED, another node that mounts the volume: {why}");
            None
        }
    };
    if let Some(it) = &elsewhere {
        it.check(&sums);
        it.write("elsewhere", 1);
    }
    assert_ne!(node.machine.try_run("cat /tmp/failed").0, 0, "requests wait");
    node.machine.run("kill -CONT $attach");
    node.machine.until("writes fail", "cat /tmp/failed");
    if let Some(it) = elsewhere {
        it.check(&sums);
        it.write("later", 2);
        it.check_whole();
        it.check(&sums);
        it.check_noise("elsewhere", 1);
        it.check_noise("later", 2);
        it.end();
    }
    node.machine.run("umount /mnt");
    node.machine.run(&format!("holdfast device close {}", node.attachment));
    assert_eq!(node.machine.run("holdfast device list"), "");
    node.machine.run("[ ! -e /sys/block/nbd0/pid ]");
}

/// Declares the node lost that has the volume, and publishes it to another one.
fn published_elsewhere(cluster: &Cluster) -> String {
    let listed = cluster.ask(&["attachment", "list", "--volume", "db"]).unwrap();
    let old = listed[0]["spec"]["node"].as_str().unwrap().to_owned();
    let shown = cluster.ask(&["node", "show", &old]).unwrap();
    let boot_id = shown["status"]["boot_id"].as_str().expect("a node has a boot id");
    cluster.ask(&["node", "lost", &old, "--boot-id", boot_id]).expect("it is declared lost");
    let nodes = cluster.ask(&["node", "list"]).unwrap();
    let names = nodes.as_array().unwrap().iter().map(|node| node["meta"]["name"].as_str().unwrap());
    let other = names.into_iter().find(|name| *name != old).expect("there is another node");
    let mut attachment = None;
    wait_until("the volume is published elsewhere", || {
        attachment = cluster.ask(&["attachment", "publish", "db", other]);
        attachment.is_some()
    });
    attachment.unwrap()["meta"]["uid"].as_str().expect("it has a uid").to_owned()
}
