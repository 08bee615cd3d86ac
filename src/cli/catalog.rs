//! `holdfast catalog ...`: copies of the catalog, and its recovery. Some commands talk to a pod;
//! others work on the directory of one that does not run.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use zeroize::Zeroizing;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::cli::time::moment;
use crate::control::catalog::chain;
use crate::control::command::{Hidden, listed};
use crate::control::identity::{PodDirectory, random_uuid};
use crate::control::membership::{database, read_state};
use crate::control::proto::{BackupRequest, GetRecoveryRequest, LeaveOutRequest, Recovery};
use crate::control::recovery::format::{Copy, read};
use crate::control::recovery::gathering::Gathering;
use crate::control::recovery::plan::{self, Loaded, new_plan, read_copy};
use crate::control::state::CatalogState;
use crate::control::state::rows::{Authority, RowKey, decode_row, encode_row};
use crate::control::sync::kept::Kept;
use crate::io::clock;
use crate::security::files::write_private;
use crate::security::recovery::RecoveryKey;
use crate::security::secret::{bytes_from_hex, to_hex};
use crate::types::{PodId, Uuid};

/// Longest recovery key that somebody may type.
const TYPED_BYTES_MAX: u64 = 1024;

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Write a copy of the catalog to a file
    Backup {
        /// A new file
        file: PathBuf,
    },
    /// Show the recovery of the catalog that a pod carries out, and whom it waits for
    Status,
    /// Recover without these pods, which are off for good
    LeaveOut {
        /// Numbers of pods
        #[arg(required = true)]
        pods: Vec<u64>,
    },
    /// Begin a recovery from a backup, on a pod that does not run
    Restore(RestoreArgs),
    /// Begin a recovery from what is left, on a pod that does not run
    Recover(RecoverArgs),
    /// Forget a recovery that was begun and is not done, on a pod that does not run
    Abandon {
        /// `data` of the pod's configuration
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// What `holdfast catalog backup` has written
    file: PathBuf,
    /// `data` of the pod's configuration
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File with the recovery key that `holdfast init` has printed; - reads it from the input
    #[arg(long, value_name = "FILE")]
    recovery_key_file: Option<PathBuf>,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct RecoverArgs {
    /// `data` of the configuration of a pod that is left
    #[arg(long, value_name = "DIR")]
    from_survivor: PathBuf,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries it out, and returns what to print. `client` makes a client of the endpoint.
pub async fn run(
    command: CatalogCommand,
    client: impl FnOnce() -> anyhow::Result<Client>,
    output: Output,
) -> anyhow::Result<String> {
    match command {
        CatalogCommand::Backup { file } => back_up(&client()?, &file).await,
        CatalogCommand::Status => {
            let client = client()?;
            let answer = client.catalog_admin().get_recovery(GetRecoveryRequest {}).await;
            shown(&client.check("look at the recovery of the catalog", answer)?, output)
        }
        CatalogCommand::LeaveOut { pods } => {
            let client = client()?;
            let answer = client.catalog_admin().leave_out(LeaveOutRequest { pods }).await;
            shown(&client.check("leave pods out of a recovery", answer)?, output)
        }
        CatalogCommand::Restore(args) => {
            let RestoreArgs { file, data, recovery_key_file, dry_run } = args;
            let mut copy = read_copy(&file)?;
            let key = recovery_key_file.as_deref().map(read_recovery_key).transpose()?;
            let note = open_authority(&mut copy, key.as_ref())?;
            Ok(begin(&data, Some(copy), dry_run)? + &note)
        }
        CatalogCommand::Recover(RecoverArgs { from_survivor, dry_run }) => {
            begin(&from_survivor, None, dry_run)
        }
        CatalogCommand::Abandon { data } => {
            let _lock = PodDirectory::open(&data)?;
            match plan::abandon(&data, &database(&data))? {
                true => Ok("the recovery is abandoned; the pod can be started\n".to_owned()),
                false => bail!("no recovery was begun in {}", data.display()),
            }
        }
    }
}

async fn back_up(client: &Client, file: &Path) -> anyhow::Result<String> {
    let doing = "copy the catalog";
    let mut pieces = client.check(doing, client.catalog_admin().backup(BackupRequest {}).await)?;
    let mut bytes = Vec::new();
    while let Some(piece) = client.told(doing, pieces.message().await)? {
        bytes.extend_from_slice(&piece.data);
    }
    let Copy { head, .. } = read(&bytes).context("the copy did not arrive as a whole")?;
    if file.exists() {
        bail!("{} exists already; name another file", file.display());
    }
    write_private(file, &bytes)?;
    Ok(format!(
        "wrote revision {} of the catalog of cluster {} ({} rows) to {}\n",
        head.revision,
        head.cluster,
        head.rows,
        file.display()
    ))
}

fn read_recovery_key(file: &Path) -> anyhow::Result<RecoveryKey> {
    let mut typed = Zeroizing::new(String::new());
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().take(TYPED_BYTES_MAX).read_to_string(&mut typed),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(TYPED_BYTES_MAX).read_to_string(&mut typed)),
    };
    read.with_context(|| format!("could not read the recovery key from {}", file.display()))?;
    Ok(RecoveryKey::parse(&typed)?)
}

/// Opens the authority's key in a backup. Returns a note for who has to know that it stays sealed.
fn open_authority(copy: &mut Copy, key: Option<&RecoveryKey>) -> anyhow::Result<String> {
    let cluster = copy.head.cluster;
    let (mut is_open, mut failed) = (false, Vec::new());
    for (row_key, row) in &mut copy.rows {
        let RowKey::Authority(number) = *row_key else { continue };
        let (revision, mut authority) = decode_row::<Authority>(row_key, row)?;
        let Some(key) = key else {
            return Ok(
                "\nThe authority's key stays sealed: without it tokens and renewals do not \
                       work.\nGive --recovery-key-file, or later follow docs/security.md.\n"
                    .to_owned(),
            );
        };
        // While an authority was replaced there were two, with a recovery key each.
        let sealed = bytes_from_hex(&authority.sealed).unwrap_or_default();
        match key.open(cluster, &sealed) {
            Ok(opened) => authority.key = Hidden(to_hex(opened.expose())),
            Err(error) => {
                failed.push((number, error));
                continue;
            }
        }
        is_open = true;
        *row = encode_row(revision, &authority);
    }
    let Some((number, error)) = failed.pop() else { return Ok(String::new()) };
    match is_open {
        false => Err(error).context("the recovery key opens no authority of the backup"),
        true => Ok(format!(
            "\nThe key of authority {number} stays sealed: it has another recovery key. If that \
             one is to sign, follow docs/security.md.\n"
        )),
    }
}

/// Begins a recovery on the pod with this directory.
fn begin(data: &Path, backup: Option<Copy>, dry_run: bool) -> anyhow::Result<String> {
    if !data.join("pod.json").exists() {
        bail!("{} is not the directory of a pod", data.display());
    }
    let directory = PodDirectory::open(data)?;
    let identity = directory.file().identity.context("this pod belongs to no cluster")?;
    if let Some(copy) = &backup
        && copy.head.cluster != identity.cluster
    {
        let (theirs, ours) = (copy.head.cluster, identity.cluster);
        bail!("the backup is of cluster {theirs}, and this pod belongs to {ours}");
    }
    let member = read_state(data);
    let mut text = match &backup {
        Some(Copy { head, .. }) => {
            format!("the backup:        revision {}, of {}\n", head.revision, moment(head.made_ms))
        }
        None => String::new(),
    };
    text += &match &member {
        Ok(Some(state)) => format!("this pod's member: revision {}\n", state.revision()),
        Ok(None) => "this pod's member: none\n".to_owned(),
        Err(error) => format!("this pod's member: not usable: {}\n", chain(error)),
    };
    let (_, mirror) =
        Kept::open(&data.join("sync")).context("could not read what this pod knows")?;
    text += &format!("this pod was told: revision {}\n", mirror.position().revision);
    let history: Uuid = random_uuid().context("could not draw the new history")?;
    let plan = new_plan(history, clock::wall_ms());
    let member: Option<CatalogState> = member.unwrap_or_default();
    let copied = member.as_ref().map(|state| {
        let (head, rows) = plan::copy_of(state, plan.begun_ms, true);
        Copy { head, rows: rows.collect() }
    });
    let loaded = Loaded { plan: plan.clone(), backup: backup.clone(), member: copied };
    let mut gathering = Gathering::new(loaded, identity.pod)?;
    let told = plan::copy_of_told(mirror.whole(), identity.cluster, plan.begun_ms);
    gathering.hear(identity.pod, false, told)?;
    if gathering.newest().0.is_none() {
        bail!("this pod knows nothing of the cluster; begin on another one, or with a backup");
    }
    let others: Vec<PodId> = gathering.missing();
    text += &match others.is_empty() {
        true => "it waits for:      nobody\n".to_owned(),
        false => format!("it waits for:      pods {}\n", listed(&others)),
    };
    text += &format!(
        "\nChanges after revision {} that none of these pods was told of are lost: volumes that \
         were made,\ndeleted or attached. So is what only pods know that are left out.\n",
        gathering.newest().1
    );
    if dry_run {
        return Ok(text + "\nNothing was done.\n");
    }
    plan::begin(data, &plan, backup.as_ref(), member.as_ref())?;
    Ok(text
        + "\nStart this pod now. It decides nothing before all of them have told what they know.\n\
           `holdfast catalog status` tells how far it is, and `leave-out` ends the wait for pods \
           that are off for good.\n")
}

fn shown(recovery: &Recovery, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => render::json(recovery),
        Output::Yaml => render::yaml(recovery),
        Output::Table | Output::Wide => Ok(in_words(recovery)),
    }
}

fn in_words(recovery: &Recovery) -> String {
    if !recovery.is_running {
        return "this pod recovers nothing; `holdfast status` shows the catalog\n".to_owned();
    }
    let mut text = format!(
        "recovering the catalog since {}, from revision {} on\n",
        moment(recovery.begun_unix_ms),
        recovery.found_revision
    );
    for pod in &recovery.pods {
        text += &match (pod.state.as_str(), pod.reason.as_str()) {
            ("told", _) => format!("pod {}  told, as of revision {}\n", pod.pod, pod.revision),
            (state, "") => format!("pod {}  {state}\n", pod.pod),
            (state, reason) => format!("pod {}  {state}: {reason}\n", pod.pod),
        };
    }
    if !recovery.failed.is_empty() {
        text += &format!("the last try failed: {}\n", recovery.failed);
    }
    text
}
