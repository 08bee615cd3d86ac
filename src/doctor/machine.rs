//! Judges a machine as a node that uses volumes. Pure.

use std::path::{Path, PathBuf};

use crate::doctor::Finding;

/// Oldest kernel whose NBD devices survive restarts of `holdfast attach`, as major and minor.
const KERNEL_NBD_MIN: (u32, u32) = (5, 19);

const SLOW_PATH: &str = "Devices go through FUSE then (nbdfuse and a loop device): slower, and they \
                         end when `holdfast attach` does.";

/// What was read of a machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Release of the kernel, as in `6.1.0-28-amd64`.
    pub kernel: String,
    pub nbd: Nbd,
    pub has_fuse: bool,
    pub lvm: Option<Lvm>,
    /// Configuration of a multipath daemon that runs; empty if there is none.
    pub multipath: Option<String>,
    /// Why io_uring cannot be used; `None`: it can.
    pub no_io_uring: Option<String>,
    /// `None`: no kubelet runs.
    pub kubelet: Option<Kubelet>,
}

/// The kernel's module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Nbd {
    #[default]
    Missing,
    /// It is on the disk, or a part of the kernel.
    Loadable,
    /// `partitions_max`: its parameter `max_part`.
    Loaded { partitions_max: u32 },
}

/// LVM, where it is installed.
#[derive(Clone, Debug, Default)]
pub struct Lvm {
    /// Text of `lvm.conf`; empty if there is none.
    pub config: String,
    /// There is a file that lists the devices to be scanned.
    pub has_devices_file: bool,
}

#[derive(Clone, Debug)]
pub struct Kubelet {
    /// Its directory, as its command line says.
    pub root: PathBuf,
    /// What is mounted in there later is seen by other mount namespaces; `None`: the mount table
    /// could not be read.
    pub is_shared: Option<bool>,
}

/// All findings. `kubelet_root`: what the programs of Holdfast were told.
pub fn judge(machine: &Machine, kubelet_root: Option<&Path>) -> Vec<Finding> {
    let mut all = vec![
        device(&machine.kernel, &machine.nbd, machine.has_fuse),
        partitions(&machine.nbd),
        lvm(machine.lvm.as_ref()),
        multipath(machine.multipath.as_deref()),
        io_uring(machine.no_io_uring.as_deref()),
    ];
    if let Some(root) = kubelet_root {
        all.extend(kubelet(machine.kubelet.as_ref(), root));
    }
    all
}

fn device(kernel: &str, nbd: &Nbd, has_fuse: bool) -> Finding {
    let is_new = version(kernel).is_none_or(|version| version >= KERNEL_NBD_MIN);
    let (major, minor) = KERNEL_NBD_MIN;
    match (nbd, has_fuse) {
        (Nbd::Loaded { .. } | Nbd::Loadable, _) if is_new => {
            let how = if *nbd == Nbd::Loadable { "can be loaded" } else { "is loaded" };
            Finding::good("nbd", format!("Linux {kernel}, whose module nbd {how}"))
        }
        (Nbd::Missing, true) => Finding::warning(
            "nbd",
            format!("Linux {kernel} has no module nbd"),
            SLOW_PATH,
            "Install the package that has it: linux-modules-extra-$(uname -r) on Ubuntu, \
             kernel-modules-extra on Fedora. Then restart the attach pod of a drained node.",
        ),
        (_, true) => Finding::warning(
            "nbd",
            format!("Linux {kernel} is older than {major}.{minor}"),
            SLOW_PATH,
            format!("Use a kernel from {major}.{minor} on."),
        ),
        (_, false) => Finding::bad(
            "nbd",
            format!("Linux {kernel} has neither a usable module nbd nor /dev/fuse"),
            "No volume can be a block device here.",
            "Install the kernel's package of further modules, which has nbd, or load fuse.",
        ),
    }
}

/// Major and minor.
fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|it: char| !it.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn partitions(nbd: &Nbd) -> Finding {
    match nbd {
        Nbd::Loaded { partitions_max: most @ 1.. } => Finding::warning(
            "nbd-partitions",
            format!("nbd was loaded with max_part={most}"),
            "The kernel reads the partitions of a volume, and makes devices of them that hold it.",
            "Drain the node, unload nbd, and leave it to `holdfast attach` to load it.",
        ),
        _ => Finding::good("nbd-partitions", "the kernel leaves partitions of volumes alone"),
    }
}

fn lvm(lvm: Option<&Lvm>) -> Finding {
    let Some(lvm) = lvm else { return Finding::good("lvm", "LVM is not installed") };
    if lvm.has_devices_file && setting(&lvm.config, "use_devicesfile") != Some("0") {
        return Finding::good("lvm", "LVM scans the devices of its list alone");
    }
    if ["global_filter", "filter"].iter().any(|name| rejects_nbd(&lvm.config, name)) {
        return Finding::good("lvm", "a filter of LVM rejects NBD devices");
    }
    Finding::warning(
        "lvm",
        "LVM scans NBD devices",
        "A volume with LVM inside (of a virtual machine, say) is taken by the node, and then it \
         cannot be detached. A scan of a volume without a majority waits.",
        "In section `devices` of /etc/lvm/lvm.conf: global_filter = [ \"r|^/dev/nbd|\" ] before \
         other patterns.",
    )
}

/// The value of a setting, without comments.
fn setting<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let line = line.split('#').next()?.trim();
        Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim())
    };
    config.lines().find_map(value)
}

/// True when the first pattern of a list that is about NBD devices, or about all, rejects them. A
/// pattern is `a` or `r` with an expression between two equal characters (lvm.conf(5)).
fn rejects_nbd(config: &str, name: &str) -> bool {
    let lines: Vec<&str> =
        config.lines().map(|line| line.split('#').next().unwrap_or("")).collect();
    let is_it = |line: &&str| line.trim().strip_prefix(name).is_some_and(is_assigned);
    let Some(first) = lines.iter().position(|line| is_it(&line)) else { return false };
    let text = lines[first..].join("\n");
    let list = text.split(']').next().unwrap_or_default();
    let patterns = list.split('"').skip(1).step_by(2);
    let mut decisive = patterns.filter(|pattern| {
        let expression = pattern.get(2..pattern.len().saturating_sub(1));
        expression.is_some_and(|it| it.contains("nbd") || [".*", ".", ""].contains(&it))
    });
    decisive.next().is_some_and(|pattern| pattern.starts_with('r'))
}

fn is_assigned(rest: &str) -> bool {
    rest.trim_start().starts_with('=')
}

fn multipath(config: Option<&str>) -> Finding {
    let Some(config) = config else { return Finding::good("multipath", "no multipathd runs") };
    if config.contains("nbd") {
        return Finding::good("multipath", "the configuration of multipathd names NBD devices");
    }
    Finding::warning(
        "multipath",
        "multipathd runs, and its configuration does not name NBD devices",
        "Old versions take every device that no list excludes. A device that it took is in use, and \
         is neither mounted nor detached.",
        "In /etc/multipath.conf: blacklist { devnode \"^nbd\" }. Then: systemctl reload multipathd.",
    )
}

fn io_uring(no_io_uring: Option<&str>) -> Finding {
    match no_io_uring {
        None => Finding::good("io_uring", "it can be used"),
        Some(reason) => Finding::warning(
            "io_uring",
            reason,
            "A storage pod uses epoll and threads instead, which costs CPU and latency.",
            "sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile that permits it \
             (Unconfined, as in the manifests).",
        ),
    }
}

fn kubelet(kubelet: Option<&Kubelet>, told: &Path) -> Vec<Finding> {
    let Some(Kubelet { root, is_shared }) = kubelet else {
        return vec![Finding::unknown(
            "kubelet",
            "no kubelet runs here",
            "Run this on each node as root, or: kubectl debug node/NAME --profile=sysadmin -it \
             --image=IMAGE -- holdfast doctor --kubernetes --root /host",
        )];
    };
    let is_its = match root == told {
        true => Finding::good("kubelet", format!("its directory is {}", root.display())),
        false => Finding::bad(
            "kubelet",
            format!("its directory is {}, not {}", root.display(), told.display()),
            "The node plugin registers where kubelet does not look, and mounts where no pod sees it.",
            format!("Set csi.kubeletRootDir to {} and apply the manifests again.", root.display()),
        ),
    };
    let shared = match is_shared {
        Some(true) => {
            Finding::good("mount-propagation", "mounts below kubelet's directory are shared")
        }
        None => Finding::unknown("mount-propagation", "the mount table cannot be read", "Be root."),
        Some(false) => Finding::bad(
            "mount-propagation",
            "mounts below kubelet's directory are private",
            "A file system that the node plugin mounts is not seen by the pods that use it.",
            "mount --make-rshared /, and the same at every boot (systemd does it by itself).",
        ),
    };
    vec![is_its, shared]
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
