//! The sockets that connections come in on.
//!
//! [`Listeners`] owns them. Calls: the driver. Told: ends of accepts.

use crate::io::driver::{Address, Completion, Done, Driver, Op, SocketId};
use crate::worker::token::Target;

/// What a listener takes connections for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Nbd,
    Peer,
}

/// See the module.
#[derive(Default)]
pub struct Listeners {
    listeners: Vec<(SocketId, Purpose)>,
    /// Those that listen again at the next tick: an error (too many open files, say) stays.
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

    /// Takes another connection.
    pub fn accept(&self, driver: &mut dyn Driver, listener: u8) {
        let (socket, _) = self.listeners[usize::from(listener)];
        driver.submit(Target::Accept(listener).token(), Op::Accept { listener: socket });
    }

    /// A connection came in, or could not.
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

    /// Paused listeners go on.
    pub fn tick(&mut self, driver: &mut dyn Driver) {
        for listener in std::mem::take(&mut self.paused) {
            self.accept(driver, listener);
        }
    }
}
