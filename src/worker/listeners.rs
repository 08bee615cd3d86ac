//! The sockets on which connections come in.
//! - Owns: the listening sockets.
//! - May call: the driver.
//! - Is told: ends of accepts, and ticks.

use crate::front::nbd::Encryption;
use crate::io::driver::{Address, Completion, Done, Driver, Op, SocketId};
use crate::worker::token::Target;

/// The kind of connections that a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Nbd(Encryption),
    Peer,
}

/// The listeners of a worker.
#[derive(Default)]
pub struct Listeners {
    listeners: Vec<(SocketId, Purpose)>,
    /// Listeners that accept again at the next tick: an error (too many open files, say) may stay.
    paused: Vec<u8>,
}

impl Listeners {
    pub fn listen(
        &mut self,
        driver: &mut dyn Driver,
        address: &Address,
        purpose: Purpose,
    ) -> std::io::Result<Address> {
        let (socket, bound) = driver.listen(address)?;
        let number = self.listeners.len() as u8;
        self.listeners.push((socket, purpose));
        self.accept(driver, number);
        Ok(bound)
    }

    pub fn accept(&self, driver: &mut dyn Driver, listener: u8) {
        let (socket, _) = self.listeners[usize::from(listener)];
        driver.submit(Target::Accept(listener).token(), Op::Accept { listener: socket });
    }

    /// An accept ended. `None`: it failed, and the listener pauses until the next tick.
    pub fn accepted(&mut self, listener: u8, end: Completion) -> Option<(Purpose, SocketId)> {
        let (_, purpose) = self.listeners[usize::from(listener)];
        match end.result {
            Ok(Done::Accepted(socket)) => Some((purpose, socket)),
            Ok(done) => panic!("an accept ended with {done:?}"),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                self.paused.push(listener);
                None
            }
        }
    }

    /// Paused listeners accept again.
    pub fn tick(&mut self, driver: &mut dyn Driver) {
        for listener in std::mem::take(&mut self.paused) {
            self.accept(driver, listener);
        }
    }
}
