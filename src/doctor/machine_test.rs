//! The verdicts about machines.

use super::*;
use crate::doctor::Verdict;

fn good() -> Machine {
    let root = Some("/var/lib/kubelet".into());
    let kubelet = Kubelet { root, is_shared: Some(true) };
    Machine {
        kernel: "6.1.0-28-amd64".to_owned(),
        nbd: Ok(Nbd::Loaded { partitions_max: Some(0) }),
        has_fuse: true,
        lvm: Ok(None),
        multipath: Ok(None),
        no_io_uring: None,
        kubelet: Ok(Some(kubelet)),
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
            (it.nbd, it.kernel, it.has_fuse) = (Ok(nbd), kernel.to_owned(), has_fuse);
        })
    };
    assert_eq!(of(Nbd::Loadable, "5.19.0", false), Verdict::Good);
    assert_eq!(of(Nbd::Loadable, "5.15.0-100-generic", true), Verdict::Warning);
    assert_eq!(of(Nbd::Loadable, "4.18.0-553.el8", false), Verdict::Bad);
    assert_eq!(of(Nbd::Missing, "6.12.9", true), Verdict::Warning);
    assert_eq!(of(Nbd::Missing, "6.12.9", false), Verdict::Bad);
    assert_eq!(of(Nbd::Loadable, "of my own", false), Verdict::Unknown);
    let partitions =
        |most| verdict("nbd-partitions", |it| it.nbd = Ok(Nbd::Loaded { partitions_max: most }));
    assert_eq!(partitions(Some(16)), Verdict::Warning);
    assert_eq!(partitions(None), Verdict::Unknown);
}

#[test]
fn lvm_is_to_leave_nbd_devices_alone() {
    let of = |config: &str, has_devices_file, uses_devices_file| {
        let config = config.to_owned();
        let lvm = Lvm { config, has_devices_file, uses_devices_file };
        verdict("lvm", |it| it.lvm = Ok(Some(lvm)))
    };
    let (good, warning) = (Verdict::Good, Verdict::Warning);
    assert_eq!(of("", false, true), warning);
    assert_eq!(of("", true, true), good);
    assert_eq!(of("", true, false), warning, "Debian's LVM uses it when it is told to");
    assert_eq!(of("use_devicesfile = 1", true, false), good);
    assert_eq!(of("devices {\n  use_devicesfile = 0 # old\n}", true, true), warning);
    for (filter, verdict) in [
        ("# global_filter = [ \"r|^/dev/nbd|\" ]", warning),
        (" global_filter = [ \"r|^/dev/nbd|\", \"a|.*|\" ]", good),
        ("global_filter=[ \"a|^/dev/sd|\",\n \"r|.*|\" ]", good),
        ("global_filter=[ \"a|^/dev/sd.*|\", \"a|/dev/vd[a-z]|\", \"r|.*|\" ]", good),
        ("filter = [ \"a|.*|\", \"r|nbd|\" ]", warning),
        ("filter = [ \"a|.*/|\", \"r|^/dev/nbd|\" ]", warning),
        ("filter = [ \"a|^/dev/|\", \"r|nbd|\" ]", warning),
        ("filter = [ \"a/sd|nbd/\", \"r|nbd|\" ]", warning),
        ("filter = [ \"a|^/dev/x*|\", \"r|nbd|\" ]", warning),
        ("filter = [ \"a|/dev/sda|\" ]\nother = \"r|.*|\"", warning),
        ("global_filter = [ \"r\", \"\", \"é\", \"ré\" ]", warning),
    ] {
        assert_eq!(of(filter, false, false), verdict, "{filter}");
    }
}

#[test]
fn other_programs_and_limits_are_seen() {
    let multipath = |text: &str| {
        let text = text.to_owned();
        verdict("multipath", |it| it.multipath = Ok(Some(text)))
    };
    assert_eq!(multipath(""), Verdict::Warning);
    assert_eq!(multipath("blacklist {\n device {\n }\n devnode \"^nbd\"\n}"), Verdict::Good);
    for wrong in [
        "blacklist {\n# devnode \"^nbd\"\n}",
        "blacklist_exceptions {\n devnode \"^nbd\"\n}",
        "blacklist { }\ndefaults { a nbd }",
        "} blacklist nbd",
    ] {
        assert_eq!(multipath(wrong), Verdict::Warning, "{wrong}");
    }
    let forbidden = |it: &mut Machine| it.no_io_uring = Some("forbidden".to_owned());
    assert_eq!(verdict("io_uring", forbidden), Verdict::Warning);
}

#[test]
fn kubelet_and_the_node_plugin_use_one_directory() {
    let of = |check, root: Option<&str>, is_shared| {
        let kubelet = Kubelet { root: root.map(Into::into), is_shared };
        verdict(check, |it| it.kubelet = Ok(Some(kubelet)))
    };
    let root = Some("/var/lib/kubelet");
    assert_eq!(of("kubelet", Some("/data/kubelet"), Some(true)), Verdict::Bad);
    assert_eq!(of("kubelet", None, Some(true)), Verdict::Unknown);
    assert_eq!(of("mount-propagation", root, Some(false)), Verdict::Bad);
    assert_eq!(of("mount-propagation", root, None), Verdict::Unknown);
    assert_eq!(verdict("kubelet", |it| it.kubelet = Ok(None)), Verdict::Unknown);
}

#[test]
fn what_could_not_be_read_is_unknown() {
    let no = || "permission denied".to_owned();
    let kubelet = verdict("kubelet", |it| it.kubelet = Err(no()));
    let lvm = verdict("lvm", |it| it.lvm = Err(no()));
    let multipath = verdict("multipath", |it| it.multipath = Err(no()));
    assert_eq!([kubelet, lvm, multipath], [Verdict::Unknown; 3]);
}
