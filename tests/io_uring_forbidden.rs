//! A container that forbids io_uring gets the epoll driver.

use holdfast::io::{DriverError, DriverKind, driver};

/// Makes `io_uring_setup` fail for the calling thread, as a container's seccomp profile does.
fn forbid_io_uring() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut compare =
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_uring_setup as u32);
    compare.jf = 1;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        // The number of the system call is the first word of the filter's input.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        compare,
        statement(libc::BPF_RET | libc::BPF_K, refuse),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program outlives the calls, and has the stated length.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
}

#[test]
fn without_permission_for_io_uring_it_is_epoll() {
    std::thread::spawn(|| {
        forbid_io_uring();
        let refused = driver(DriverKind::IoUring).err().unwrap();
        assert!(matches!(refused, DriverError::Forbidden(_)), "{refused:?}");
        assert_eq!(driver(DriverKind::Auto).unwrap().name(), "epoll");
    })
    .join()
    .unwrap();
}
