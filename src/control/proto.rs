//! The gRPC messages and services, generated from `proto/`, and the names of their states.

#![allow(missing_docs, clippy::all)]

use serde::Serializer;

tonic::include_proto!("holdfast.v1");

/// The last word of a state's name in lower case: `ready` for `VOLUME_STATE_READY`.
fn last_word(name: &str) -> String {
    name.rsplit('_').next().unwrap_or(name).to_ascii_lowercase()
}

impl Volume {
    pub fn state_name(&self) -> String {
        last_word(self.state().as_str_name())
    }
}

impl Pod {
    pub fn state_name(&self) -> String {
        last_word(self.state().as_str_name())
    }
}

impl Disk {
    pub fn state_name(&self) -> String {
        last_word(self.state().as_str_name())
    }
}

fn volume_state<S: Serializer>(state: &i32, to: S) -> Result<S::Ok, S::Error> {
    let state = VolumeState::try_from(*state).unwrap_or_default();
    to.serialize_str(&last_word(state.as_str_name()))
}

fn pod_state<S: Serializer>(state: &i32, to: S) -> Result<S::Ok, S::Error> {
    let state = PodState::try_from(*state).unwrap_or_default();
    to.serialize_str(&last_word(state.as_str_name()))
}

fn disk_state<S: Serializer>(state: &i32, to: S) -> Result<S::Ok, S::Error> {
    let state = DiskState::try_from(*state).unwrap_or_default();
    to.serialize_str(&last_word(state.as_str_name()))
}
