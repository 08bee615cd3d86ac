//! The file system with a pod's identity and catalog is full: its member of the catalog stops, the
//! cluster says so, and the pod's clients and disks do not notice. Neither does a start.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use support::metrics::{get, scrape};
use support::nbd::Client;
use support::tools::{noise, run_as_root, text, try_run_as_root};
use support::{Cluster, Setup, wait_until};

const BLOCK: usize = 4096;

/// A small file system in memory.
struct Small {
    path: PathBuf,
}

impl Small {
    fn mount(path: PathBuf) -> Small {
        fs::create_dir_all(&path).unwrap();
        let options = "size=192m,mode=0777";
        run_as_root("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(&path)]);
        let small = Small { path };
        // Without the mount, the test would fill the file system of the machine.
        let space = rustix::fs::statvfs(&small.path).unwrap();
        assert_eq!(space.f_blocks * space.f_frsize, 192 << 20, "it is mounted");
        small
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes all room that there is.
    fn fill(&self) {
        let mut filler = fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        let free = || {
            let space = rustix::fs::statvfs(&self.path).unwrap();
            space.f_bavail * space.f_frsize
        };
        assert!(free() < 192 << 20, "of the small file system");
        let block = vec![7; 1 << 20];
        while free() > 0 {
            let len = free().min(1 << 20) as usize;
            // Others may be faster.
            let _written = filler.write(&block[..len]);
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        try_run_as_root("umount", &["-l", text(&self.path)]);
    }
}

fn role(cluster: &Cluster, pod: usize, role: &str) -> bool {
    scrape(pod, cluster.offset).get(&format!("holdfast_catalog_role{{role=\"{role}\"}}")) == 1.0
}

/// Commands go to the log of every member.
fn until(cluster: &Cluster, what: &str, mut condition: impl FnMut() -> bool) {
    let mut number = 0;
    wait_until(what, || {
        number += 1;
        let name = format!("other-{number}");
        let _taken = cluster.ask(&["volume", "create", &name, "--size", "64MiB", "--class", "dev"]);
        let _gone = cluster.ask(&["volume", "delete", &name, "--retention", "0"]);
        condition()
    });
}

fn problems(cluster: &Cluster) -> String {
    let status = cluster.ask(&["status"]).unwrap_or_default();
    status["problems"].to_string()
}

fn io(client: &mut Client, seed: u64) {
    for number in 0..50 {
        let data = noise(seed + number, BLOCK);
        client.write(number * BLOCK as u64, &data).unwrap();
        assert!(client.read(number * BLOCK as u64, BLOCK).unwrap() == data);
    }
}

/// Frees what files have beyond their ends. Nobody may write to them meanwhile.
fn give_back_room(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "log") {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len()).unwrap();
        }
    }
}

fn small_for(name: &str) -> Small {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}_small"));
    Small::mount(path)
}

#[test]
fn io_goes_on_when_the_file_system_of_the_catalog_is_full() {
    let small = small_for("control_plane_lost");
    let data = small.path.join("data");
    let setup = Setup::new("control_plane_lost").data_path(1, data);
    let mut cluster = setup.volume("demo", "64MiB").start();
    cluster.wait_healthy();
    cluster.lead_from(1, "demo");
    let pid = cluster.pid(1).expect("it runs");
    let mut client = cluster.connect(1, "demo");
    io(&mut client, 0);
    // The database has room of its own, behind the end of its log.
    cluster.freeze(1);
    give_back_room(&small.path.join("data/catalog"));
    small.fill();
    cluster.thaw(1);
    // When it opens its database again, it may free what it takes then.
    until(&cluster, "the catalog of pod 1 stops", || {
        small.fill();
        role(&cluster, 1, "stopped")
    });
    io(&mut client, 100);
    wait_until("the cluster says so", || {
        let problems = problems(&cluster);
        problems.contains("CatalogStopped")
    });
    assert_eq!(get(1, cluster.offset, "/readyz").unwrap().0, 200, "it serves");
    assert_eq!(cluster.pid(1), Some(pid), "the process goes on");

    // Without any room it starts, too.
    drop(client);
    cluster.kill(1);
    wait_until("the pod is there again", || cluster.pid(1).is_some_and(|now| now != pid));
    wait_until("it is ready", || {
        get(1, cluster.offset, "/readyz").is_ok_and(|(status, _)| status == 200)
    });
    let mut client = cluster.connect(1, "demo");
    io(&mut client, 200);
    let pid = cluster.pid(1);

    small.free();
    wait_until("its member of the catalog comes back", || !role(&cluster, 1, "stopped"));
    cluster.wait_healthy();
    io(&mut client, 300);
    assert_eq!(cluster.pid(1), pid, "without another start");
    drop(client);
    cluster.stop();
}
