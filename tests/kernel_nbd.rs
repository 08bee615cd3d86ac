//! The kernel's own NBD client, in a virtual machine: a file system on it sees no error when the
//! pod, `holdfast attach` or all pods go, and grows while it is used.
//!
//! `HOLDFAST_TEST_KERNELS="6.1 6.12"` tests these kernels of Debian; `scripts/setup.sh test`
//! fetches the same. `HOLDFAST_TEST_OUTAGE_S` is how long no pod answers.

mod support;
mod vm;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Cluster, PODS, Setup, program};
use vm::Machine;

/// Longer than the timer of the kernel's requests ([`LOOK_MS`]).
///
/// [`LOOK_MS`]: holdfast::attach::kernel::device::LOOK_MS
const OUTAGE_S: u64 = 8;
/// Writes files of noise for ever, and their sums to a place that cannot fail.
const WRITER: &str = "writer() { n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); f=f$((n % 24)); \
    dd if=/dev/urandom of=/tmp/$f bs=64k count=6 2>/dev/null; \
    sed -i \"/ $f\\$/d\" /tmp/sums; (cd /tmp && sha256sum $f) >>/tmp/sums; \
    dd if=/tmp/$f of=/mnt/$f bs=64k conv=fsync 2>/tmp/why || { cp /tmp/why /tmp/failed; return; }; \
    echo $n >/tmp/n; done; echo ended >/tmp/ended; }";

/// `holdfast attach` in a machine, with the device of one attachment.
struct Node {
    machine: Machine,
    pods: String,
    attachment: String,
}

impl Node {
    fn start(machine: Machine, cluster: &Cluster, attachment: String) -> Node {
        let pods =
            (1..=PODS).map(|pod| format!("--pod 10.0.2.2:{}", cluster.nbd_address(pod).port()));
        let pods = pods.collect::<Vec<_>>().join(" ");
        let mut node = Node { machine, pods, attachment };
        node.start_attach();
        node
    }

    /// Nothing answers at the endpoint, so the pods are those that are named.
    fn start_attach(&mut self) {
        let pods = &self.pods;
        let line = format!(
            "holdfast attach --backend kernel --endpoint 127.0.0.1:1 {pods} \
             >>/tmp/attach.log 2>&1 & attach=$!"
        );
        self.machine.run(&line);
        self.machine.until("the devices are served", "holdfast device list");
    }

    /// `kill -9`, and another one.
    fn restart_attach(&mut self) {
        self.machine.run("kill -9 $attach; wait $attach; true");
        self.start_attach();
    }

    fn device(&mut self) -> Value {
        let listed = self.machine.run("holdfast device list -o json");
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
        listed[0].clone()
    }

    /// Waits until the writer has written some more files, and says how long that took.
    fn wait_writes(&mut self, what: &str) {
        let began = Instant::now();
        let before: u64 = self.written();
        let mut last = before;
        while last < before + 3 {
            let (failed, why) = self.machine.try_run("cat /tmp/failed 2>/dev/null");
            if failed == 0 {
                panic!("{what}: a write failed: {why}\n{}", self.machine.run("dmesg | tail -n 40"));
            }
            assert!(began.elapsed() < Duration::from_secs(90), "{what}: writes do not go on");
            thread::sleep(Duration::from_millis(50));
            last = self.written();
        }
        eprintln!("{what}: three files after {:.1} s", began.elapsed().as_secs_f32());
    }

    fn written(&mut self) -> u64 {
        self.machine.run("cat /tmp/n").trim().parse().unwrap()
    }
}

#[test]
fn a_file_system_on_the_kernels_client_sees_no_error() {
    let kernels = std::env::var("HOLDFAST_TEST_KERNELS").unwrap_or_else(|_| "6.12".to_owned());
    for kernel in kernels.split_whitespace() {
        match vm::lacks(kernel) {
            None => on(kernel),
            Some(why) => eprintln!("SKIPPED, kernel {kernel}: {why} (scripts/setup.sh test)"),
        }
    }
}

fn on(kernel: &str) {
    let setup = Setup::new("kernel_nbd").volume("demo", "64MiB").restart_after("never");
    let cluster = setup.start();
    let machine = Machine::start(kernel, &cluster.dir, &[("holdfast", program().as_path())]);
    let attachment = cluster.publish("db");
    let mut node = Node::start(machine, &cluster, attachment.clone());
    let opened = node.machine.run(&format!("holdfast device open {attachment} --volume db"));
    let path = opened.trim().to_owned();
    assert_eq!(path, "/dev/nbd0");
    let device = node.device();
    assert_eq!((&device["kind"], &device["volume"]), (&"kernel".into(), &"db".into()));

    node.machine.run(&format!("mkfs.ext4 -q {path} && mount {path} /mnt && touch /tmp/sums"));
    node.machine.run("echo 0 >/tmp/n");
    node.machine.run(WRITER);
    node.machine.run("writer >/dev/null 2>&1 &");
    node.wait_writes("nothing happens");
    let refused = node.machine.try_run(&format!("holdfast device close {attachment}"));
    assert!(refused.0 != 0 && refused.1.contains("in use"), "{refused:?}");
    grows(&cluster, &mut node, &path);

    node.restart_attach();
    assert_eq!(node.device()["volume"], "db", "the device is known by its identifier");
    node.wait_writes("attach was killed");
    cluster.kill(1);
    node.wait_writes("the pod was killed and stays dead");
    let pod = node.device()["pod"].as_str().unwrap().to_owned();
    assert!(!pod.is_empty() && !pod.ends_with(&cluster.nbd_address(1).port().to_string()), "{pod}");
    outage(&cluster, &mut node);
    is_right(&mut node, &path);
    fenced(&cluster, &mut node, &path);
}

/// The volume and its file system grow while files are written.
fn grows(cluster: &Cluster, node: &mut Node, path: &str) {
    let before: u64 =
        node.machine.run("df -k /mnt | tail -n 1 | awk '{print $2}'").trim().parse().unwrap();
    cluster.ask(&["volume", "resize", "db", "128MiB"]).expect("the volume grows");
    node.machine.run(&format!("holdfast device grow {} --size 128MiB", node.attachment));
    assert_eq!(node.device()["size_bytes"], 128 << 20);
    node.machine.run(&format!("resize2fs {path} 2>&1"));
    let after: u64 =
        node.machine.run("df -k /mnt | tail -n 1 | awk '{print $2}'").trim().parse().unwrap();
    assert!(after > before * 3 / 2, "{before} KiB grew to {after} KiB");
    // Behind the old end.
    node.machine.run("dd if=/dev/urandom of=/mnt/large bs=1M count=70 conv=fsync 2>/dev/null");
    node.machine.run("sha256sum /mnt/large >/tmp/large");
    node.wait_writes("the device has grown");
}

/// No pod answers for longer than the kernel waits before it looks at a request; `holdfast attach`
/// is killed meanwhile.
fn outage(cluster: &Cluster, node: &mut Node) {
    let seconds = std::env::var("HOLDFAST_TEST_OUTAGE_S").ok().and_then(|text| text.parse().ok());
    for pod in 2..=PODS {
        cluster.freeze(pod);
    }
    node.restart_attach();
    thread::sleep(Duration::from_secs(seconds.unwrap_or(OUTAGE_S)));
    assert_eq!(node.device()["pod"], "");
    assert_ne!(node.machine.try_run("cat /tmp/failed").0, 0, "requests wait");
    for pod in 2..=PODS {
        cluster.thaw(pod);
    }
    node.wait_writes("no pod answered");
}

/// What was written is there, the file system is whole, and the kernel has seen no error.
fn is_right(node: &mut Node, path: &str) {
    node.machine.run("touch /tmp/stop");
    node.machine.until("the writer ends", "cat /tmp/ended");
    node.machine.run(&format!("umount /mnt && e2fsck -fn {path} 2>&1 && mount {path} /mnt"));
    node.machine.run("cd /mnt && sha256sum -c /tmp/sums && sha256sum -c /tmp/large; cd /");
    node.machine.run("umount /mnt");
    let errors =
        "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|remount|shutting down sockets'";
    let (found, lines) = node.machine.try_run(errors);
    assert!(found == 1, "{lines}");
}

/// A node that loses its volume gets errors, and its device can be taken away.
fn fenced(cluster: &Cluster, node: &mut Node, path: &str) {
    let listed = cluster.ask(&["attachment", "list", "--volume", "db"]).unwrap();
    let name = listed[0]["spec"]["node"].as_str().unwrap().to_owned();
    cluster.ask(&["attachment", "unpublish", "db", &name]);
    let write = format!("! dd if=/dev/zero of={path} bs=4k count=1 conv=fsync 2>/dev/null");
    node.machine.until("writes fail", &write);
    node.machine.run(&format!("holdfast device close {}", node.attachment));
    assert_eq!(node.machine.run("holdfast device list"), "");
    node.machine.run("[ ! -e /sys/block/nbd0/pid ]");
}
