//! `holdfast cert ...`: certificates as files, from an authority as files.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::cli::token::read_token;
use crate::control::enrol::{self, Proof};
use crate::control::proto::{ListCertificatesRequest, RevokeCertificateRequest};
use crate::security::authority::{Authority, Places};
use crate::security::certificate::{Certificate, Root};
use crate::security::files::Paths;
use crate::security::issue::{issue, load_authority, now_s, store_authority};
use crate::security::recovery::RecoveryKey;
use crate::security::subject::Role;

const DAY_S: i64 = 24 * 60 * 60;
/// A sealed key is much shorter.
const SEALED_BYTES_MAX: u64 = 64 << 10;
/// Longest recovery key that somebody may type.
const TYPED_BYTES_MAX: u64 = 1024;

#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Issue a certificate with a new key
    Issue(IssueArgs),
    /// Show for whom a certificate is, and how long
    Show {
        /// The certificate
        file: PathBuf,
    },
    /// Get a certificate by a token
    Get(GetArgs),
    /// Replace a certificate by a new one for the same holder
    Renew {
        /// Directory with the certificate; a pod's is <data>/tls
        directory: PathBuf,
    },
    /// List the certificates that the cluster has issued
    List,
    /// Make a certificate void
    Revoke { serial: String },
    /// Open a sealed key of the authority with the recovery key, which is read from the input
    Recover(RecoverArgs),
}

#[derive(Debug, clap::Args)]
pub struct IssueArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// Such as admin/ada, viewer/grafana, csi-controller/main, csi-node/NODE or pod/4
    #[arg(long)]
    role: Role,
    /// Address of the pod, for clients that compare it; may be repeated
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Name of the pod's machine, for clients that compare it; may be repeated
    #[arg(long = "name", value_name = "DNS")]
    names: Vec<String>,
    /// Directory for the files: <data>/tls of a pod, or HOLDFAST_CREDENTIALS of others
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// File with the token; - reads it from the input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Directory for the files
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct RecoverArgs {
    /// What `holdfast init` has sealed
    #[arg(long, value_name = "FILE")]
    sealed: PathBuf,
    /// The authority's certificate
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Directory for the authority
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Carries it out, and returns what to print. `client` makes a client of the endpoint.
pub async fn run(
    command: CertCommand,
    endpoint: &str,
    client: impl FnOnce() -> anyhow::Result<Client>,
    output: Output,
) -> anyhow::Result<String> {
    match command {
        CertCommand::Issue(args) => issue_one(&args),
        CertCommand::Show { file } => show(&file),
        CertCommand::Recover(args) => recover(&args),
        CertCommand::Get(GetArgs { token_file, to }) => {
            let role = enrol::get(endpoint, Proof::Token(&read_token(&token_file)?), &to).await?;
            Ok(format!("{role} has a certificate in {}\n", to.display()))
        }
        CertCommand::Renew { directory } => {
            let pod = Paths::in_tls(&directory);
            let paths = if pod.exist() { pod } else { Paths::of_client(&directory) };
            let role = enrol::renew(endpoint, &paths).await?;
            Ok(format!("{role} has a new certificate in {}\n", directory.display()))
        }
        CertCommand::List => list(&client()?, output).await,
        CertCommand::Revoke { serial } => {
            let client = client()?;
            let request = RevokeCertificateRequest { serial };
            let answer = client.credentials().revoke_certificate(request).await;
            client.check("revoke a certificate", answer)?;
            Ok(String::new())
        }
    }
}

async fn list(client: &Client, output: Output) -> anyhow::Result<String> {
    let answer = client.credentials().list_certificates(ListCertificatesRequest {}).await;
    let certificates = client.check("list the certificates", answer)?.certificates;
    if let Output::Json = output {
        return render::json(&certificates);
    }
    let line = |it: &crate::control::proto::Certificate| {
        let state = if it.revoked { "  revoked" } else { "" };
        format!("{}  {}{state}\n", it.serial, it.subject)
    };
    Ok(certificates.iter().map(line).collect())
}

fn issue_one(args: &IssueArgs) -> anyhow::Result<String> {
    let IssueArgs { authority, role, addresses, names, to } = args;
    let authority = load_authority(authority)?;
    let paths = match role {
        Role::Pod(_) => Paths::in_tls(to),
        _ => Paths::of_client(to),
    };
    let places = Places { addresses: addresses.clone(), names: names.clone() };
    issue(&authority, authority.cluster(), role.clone(), &places, &paths)?;
    Ok(format!("issued {role} to {}\n", to.display()))
}

fn show(file: &Path) -> anyhow::Result<String> {
    let certificate = Certificate::from_der(&read_certificate(file)?)?;
    let now_s = i64::try_from(now_s()).unwrap_or(i64::MAX);
    let left_s = certificate.not_after_s - now_s;
    let dates = match certificate.subject.role.is_bound_by_dates() {
        false => "lasts as long as the pod is part of the cluster".to_owned(),
        true if now_s < certificate.not_before_s => "is not valid yet".to_owned(),
        true if left_s < 0 => format!("expired {} days ago", -left_s / DAY_S),
        true => format!("expires in {} days", left_s / DAY_S),
    };
    Ok(format!("{}\nserial {}\n{dates}\n", certificate.subject, certificate.serial))
}

fn recover(args: &RecoverArgs) -> anyhow::Result<String> {
    let RecoverArgs { sealed, ca, to } = args;
    let root = Root::from_der(&read_certificate(ca)?)
        .with_context(|| format!("cannot use {}", ca.display()))?;
    let mut typed = Zeroizing::new(String::new());
    std::io::stdin()
        .take(TYPED_BYTES_MAX)
        .read_to_string(&mut typed)
        .context("could not read the recovery key from the input")?;
    let key = RecoveryKey::parse(&typed)?.open(root.cluster(), &read(sealed)?)?;
    store_authority(to, &Authority::from_parts(root.der(), key)?)?;
    Ok(format!("the authority of cluster {} is in {}\n", root.cluster(), to.display()))
}

fn read_certificate(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(&read(file)?)
        .map_err(|_| anyhow::anyhow!("{} is not a certificate, PEM", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(SEALED_BYTES_MAX).read_to_end(&mut bytes))
        .with_context(|| format!("could not read {}", file.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::init;
    use crate::control::tls::SEALED;

    /// What `init` prints and stores is enough to sign again after the key was lost.
    #[test]
    fn an_authority_comes_back_by_its_recovery_key() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("cluster");
        let place = directory.join("authority");
        let args = ["init", directory.to_str().unwrap(), "--pods", "2"];
        let args = <Command as clap::Parser>::parse_from(args);
        let said = init::run(&args.init).unwrap();
        assert!(init::run(&args.init).is_err(), "it is made once");
        let key = said.lines().map(str::trim).find(|line| line.starts_with("holdfast-recovery-"));
        let authority = load_authority(&place).unwrap();
        let sealed = std::fs::read(place.join(SEALED)).unwrap();
        let opened = RecoveryKey::parse(key.unwrap()).unwrap();
        let opened = opened.open(authority.cluster(), &sealed).unwrap();
        assert_eq!(opened.expose(), authority.key_der().expose());
        for (directory, subject) in [("pod-1", "pod/1"), ("pod-2", "pod/2")] {
            let loaded = Paths::in_tls(&args.init_directory().join(directory)).load().unwrap();
            assert_eq!(loaded.subject().role.to_string(), subject);
        }
        let shown = show(&directory.join("admin/client-cert.pem")).unwrap();
        assert!(shown.contains("admin/admin") && shown.contains("expires in "), "{shown}");
    }

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        init: init::Args,
    }

    impl Command {
        fn init_directory(&self) -> &Path {
            self.init.directory()
        }
    }
}
