//! The gRPC messages and services, generated from `proto/`, and the names of their states.

#![allow(missing_docs, clippy::all)]

use serde::Serializer;

tonic::include_proto!("holdfast.v1");

/// What pods say among themselves.
pub mod internal {
    tonic::include_proto!("holdfast.internal.v1");
}

/// The definitions of the API, for clients that ask for them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.v1.bin"));

impl Phase {
    /// In lower case: `ready`.
    pub fn word(self) -> String {
        last_word(self.as_str_name())
    }

    /// The phase of a word.
    pub fn of(word: &str) -> Option<Phase> {
        Phase::from_str_name(&format!("PHASE_{}", word.to_ascii_uppercase()))
            .filter(|phase| *phase != Phase::Unspecified)
    }
}

impl AccessMode {
    /// As on the command line: `read-write`.
    pub fn word(self) -> &'static str {
        match self {
            AccessMode::Unspecified | AccessMode::ReadWrite => "read-write",
            AccessMode::ReadOnly => "read-only",
            AccessMode::Raw => "raw",
        }
    }
}

impl ConditionStatus {
    /// In lower case: `true`.
    pub fn word(self) -> String {
        last_word(self.as_str_name())
    }
}

impl EventSeverity {
    /// In lower case: `warning`.
    pub fn word(self) -> String {
        last_word(self.as_str_name())
    }
}

/// The last word of a value's name in lower case: `ready` for `PHASE_READY`.
fn last_word(name: &str) -> String {
    name.rsplit('_').next().unwrap_or(name).to_ascii_lowercase()
}

fn phase<S: Serializer>(phase: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&Phase::try_from(*phase).unwrap_or_default().word())
}

fn access_mode<S: Serializer>(mode: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(AccessMode::try_from(*mode).unwrap_or_default().word())
}

fn event_severity<S: Serializer>(severity: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&EventSeverity::try_from(*severity).unwrap_or_default().word())
}

fn condition_status<S: Serializer>(status: &i32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&ConditionStatus::try_from(*status).unwrap_or_default().word())
}
