//! What a machine's state is judged to be.

use super::*;
use crate::doctor::Verdict;

fn good() -> Machine {
    let kubelet = Kubelet { root: "/var/lib/kubelet".into(), is_shared: Some(true) };
    Machine {
        kernel: "6.1.0-28-amd64".to_owned(),
        nbd: Nbd::Loaded { partitions_max: 0 },
        has_fuse: true,
        lvm: None,
        multipath: None,
        no_io_uring: None,
        kubelet: Some(kubelet),
    }
}

/// The verdict of one check after a change.
fn verdict(check: &str, change: impl FnOnce(&mut Machine)) -> Verdict {
    let mut machine = good();
    change(&mut machine);
    let all = judge(&machine, Some(Path::new("/var/lib/kubelet")));
    for finding in &all {
        let is_good = finding.verdict == Verdict::Good;
        assert_eq!(finding.fix.is_empty(), is_good, "{finding:?}");
        assert!(!finding.found.is_empty());
    }
    let of_others = all.iter().filter(|finding| finding.check != check);
    assert!(of_others.clone().all(|finding| finding.verdict == Verdict::Good), "{all:?}");
    all.iter().find(|finding| finding.check == check).expect("it is checked").verdict
}

#[test]
fn a_good_machine_has_no_other_findings() {
    assert_eq!(verdict("nbd", |_| {}), Verdict::Good);
    let outside = judge(&good(), None);
    assert!(outside.iter().all(|finding| finding.check != "kubelet"));
}

#[test]
fn devices_go_the_best_way_that_there_is() {
    let of = |nbd: Nbd, kernel: &str, has_fuse| {
        verdict("nbd", |it| {
            (it.nbd, it.kernel, it.has_fuse) = (nbd, kernel.to_owned(), has_fuse);
        })
    };
    assert_eq!(of(Nbd::Loadable, "5.19.0", false), Verdict::Good);
    assert_eq!(of(Nbd::Loadable, "5.15.0-100-generic", true), Verdict::Warning);
    assert_eq!(of(Nbd::Loadable, "4.18.0-553.el8", false), Verdict::Bad);
    assert_eq!(of(Nbd::Missing, "6.12.9", true), Verdict::Warning);
    assert_eq!(of(Nbd::Missing, "6.12.9", false), Verdict::Bad);
    assert_eq!(of(Nbd::Loadable, "of my own", false), Verdict::Good, "nobody knows");
    let partitions = |it: &mut Machine| it.nbd = Nbd::Loaded { partitions_max: 16 };
    assert_eq!(verdict("nbd-partitions", partitions), Verdict::Warning);
}

#[test]
fn lvm_is_to_leave_nbd_devices_alone() {
    let of = |config: &str, has_devices_file| {
        let config = config.to_owned();
        verdict("lvm", |it| it.lvm = Some(Lvm { config, has_devices_file }))
    };
    assert_eq!(of("", false), Verdict::Warning);
    assert_eq!(of("", true), Verdict::Good);
    assert_eq!(of("devices {\n  use_devicesfile = 0 # old\n}", true), Verdict::Warning);
    assert_eq!(of("# global_filter = [ \"r|^/dev/nbd|\" ]", false), Verdict::Warning);
    assert_eq!(of(" global_filter = [ \"r|^/dev/nbd|\", \"a|.*|\" ]", false), Verdict::Good);
    assert_eq!(of("global_filter=[ \"a|^/dev/sd|\",\n \"r|.*|\" ]", false), Verdict::Good);
    assert_eq!(of("filter = [ \"a|.*|\", \"r|nbd|\" ]", false), Verdict::Warning);
    assert_eq!(of("filter = [ \"a|/dev/sda|\" ]\nother = \"r|.*|\"", false), Verdict::Warning);
    assert_eq!(of("global_filter = [ \"r\", \"\", \"é\", \"ré\" ]", false), Verdict::Warning);
}

#[test]
fn other_programs_and_limits_are_seen() {
    let multipath = |text: &str| {
        let text = text.to_owned();
        verdict("multipath", |it| it.multipath = Some(text))
    };
    assert_eq!(multipath(""), Verdict::Warning);
    assert_eq!(multipath("blacklist {\n devnode \"^nbd\"\n}"), Verdict::Good);
    let forbidden = |it: &mut Machine| it.no_io_uring = Some("forbidden".to_owned());
    assert_eq!(verdict("io_uring", forbidden), Verdict::Warning);
}

#[test]
fn kubelet_and_the_node_plugin_use_one_directory() {
    let of = |check, root: &str, is_shared| {
        let kubelet = Kubelet { root: root.into(), is_shared };
        verdict(check, |it| it.kubelet = Some(kubelet))
    };
    assert_eq!(of("kubelet", "/data/kubelet", Some(true)), Verdict::Bad);
    assert_eq!(of("mount-propagation", "/var/lib/kubelet", Some(false)), Verdict::Bad);
    assert_eq!(of("mount-propagation", "/var/lib/kubelet", None), Verdict::Unknown);
    assert_eq!(verdict("kubelet", |it| it.kubelet = None), Verdict::Unknown);
}
