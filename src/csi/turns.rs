//! One operation at a time on one volume: the second one is told to come again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

/// The volumes that are being worked on.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashSet<String>>>);

/// The right to work on a volume, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    volume: String,
}

impl Turns {
    /// Begins to work on a volume, named by its handle or, before it has one, by its name.
    pub fn take(&self, volume: &str) -> Result<Turn, Status> {
        match self.lock().insert(volume.to_owned()) {
            true => Ok(Turn { turns: self.clone(), volume: volume.to_owned() }),
            false => Err(Status::aborted(format!(
                "another request for volume {volume:?} is being carried out"
            ))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_others_beside() {
        let turns = Turns::default();
        let first = turns.take("a").unwrap();
        assert_eq!(turns.take("a").unwrap_err().code(), tonic::Code::Aborted);
        drop(turns.take("b").unwrap());
        drop(first);
        drop(turns.take("a").unwrap());
    }
}
