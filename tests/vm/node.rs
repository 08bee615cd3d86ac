//! A node in a virtual machine: `holdfast attach` with one device, and a program that writes to it.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Machine;
use crate::support::{Cluster, PODS, program, wait_until};

/// Writes files of noise for ever, and their sums to a place that cannot fail. `/tmp/n` counts the
/// files that are durable.
const WRITER: &str = "writer() { n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); f=f$((n % 24)); \
    dd if=/dev/urandom of=/tmp/$f bs=64k count=6 2>/dev/null; \
    sed -i \"/ $f\\$/d\" /tmp/sums; (cd /tmp && sha256sum $f) >>/tmp/sums; \
    dd if=/tmp/$f of=/mnt/$f bs=64k conv=fsync 2>/tmp/why || { cp /tmp/why /tmp/failed; return; }; \
    echo $n >/tmp/n; done; echo ended >/tmp/ended; }";
/// Files of the writer, which it writes in turn.
const FILES: u64 = 24;
/// What the kernel says of errors.
const ERRORS: &str =
    "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|remount|shutting down sockets|oom'";

/// See the module.
pub struct Node {
    pub machine: Machine,
    pub attachment: String,
    pub path: String,
    /// The pod that is preferred: the one that leads its volume's first shard.
    pub local: usize,
    pods: String,
}

impl Node {
    /// A machine with the device of this attachment to volume `db`.
    pub fn start(kernel: &str, memory_mib: u32, cluster: &Cluster, attachment: String) -> Node {
        let holdfast = program();
        let programs = [("holdfast", holdfast.as_path())];
        let machine = Machine::start(kernel, memory_mib, &cluster.dir, &programs);
        let mut leader = None;
        wait_until("the volume has a leader", || {
            leader = cluster.leader("db");
            leader.is_some()
        });
        let local = leader.unwrap();
        let others = (1..=PODS).filter(|pod| *pod != local);
        let pods = std::iter::once(local).chain(others);
        let pods = pods.map(|pod| format!("--pod 10.0.2.2:{}", cluster.nbd_address(pod).port()));
        let pods = pods.collect::<Vec<_>>().join(" ");
        let mut node = Node { machine, attachment, path: String::new(), local, pods };
        node.start_attach();
        let open = format!("holdfast device open {} --volume db", node.attachment);
        node.path = node.machine.run(&open).trim().to_owned();
        node
    }

    /// All pods but the local one.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let local = self.local;
        (1..=PODS).filter(move |pod| *pod != local)
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
    pub fn restart_attach(&mut self) {
        self.machine.run("kill -9 $attach; wait $attach; true");
        self.start_attach();
    }

    pub fn device(&mut self) -> Value {
        let listed = self.machine.run("holdfast device list -o json");
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
        listed[0].clone()
    }

    /// Makes a file system on the device and mounts it.
    pub fn make_files(&mut self) {
        let path = &self.path;
        self.machine.run(&format!("mkfs.ext4 -q {path} && mount {path} /mnt && touch /tmp/sums"));
    }

    pub fn start_writer(&mut self) {
        self.machine.run("rm -f /tmp/stop /tmp/ended /tmp/failed; echo 0 >/tmp/n");
        self.machine.run(WRITER);
        self.machine.run("writer >/dev/null 2>&1 &");
    }

    pub fn end_writer(&mut self) {
        self.machine.run("touch /tmp/stop");
        self.machine.until("the writer ends", "cat /tmp/ended");
    }

    /// Waits until the writer has written some more files, and says how long that took.
    pub fn wait_writes(&mut self, what: &str) {
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

    /// The sums of the files that are durable, as `sha256sum` reads them, while the writer waits
    /// with the one that follows.
    pub fn durable_sums(&mut self) -> String {
        let waits_with = format!(" f{}", (self.written() + 1) % FILES);
        let sums = self.machine.run("cat /tmp/sums");
        let known = sums.lines().filter(|line| !line.ends_with(&waits_with));
        known.map(|line| format!("{line}\n")).collect()
    }

    /// All files are there, the file system is whole, and the kernel has seen no error.
    pub fn check_files(&mut self) {
        let path = &self.path;
        self.machine.run(&format!("umount /mnt && e2fsck -fn {path} 2>&1 && mount {path} /mnt"));
        self.machine.run("cd /mnt && sha256sum -c /tmp/sums; code=$?; cd /; [ $code = 0 ]");
        self.machine.run("umount /mnt");
        self.check_errors();
    }

    /// The kernel has seen no error.
    pub fn check_errors(&mut self) {
        let (found, lines) = self.machine.try_run(ERRORS);
        assert!(found == 1, "{lines}");
    }
}
