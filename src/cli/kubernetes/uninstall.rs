//! `holdfast kubernetes uninstall`: takes away what `manifests` prints, unless that would take
//! volumes from their users.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use crate::cli::kubernetes::manifests::Chosen;
use crate::cli::output::note;
use crate::kubernetes::client::{is_missing, list_all, open};
use crate::kubernetes::manifests::removal::{Object, check, order};

/// How long the controller's pods may take to end.
const END_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The pods that make volumes.
const CONTROLLER: &str = "app.kubernetes.io/component=csi-controller";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    chosen: Chosen,
    /// Say what would be taken away, and take nothing
    #[arg(long)]
    dry_run: bool,
}

/// Takes it away, and returns what was done.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let choice = args.chosen.choice()?;
    let (first, then) = order(&choice)?;
    let client = open().await?;
    check(&volumes(&client).await?, choice.driver())?;
    if args.dry_run {
        let all = first.iter().chain(&then);
        return Ok(all.map(|object| format!("would delete {}\n", said(object))).collect());
    }
    delete(&client, &first).await?;
    await_end(&client, &choice.namespace).await?;
    // Somebody may have asked for one in the meantime.
    check(&volumes(&client).await?, choice.driver()).context(
        "a volume was made while this ran, so the rest stays; apply the manifests again to use it",
    )?;
    delete(&client, &then).await?;
    let namespace = &choice.namespace;
    Ok(format!(
        "Holdfast is gone. The disks of the nodes are as they were, and so are the Secrets and the \
         ConfigMap of namespace {namespace}: applying the manifests again brings the cluster \
         back.\nTo give it up, delete the namespace, and on each node the directories of the \
         disks and of storage.directory.\n"
    ))
}

/// All volumes of the Kubernetes cluster.
async fn volumes(client: &Client) -> anyhow::Result<Vec<PersistentVolume>> {
    let all = list_all(&Api::all(client.clone()), ListParams::default()).await;
    all.context("could not list the PersistentVolumes")
}

/// Deletes what is there.
async fn delete(client: &Client, objects: &[Object]) -> anyhow::Result<()> {
    for object in objects {
        let kind = GroupVersionKind::gvk(&object.group, &object.version, &object.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &object.plural);
        let api: Api<DynamicObject> = match object.namespace.as_str() {
            "" => Api::all_with(client.clone(), &resource),
            namespace => Api::namespaced_with(client.clone(), namespace, &resource),
        };
        match api.delete(&object.name, &DeleteParams::background()).await {
            Ok(_) => note(&format!("deleted {}", said(object))),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                let what = format!(
                    "could not delete {}; what is left can be deleted by the same \
                                    command",
                    said(object)
                );
                return Err(error).context(what);
            }
        }
    }
    Ok(())
}

/// Waits until no controller makes volumes any more.
async fn await_end(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let until = Instant::now() + END_WITHIN;
    loop {
        let found = api.list(&ListParams::default().labels(CONTROLLER)).await;
        let found = found.context("could not list the pods of the controller")?;
        if found.items.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let names: Vec<String> =
                found.items.into_iter().filter_map(|it| it.metadata.name).collect();
            bail!(
                "pods of the controller do not end ({}): try again when they have",
                names.join(", ")
            );
        }
        sleep(LOOK_EVERY).await;
    }
}

fn said(object: &Object) -> String {
    let Object { kind, namespace, name, .. } = object;
    match namespace.as_str() {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}
