//! `holdfast authority ...`: shows the cluster's authority, and replaces it while the cluster runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::output;
use crate::cli::render;
use crate::control::proto::{
    AuthorityStep, GetAuthoritiesRequest, GetAuthoritiesResponse, MoveAuthorityRequest,
    ReplaceAuthorityRequest,
};
use crate::control::tls::SEALED;
use crate::security::authority::Authority;
use crate::security::files::{make_private_directory, write_private};
use crate::security::issue::{has_authority, load_authority, now_s, store_authority};
use crate::security::recovery::RecoveryKey;
use crate::types::Uuid;

#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Show the authorities that are trusted, and what a replacement waits for
    Show,
    /// Make a new authority, and have all pods trust it. The old one still signs
    Replace {
        /// A directory for the new authority. One that is there already is introduced again
        directory: PathBuf,
    },
    /// Let the new authority sign; pods get new certificates by themselves
    Switch,
    /// Trust the old authority no more. What it has signed is void then
    Finish {
        /// Also if it has signed valid certificates of people and programs
        #[arg(long)]
        void_certificates: bool,
    },
    /// Trust the new authority no more, before it signs
    Abandon,
}

pub async fn run(
    client: &Client,
    command: AuthorityCommand,
    output: Output,
) -> anyhow::Result<String> {
    let now = match command {
        AuthorityCommand::Show => get(client).await?,
        AuthorityCommand::Replace { directory } => replace(client, &directory).await?,
        AuthorityCommand::Switch => step(client, AuthorityStep::Switch, false).await?,
        AuthorityCommand::Finish { void_certificates } => {
            step(client, AuthorityStep::Finish, void_certificates).await?
        }
        AuthorityCommand::Abandon => step(client, AuthorityStep::Abandon, false).await?,
    };
    match output {
        Output::Table | Output::Wide => Ok(told(&now)),
        Output::Json => render::json(&now),
        Output::Yaml => render::yaml(&now),
    }
}

async fn get(client: &Client) -> anyhow::Result<GetAuthoritiesResponse> {
    let answer = client.credentials().get_authorities(GetAuthoritiesRequest {}).await;
    Ok(client.check("show the authorities", answer)?)
}

async fn step(
    client: &Client,
    step: AuthorityStep,
    void_certificates: bool,
) -> anyhow::Result<GetAuthoritiesResponse> {
    let request = MoveAuthorityRequest { step: step.into(), void_certificates };
    let answer = client.credentials().move_authority(request).await;
    Ok(client.check("replace the authority", answer)?)
}

async fn replace(client: &Client, directory: &Path) -> anyhow::Result<GetAuthoritiesResponse> {
    if !has_authority(directory) {
        let cluster = get(client).await?.cluster;
        make(directory, cluster.parse().context("the pod does not name its cluster")?)?;
    }
    let authority = load_authority(directory)?;
    let sealed = directory.join(SEALED);
    let sealed =
        std::fs::read(&sealed).with_context(|| format!("could not read {}", sealed.display()))?;
    let request = ReplaceAuthorityRequest {
        certificate: authority.root().der().to_vec().into(),
        key: authority.key_der().expose().to_vec().into(),
        sealed: sealed.into(),
    };
    let answer = client.credentials().replace_authority(request).await;
    client.check("introduce the new authority", answer).with_context(|| {
        format!("the new authority is in {}; run the same command again", directory.display())
    })
}

/// Makes an authority as files, and says its recovery key at once: nobody can say it later.
fn make(directory: &Path, cluster: Uuid) -> anyhow::Result<()> {
    if directory.read_dir().is_ok_and(|mut files| files.next().is_some()) {
        bail!("{} has other files in it; name a new directory", directory.display());
    }
    let authority = Authority::new(cluster, now_s())?;
    let recovery = RecoveryKey::new()?;
    let sealed = recovery.seal(cluster, authority.key_der())?;
    let key = recovery.text();
    let key = std::str::from_utf8(key.expose()).expect("digits and dashes");
    make_private_directory(directory)?;
    output::line(&format!(
        "The recovery key of the new authority, shown this once. Keep it apart from {}:\n\n    \
         {key}\n",
        directory.display()
    ))?;
    // An authority that is there has a recovery key that somebody has seen.
    write_private(&directory.join(SEALED), &sealed)?;
    store_authority(directory, &authority)?;
    Ok(())
}

/// How far a replacement is and what comes next, in sentences.
pub fn told(now: &GetAuthoritiesResponse) -> String {
    let GetAuthoritiesResponse { authorities, others_trusted, waiting_pods, .. } = now;
    let mut text = String::new();
    for it in authorities {
        let does = match (it.signs, it.has_key) {
            (true, true) => "signs",
            (true, false) => "is to sign, and the catalog does not have its key",
            (false, _) => "is trusted",
        };
        text += &format!(
            "authority {} {does}; {} certificates of people and programs\n    {}\n",
            it.number, it.certificates, it.fingerprint
        );
    }
    let pods: Vec<String> = waiting_pods.iter().map(u64::to_string).collect();
    let waits = |what: &str| match pods.is_empty() {
        true => String::new(),
        false => format!("pods {} {what}\n", pods.join(", ")),
    };
    text + &match &authorities[..] {
        [] => "the catalog has no authority\n".to_owned(),
        [signs, new] if signs.number < new.number => {
            waits("do not trust the new authority yet")
                + "next: renew the certificates of people and programs (`holdfast cert renew`), so \
                   that they know the new authority; then `holdfast authority switch`\n"
        }
        [_, _] => {
            waits("still have certificates of the old authority")
                + "next: renew the certificates of people and programs (`holdfast cert renew`); \
                   then `holdfast authority finish`\n"
        }
        _ if *others_trusted => {
            waits("have certificates of another authority")
                + "the catalog was restored, so pods trust every authority that they knew; \
                   `holdfast authority finish` ends that\n"
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::Authority as Shown;

    fn shown(number: u64, signs: bool) -> Shown {
        let fingerprint = format!("{number:02x}").repeat(32);
        Shown { number, fingerprint, signs, has_key: true, certificates: 2 }
    }

    #[test]
    fn what_comes_next_is_said() {
        let told = |authorities: Vec<Shown>, others_trusted, waiting_pods: Vec<u64>| {
            let cluster = String::new();
            told(&GetAuthoritiesResponse { cluster, authorities, others_trusted, waiting_pods })
        };
        let alone = told(vec![shown(1, true)], false, vec![]);
        assert!(alone.starts_with("authority 1 signs; 2 certificates") && !alone.contains("next"));
        let added = told(vec![shown(1, true), shown(2, false)], false, vec![3, 4]);
        assert!(added.contains("pods 3, 4 do not trust") && added.contains("authority switch"));
        let switched = told(vec![shown(2, true), shown(1, false)], false, vec![]);
        assert!(switched.contains("authority finish") && !switched.contains("pods"), "{switched}");
        assert!(told(vec![shown(1, true)], true, vec![]).contains("authority finish"));
    }

    #[test]
    fn a_directory_with_other_files_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("precious"), b"").unwrap();
        assert!(make(root.path(), Uuid([1; 16])).is_err());
        assert!(!has_authority(root.path()));
    }
}
