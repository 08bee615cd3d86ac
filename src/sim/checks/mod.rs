//! What must be true of a run at every moment, watched from outside of the code that it is about.

pub mod catalog;
