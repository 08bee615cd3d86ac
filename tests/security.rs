//! A cluster of three pods, its listeners and its files: who gets in, and who does not.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use holdfast::security::authority::{Authority, Places};
use holdfast::security::credentials::{Credentials, Tls};
use holdfast::security::files::Paths;
use holdfast::security::issue::{load_authority, now_s};
use holdfast::security::subject::Subject;
use holdfast::security::verifier::Expected;
use support::tools::{noise, run, text, try_run};
use support::{Cluster, PODS, Setup, program, wait_until};

const YEAR_S: u64 = 365 * 24 * 60 * 60;

fn start(name: &'static str, plaintext: bool) -> Cluster {
    let setup = Setup::new(name).volume("demo", "64MiB");
    match plaintext {
        true => setup.start(),
        false => setup.set("api.plaintext=false").set("nbd.plaintext=false").start(),
    }
}

fn authority(cluster: &Cluster) -> Authority {
    load_authority(&cluster.dir.join("data").join("authority")).unwrap()
}

/// Credentials of this authority, for a role in this cluster.
fn issue(authority: &Authority, role: &str, issued_s: u64) -> Credentials {
    let subject = Subject { cluster: authority.cluster(), role: role.parse().unwrap() };
    let places = Places { addresses: vec!["127.0.0.1".parse().unwrap()], names: Vec::new() };
    let issued = authority.issue(&subject, &places, issued_s).unwrap();
    Credentials::new(issued.certificate, issued.key, vec![authority.root().clone()]).unwrap()
}

/// A directory with the credentials of a client.
fn directory(cluster: &Cluster, name: &str, credentials: &Credentials) -> PathBuf {
    let directory = cluster.dir.join("credentials").join(name);
    Paths::of_client(&directory).store(credentials).unwrap();
    directory
}

/// A role's directory, issued now by the cluster's authority.
fn role(cluster: &Cluster, name: &str, role: &str) -> PathBuf {
    directory(cluster, name, &issue(&authority(cluster), role, now_s()))
}

fn holdfast(arguments: &[&str]) -> Output {
    try_run(program().to_str().unwrap(), arguments)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_refused(output: &Output, words: &str) {
    assert!(!output.status.success(), "{output:?}");
    assert!(said(output).contains(words), "does not say {words:?}: {}", said(output));
}

#[test]
fn files_and_sockets_are_for_their_owner_only() {
    let cluster = start("security_files", true);
    let data = cluster.dir.join("data");
    let mut found = Vec::new();
    let mut folders = vec![data.join("admin"), data.join("authority")];
    for pod in 1..=PODS {
        folders.extend(["tls", "control"].map(|name| cluster.pod_dir(pod).join("data").join(name)));
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in folders {
        assert_eq!(mode(&folder), 0o700, "{folder:?}");
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{path:?}");
            found.push(path);
        }
    }
    // The catalog has the authority's key.
    for pod in 1..=PODS {
        let catalog = cluster.pod_dir(pod).join("data/catalog");
        assert!(!catalog.exists() || mode(&catalog) == 0o700, "{catalog:?}");
    }
    assert_eq!(found.len(), 3 + 2 + PODS * (3 + 1), "{found:?}");
    let sockets = found.iter().filter(|path| fs::metadata(path).unwrap().file_type().is_socket());
    assert_eq!(sockets.count(), PODS);
    // Nothing that was said or kept has a key in it.
    let keys = found.iter().filter(|path| text(path).contains("key"));
    let keys: Vec<String> = keys.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(keys.len(), PODS + 2);
    let logs = (1..=PODS).map(|pod| fs::read_to_string(cluster.pod_dir(pod).join("log")).unwrap());
    let logs: String = logs.collect();
    for line in keys.iter().flat_map(|key| key.lines()).filter(|line| !line.starts_with('-')) {
        assert!(!logs.contains(line));
    }
}

#[test]
fn the_api_answers_those_who_may_and_refuses_all_others() {
    let cluster = start("security_api", false);
    let endpoint = cluster.endpoint(2);
    let ask = |credentials: &Path, arguments: &[&str]| {
        let with = ["--credentials", text(credentials), "--endpoint", &endpoint];
        holdfast(&[arguments, &with].concat())
    };
    let list = ["volume", "list"];
    let create = |name: &'static str| ["volume", "create", name, "--size", "1MiB"];

    // In plain text, nobody.
    assert!(!holdfast(&[&list[..], &["--endpoint", &endpoint]].concat()).status.success());
    let admin = role(&cluster, "admin", "admin/ada");
    assert!(ask(&admin, &create("one")).status.success());
    let viewer = role(&cluster, "viewer", "viewer/vi");
    assert!(ask(&viewer, &list).status.success());
    assert_refused(&ask(&viewer, &create("two")), "may not do this");
    // Nobody learns what there is.
    let deletes = |name| said(&ask(&viewer, &["volume", "delete", name]));
    assert_eq!(deletes("one").replace("one", ""), deletes("none").replace("none", ""));
    let node = role(&cluster, "node", "csi-node/node-1");
    assert_refused(&ask(&node, &create("two")), "may not do this");
    let controller = role(&cluster, "controller", "csi-controller/main");
    assert!(ask(&controller, &create("three")).status.success());

    let authority = authority(&cluster);
    let expired = issue(&authority, "admin/ada", now_s() - YEAR_S);
    let expired = directory(&cluster, "expired", &expired);
    assert!(!ask(&expired, &list).status.success());
    // The names of the cluster, under another authority; it even trusts the right one.
    let foreign = Authority::new(authority.cluster(), now_s()).unwrap();
    let foreign = directory(&cluster, "foreign", &issue(&foreign, "admin/ada", now_s()));
    fs::copy(admin.join("ca-cert.pem"), foreign.join("ca-cert.pem")).unwrap();
    assert!(!ask(&foreign, &list).status.success());

    // A pod's number that was never given may join at most.
    let stranger = role(&cluster, "stranger", "pod/9");
    assert_refused(&ask(&stranger, &list), "not part of the cluster");

    let socket = cluster.pod_dir(3).join("data/control/api.sock");
    let local = format!("unix:{}", text(&socket));
    let local = ["--endpoint", &local];
    assert!(holdfast(&[&create("four")[..], &local].concat()).status.success());
    let names = run(program().to_str().unwrap(), &[&list[..], &local].concat());
    for name in ["one", "three", "four"] {
        assert!(names.contains(name), "{names}");
    }
    assert!(!names.contains("two"), "{names}");
}

/// Reads what a server says to these bytes, until it closes.
fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("{address} keeps a connection that said nothing of sense")
        }
        _ => answer,
    }
}

#[test]
fn plain_bytes_get_an_alert_and_nothing_else() {
    let cluster = start("security_plain", false);
    let http = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let hello = [&b"HOLDPEER\x01\x00\x10\x00"[..], &[0; 32]].concat();
    for (address, bytes) in [
        (cluster.api_address(1), &http[..]),
        (cluster.api_address(1), &hello),
        (cluster.peer_address(1), http),
        (cluster.peer_address(1), &hello),
    ] {
        let answer = answer(address, bytes);
        // A TLS alert is a record of type 21.
        assert!(answer.is_empty() || answer[0] == 21, "{address}: {answer:?}");
        assert!(answer.len() < 16, "{address}: {answer:?}");
    }
    cluster.wait_serving(1);
}

/// A handshake with a pod's listener for peers; true when it let us in.
fn gets_in(address: SocketAddr, credentials: &Credentials) -> bool {
    let tls = Tls::new(credentials, credentials.trust()).unwrap();
    let config = Arc::new(tls.client(Expected::Pod, false).unwrap());
    let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // Under TLS 1.3 the client is done before the server has looked at its certificate: the first
    // answer tells. Wrong words get a refusal, or the connection is closed under TLS.
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let asked = tls.write_all(b"HOLDPEER\x02\x00\x00\x00").and_then(|()| tls.read(&mut [0; 64]));
    match asked {
        Ok(_) => true,
        // It was let in, said something wrong, and the connection ended.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => true,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => true,
        Err(_) => false,
    }
}

#[test]
fn only_pods_of_the_cluster_are_let_in_by_the_listener_for_peers() {
    let cluster = start("security_peers", true);
    let (authority, address) = (authority(&cluster), cluster.peer_address(1));
    assert!(gets_in(address, &issue(&authority, "pod/2", now_s())));
    // Dates do not matter.
    assert!(gets_in(address, &issue(&authority, "pod/2", now_s() - 30 * YEAR_S)));
    for role in ["pod/9", "admin/ada", "csi-node/2", "viewer/v"] {
        assert!(!gets_in(address, &issue(&authority, role, now_s())), "{role}");
    }
}

#[test]
fn a_cluster_whose_certificates_and_clocks_are_all_wrong_comes_up() {
    let mut cluster = start("security_clocks", true);
    let data = noise(1, 4096);
    cluster.connect(1, "demo").write(0, &data).unwrap();
    cluster.stop();
    let authority = authority(&cluster);
    for (pod, issued_s) in [(1, 0), (2, now_s() - 40 * YEAR_S), (3, now_s() + 20 * YEAR_S)] {
        let credentials = issue(&authority, &format!("pod/{pod}"), issued_s);
        Paths::of_pod(&cluster.pod_dir(pod).join("data")).store(&credentials).unwrap();
    }
    cluster.start_again();
    cluster.wait_healthy();
    assert_eq!(cluster.connect(3, "demo").read(0, 4096).unwrap(), data);
}

#[test]
fn a_pod_with_the_certificate_of_another_does_not_start() {
    let mut cluster = start("security_mixed", true);
    cluster.stop();
    let credentials = issue(&authority(&cluster), "pod/2", now_s());
    Paths::of_pod(&cluster.pod_dir(1).join("data")).store(&credentials).unwrap();
    let config = cluster.pod_dir(1).join("holdfast.toml");
    let output = holdfast(&["serve", "--config", text(&config)]);
    assert!(!output.status.success());
    let said = said(&output) + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("pod/2") && said.contains("pod/1"), "{said}");
}

/// Stops the pod when the test ends.
struct Pod(std::process::Child);

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes the configuration of a fourth pod, which is to join.
fn fourth(cluster: &Cluster) -> PathBuf {
    let directory = cluster.dir.join("fourth");
    fs::create_dir_all(directory.join("disk")).unwrap();
    let at = |port| format!("127.0.0.1:{}", support::ports::port_of(port, 4, cluster.offset));
    let text = format!(
        "data = {:?}\njoin = [{:?}]\nnode.name = \"fourth\"\n[api]\nlisten = {:?}\n[peer]\n\
         listen = {:?}\n[nbd]\nlisten = {:?}\n[http]\nlisten = {:?}\n[[disk]]\npath = {:?}\n\
         size = \"256MiB\"\nwal_size = \"64MiB\"\n",
        directory.join("data"),
        cluster.endpoint(2),
        at(support::ports::API_PORT),
        at(support::ports::PEER_PORT),
        at(support::ports::NBD_PORT),
        at(7480),
        directory.join("disk"),
    );
    let config = directory.join("holdfast.toml");
    fs::write(&config, text).unwrap();
    config
}

#[test]
fn a_pod_joins_by_a_token() {
    let cluster = start("security_join", false);
    let admin = role(&cluster, "admin", "admin/ada");
    let as_admin = ["--credentials", text(&admin), "--endpoint", &cluster.endpoint(1)];
    let ask = |arguments: &[&str]| {
        String::from_utf8(holdfast(&[arguments, &as_admin].concat()).stdout).unwrap()
    };
    let file = cluster.dir.join("token");
    let config = fourth(&cluster);
    let join = || holdfast(&["join", "--config", text(&config), "--token-file", text(&file)]);

    fs::write(&file, ask(&["token", "create", "--role", "viewer/v"])).unwrap();
    assert_refused(&join(), "something else");
    let token = ask(&["token", "create"]);
    let id = token.split('.').nth(2).unwrap();
    assert!(ask(&["token", "list"]).contains(id));
    ask(&["token", "revoke", id]);
    fs::write(&file, &token).unwrap();
    assert_refused(&join(), "not valid here");
    // None of them made it a pod.
    assert!(!ask(&["pod", "list"]).contains("  4  "));

    fs::write(&file, ask(&["token", "create"])).unwrap();
    let joined = join();
    let joined = String::from_utf8_lossy(&joined.stdout) + String::from_utf8_lossy(&joined.stderr);
    assert!(joined.contains("as pod 4"), "{joined}");
    assert_refused(&join(), "already");
    let log = fs::File::create(cluster.dir.join("fourth/log")).unwrap();
    let serves = std::process::Command::new(program())
        .args(["serve", "--config", text(&config)])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let _pod = Pod(serves.unwrap());
    wait_until("the fourth pod is up", || {
        let pods = ask(&["pod", "list", "-o", "json"]);
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap_or_default();
        let pods = pods.as_array().cloned().unwrap_or_default();
        pods.len() == 4 && pods.iter().all(|pod| pod["status"]["phase"] == "up")
    });
    // The secret of a token is nowhere but with its holder.
    let secret = token.split('.').nth(3).unwrap();
    for pod in 1..=PODS {
        assert!(!fs::read_to_string(cluster.pod_dir(pod).join("log")).unwrap().contains(secret));
    }
}

#[test]
fn a_person_gets_renews_and_loses_a_certificate() {
    let cluster = start("security_person", false);
    let endpoint = cluster.endpoint(3);
    let admin = role(&cluster, "admin", "admin/ada");
    let as_admin = ["--credentials", text(&admin), "--endpoint", &endpoint];
    let ask = |arguments: &[&str]| {
        String::from_utf8(holdfast(&[arguments, &as_admin].concat()).stdout).unwrap()
    };
    let (file, own) = (cluster.dir.join("token"), cluster.dir.join("own"));
    fs::write(&file, ask(&["token", "create", "--role", "viewer/vi"])).unwrap();
    let to = ["--to", text(&own), "--endpoint", &endpoint];
    let got = holdfast(&[&["cert", "get", "--token-file", text(&file)][..], &to].concat());
    assert!(got.status.success(), "{got:?}");
    let list = || {
        let with = ["--credentials", text(&own), "--endpoint", &endpoint];
        holdfast(&[&["volume", "list"][..], &with].concat())
    };
    assert!(list().status.success());
    let before = fs::read(own.join("client-cert.pem")).unwrap();
    let renewed = holdfast(&["cert", "renew", text(&own), "--endpoint", &endpoint]);
    assert!(renewed.status.success(), "{renewed:?}");
    assert_ne!(fs::read(own.join("client-cert.pem")).unwrap(), before);
    assert!(list().status.success());
    // Until it expires it gives certificates.
    fs::write(&file, ask(&["token", "create", "--role", "viewer/late", "--lifetime", "1"]))
        .unwrap();
    let late = cluster.dir.join("late");
    let to = ["--to", text(&late), "--endpoint", &endpoint];
    wait_until("a token expires", || {
        said(&holdfast(&[&["cert", "get", "--token-file", text(&file)][..], &to].concat()))
            .contains("expired")
    });
    let certificates = ask(&["cert", "list"]);
    let serials: Vec<&str> = certificates
        .lines()
        .filter(|line| line.ends_with("viewer/vi"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(serials.len(), 2, "{certificates}");
    for serial in serials {
        ask(&["cert", "revoke", serial]);
    }
    wait_until("the certificate is void everywhere", || !list().status.success());
    let renewed = holdfast(&["cert", "renew", text(&own), "--endpoint", &endpoint]);
    assert!(!renewed.status.success());
}

fn nbds(cluster: &Cluster, pod: usize, credentials: &Path) -> String {
    nbds_of(cluster, pod, "demo", credentials)
}

fn nbds_of(cluster: &Cluster, pod: usize, export: &str, credentials: &Path) -> String {
    let address = cluster.nbd_address(pod);
    format!("nbds://{address}/{export}?tls-certificates={}", text(credentials))
}

#[test]
fn real_clients_use_volumes_under_tls() {
    let cluster = start("security_nbd", false);
    let admin = role(&cluster, "admin", "admin/ada");
    let info = run("nbdinfo", &["--json", &nbds(&cluster, 1, &admin)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["TLS"], &info["structured"]), (&true.into(), &true.into()), "{info}");
    let (image, copy) = (cluster.dir.join("image"), cluster.dir.join("copy"));
    support::tools::write_image(&image, 9, 64 << 20);
    run("nbdcopy", &[text(&image), &nbds(&cluster, 2, &admin)]);
    run("nbdcopy", &[&nbds(&cluster, 3, &admin), text(&copy)]);
    assert!(fs::read(&image).unwrap() == fs::read(&copy).unwrap());
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", text(&admin));
    let address = cluster.nbd_address(1);
    let options = format!(
        "driver=nbd,host={},port={},export=demo,tls-creds=tls0",
        address.ip(),
        address.port()
    );
    let raw = format!("driver=raw,file.driver=file,file.filename={}", text(&image));
    let compared =
        run("qemu-img", &["compare", "--object", &object, "--image-opts", &options, &raw]);
    assert!(compared.contains("identical"), "{compared}");
}

/// A client that reads all the time, until it cannot.
fn reads_on(uri: &str) -> Pod {
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.set_uri_allow_local_file(True)\nh.connect_uri({uri:?})\n\
         while True: h.pread(4096, 0)"
    );
    let mut client = std::process::Command::new("/usr/bin/python3");
    client.args(["-c", &script]);
    client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    Pod(client.spawn().expect("run python3"))
}

#[test]
fn a_connection_ends_when_its_certificate_is_revoked() {
    let cluster = start("security_revoked", false);
    let admin = role(&cluster, "admin", "admin/ada");
    let as_admin = ["--credentials", text(&admin), "--endpoint", &cluster.endpoint(1)];
    let ask = |arguments: &[&str]| {
        String::from_utf8(holdfast(&[arguments, &as_admin].concat()).stdout).unwrap()
    };
    let (file, thief) = (cluster.dir.join("token"), cluster.dir.join("thief"));
    fs::write(&file, ask(&["token", "create", "--role", "admin/thief"])).unwrap();
    let to = ["--to", text(&thief), "--endpoint", &cluster.endpoint(2)];
    let got = holdfast(&[&["cert", "get", "--token-file", text(&file)][..], &to].concat());
    assert!(got.status.success(), "{got:?}");
    let mut client = reads_on(&nbds(&cluster, 2, &thief));
    let mut other = reads_on(&nbds(&cluster, 2, &admin));
    let mut watch = std::process::Command::new(program());
    watch.args(["volume", "list", "--watch", "--credentials", text(&thief)]);
    watch.args(["--endpoint", &cluster.endpoint(3)]).stdout(std::process::Stdio::null());
    let mut watch = Pod(watch.stderr(std::process::Stdio::null()).spawn().unwrap());
    wait_until("both clients read", || {
        let page = support::metrics::scrape(2, cluster.offset);
        page.get("holdfast_nbd_connections") == 2.0
    });
    assert!(watch.0.try_wait().unwrap().is_none() && client.0.try_wait().unwrap().is_none());
    let certificates = ask(&["cert", "list"]);
    let serial = certificates.lines().find(|line| line.ends_with("admin/thief")).unwrap();
    ask(&["cert", "revoke", serial.split_whitespace().next().unwrap()]);
    wait_until("the thief's connections end", || {
        client.0.try_wait().unwrap().is_some() && watch.0.try_wait().unwrap().is_some()
    });
    assert!(other.0.try_wait().unwrap().is_none(), "nobody else's does");
}

/// A closed volume is published to one node; other nodes' certificates do not open it.
fn nodes_open_what_is_theirs(cluster: &Cluster, admin: &Path, refused: &dyn Fn(&str)) {
    let with = ["--credentials", text(admin), "--endpoint", &cluster.endpoint(1), "-o", "json"];
    let call = |arguments: &[&str]| {
        let output = holdfast(&[arguments, &with].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    call(&["volume", "create", "closed", "--size", "1MiB", "--closed"]);
    let nodes = call(&["node", "list"]);
    let node = nodes[0]["meta"]["name"].as_str().unwrap();
    let attachment = call(&["attachment", "publish", "closed", node]);
    let uid = attachment["meta"]["uid"].as_str().unwrap();
    let its = role(cluster, "its-node", &format!("csi-node/{node}"));
    let other = role(cluster, "other-node", &format!("csi-node/{node}x"));
    for pod in 1..=PODS {
        let of = |name: &str, credentials: &Path| nbds_of(cluster, pod, name, credentials);
        run("nbdinfo", &["--size", &of(uid, &its)]);
        refused(&of(uid, &other));
        refused(&of("closed", &its));
        refused(&of("demo", &its));
    }
}

#[test]
fn clients_of_volumes_without_rights_are_refused() {
    let cluster = start("security_nbd_refused", false);
    let refused = |uri: &str| {
        let output = try_run("nbdinfo", &["--size", uri]);
        assert!(!output.status.success(), "{uri}: {output:?}");
        assert!(output.stdout.is_empty(), "{uri}: {output:?}");
    };
    refused(&cluster.uri(1, "demo"));
    refused(&cluster.uri(1, "missing"));
    let authority = authority(&cluster);
    let admin = role(&cluster, "admin", "admin/ada");
    run("nbdinfo", &["--size", &nbds(&cluster, 1, &admin)]);
    for name in ["viewer/v", "csi-controller/c", "csi-node/n", "pod/9"] {
        let directory = role(&cluster, &name.replace('/', "-"), name);
        refused(&nbds(&cluster, 1, &directory));
    }
    nodes_open_what_is_theirs(&cluster, &admin, &refused);
    let expired = issue(&authority, "admin/ada", now_s() - YEAR_S);
    refused(&nbds(&cluster, 1, &directory(&cluster, "expired", &expired)));
    let foreign = Authority::new(authority.cluster(), now_s()).unwrap();
    let foreign = directory(&cluster, "foreign", &issue(&foreign, "admin/ada", now_s()));
    fs::copy(admin.join("ca-cert.pem"), foreign.join("ca-cert.pem")).unwrap();
    refused(&nbds(&cluster, 1, &foreign));
    // Nobody at all: only the authority is known.
    let nobody = cluster.dir.join("nobody");
    fs::create_dir(&nobody).unwrap();
    fs::copy(admin.join("ca-cert.pem"), nobody.join("ca-cert.pem")).unwrap();
    refused(&nbds(&cluster, 1, &nobody));
    wait_until("the pod still serves", || {
        try_run("nbdinfo", &["--size", &nbds(&cluster, 1, &admin)]).status.success()
    });
}
