//! The one thing of loop devices that no program of the system does: another limit for one that is
//! in use (Linux, `include/uapi/linux/loop.h`).

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl};

const GET_STATUS: Opcode = 0x4C05;
const SET_STATUS: Opcode = 0x4C04;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Status {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<Status>() == 232);

/// Lets a loop device show so many bytes of its file.
pub fn limit(device: &Path, size_bytes: u64) -> io::Result<()> {
    let device = OpenOptions::new().read(true).open(device)?;
    // SAFETY: the kernel fills in this structure for this request.
    let get = unsafe { Getter::<GET_STATUS, Status>::new() };
    // SAFETY: the request only writes to that structure.
    let status = unsafe { ioctl(&device, get)? };
    let status = Status { size_limit: size_bytes, ..status };
    // SAFETY: the kernel reads this structure for this request.
    let set = unsafe { Setter::<SET_STATUS, Status>::new(status) };
    // SAFETY: the request reads that structure, and keeps no address of it.
    unsafe { ioctl(&device, set)? };
    Ok(())
}
