//! `holdfast relay`: a volume on a local socket whose connections do not end when pods do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::attach::relay::pods::{Opener, PodAddress};
use crate::attach::relay::run::Relay;
use crate::attach::relay::serve::serve;
use crate::cli::Global;
use crate::cli::output;
use crate::control::local::replace;
use crate::control::proto::{ListPodsRequest, Query};
use crate::security::credentials::Tls;
use crate::security::random::random;
use crate::types::Uuid;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Uid of an attachment, or name of an open volume, which one --pod has to serve
    export: String,
    /// Socket to make for NBD clients
    #[arg(long, value_name = "PATH")]
    listen: PathBuf,
    /// Where pods serve NBD, the preferred one first: unix:PATH or IP:PORT; may be repeated.
    /// Without it the cluster is asked
    #[arg(long = "pod", value_name = "ADDRESS", value_parser = parse_pod)]
    pods: Vec<PodAddress>,
}

/// `unix:PATH` or `IP:PORT`.
pub fn parse_pod(text: &str) -> Result<PodAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) => Ok(PodAddress::Unix(PathBuf::from(path))),
        None => SocketAddr::from_str(text)
            .map(PodAddress::Tcp)
            .map_err(|_| "it is neither unix:PATH nor IP:PORT".to_owned()),
    }
}

/// Serves until it is told to stop.
pub async fn run(global: &Global, args: &Args) -> anyhow::Result<String> {
    let is_attachment = args.export.parse::<Uuid>().is_ok();
    let pods = match (&args.pods[..], is_attachment) {
        ([], true) => pods_of(global).await?,
        (_, true) | ([_], false) => args.pods.clone(),
        // Its requests could be carried out by two pods, the later one first (rule
        // `ended-connection-hands-over-nothing`).
        (_, false) => bail!(
            "{} is no attachment, so its requests may go to one pod only: name that with --pod, or \
             publish the volume and give the attachment's uid",
            args.export
        ),
    };
    let credentials = global.credentials()?;
    let tls = credentials.as_ref().map(|it| Tls::new(it, it.trust())).transpose()?;
    // It lives as long as this.
    let (_pods, known) = watch::channel(pods);
    // Others may relay the same attachment.
    let first_line = u64::from_be_bytes(random()?);
    let relay = Relay::start(Opener::new(&args.export, tls.as_ref())?, known, first_line >> 1);
    let listen = &args.listen;
    let listener =
        replace(listen).with_context(|| format!("could not listen on {}", listen.display()))?;
    let mut opened = relay.course();
    let mut ends = signal(SignalKind::terminate())?;
    let ready = async {
        if opened.wait_for(|course| course.pod.is_some()).await.is_ok() {
            output::note(&format!("ready nbd+unix:///?socket={}", listen.display()));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = serve(&relay, &listener, None) => {}
        _ = ends.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        () = ready => {}
    }
    std::fs::remove_file(listen)
        .with_context(|| format!("could not remove {}", listen.display()))?;
    Ok(String::new())
}

/// Where all pods serve NBD over TCP.
pub async fn pods_of(global: &Global) -> anyhow::Result<Vec<PodAddress>> {
    let client = global.client()?;
    let (mut pods, mut query) = (Vec::new(), Query::default());
    loop {
        let request = ListPodsRequest { query: Some(query.clone()) };
        let page = client.check("list the pods", client.pods().list(request).await)?;
        let addresses = page.pods.iter().filter_map(|pod| pod.status.as_ref());
        pods.extend(addresses.filter_map(|status| Some(PodAddress::Tcp(status.nbd.parse().ok()?))));
        if page.next_page_token.is_empty() {
            break;
        }
        query.page_token = page.next_page_token;
    }
    if pods.is_empty() {
        bail!("no pod serves NBD over TCP");
    }
    Ok(pods)
}
