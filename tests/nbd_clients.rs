//! Common NBD clients against a cluster of three pods. Data written through one pod is read through
//! the next.

mod support;

use std::fs;

use serde_json::Value;

use support::tools::{noise, run, text, try_run, write_image};
use support::{Cluster, Setup};

const MIB: usize = 1 << 20;

fn cluster(name: &'static str) -> Cluster {
    Setup::new(name).volume("demo", "64MiB").volume("other", "8MiB").start()
}

#[test]
fn nbdinfo_shows_what_is_exported() {
    let cluster = cluster("nbdinfo");
    for pod in 1..=support::PODS {
        let json = run("nbdinfo", &["--json", &cluster.uri(pod, "demo")]);
        let info: Value = serde_json::from_str(&json).unwrap();
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        assert_eq!(export["export-size"], 64 * MIB);
        for able in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df"] {
            assert_eq!(export[able], true, "{able}: {json}");
        }
        assert_eq!(export["is_read_only"], false);
        let contexts = export["contexts"].as_array().unwrap();
        assert!(contexts.iter().any(|context| context == "base:allocation"));
        assert!(export["block_size_maximum"].as_u64().unwrap() >= 32 * MIB as u64);
    }
    let list = run("nbdinfo", &["--list", "--json", &cluster.uri(1, "")]);
    for name in ["demo", "other"] {
        assert!(list.contains(&format!("\"export-name\": \"{name}\"")), "{list}");
    }
    assert!(!try_run("nbdinfo", &[&cluster.uri(1, "missing")]).status.success());
}

#[test]
fn nbdcopy_brings_every_byte_there_and_back() {
    let cluster = cluster("nbdcopy");
    let (image, back) = (cluster.dir.join("image"), cluster.dir.join("back"));
    // The image does not end at a block's end.
    let len = 40 * MIB + 1536;
    write_image(&image, 1, len);
    run("nbdcopy", &[text(&image), &cluster.uri(1, "demo")]);
    for pod in 1..=support::PODS {
        run("nbdcopy", &[&cluster.uri(pod, "demo"), text(&back)]);
        let back = fs::read(&back).unwrap();
        assert!(back[..len] == fs::read(&image).unwrap(), "read through pod {pod}");
        assert!(back[len..].iter().all(|byte| *byte == 0), "behind the image");
        assert_eq!(back.len(), 64 * MIB);
    }
}

#[test]
fn nbdinfo_map_shows_what_is_allocated() {
    let cluster = cluster("map");
    let image = cluster.dir.join("image");
    fs::write(&image, noise(2, 2 * MIB)).unwrap();
    run("nbdcopy", &["--destination-is-zero", text(&image), &cluster.uri(2, "demo")]);
    let map = || -> Vec<(u64, u64, bool)> {
        let json = run("nbdinfo", &["--map", "--json", &cluster.uri(3, "demo")]);
        let runs: Vec<Value> = serde_json::from_str(&json).unwrap();
        let number = |run: &Value, field: &str| run[field].as_u64().unwrap();
        // Bit 0 of the type: a hole.
        let run = |run: &Value| {
            (number(run, "offset"), number(run, "length"), number(run, "type") & 1 == 1)
        };
        runs.iter().map(run).collect()
    };
    let (data, all) = (2 * MIB as u64, 64 * MIB as u64);
    assert_eq!(map(), [(0, data, false), (data, all - data, true)]);
    let trim = format!("discard 0 {data}");
    run("qemu-io", &["-f", "raw", "-d", "unmap", "-c", &trim, &cluster.uri(1, "demo")]);
    assert_eq!(map(), [(0, all, true)]);
}

#[test]
fn qemu_img_converts_and_compares() {
    let cluster = cluster("qemu_img");
    let (raw, qcow2) = (cluster.dir.join("raw"), cluster.dir.join("qcow2"));
    write_image(&raw, 3, 64 * MIB);
    let (raw, qcow2) = (text(&raw), text(&qcow2));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    let to = cluster.uri(1, "demo");
    run("qemu-img", &["convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", qcow2, &to]);
    for pod in 1..=support::PODS {
        let from = cluster.uri(pod, "demo");
        run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &from, qcow2]);
    }
    // The comparison must be able to fail.
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 1000 1", &to]);
    let compared = try_run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &to, qcow2]);
    assert_eq!(compared.status.code(), Some(1));
}

/// Commands for one run of qemu-io. A pattern that does not match fails the test.
fn qemu_io(uri: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| arguments.extend(["-c", *command]));
    arguments.push(uri);
    let output = run("qemu-io", &arguments).to_lowercase();
    assert!(!output.contains("fail") && !output.contains("error"), "{output}");
}

#[test]
fn qemu_io_finds_its_patterns_at_any_alignment() {
    let cluster = cluster("qemu_io");
    qemu_io(
        &cluster.uri(1, "demo"),
        &[
            "write -P 0x11 0 1M",
            // Inside one block, across two, across extents.
            "write -P 0x22 100 1",
            "write -P 0x33 4000 200",
            "write -P 0x44 65000 70000",
            "write -f -P 0x55 512000 512",
            "read -P 0x11 0 100",
            "read -P 0x22 100 1",
            "read -P 0x11 101 3899",
            "read -P 0x33 4000 200",
            "read -P 0x44 65000 70000",
            "flush",
        ],
    );
    qemu_io(
        &cluster.uri(2, "demo"),
        &[
            "read -P 0x22 100 1",
            "read -P 0x11 4200 60800",
            "read -P 0x44 65000 70000",
            "read -P 0x55 512000 512",
            // Zeroes over data, with and without giving the space back.
            "write -z 8192 8192",
            "write -z -u 100000 1000",
            "read -P 0 8192 8192",
            "read -P 0x11 4200 3992",
            "read -P 0x11 16384 4096",
            "read -P 0 100000 1000",
            "read -P 0x44 101000 1000",
            "discard 65536 65536",
            "read -P 0 65536 65536",
        ],
    );
    qemu_io(
        &cluster.uri(3, "demo"),
        &[
            "read -P 0x44 131072 3928",
            "aio_write -P 0x66 2M 4M",
            "aio_write -P 0x77 6M 4M",
            "aio_flush",
            "read -P 0x66 2M 4M",
            "read -P 0x77 6M 4M",
            // The largest request, up to the last byte.
            "write -P 0x88 32M 32M",
            "read -P 0x88 32M 32M",
        ],
    );
}

/// `tests/clients/libnbd.py` describes its checks.
#[test]
fn libnbd_speaks_structured_replies_over_several_connections() {
    let cluster = cluster("libnbd");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/libnbd.py");
    let uris: Vec<String> = (1..=support::PODS).map(|pod| cluster.uri(pod, "demo")).collect();
    let mut arguments = vec![script];
    arguments.extend(uris.iter().map(String::as_str));
    // Debian's Python has the libnbd module; another one in PATH may not.
    let output = run("/usr/bin/python3", &arguments);
    assert!(output.ends_with("all checks passed\n"), "{output}");
}

#[test]
fn a_volume_is_there_again_after_a_restart() {
    let mut cluster = cluster("restart");
    let (image, back) = (cluster.dir.join("image"), cluster.dir.join("back"));
    write_image(&image, 4, 64 * MIB);
    run("nbdcopy", &[text(&image), &cluster.uri(1, "demo")]);
    cluster.restart();
    run("nbdcopy", &[&cluster.uri(2, "demo"), text(&back)]);
    assert!(fs::read(&back).unwrap() == fs::read(&image).unwrap());
    // The same without an orderly stop.
    cluster.kill_everything();
    cluster.start_again();
    run("nbdcopy", &[&cluster.uri(3, "demo"), text(&back)]);
    assert!(fs::read(&back).unwrap() == fs::read(&image).unwrap());
}
