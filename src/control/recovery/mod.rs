//! Recovery of a lost catalog: one pod gathers what the others know, and begins a new history.
//!
//! The catalog is gone while it gathers: nothing is decided, and pods serve by what they know. When
//! all pods have told, or a person has named those that are off for good, [`merge`] makes the state
//! of the new catalog. It has one member, on this pod; others follow as usual.
//!
//! Pure: [`format`], [`merge`], [`note`], [`gathering`]. [`crate::control::recover`] has the tasks.

pub mod format;
pub mod gathering;
pub mod merge;
pub mod note;
pub mod plan;
pub mod running;
