//! `holdfast init`: makes the authority of a new cluster, and the first certificates, as files. No
//! pod runs yet: it needs nothing but the directory.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::control::identity::random_uuid;
use crate::control::tls::SEALED;
use crate::security::authority::{Authority, Places};
use crate::security::files::{Paths, write_private};
use crate::security::issue::{has_authority, issue, leave_key, now_s, store_authority};
use crate::security::recovery::RecoveryKey;
use crate::security::subject::{Name, Role};
use crate::types::PodId;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A new directory for all of it
    directory: PathBuf,
    /// Number of pods to begin with
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pods: u16,
    /// Address of a pod, for clients that compare it; once for each pod, in order
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Name of the administrator
    #[arg(long, default_value = "admin")]
    admin: Name,
}

impl Args {
    #[cfg(test)]
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }
}

/// Makes everything, and returns what its caller must be told, with the recovery key.
pub fn run(args: &Args) -> anyhow::Result<String> {
    let Args { directory, pods, addresses, admin } = args;
    let place = directory.join("authority");
    if has_authority(&place) {
        bail!("{} has an authority; name another directory", directory.display());
    }
    if !addresses.is_empty() && addresses.len() != usize::from(*pods) {
        bail!("--address is given {} times for {pods} pods", addresses.len());
    }
    let cluster = random_uuid().context("could not draw the identity of the cluster")?;
    let authority = Authority::new(cluster, now_s())?;
    let recovery = RecoveryKey::new()?;
    let sealed = recovery.seal(cluster, authority.key_der())?;
    for pod in 1..=*pods {
        let places = Places {
            addresses: addresses.get(usize::from(pod) - 1).copied().into_iter().collect(),
            names: Vec::new(),
        };
        let paths = Paths::in_tls(&directory.join(format!("pod-{pod}")));
        issue(&authority, cluster, Role::Pod(PodId(pod.into())), &places, &paths)?;
    }
    // The catalog gets both from the first pod; its backups have the sealed one.
    leave_key(&directory.join("pod-1"), &authority)?;
    write_private(&directory.join("pod-1").join(SEALED), &sealed)?;
    let (role, paths) = (Role::Admin(admin.clone()), Paths::of_client(&directory.join("admin")));
    issue(&authority, cluster, role, &Places::default(), &paths)?;
    // The authority comes last: until it is there, all of this can be done again.
    store_authority(&place, &authority)?;
    write_private(&place.join(SEALED), &sealed)?;
    let key = recovery.text();
    let key = std::str::from_utf8(key.expose()).expect("digits and dashes");
    Ok(format!(
        "made the authority of cluster {cluster}, and certificates of {pods} pods and admin/{}\n\n\
         The recovery key, shown this once. Keep it apart from {}:\n\n    {key}\n\n\
         docs/security.md says where each file belongs.",
        admin.as_str(),
        place.display()
    ))
}
