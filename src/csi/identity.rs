//! Who the driver is.

use tonic::{Request, Response, Status};

use crate::csi::proto::identity_server::Identity;
use crate::csi::proto::plugin_capability::volume_expansion;
use crate::csi::proto::plugin_capability::{Service, Type, VolumeExpansion, service};
use crate::csi::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use crate::csi::served::Call;

/// Longest name of a driver in the specification, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A name that no driver can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name of a driver: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . and -, with a letter \
     or digit at both ends"
)]
pub struct DriverNameError {
    name: String,
}

/// The name of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverName(String);

impl DriverName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for DriverName {
    type Err = DriverNameError;

    fn from_str(name: &str) -> Result<DriverName, DriverNameError> {
        let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        let fits = name.len() <= NAME_BYTES_MAX
            && is_edge(name.chars().next())
            && is_edge(name.chars().next_back())
            && name.chars().all(allowed);
        match fits {
            true => Ok(DriverName(name.to_owned())),
            false => Err(DriverNameError { name: name.to_owned() }),
        }
    }
}

/// The identity service. It answers for this process alone: a driver that was not ready while the
/// cluster has no majority would be restarted everywhere, for nothing.
#[derive(Clone, Debug)]
pub struct IdentityService {
    name: DriverName,
    /// The process has the controller service, too.
    has_controller: bool,
}

impl IdentityService {
    /// That of a process with the controller service.
    pub fn of_controller(name: DriverName) -> IdentityService {
        IdentityService { name, has_controller: true }
    }

    /// That of a process with the node service alone. What the driver can do is the same.
    pub fn of_node(name: DriverName) -> IdentityService {
        IdentityService { name, has_controller: false }
    }

    fn capabilities(&self) -> Vec<PluginCapability> {
        let service = |service: service::Type| Type::Service(Service { r#type: service.into() });
        let expansion = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let all = [
            self.has_controller.then(|| service(service::Type::ControllerService)),
            Some(service(service::Type::VolumeAccessibilityConstraints)),
            Some(Type::VolumeExpansion(expansion)),
        ];
        let all = all.into_iter().flatten();
        all.map(|r#type| PluginCapability { r#type: Some(r#type) }).collect()
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let call = Call::begin("GetPluginInfo", "", request.metadata())?;
        call.end(Ok(GetPluginInfoResponse {
            name: self.name.0.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..GetPluginInfoResponse::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let call = Call::begin("GetPluginCapabilities", "", request.metadata())?;
        call.end(Ok(GetPluginCapabilitiesResponse { capabilities: self.capabilities() }))
    }

    /// Called every few seconds, so it is not logged.
    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_are_domain_names() {
        for name in ["csi.holdfast.io", "a", &"a".repeat(NAME_BYTES_MAX)] {
            assert!(name.parse::<DriverName>().is_ok(), "{name}");
        }
        for name in ["", "-a", "a.", "a_b", "a/b", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert!(name.parse::<DriverName>().is_err(), "{name}");
        }
    }
}
