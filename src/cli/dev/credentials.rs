//! Credentials of a development cluster. Its authority lies beside the pods:
//!
//! ```text
//! DIR/authority/            authority.crt, authority.key
//! DIR/admin/                client-cert.pem, client-key.pem, ca-cert.pem
//! DIR/pod-N/data/tls/       pod.crt, pod.key, authority.crt
//! ```

use std::net::IpAddr;
use std::path::Path;

use anyhow::bail;

use crate::cli::dev::layout::PodLayout;
use crate::control::identity::{has_joined, random_uuid};
use crate::security::authority::{Authority, Places};
use crate::security::credentials::Credentials;
use crate::security::files::Paths;
use crate::security::issue::{
    has_authority, issue, leave_key, load_authority, now_s, store_authority,
};
use crate::security::subject::Role;
use crate::types::PodId;

/// Gives credentials to the pods that have none. Returns the administrator's; `None`: the cluster
/// was made without TLS, and goes on without.
pub fn issue_all(root: &Path, pods: &[PodLayout]) -> anyhow::Result<Option<Credentials>> {
    let (directory, admin) = (root.join("authority"), Paths::of_client(&root.join("admin")));
    if !has_authority(&directory) {
        if pods.iter().any(|pod| has_joined(&pod.config.data)) {
            return Ok(None);
        }
        let authority = Authority::new(random_uuid()?, now_s())?;
        store_authority(&directory, &authority)?;
    }
    let authority = load_authority(&directory)?;
    let cluster = authority.cluster();
    let known = if admin.exist() { Some(admin.load()?) } else { None };
    let is_replaced = known.is_some_and(|it| !it.roots().contains(authority.root()));
    if !is_replaced {
        // Anew each time: its dates count.
        issue(&authority, cluster, "admin/dev".parse()?, &Places::default(), &admin)?;
    }
    let mut is_new = true;
    for pod in pods {
        is_new &= !has_joined(&pod.config.data);
        let paths = Paths::of_pod(&pod.config.data);
        if !paths.exist() {
            if is_replaced {
                bail!(
                    "pod {} has no certificate, and the cluster has another authority than {}: put \
                     the files of the new one there",
                    pod.number,
                    directory.display()
                );
            }
            let role = Role::Pod(PodId(u64::from(pod.number)));
            issue(&authority, cluster, role, &places(pod), &paths)?;
        }
    }
    if let Some(first) = pods.first().filter(|_| is_new) {
        leave_key(&first.config.data.join("tls"), &authority)?;
    }
    Ok(Some(admin.load()?))
}

/// Where clients find a pod that compare names.
fn places(pod: &PodLayout) -> Places {
    let config = &pod.config;
    let all = [config.api_address(), config.peer_address(), config.nbd_address()];
    let mut addresses: Vec<IpAddr> = all.iter().map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Places { addresses, names: vec!["localhost".to_owned()] }
}
