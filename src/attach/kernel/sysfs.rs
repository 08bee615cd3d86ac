//! The kernel's table of NBD devices, in sysfs. Whatever this process forgot, or an earlier one
//! has made, is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::attach::kernel::Owner;
use crate::attach::relay::hello::Export;
use crate::front::nbd::wire::export_flag;

/// Where the kernel shows block devices.
const TABLE: &str = "/sys/block";
const SECTOR_BYTES: u64 = 512;

/// A connected device with an owner of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub index: u32,
    pub owner: Owner,
}

/// Where a device is shown.
fn directory_of(index: u32) -> PathBuf {
    Path::new(TABLE).join(format!("nbd{index}"))
}

/// The highest index of all NBD devices, and those of ours.
pub fn look() -> io::Result<(Option<u32>, Vec<Found>)> {
    look_in(Path::new(TABLE))
}

/// True while a device is connected and belongs to this owner.
pub fn is_there(index: u32, owner: &Owner) -> bool {
    found_in(&directory_of(index), index).is_some_and(|found| found.owner == *owner)
}

/// What the kernel was told of a device: its size, and what it can do. May wait while somebody
/// changes a setting of the device's queue.
pub fn export_of(index: u32) -> io::Result<Export> {
    export_in(&directory_of(index))
}

/// The same without what depends on the queue. Waits for nobody.
pub fn export_without_queue(index: u32) -> io::Result<Export> {
    plain_export_in(&directory_of(index))
}

/// Sets after how many milliseconds the kernel looks at requests without an answer.
/// Waits for requests in flight.
pub fn set_look_ms(index: u32, ms: u32) -> io::Result<()> {
    fs::write(directory_of(index).join("queue/io_timeout"), ms.to_string())
}

fn look_in(table: &Path) -> io::Result<(Option<u32>, Vec<Found>)> {
    let (mut highest, mut all) = (None, Vec::new());
    for entry in fs::read_dir(table)? {
        let entry = entry?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd")?.parse::<u32>().ok());
        let Some(index) = index else { continue };
        highest = highest.max(Some(index));
        all.extend(found_in(&entry.path(), index));
    }
    all.sort_by_key(|found| found.index);
    Ok((highest, all))
}

/// `None`: it is not connected, goes away just now, or is not ours.
fn found_in(directory: &Path, index: u32) -> Option<Found> {
    let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    // The file is there while the device is connected.
    number("pid")?;
    let owner = text("backend")?.trim_end_matches('\n').parse().ok()?;
    Some(Found { index, owner })
}

fn text_in(directory: &Path, name: &str) -> io::Result<String> {
    fs::read_to_string(directory.join(name))
}

/// True for a number above 0.
fn has(directory: &Path, name: &str) -> bool {
    let number = text_in(directory, name).ok().and_then(|text| text.trim().parse::<u64>().ok());
    number.is_some_and(|value| value > 0)
}

fn plain_export_in(directory: &Path) -> io::Result<Export> {
    let sectors = text_in(directory, "size")?.trim().parse::<u64>().ok();
    let size_bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
    let size_bytes = size_bytes.ok_or(io::ErrorKind::InvalidData)?;
    let read_only = if has(directory, "ro") { export_flag::READ_ONLY } else { 0 };
    Ok(Export { size_bytes, flags: export_flag::HAS_FLAGS | read_only })
}

fn export_in(directory: &Path) -> io::Result<Export> {
    let plain = plain_export_in(directory)?;
    let has = |name: &str| has(directory, name);
    let cache = text_in(directory, "queue/write_cache");
    let flushes = cache.is_ok_and(|text| text.trim() == "write back");
    let flags = [
        (flushes, export_flag::SEND_FLUSH),
        (flushes && has("queue/fua"), export_flag::SEND_FUA),
        (has("queue/discard_max_bytes"), export_flag::SEND_TRIM),
        (has("queue/write_zeroes_max_bytes"), export_flag::SEND_WRITE_ZEROES),
    ];
    let flags =
        flags.iter().filter(|(is_set, _)| *is_set).fold(plain.flags, |all, (_, flag)| all | flag);
    Ok(Export { flags, ..plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: &Path, name: &str, text: &str) {
        let path = table.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn devices_of_ours_are_found_among_others() {
        let table = tempfile::tempdir().unwrap();
        let uid = "58d587922bd90c3a3f1c9ae0567b9412";
        for (name, text) in [
            ("loop0/size", "8\n"),
            ("nbd/size", "8\n"),
            ("nbd0/size", "0\n"),
            ("nbd3/pid", "1\n"),
            ("nbd3/size", "8\n"),
            ("nbd3/backend", "another program's\n"),
            ("nbd12/pid", "77\n"),
            ("nbd12/backend", &format!("holdfast:{uid}:db:1\n")),
            ("nbd12/size", "2048\n"),
            ("nbd12/ro", "0\n"),
            ("nbd12/queue/write_cache", "write back\n"),
            ("nbd12/queue/fua", "1\n"),
            ("nbd12/queue/discard_max_bytes", "0\n"),
        ] {
            put(table.path(), name, text);
        }
        let (highest, found) = look_in(table.path()).unwrap();
        let owner = Owner { attachment: uid.parse().unwrap(), volume: "db:1".to_owned() };
        let flags = export_flag::HAS_FLAGS | export_flag::SEND_FLUSH | export_flag::SEND_FUA;
        assert_eq!((highest, found), (Some(12), vec![Found { index: 12, owner }]));
        let export = export_in(&table.path().join("nbd12")).unwrap();
        assert_eq!(export, Export { size_bytes: 1 << 20, flags });
        let plain = plain_export_in(&table.path().join("nbd12")).unwrap();
        assert_eq!(plain, Export { size_bytes: 1 << 20, flags: export_flag::HAS_FLAGS });
        // One that is disconnected is nobody's.
        fs::remove_file(table.path().join("nbd12/pid")).unwrap();
        assert_eq!(look_in(table.path()).unwrap(), (Some(12), Vec::new()));
    }
}
