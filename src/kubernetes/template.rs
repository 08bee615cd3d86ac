//! The configuration of a storage pod in Kubernetes: one template for all nodes, and what
//! Kubernetes tells of this one. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::kubernetes::Kubernetes;
use crate::config::{Config, ConfigError};

/// Keys that are no business of a template.
const OURS: [&str; 4] = ["data", "init", "join", "kubernetes"];

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the template of the configuration is not valid TOML")]
    Toml(#[source] Box<toml::de::Error>),
    #[error("the template of the configuration sets `{0}`, which `kubernetes pod` sets by itself")]
    Ours(&'static str),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What Kubernetes tells a storage pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// For what the pod keeps of its own.
    pub directory: PathBuf,
    /// Name of the node.
    pub node: String,
    /// Address of the node, which others connect to.
    pub host: IpAddr,
    pub namespace: String,
}

/// Makes the configuration of the pod at `place`.
pub fn fill(template: &str, place: &Place) -> Result<Config, TemplateError> {
    let malformed = |error| TemplateError::Toml(Box::new(error));
    let mut table: toml::Table = template.parse().map_err(malformed)?;
    if let Some(key) = OURS.into_iter().find(|key| table.contains_key(*key)) {
        return Err(TemplateError::Ours(key));
    }
    let data = place.directory.to_string_lossy().into_owned();
    table.insert("data".to_owned(), toml::Value::String(data));
    let mut config: Config = table.try_into().map_err(malformed)?;
    config.data.clone_from(&place.directory);
    config.node.name.get_or_insert_with(|| place.node.clone());
    config.kubernetes = Kubernetes { enrol: true, namespace: place.namespace.clone() };
    let listeners = [
        (config.api.listen, &mut config.api.advertise),
        (config.peer.listen, &mut config.peer.advertise),
        (config.nbd.listen, &mut config.nbd.advertise),
    ];
    for (listen, advertise) in listeners {
        if listen.ip().is_unspecified() {
            advertise.get_or_insert((place.host, listen.port()).into());
        }
    }
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<Config, TemplateError> {
        let place = Place {
            directory: "/var/lib/holdfast".into(),
            node: "worker-1".to_owned(),
            host: "192.0.2.7".parse().unwrap(),
            namespace: "holdfast".to_owned(),
        };
        fill(template, &place)
    }

    #[test]
    fn the_place_fills_the_gaps() {
        let template = "[api]\nlisten = '0.0.0.0:7400'\n[peer]\nlisten = '[::]:7402'\n\
                        advertise = '192.0.2.9:1'\n[[disk]]\npath = '/disks/a'";
        let config = filled(template).unwrap();
        assert_eq!(config.data, PathBuf::from("/var/lib/holdfast"));
        assert_eq!(config.node.name.as_deref(), Some("worker-1"));
        assert_eq!(config.api_address().to_string(), "192.0.2.7:7400");
        assert_eq!(config.peer_address().to_string(), "192.0.2.9:1");
        assert!(config.nbd.listen.ip().is_loopback());
        assert!(config.kubernetes.enrol);
        assert_eq!(config.kubernetes.namespace, "holdfast");
    }

    #[test]
    fn what_the_command_decides_is_refused() {
        for text in ["data = '/d'", "init = true", "join = []", "[kubernetes]"] {
            assert!(matches!(filled(text), Err(TemplateError::Ours(_))), "{text}");
        }
        assert!(matches!(filled("size = 3"), Err(TemplateError::Toml(_))));
        assert!(matches!(filled("= 3"), Err(TemplateError::Toml(_))));
    }
}
