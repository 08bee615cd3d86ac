//! Questions to the kernel's NBD client, each in a thread of its own: the kernel works in the
//! thread that asks, and may wait there for requests of the device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use netlink_packet_core::DecodeError;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};

use crate::attach::kernel::netlink::{Answer, Ask, ask, find_family, read};
use crate::attach::thread::within;

/// Longest wait for the kernel. It goes on with what it does afterwards.
const WITHIN: Duration = Duration::from_secs(20);
/// Longer datagrams are not for us: the kernel's answer about the family has about 400 bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Why the kernel did not do something.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("could not talk to the kernel over netlink, or it did not answer in time")]
    Io(#[from] io::Error),
    #[error("the kernel's answer is not understood")]
    Answer(#[source] DecodeError),
    #[error("the kernel has no NBD client: its module `nbd` is not there")]
    NoFamily,
    #[error("the kernel does not do it; its log says more (dmesg)")]
    Refused(#[source] io::Error),
}

impl CallError {
    /// True when the kernel said that such a device is there already.
    pub fn is_taken(&self) -> bool {
        let CallError::Refused(source) = self else { return false };
        [libc::EEXIST, libc::EBUSY].map(Some).contains(&source.raw_os_error())
    }
}

/// Asks, and waits for the end. `socket` stays open until then, and `what` may name it.
pub async fn call(
    socket: Option<OwnedFd>,
    what: impl FnOnce(RawFd) -> Ask,
) -> Result<(), CallError> {
    let what = what(socket.as_ref().map_or(-1, AsRawFd::as_raw_fd));
    let done = within(WITHIN, move || {
        let done = Conversation::begin().and_then(|mut it| it.ask(&what));
        drop(socket);
        done
    });
    done.await?
}

/// Whether the kernel has an NBD client.
pub async fn look() -> Result<(), CallError> {
    within(WITHIN, || Conversation::begin().map(drop)).await?
}

/// A socket to the kernel.
struct Conversation {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Conversation {
    fn begin() -> Result<Conversation, CallError> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::GENERIC));
        let socket = socket.map_err(io::Error::from)?;
        let mut it = Conversation { socket, family: 0, sequence: 1 };
        let answer = it.talk(&find_family(1))?;
        match (answer.ended, answer.family) {
            (Some(0), Some(family)) => Ok(Conversation { family, ..it }),
            _ => Err(CallError::NoFamily),
        }
    }

    fn ask(&mut self, what: &Ask) -> Result<(), CallError> {
        self.sequence += 1;
        let answer = self.talk(&ask(self.family, self.sequence, what))?;
        match answer.ended.unwrap_or_default() {
            0 => Ok(()),
            code => Err(CallError::Refused(io::Error::from_raw_os_error(code))),
        }
    }

    /// Sends a question, and reads until its end.
    fn talk(&mut self, question: &[u8]) -> Result<Answer, CallError> {
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, question, SendFlags::empty(), &kernel).map_err(io::Error::from)?;
        let (mut answer, mut bytes) = (Answer::default(), vec![0; ANSWER_BYTES_MAX]);
        while answer.ended.is_none() {
            let (count, _) =
                recv(&self.socket, &mut bytes[..], RecvFlags::empty()).map_err(io::Error::from)?;
            read(&bytes[..count], self.sequence, &mut answer).map_err(CallError::Answer)?;
        }
        Ok(answer)
    }
}
