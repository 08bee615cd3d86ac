//! Reads the parts of a machine that the checks judge. A missing part and an unreadable one differ:
//! a check that could not look must not say that all is well.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::attach::mounts::Mounts;
use crate::control::catalog::chain;
use crate::doctor::machine::{Kubelet, Lvm, Machine, Nbd, Read};
use crate::io::{DriverKind, driver};

/// The first 15 bytes of a kubelet's name.
const KUBELET: &str = "kubelet";
/// Programs that contain a kubelet, and have its options elsewhere.
const WITH_KUBELET: [&str; 4] = ["k3s-server", "k3s-agent", "k3s", "kubelite"];
/// Where a kubelet is whose command line does not say otherwise.
const KUBELET_ROOT: &str = "/var/lib/kubelet";

/// Looks at the machine whose root directory this is. io_uring is tried by this process.
pub fn machine(root: &Path) -> Machine {
    let kernel = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let kernel = kernel.trim().to_owned();
    let processes = processes(&root.join("proc"));
    Machine {
        nbd: nbd(root, &kernel),
        kernel,
        has_fuse: root.join("dev/fuse").exists(),
        lvm: lvm(root),
        multipath: processes.as_ref().map_err(Clone::clone).and_then(|all| multipath(root, all)),
        no_io_uring: no_io_uring(),
        kubelet: processes.as_ref().map_err(Clone::clone).map(|all| kubelet(root, all)),
    }
}

/// The text of a file; empty: it is not there.
fn text(path: &Path) -> Read<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("could not read {}: {error}", path.display())),
    }
}

fn nbd(root: &Path, kernel: &str) -> Read<Nbd> {
    if !root.join("sys/module").is_dir() {
        return Err(format!("there is no sys/module in {}", root.display()));
    }
    let module = root.join("sys/module/nbd");
    if module.exists() {
        let most = text(&module.join("parameters/max_part"))?;
        return Ok(Nbd::Loaded { partitions_max: most.trim().parse().ok() });
    }
    // A part of the kernel has a directory there, too: only modules are looked for.
    for lib in ["lib", "usr/lib"] {
        let list = root.join(lib).join("modules").join(kernel).join("modules.dep");
        if text(&list)?.lines().any(|line| line.contains("/nbd.ko")) {
            return Ok(Nbd::Loadable);
        }
    }
    Ok(Nbd::Missing)
}

fn lvm(root: &Path) -> Read<Option<Lvm>> {
    let config = text(&root.join("etc/lvm/lvm.conf"))?;
    let has_program = ["sbin/lvm", "usr/sbin/lvm"].iter().any(|it| root.join(it).exists());
    if config.is_empty() && !has_program {
        return Ok(None);
    }
    let release = text(&root.join("etc/os-release"))?;
    let ids =
        release.lines().filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE="));
    let uses_devices_file =
        ids.into_iter().any(|line| ["rhel", "fedora"].iter().any(|it| line.contains(it)));
    let has_devices_file = root.join("etc/lvm/devices/system.devices").exists();
    Ok(Some(Lvm { config, has_devices_file, uses_devices_file }))
}

/// The configuration of a multipath daemon, if one runs.
fn multipath(root: &Path, processes: &[Process]) -> Read<Option<String>> {
    if !processes.iter().any(|process| process.name == "multipathd") {
        return Ok(None);
    }
    let mut config = text(&root.join("etc/multipath.conf"))?;
    let directory = root.join("etc/multipath/conf.d");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let said = |error: io::Error| format!("could not read {}: {error}", directory.display());
    for path in entries.map_err(said)?.into_iter().map(|entry| entry.path()) {
        if path.extension() == Some(OsStr::new("conf")) {
            config.push('\n');
            config.push_str(&text(&path)?);
        }
    }
    Ok(Some(config))
}

fn no_io_uring() -> Option<String> {
    driver(DriverKind::IoUring).err().map(|error| chain(&error))
}

fn kubelet(root: &Path, processes: &[Process]) -> Option<Kubelet> {
    let is_one = |process: &&Process| {
        process.name == KUBELET || WITH_KUBELET.contains(&process.name.as_str())
    };
    let process = processes.iter().find(is_one)?;
    let told = option(&process.arguments, "--root-dir").map(PathBuf::from);
    let usual = || (process.name == KUBELET).then(|| PathBuf::from(KUBELET_ROOT));
    let directory = told.or_else(usual);
    let is_shared = directory.as_deref().and_then(|directory| is_shared(root, directory));
    Some(Kubelet { root: directory, is_shared })
}

/// True when other mount namespaces see later mounts below a directory.
fn is_shared(root: &Path, directory: &Path) -> Option<bool> {
    // Of the first process: where it looks is where a node's own programs look.
    let mounts = Mounts::read_from(&root.join("proc/1/mountinfo")).ok()?;
    let inside = root.join(directory.strip_prefix("/").ok()?);
    // Another directory may be behind it.
    let behind = fs::canonicalize(&inside).ok();
    let behind = behind.and_then(|path| Some(Path::new("/").join(path.strip_prefix(root).ok()?)));
    Some(mounts.covering(behind.as_deref().unwrap_or(directory))?.is_shared)
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

fn processes(proc: &Path) -> Read<Vec<Process>> {
    // A user who may not see others' processes sees none of the first one.
    let first = proc.join("1/comm");
    if let Err(error) = fs::read_to_string(&first) {
        return Err(format!("could not read {}: {error}", first.display()));
    }
    let entries = fs::read_dir(proc);
    let entries = entries.map_err(|error| format!("could not read {}: {error}", proc.display()))?;
    // One that ends meanwhile is left out.
    let read = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let name = fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned();
        let line = fs::read(path.join("cmdline")).ok()?;
        let arguments = line.split(|byte| *byte == 0);
        let arguments = arguments.map(|it| String::from_utf8_lossy(it).into_owned()).collect();
        Some(Process { name, arguments })
    };
    Ok(entries.filter_map(read).collect())
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
        put(root, "proc/1/comm", "systemd\n");
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
        fs::create_dir_all(root.join("sys/module")).unwrap();
        put(root, "etc/multipath.conf", "defaults {}");
        put(root, "etc/multipath/conf.d/a.conf", "blacklist {}");
        put(root, "etc/multipath/conf.d/a.bak", "nonsense");
        put(root, "etc/os-release", "NAME=x\nID_LIKE=\"rhel fedora\"\n");
        put(root, "etc/lvm/lvm.conf", "devices {}\n");
        let seen = machine(root);
        assert_eq!((&*seen.kernel, seen.has_fuse), ("6.1.0-9", false));
        assert_eq!(seen.nbd, Ok(Nbd::Loadable));
        assert_eq!(seen.multipath.unwrap().as_deref(), Some("defaults {}\nblacklist {}"));
        let lvm = seen.lvm.unwrap().unwrap();
        assert_eq!((&*lvm.config, lvm.has_devices_file), ("devices {}\n", false));
        assert!(lvm.uses_devices_file);
        let kubelet = seen.kubelet.unwrap().unwrap();
        assert_eq!(kubelet.root.as_deref(), Some(Path::new("/data/kubelet")));
        assert_eq!(kubelet.is_shared, Some(false), "the nearest mount decides");
        put(root, "sys/module/nbd/parameters/max_part", "16\n");
        put(root, "proc/8/cmdline", "/usr/bin/kubelet\0--root-dir\0/var/lib/kubelet");
        let seen = machine(root);
        assert_eq!(seen.nbd, Ok(Nbd::Loaded { partitions_max: Some(16) }));
        assert_eq!(seen.kubelet.unwrap().unwrap().is_shared, Some(true));
        // The directory is elsewhere.
        fs::create_dir_all(root.join("data/kubelet")).unwrap();
        fs::create_dir_all(root.join("var/lib")).unwrap();
        std::os::unix::fs::symlink(root.join("data/kubelet"), root.join("var/lib/kubelet"))
            .unwrap();
        assert_eq!(machine(root).kubelet.unwrap().unwrap().is_shared, Some(false));
        put(root, "proc/8/comm", "kubelite\n");
        put(root, "proc/8/cmdline", "/snap/kubelite\0--start-control-plane=true\0");
        assert_eq!(machine(root).kubelet.unwrap().unwrap().root, None);
    }

    #[test]
    fn an_empty_root_tells_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let seen = machine(directory.path());
        assert!(seen.nbd.is_err() && seen.kubelet.is_err() && seen.multipath.is_err());
        assert!(seen.lvm.unwrap().is_none());
    }
}
