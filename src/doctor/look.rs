//! Reads what the checks judge of a machine. Whatever cannot be read counts as missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::attach::mounts::Mounts;
use crate::doctor::machine::{Kubelet, Lvm, Machine, Nbd};
use crate::io::{DriverKind, driver};

/// Programs that are, or contain, a kubelet: the first 15 bytes of their names.
const KUBELETS: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "kubelite"];
const KUBELET_ROOT: &str = "/var/lib/kubelet";

/// Looks at the machine whose root directory this is. io_uring is tried by this process.
pub fn machine(root: &Path) -> Machine {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let kernel = text("proc/sys/kernel/osrelease").trim().to_owned();
    let processes = processes(&root.join("proc"));
    let runs = |name: &str| processes.iter().any(|process| process.name == name);
    Machine {
        nbd: nbd(root, &kernel),
        kernel,
        has_fuse: root.join("dev/fuse").exists(),
        lvm: lvm(root),
        multipath: runs("multipathd").then(|| text("etc/multipath.conf")),
        no_io_uring: no_io_uring(),
        kubelet: kubelet(root, &processes),
    }
}

fn nbd(root: &Path, kernel: &str) -> Nbd {
    let module = root.join("sys/module/nbd");
    if module.exists() {
        let most = fs::read_to_string(module.join("parameters/max_part"));
        let most = most.ok().and_then(|text| text.trim().parse().ok());
        return Nbd::Loaded { partitions_max: most.unwrap_or(0) };
    }
    let lists = ["modules.dep", "modules.builtin"].iter().flat_map(|list| {
        ["lib", "usr/lib"].map(|lib| root.join(lib).join("modules").join(kernel).join(list))
    });
    let mut texts = lists.filter_map(|path| fs::read_to_string(path).ok());
    match texts.any(|text| text.lines().any(|line| line.contains("/nbd.ko"))) {
        true => Nbd::Loadable,
        false => Nbd::Missing,
    }
}

fn lvm(root: &Path) -> Option<Lvm> {
    let config = fs::read_to_string(root.join("etc/lvm/lvm.conf"));
    let is_here =
        config.is_ok() || ["sbin/lvm", "usr/sbin/lvm"].iter().any(|it| root.join(it).exists());
    is_here.then(|| Lvm {
        config: config.unwrap_or_default(),
        has_devices_file: root.join("etc/lvm/devices/system.devices").exists(),
    })
}

fn no_io_uring() -> Option<String> {
    driver(DriverKind::IoUring).err().map(|error| error.to_string())
}

fn kubelet(root: &Path, processes: &[Process]) -> Option<Kubelet> {
    let process = processes.iter().find(|process| KUBELETS.contains(&process.name.as_str()))?;
    let directory = option(&process.arguments, "--root-dir").unwrap_or(KUBELET_ROOT);
    let directory = PathBuf::from(directory);
    // Of the first process: where it looks is where a node's own programs look.
    let mounts = Mounts::read_from(&root.join("proc/1/mountinfo"));
    let is_shared = mounts.ok().and_then(|it| Some(it.covering(&directory)?.is_shared));
    Some(Kubelet { root: directory, is_shared })
}

/// The value of a program's option, in both ways of writing it.
fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let with = |(at, argument): (usize, &'a String)| match argument.strip_prefix(name)? {
        "" => arguments.get(at + 1).map(String::as_str),
        rest => rest.strip_prefix('='),
    };
    arguments.iter().enumerate().find_map(with)
}

struct Process {
    name: String,
    arguments: Vec<String>,
}

fn processes(proc: &Path) -> Vec<Process> {
    let read = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let name = fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned();
        let line = fs::read(path.join("cmdline")).ok()?;
        let arguments = line.split(|byte| *byte == 0);
        let arguments = arguments.map(|it| String::from_utf8_lossy(it).into_owned()).collect();
        Some(Process { name, arguments })
    };
    fs::read_dir(proc).map(|entries| entries.filter_map(read).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn what_a_node_has_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        put(root, "proc/sys/kernel/osrelease", "6.1.0-9\n");
        put(root, "proc/7/comm", "multipathd\n");
        put(root, "proc/7/cmdline", "/sbin/multipathd\0-d\0");
        put(root, "proc/8/comm", "kubelet\n");
        put(root, "proc/8/cmdline", "/usr/bin/kubelet\0--v=2\0--root-dir=/data/kubelet\0");
        let line = |id: u32, at: &str, shared: &str| {
            format!("{id} 1 8:{id} / {at} rw,relatime {shared}- ext4 /dev/sda{id} rw\n")
        };
        let table = [line(21, "/", "shared:1 "), line(22, "/data", "master:3 ")].concat();
        put(root, "proc/1/mountinfo", &table);
        put(root, "lib/modules/6.1.0-9/modules.dep", "kernel/drivers/block/nbd.ko.xz:\n");
        put(root, "etc/multipath.conf", "defaults {}\n");
        put(root, "etc/lvm/lvm.conf", "devices {}\n");
        let seen = machine(root);
        assert_eq!((&*seen.kernel, seen.has_fuse), ("6.1.0-9", false));
        assert_eq!(seen.nbd, Nbd::Loadable);
        assert_eq!(seen.multipath.as_deref(), Some("defaults {}\n"));
        let lvm = seen.lvm.unwrap();
        assert_eq!((&*lvm.config, lvm.has_devices_file), ("devices {}\n", false));
        let kubelet = seen.kubelet.unwrap();
        assert_eq!(kubelet.root, Path::new("/data/kubelet"));
        assert_eq!(kubelet.is_shared, Some(false), "the nearest mount decides");
        put(root, "sys/module/nbd/parameters/max_part", "16\n");
        put(root, "proc/8/cmdline", "/usr/bin/kubelet\0--root-dir\0/var/lib/kubelet");
        let seen = machine(root);
        assert_eq!(seen.nbd, Nbd::Loaded { partitions_max: 16 });
        assert_eq!(seen.kubelet.unwrap().is_shared, Some(true));
    }

    #[test]
    fn an_empty_root_has_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let seen = machine(directory.path());
        assert_eq!(seen.nbd, Nbd::Missing);
        assert!(seen.lvm.is_none() && seen.kubelet.is_none() && seen.multipath.is_none());
    }
}
