//! Who may talk to whom: the cluster's authority, certificates, tokens, and TLS without sockets.
//!
//! A cluster has an **authority**, which signs **certificates**. A certificate names one
//! **subject**: a pod, or a person or program with a role. A **token** lets somebody without a
//! certificate ask for one. [`channel`] is TLS 1.3 between bytes and bytes, for the data path.
//!
//! Pure, but for [`files`] and [`issue`], and for ring's random numbers where keys are made and in
//! handshakes. Clocks are arguments.
//!
//! Invariant: a secret is a [`secret::Secret`], and is in no log, error or `Debug`.
//! Invariant: dates of pods' certificates are never looked at (rule `pods-need-no-clock`).

pub mod authority;
pub mod certificate;
pub mod channel;
#[cfg(test)]
mod channel_test;
pub mod credentials;
pub mod files;
pub mod issue;
pub mod random;
mod record;
pub mod recovery;
#[cfg(test)]
mod refusals_test;
pub mod secret;
pub mod subject;
pub mod token;
pub mod trust;
pub mod verifier;
