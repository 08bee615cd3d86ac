//! Creates sockets and sets their options. Shared by the drivers.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::io::driver::Address;
use crate::limits::{UNACKNOWLEDGED_MAX, UNSENT_BYTES_MAX};

/// Connections that may wait for their `Accept`.
const BACKLOG: libc::c_int = 1024;
/// Connection attempts are repeated after 1 and 3 seconds, and fail after 7.
const SYN_REPEATS: libc::c_int = 2;

/// The kernel ends the rings of a process that was killed a while after the process, and their
/// listeners with them. A pod that is started again at once finds its address taken meanwhile.
const ADDRESS_FREE_WITHIN: Duration = Duration::from_secs(5);
const ADDRESS_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Creates a listening socket, and returns its address. Waits a while for one that is taken.
pub(super) fn listen(address: &Address) -> io::Result<(OwnedFd, Address)> {
    let deadline = Instant::now() + ADDRESS_FREE_WITHIN;
    loop {
        match listen_now(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(ADDRESS_LOOK_EVERY);
            }
            other => return other,
        }
    }
}

fn listen_now(address: &Address) -> io::Result<(OwnedFd, Address)> {
    let (socket, sockaddr) = socket_for(address)?;
    match address {
        Address::Tcp(_) => socket.set_reuse_address(true)?,
        Address::Unix(path) => remove_stale(path)?,
    }
    socket.bind(&sockaddr)?;
    socket.listen(BACKLOG)?;
    let bound = match address {
        Address::Tcp(_) => {
            Address::Tcp(socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?)
        }
        Address::Unix(path) => Address::Unix(path.clone()),
    };
    Ok((socket.into(), bound))
}

/// Creates a socket ready to connect, with the address.
pub(super) fn prepare_connect(address: &Address) -> io::Result<(OwnedFd, SockAddr)> {
    let (socket, sockaddr) = socket_for(address)?;
    if let Address::Tcp(_) = address {
        set_tcp_options(&socket)?;
        set_tcp_number(&socket, libc::TCP_SYNCNT, SYN_REPEATS)?;
    }
    Ok((socket.into(), sockaddr))
}

/// Sets the options of an accepted connection.
pub(super) fn prepare_accepted(fd: impl AsFd, is_tcp: bool) -> io::Result<()> {
    if is_tcp {
        set_tcp_options(fd)?;
    }
    Ok(())
}

/// Small messages leave at once, and few bytes wait in the kernel, where nothing can overtake them
/// (rule `heartbeats-go-first`). A silent connection ends within a minute when the other end lost
/// power or network. While sent bytes are not acknowledged, keepalive is blind: another limit ends
/// the connection then.
fn set_tcp_options(fd: impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    set_tcp_number(&socket, libc::TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX as libc::c_int)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&probes)
}

/// The address at the other end.
pub(super) fn source(fd: impl AsFd) -> Option<IpAddr> {
    let address = SockRef::from(&fd).peer_addr().ok()?;
    Some(address.as_socket()?.ip())
}

/// Ends the connection for both sides, even if others still hold the socket.
pub(super) fn hang_up(fd: impl AsFd) {
    // An error means that the socket is not connected, as intended.
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// True when the other side has closed the connection or is known to be gone.
pub(super) fn has_hung_up(fd: impl AsFd) -> bool {
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut polled = [PollFd::new(&fd, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error says nothing about the other side; the next receive will.
    rustix::event::poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().intersects(ends)
}

fn socket_for(address: &Address) -> io::Result<(Socket, SockAddr)> {
    let (domain, sockaddr) = match address {
        Address::Tcp(to) => (Domain::for_address(*to), SockAddr::from(*to)),
        Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
    };
    Ok((Socket::new(domain, Type::STREAM, None)?, sockaddr))
}

/// Removes a socket file left behind by a process: one on which nobody answers.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        // Another kind of file: `bind` reports it.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog must not block the start; it also means that a process listens.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

/// Sets an option of TCP whose value is a number.
fn set_tcp_number(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
