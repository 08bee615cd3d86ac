//! An observer for simulations: it sees members' inputs, and outputs as they are carried out.

use crate::replica::messages::{Input, Output};
use crate::types::MemberId;

/// Sees inputs and outputs of members. A worker outside of a simulation has none.
pub trait Observer {
    fn input(&mut self, member: MemberId, input: &Input);
    fn output(&mut self, member: MemberId, output: &Output);
}
