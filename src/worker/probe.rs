//! A window for a simulation: it sees what every member is given, and what it asks for at the
//! moment at which the worker carries it out.

use crate::replica::seam::{Input, Output};
use crate::types::MemberId;

/// See the module. A worker outside of a simulation has none.
pub trait Probe {
    fn input(&mut self, member: MemberId, input: &Input);
    fn output(&mut self, member: MemberId, output: &Output);
}
