//! CreateVolume and DeleteVolume.

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use holdfast::csi::proto::{
    CreateVolumeRequest, CreateVolumeResponse, VolumeCapability, VolumeContentSource,
};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

use super::driver::{Driver, MIB, assert_refused, block, mounted, range, unique, wanted};

pub fn what_is_missing_is_refused(driver: &Driver) {
    assert_refused(driver.create(wanted("")), Code::InvalidArgument);
    let none = CreateVolumeRequest { volume_capabilities: Vec::new(), ..wanted(&unique("none")) };
    assert_refused(driver.create(none), Code::InvalidArgument);
    assert_refused(driver.delete(""), Code::InvalidArgument);
}

pub fn capabilities_must_be_whole(driver: &Driver) {
    let whole = mounted(Mode::SingleNodeWriter);
    for part in [
        VolumeCapability { access_type: None, ..whole.clone() },
        VolumeCapability { access_mode: None, ..whole.clone() },
        mounted(Mode::Unknown),
    ] {
        let volume_capabilities = vec![whole.clone(), part];
        let request = CreateVolumeRequest { volume_capabilities, ..wanted(&unique("part")) };
        assert_refused(driver.create(request), Code::InvalidArgument);
    }
    // A device and a mount of the same volume.
    let volume_capabilities = vec![block(Mode::SingleNodeWriter), whole];
    let request = CreateVolumeRequest { volume_capabilities, ..wanted(&unique("both")) };
    driver.delete(&driver.create(request).unwrap().volume_id).unwrap();
}

pub fn names_may_be_long_and_strange(driver: &Driver) {
    let padded = |name: String| format!("{name:x<128}");
    let names = [
        padded(unique("long")),
        format!("with spaces {}", unique("and")),
        format!("../{}/é?#%", unique("path")),
        format!("-{}-", unique("edges")),
        unique("two\nlines\tand more"),
    ];
    let made = names.each_ref().map(|name| driver.create(wanted(name)).unwrap().volume_id);
    for (name, id) in names.iter().zip(&made) {
        assert_eq!(&driver.create(wanted(name)).unwrap().volume_id, id, "{name:?}");
        assert_eq!(made.iter().filter(|other| *other == id).count(), 1, "{name:?}");
        assert!((1..=128).contains(&id.len()), "{id}");
    }
    for control in ['\0', '\u{8}', '\u{b}', '\u{1f}', '\u{7f}', '\u{9f}'] {
        let name = format!("a{control}{}", unique("control"));
        assert_refused(driver.create(wanted(&name)), Code::InvalidArgument);
    }
    made.iter().for_each(|id| driver.delete(id).unwrap());
}

pub fn the_same_again_gives_the_same_volume(driver: &Driver) {
    let request = wanted(&unique("same"));
    let first = driver.create(request.clone()).unwrap();
    assert_eq!(driver.create(request.clone()).unwrap(), first);
    // Other ranges that the volume lies in, and other capabilities that it has.
    for compatible in [
        CreateVolumeRequest { capacity_range: range(1, 0), ..request.clone() },
        CreateVolumeRequest {
            capacity_range: range(first.capacity_bytes, first.capacity_bytes),
            ..request.clone()
        },
        CreateVolumeRequest {
            volume_capabilities: vec![block(Mode::SingleNodeWriter)],
            ..request.clone()
        },
    ] {
        assert_eq!(driver.create(compatible).unwrap().volume_id, first.volume_id);
    }
    driver.delete(&first.volume_id).unwrap();
}

pub fn another_volume_of_the_name_is_refused(driver: &Driver) {
    let request = wanted(&unique("other"));
    let first = driver.create(request.clone()).unwrap();
    for capacity_range in [range(2 * first.capacity_bytes, 0), range(0, first.capacity_bytes / 2)] {
        let other = CreateVolumeRequest { capacity_range, ..request.clone() };
        assert_refused(driver.create(other), Code::AlreadyExists);
    }
    driver.delete(&first.volume_id).unwrap();
}

pub fn the_size_lies_in_the_range(driver: &Driver) {
    for (required, limit) in [(MIB + 1, 2 * MIB), (MIB, MIB), (0, 3 * MIB + 1), (1, 0), (0, 0)] {
        let request = CreateVolumeRequest {
            capacity_range: range(required, limit),
            ..wanted(&unique("size"))
        };
        let made = driver.create(request).unwrap();
        let size = made.capacity_bytes;
        assert!(size >= required && size > 0 && (limit == 0 || size <= limit), "{size} bytes");
        driver.delete(&made.volume_id).unwrap();
    }
    let request = CreateVolumeRequest { capacity_range: None, ..wanted(&unique("no-range")) };
    let made = driver.create(request).unwrap();
    assert!(made.capacity_bytes > 0);
    driver.delete(&made.volume_id).unwrap();
}

pub fn impossible_ranges_are_refused(driver: &Driver) {
    for (required, limit, code) in [
        (-1, 0, Code::InvalidArgument),
        (0, -1, Code::InvalidArgument),
        (2 * MIB, MIB, Code::OutOfRange),
        (i64::MAX, 0, Code::OutOfRange),
    ] {
        let capacity_range = range(required, limit);
        let request = CreateVolumeRequest { capacity_range, ..wanted(&unique("range")) };
        assert_refused(driver.create(request), code);
    }
}

pub fn sources_need_a_capability(driver: &Driver) {
    let snapshot = Type::Snapshot(SnapshotSource { snapshot_id: "none".to_owned() });
    let volume = Type::Volume(VolumeSource { volume_id: "none".to_owned() });
    for (capability, source) in [(Rpc::CreateDeleteSnapshot, snapshot), (Rpc::CloneVolume, volume)]
    {
        let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
        let request = CreateVolumeRequest { volume_content_source, ..wanted(&unique("source")) };
        let code = if driver.has(capability) { Code::NotFound } else { Code::InvalidArgument };
        assert_refused(driver.create(request), code);
    }
}

pub fn a_deleted_volume_is_gone_and_its_name_is_free(driver: &Driver) {
    let request = wanted(&unique("again"));
    let first = driver.create(request.clone()).unwrap();
    driver.delete(&first.volume_id).unwrap();
    driver.delete(&first.volume_id).unwrap();
    let second = driver.until(|| driver.create(request.clone())).unwrap();
    assert_ne!(second.volume_id, first.volume_id);
    // The old id is not the new volume's.
    driver.delete(&first.volume_id).unwrap();
    assert_eq!(driver.create(request).unwrap().volume_id, second.volume_id);
    driver.delete(&second.volume_id).unwrap();
}

pub fn deleting_what_is_not_there_is_no_error(driver: &Driver) {
    for id in ["reallyfakevolumeid", "0", "a/b/c", &"f".repeat(65), "ä"] {
        driver.delete(id).unwrap();
    }
}

/// CreateVolumeRequest of a specification that is still to come.
#[derive(Clone, PartialEq, prost::Message)]
struct Newer {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "3")]
    volume_capabilities: Vec<VolumeCapability>,
    #[prost(string, tag = "999")]
    future: String,
}

pub fn fields_of_a_newer_specification_are_ignored(driver: &Driver) {
    let wanted = wanted(&unique("newer"));
    let newer = Newer {
        name: wanted.name.clone(),
        volume_capabilities: wanted.volume_capabilities,
        future: "unknown".to_owned(),
    };
    let answer = driver.wait(async {
        let mut client = tonic::client::Grpc::new(driver.channel());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Newer, CreateVolumeResponse>::default();
        let path = PathAndQuery::from_static("/csi.v1.Controller/CreateVolume");
        client.unary(Request::new(newer), path, codec).await
    });
    driver.delete(&answer.unwrap().into_inner().volume.unwrap().volume_id).unwrap();
}
