//! A virtual machine with a kernel of Debian, for what this machine's kernel lacks. Its root is an
//! archive in memory: busybox, and programs of this machine with their libraries. The test sends it
//! lines of shell, and waits for their ends. It sees this machine's loopback as 10.0.2.2.
//!
//! `scripts/setup.sh test` fetches the kernel. It is emulated (TCG), so that no KVM is needed.

pub mod elsewhere;
pub mod node;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::remove_dir;
use crate::support::tools::{run, text, try_run};

/// Longest wait for the end of a line. It only ends tests that hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// A line of the machine's that says how a command ended.
const ENDED: &str = "@@ ";
const INIT: &str = include_str!("init.sh");
/// With what they depend on. Those that a kernel lacks are part of it, or not needed.
const MODULES: &[&str] = &[
    "nbd",
    "loop",
    "fuse",
    "failover",
    "net_failover",
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_net",
];
/// By their names there: some programs go by that.
const PROGRAMS: &[(&str, &str)] = &[
    ("mkfs.ext4", "/sbin/mkfs.ext4"),
    ("e2fsck", "/sbin/e2fsck"),
    ("resize2fs", "/sbin/resize2fs"),
];

/// A running machine; ends with the test.
pub struct Machine {
    qemu: Child,
    to: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
}

/// Where `scripts/setup.sh test` puts a kernel of this version, such as `6.12`.
fn package_of(version: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target");
    target.join("kernels").join(format!("linux-{version}.deb"))
}

/// Why there can be no machine with this kernel.
pub fn lacks(version: &str) -> Option<String> {
    let package = package_of(version);
    match Command::new("qemu-system-x86_64").arg("--version").output() {
        Err(error) => Some(format!("qemu-system-x86_64 cannot be run: {error}")),
        Ok(_) if !package.exists() => Some(format!("{} is not there", package.display())),
        Ok(_) => None,
    }
}

impl Machine {
    /// Starts a machine whose files are made in `dir`. `programs` are in its path, by these names.
    pub fn start(
        version: &str,
        memory_mib: u32,
        dir: &Path,
        programs: &[(&str, &Path)],
    ) -> Machine {
        let dir = dir.join("vm");
        remove_dir(&dir);
        fs::create_dir_all(&dir).unwrap();
        let kernel = dir.join("kernel");
        run("dpkg", &["-x", text(&package_of(version)), text(&kernel)]);
        let archive = archive(&dir, &kernel, programs);
        let console = dir.join("console");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"])
            .args([
                "-m",
                &memory_mib.to_string(),
                "-no-reboot",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .args(["-nic", "user,model=virtio-net-pci"])
            .args(["-serial", &format!("file:{}", text(&console)), "-serial", "stdio"])
            .args(["-append", "console=ttyS0 loglevel=6 panic=-1 mitigations=off"])
            .args(["-kernel", text(&first_in(&kernel.join("boot"), "vmlinuz")), "-initrd"])
            .arg(archive)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = command.spawn().expect("run qemu");
        let to = qemu.stdin.take().expect("stdin is a pipe");
        let from = qemu.stdout.take().expect("stdout is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let machine = Machine { qemu, to, lines, console };
        assert_eq!(machine.answer("boot"), (0, String::new()), "the machine boots");
        machine
    }

    /// Runs a line of shell, and returns what it printed; panics when it fails.
    pub fn run(&mut self, line: &str) -> String {
        let (code, printed) = self.try_run(line);
        assert!(code == 0, "{line} ended with {code}:\n{printed}");
        printed
    }

    /// Runs a line of shell with any end.
    pub fn try_run(&mut self, line: &str) -> (i32, String) {
        assert!(!line.contains('\n'), "one line: {line}");
        writeln!(self.to, "{line}").and_then(|()| self.to.flush()).expect("the machine runs");
        self.answer(line)
    }

    /// Runs a line until it ends well.
    pub fn until(&mut self, what: &str, line: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (code, printed) = self.try_run(line);
            if code == 0 {
                return;
            }
            assert!(Instant::now() < until, "waited in vain: {what}; {line} says:\n{printed}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn answer(&self, line: &str) -> (i32, String) {
        let until = Instant::now() + PATIENCE;
        let mut printed = String::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.trim_end().strip_prefix(ENDED) {
                    Some(code) => {
                        // The end before the code.
                        printed.pop();
                        return (code.parse().expect("a number"), printed);
                    }
                    None => printed = printed + line.trim_end() + "\n",
                },
                Err(RecvTimeoutError::Timeout) => panic!("{line} does not end:\n{printed}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the machine ended at {line}"),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if thread::panicking() {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let lines: Vec<&str> = console.lines().collect();
            eprintln!("--- end of the machine's console");
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}

fn first_in(directory: &Path, start: &str) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found =
        entries.filter(|path| text(path).rsplit('/').next().unwrap().starts_with(start));
    found.next().unwrap_or_else(|| panic!("{start} is not in {}", directory.display()))
}

/// Makes the root in one archive.
fn archive(dir: &Path, kernel: &Path, programs: &[(&str, &Path)]) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "proc", "sys", "dev", "tmp", "run", "etc", "mnt", "lib64"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("init"), INIT).unwrap();
    run("chmod", &["755", text(&root.join("init"))]);
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    fs::copy("/etc/mke2fs.conf", root.join("etc/mke2fs.conf")).unwrap();
    let ours = PROGRAMS.iter().map(|(name, path)| (*name, Path::new(*path)));
    for (name, program) in ours.chain(programs.iter().copied()) {
        add_program(&root, name, program);
    }
    add_modules(&root, kernel);
    let archive = dir.join("root.cpio");
    let pack = format!(
        "cd '{}' && find . | cpio --quiet --create --format=newc > '{}'",
        text(&root),
        text(&archive)
    );
    run("sh", &["-ec", &pack]);
    archive
}

/// Copies a program without its debugging data, and the libraries that it loads.
fn add_program(root: &Path, name: &str, program: &Path) {
    run("strip", &["-o", text(&root.join("bin").join(name)), text(program)]);
    let listed = run("ldd", &[text(program)]);
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(&library[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

fn add_modules(root: &Path, kernel: &Path) {
    let from = first_in(&kernel.join("lib/modules"), "");
    let version = from.file_name().unwrap().to_str().unwrap().to_owned();
    let to = root.join("lib/modules").join(&version);
    fs::create_dir_all(&to).unwrap();
    for name in MODULES {
        let found = run("find", &[text(&from), "-name", &format!("{name}.ko*")]);
        for path in found.lines() {
            run("cp", &[path, text(&to)]);
            if path.ends_with(".xz") {
                let packed = to.join(format!("{name}.ko.xz"));
                run("xz", &["--decompress", text(&packed)]);
            }
        }
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let made = try_run("/sbin/depmod", &["-b", text(root), &version]);
    assert!(made.status.success(), "{made:?}");
}
