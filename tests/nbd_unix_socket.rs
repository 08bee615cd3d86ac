//! A volume over a unix socket, with common clients.

mod support;

use std::fs;

use support::tools::{run, text, write_image};
use support::{Setup, wait_until};

#[test]
fn a_volume_is_copied_in_and_out_over_a_unix_socket() {
    let cluster = Setup::new("nbd_unix").volume("demo", "16MiB").start();
    // Not in the folder of the test: the path of a socket must be short.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd");
    let config = cluster.pod_dir(1).join("holdfast.toml");
    let before = fs::read_to_string(&config).unwrap();
    let after = before.replacen("[nbd]\n", &format!("[nbd]\nsocket = {socket:?}\n"), 1);
    assert_ne!(before, after, "the configuration has a section for NBD");
    fs::write(&config, after).unwrap();
    cluster.kill(1);
    cluster.wait_serving(1);
    wait_until("the pod listens on the socket", || socket.exists());

    let uri = format!("nbd+unix:///demo?socket={}", text(&socket));
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), (16 << 20).to_string());
    let (image, copy) = (cluster.dir.join("image"), cluster.dir.join("copy"));
    write_image(&image, 9, 16 << 20);
    run("nbdcopy", &[text(&image), &uri]);
    run("nbdcopy", &[&uri, text(&copy)]);
    assert!(fs::read(&image).unwrap() == fs::read(&copy).unwrap());
    // The same volume as over TCP, where another kind of client looks.
    let said = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", text(&image), &cluster.uri(2, "demo")],
    );
    assert!(said.contains("identical"), "{said}");
    // A killed pod leaves its socket behind, and can listen on the same path again.
    cluster.kill(1);
    cluster.wait_serving(1);
    wait_until("the pod serves on the socket again", || {
        support::tools::try_run("nbdinfo", &["--size", &uri]).status.success()
    });
}
