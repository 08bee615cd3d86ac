//! Gives bytes to a reader as a socket does.

use crate::io::driver::RecvBufs;
use crate::io::stream::StreamReader;

/// Fills `bufs` with the start of `stream`, at most `step` bytes; how many.
pub fn land(bufs: &mut RecvBufs, stream: &[u8], step: usize) -> usize {
    let landing_from = bufs.landing_from;
    let landing = bufs.landing.as_mut().map(|buf| &mut buf[landing_from..]);
    let landing = landing.unwrap_or_default();
    let staging = &mut bufs.staging[bufs.staging_from..];
    let count = step.min(stream.len()).min(landing.len() + staging.len());
    let (landed, staged) = stream[..count].split_at(count.min(landing.len()));
    landing[..landed.len()].copy_from_slice(landed);
    staging[..staged.len()].copy_from_slice(staged);
    count
}

/// Hands the start of `stream` to `reader`, at most `step` bytes (at least 1); the rest of it.
pub fn receive<'a>(reader: &mut StreamReader, stream: &'a [u8], step: usize) -> &'a [u8] {
    let mut bufs = reader.lend();
    let count = land(&mut bufs, stream, step);
    reader.received(bufs, count);
    &stream[count..]
}
