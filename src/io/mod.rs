//! Everything that enters the kernel on the data path: one completion trait ([`driver::Driver`])
//! with an io_uring and an epoll implementation (and, in `sim/`, a simulated one), and the aligned
//! memory that files and sockets share.
//!
//! Invariant: nothing in here knows what the bytes mean.

pub mod buffer;
pub mod driver;
pub mod stream;
