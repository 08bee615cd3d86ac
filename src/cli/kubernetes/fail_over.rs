//! `holdfast csi controller --fail-over`: what is done about nodes that are lost.

use anyhow::bail;

use crate::csi::api::Api;
use crate::kubernetes::catalog_view::Catalog;
use crate::kubernetes::controller::{FailOver, Mode, Setting};
use crate::security::credentials::Tls;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Declare nodes lost, and let their Pods run elsewhere: on, off, or dry-run
    #[arg(long, default_value = "off", value_name = "MODE")]
    fail_over: Mode,
    /// Labels of the Pods of all controllers, of which one carries out the fail-over
    #[arg(
        long,
        default_value = "app.kubernetes.io/component=csi-controller",
        value_name = "SELECTOR"
    )]
    controllers: String,
    /// Name of the node of this controller, for --fail-over
    #[arg(long, env = "NODE_NAME", default_value = "", value_name = "NAME")]
    node_name: String,
    /// Namespace of all controllers, for --fail-over
    #[arg(long, env = "NAMESPACE", default_value = "", value_name = "NAMESPACE")]
    namespace: String,
}

/// Begins the fail-over in the background, if it is wanted. `driver`: the name of the CSI driver.
pub fn begin(args: Args, endpoints: &str, tls: Option<Tls>, driver: &str) -> anyhow::Result<()> {
    let Args { fail_over: mode, controllers, node_name, namespace } = args;
    if mode == Mode::Off {
        return Ok(());
    }
    if node_name.is_empty() || namespace.is_empty() {
        bail!("--fail-over needs NODE_NAME and NAMESPACE in the environment, or as options");
    }
    let catalog = Catalog::new(Api::new(endpoints, tls.as_ref())?, tls);
    let driver = driver.to_owned();
    let setting = Setting { mode, node: node_name, namespace, selector: controllers, driver };
    tokio::spawn(FailOver::new(setting, catalog).run());
    Ok(())
}
