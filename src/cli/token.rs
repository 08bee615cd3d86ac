//! `holdfast token ...`, `holdfast join`: tokens, and how a pod joins by one.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::{Client, request_id};
use crate::cli::render;
use crate::config::Config;
use crate::control::command::Addresses;
use crate::control::enrol::{self, Proof};
use crate::control::identity::PodDirectory;
use crate::control::machine::this_node;
use crate::control::proto::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};
use crate::security::secret::Secret;
use crate::security::token::Token;

/// Longest token that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print it this once
    Create {
        /// For a certificate with this role, such as admin/ada; without it, a pod may join
        #[arg(long)]
        role: Option<String>,
        /// Seconds until it is void
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        lifetime: u64,
    },
    /// List the tokens
    List,
    /// Make a token void
    Revoke { id: String },
}

#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// Configuration of the pod that joins; `join` names pods of the cluster
    #[arg(long)]
    config: PathBuf,
    /// File with the token; - reads it from the input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Get a new certificate for a pod that has joined before
    #[arg(long)]
    again: bool,
}

pub async fn run(client: &Client, command: TokenCommand, output: Output) -> anyhow::Result<String> {
    match command {
        TokenCommand::Create { role, lifetime } => {
            let role = role.unwrap_or_default();
            let request =
                CreateTokenRequest { role, lifetime_s: lifetime, request_id: request_id()? };
            let answer = client.credentials().create_token(request).await;
            let made = client.check("make a token", answer)?;
            Ok(format!("{}\n", made.text))
        }
        TokenCommand::List => {
            let answer = client.credentials().list_tokens(ListTokensRequest {}).await;
            let tokens = client.check("list the tokens", answer)?.tokens;
            match output {
                Output::Json => render::json(&tokens),
                _ => Ok(tokens.iter().map(|it| format!("{}  {}\n", it.id, it.kind)).collect()),
            }
        }
        TokenCommand::Revoke { id } => {
            let request = RevokeTokenRequest { id, request_id: request_id()? };
            let answer = client.credentials().revoke_token(request).await;
            client.check("revoke a token", answer)?;
            Ok(String::new())
        }
    }
}

/// Joins, so that `serve` can start.
pub async fn join(args: &JoinArgs) -> anyhow::Result<String> {
    let config = Config::load(&args.config)?;
    let token = read_token(&args.token_file)?;
    let mut directory = PodDirectory::open(&config.data)?;
    if let Some(identity) = directory.file().identity.filter(|_| !args.again) {
        bail!(
            "this pod is pod {} of cluster {} already; --again gets it a new certificate",
            identity.pod,
            identity.cluster
        );
    }
    let addresses = Addresses {
        api: config.api_address(),
        peer: config.peer_address(),
        nbd: Some(config.nbd_address()),
    };
    let mut last = None;
    for endpoint in &config.join {
        let node = this_node(&config);
        match enrol::join(endpoint, Proof::Token(&token), &mut directory, addresses, node).await {
            Ok(identity) => {
                return Ok(format!("joined cluster {} as pod {}", identity.cluster, identity.pod));
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.context("`join` in the configuration names no pod of the cluster")?;
    Err(error).context("could not join")
}

/// Reads a token from a file, or from the input.
pub fn read_token(file: &Path) -> anyhow::Result<Token> {
    let mut text = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().take(TOKEN_BYTES_MAX).read_to_end(&mut text),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_end(&mut text)),
    };
    let text = Secret::new(text);
    read.with_context(|| format!("could not read the token from {}", file.display()))?;
    let text = std::str::from_utf8(text.expose()).unwrap_or_default();
    Ok(text.parse::<Token>()?)
}
