//! Judges a machine as a node that uses volumes. Pure.

use std::path::{Path, PathBuf};

use crate::doctor::Finding;

/// Oldest kernel whose NBD devices survive restarts of `holdfast attach`, as major and minor.
const KERNEL_NBD_MIN: (u32, u32) = (5, 19);

const SLOW_PATH: &str = "Devices go through FUSE then (nbdfuse and a loop device): slower, and \
                         they end when `holdfast attach` does.";

/// A part of a machine, or why it could not be read.
pub type Read<T> = Result<T, String>;

/// What was read of a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Release of the kernel, as in `6.1.0-28-amd64`.
    pub kernel: String,
    pub nbd: Read<Nbd>,
    pub has_fuse: bool,
    /// `None`: it is not installed.
    pub lvm: Read<Option<Lvm>>,
    /// Configuration of a multipath daemon that runs, with all its files; empty if there is none.
    pub multipath: Read<Option<String>>,
    /// Why io_uring cannot be used; `None`: it can.
    pub no_io_uring: Option<String>,
    /// `None`: no kubelet runs.
    pub kubelet: Read<Option<Kubelet>>,
}

/// The kernel's module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Nbd {
    #[default]
    Missing,
    /// It is on the disk.
    Loadable,
    /// `partitions_max`: its parameter `max_part`, if that can be read.
    Loaded { partitions_max: Option<u32> },
}

/// LVM, where it is installed.
#[derive(Clone, Debug, Default)]
pub struct Lvm {
    /// Text of `lvm.conf`; empty if there is none.
    pub config: String,
    /// There is a file that lists the devices to be scanned.
    pub has_devices_file: bool,
    /// It is of a family of distributions (Fedora, RHEL) whose LVM uses that file by default.
    pub uses_devices_file: bool,
}

#[derive(Clone, Debug)]
pub struct Kubelet {
    /// Its directory, as its command line says; `None`: that does not say it.
    pub root: Option<PathBuf>,
    /// Other mount namespaces see later mounts in there; `None`: the mount table could not be read.
    pub is_shared: Option<bool>,
}

/// All findings. `kubelet_root`: what the programs of Holdfast were told.
pub fn judge(machine: &Machine, kubelet_root: Option<&Path>) -> Vec<Finding> {
    let mut all = vec![
        read("nbd", &machine.nbd, |nbd| device(&machine.kernel, nbd, machine.has_fuse)),
        read("nbd-partitions", &machine.nbd, partitions),
        read("lvm", &machine.lvm, |it| lvm(it.as_ref())),
        read("multipath", &machine.multipath, |it| multipath(it.as_deref())),
        io_uring(machine.no_io_uring.as_deref()),
    ];
    match (&machine.kubelet, kubelet_root) {
        (Ok(found), Some(root)) => all.extend(kubelet(found.as_ref(), root)),
        (Err(error), Some(_)) => all.push(unread("kubelet", error)),
        (_, None) => {}
    }
    all
}

/// A finding about what could be read.
fn read<T>(check: &'static str, part: &Read<T>, judge: impl FnOnce(&T) -> Finding) -> Finding {
    match part {
        Ok(part) => judge(part),
        Err(error) => unread(check, error),
    }
}

fn unread(check: &'static str, error: &str) -> Finding {
    Finding::unknown(check, error, "Run this as root, with --root at the root of the machine.")
}

fn device(kernel: &str, nbd: &Nbd, has_fuse: bool) -> Finding {
    let Some(version) = version(kernel) else {
        let found = format!("the version of the kernel cannot be told from {kernel:?}");
        return Finding::unknown("nbd", found, "Look at /proc/sys/kernel/osrelease.");
    };
    let is_new = version >= KERNEL_NBD_MIN;
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
        Nbd::Loaded { partitions_max: Some(most @ 1..) } => Finding::warning(
            "nbd-partitions",
            format!("nbd was loaded with max_part={most}"),
            "The kernel reads the partitions of a volume, and makes devices of them that hold it.",
            "Drain the node, unload nbd, and leave it to `holdfast attach` to load it. Where it is \
             a part of the kernel: nbd.max_part=0 on the kernel's command line.",
        ),
        Nbd::Loaded { partitions_max: None } => {
            unread("nbd-partitions", "the parameter max_part of nbd cannot be read")
        }
        Nbd::Loaded { .. } => Finding::good("nbd-partitions", "nbd was loaded with max_part=0"),
        Nbd::Loadable => {
            Finding::good("nbd-partitions", "`holdfast attach` will load nbd with max_part=0")
        }
        Nbd::Missing => Finding::good("nbd-partitions", "there is no nbd"),
    }
}

fn lvm(lvm: Option<&Lvm>) -> Finding {
    let Some(lvm) = lvm else { return Finding::good("lvm", "LVM is not installed") };
    let uses_file = match setting(&lvm.config, "use_devicesfile") {
        Some(value) => value == "1",
        None => lvm.uses_devices_file,
    };
    if lvm.has_devices_file && uses_file {
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

/// True when a list rejects NBD devices: the first pattern that matches decides. A pattern is `a`
/// or `r` with an expression between two equal characters (lvm.conf(5)). One that accepts counts if
/// it may match, and one that rejects if it must.
fn rejects_nbd(config: &str, name: &str) -> bool {
    let lines: Vec<&str> =
        config.lines().map(|line| line.split('#').next().unwrap_or("")).collect();
    let is_it = |line: &&str| line.trim().strip_prefix(name).is_some_and(is_assigned);
    let Some(first) = lines.iter().position(is_it) else { return false };
    let text = lines[first..].join("\n");
    // What lies between quotes may have brackets of its own.
    let ends = |(at, part): &(usize, &str)| at % 2 == 0 && part.contains(']');
    let parts = text.split('"').enumerate().take_while(|part| !ends(part));
    let patterns = parts.filter(|(at, _)| at % 2 == 1).map(|(_, pattern)| pattern);
    let mut decisive = patterns.filter_map(|pattern| {
        let expression = pattern.get(2..pattern.len().saturating_sub(1))?;
        let rejects = pattern.starts_with('r');
        let counts = match rejects {
            true => [
                "",
                ".",
                ".*",
                "nbd",
                "nbd.*",
                "^/dev/nbd",
                "^/dev/nbd.*",
                "/dev/nbd",
                "/dev/nbd.*",
            ]
            .contains(&expression),
            false => may_match_nbd(expression),
        };
        counts.then_some(rejects)
    });
    decisive.next().unwrap_or(false)
}

/// True unless the plain part before the first special character tells that an expression is of
/// other devices.
fn may_match_nbd(expression: &str) -> bool {
    const DEVICE: &str = "/dev/nbd0";
    if expression.contains(['|', '(']) {
        return true;
    }
    let (is_anchored, rest) = match expression.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, expression),
    };
    let is_special = |it: char| !(it.is_ascii_alphanumeric() || "/-_".contains(it));
    let at = rest.find(is_special).unwrap_or(rest.len());
    let (mut plain, behind) = rest.split_at(at);
    // What these follow may be missing.
    if behind.starts_with(['*', '?', '{']) {
        plain = &plain[..plain.len().saturating_sub(1)];
    }
    match is_anchored {
        true => DEVICE.starts_with(plain) || plain.starts_with(DEVICE),
        false => DEVICE.contains(plain) || plain.contains("nbd"),
    }
}

fn is_assigned(rest: &str) -> bool {
    rest.trim_start().starts_with('=')
}

fn multipath(config: Option<&str>) -> Finding {
    let Some(config) = config else { return Finding::good("multipath", "no multipathd runs") };
    if blacklists(config).iter().any(|section| section.contains("nbd")) {
        return Finding::good("multipath", "the configuration of multipathd excludes NBD devices");
    }
    Finding::warning(
        "multipath",
        "multipathd runs, and its configuration does not exclude NBD devices",
        "Old versions take every device that no list excludes. A device that it took is in use, \
         and is neither mounted nor detached.",
        "In /etc/multipath.conf: blacklist { devnode \"^nbd\" }. Then: systemctl reload \
         multipathd.",
    )
}

/// The texts of the sections `blacklist`, without comments, which begin with `#` or `!`
/// (multipath.conf(5)).
fn blacklists(config: &str) -> Vec<String> {
    let code = config.lines().map(|line| line.split(['#', '!']).next().unwrap_or_default());
    let text = code.collect::<Vec<_>>().join("\n");
    let (mut sections, mut depth, mut head, mut is_in) = (Vec::new(), 0u32, String::new(), false);
    for character in text.chars() {
        match character {
            '{' => {
                if depth == 0 {
                    is_in = head.trim() == "blacklist";
                    head.clear();
                    sections.extend(is_in.then(String::new));
                }
                depth += 1;
            }
            '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => head.push(character),
            _ if is_in => sections.last_mut().expect("it has begun").push(character),
            _ => {}
        }
    }
    sections
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
    let is_its = match root {
        None => Finding::unknown(
            "kubelet",
            "its command line does not tell its directory",
            "Compare csi.kubeletRootDir with its configuration: microk8s has it in \
             /var/snap/microk8s/common/var/lib/kubelet, k3s takes --kubelet-arg=root-dir=.",
        ),
        Some(root) if root == told => {
            Finding::good("kubelet", format!("its directory is {}", root.display()))
        }
        Some(root) => Finding::bad(
            "kubelet",
            format!("its directory is {}, not {}", root.display(), told.display()),
            "The node plugin registers where kubelet does not look, and mounts where no pod sees \
             it.",
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
