//! The command line: `holdfast <noun> <verb>`. Each noun has a file with its arguments and the few
//! lines that carry them out. The work is done in other modules.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong command line; 3 no such object; 4 the cluster cannot be
//! reached or has no majority, or what was waited for did not come; 5 the request conflicts with
//! the state (a name is taken, there are too few pods, there is too little room); 6 not allowed. A
//! command whose reader closes its output ends quietly with 0.

pub mod attach;
pub mod attachment;
mod authority;
pub mod bench;
pub mod catalog;
pub mod cert;
pub mod class;
pub mod client;
pub mod cluster;
pub mod csi;
mod data_path;
pub mod dev;
pub mod disk;
mod doctor;
pub mod event;
pub mod exit;
pub mod explain;
pub mod init;
pub mod kubernetes;
pub mod list;
pub mod manual;
pub mod node;
pub mod noun;
pub mod output;
pub mod pod;
pub mod relay;
pub mod render;
pub mod serve;
pub mod shard;
pub mod sim;
pub mod status;
pub mod time;
pub mod token;
pub mod volume;
pub mod wait;
pub mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::client::Client;
use crate::cli::output::OutputError;
use crate::security::credentials::Credentials;
use crate::security::files::Paths;

/// Replicated block storage.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, \
                        4 cluster unavailable or waited in vain, 5 conflict or no room, \
                        6 not allowed")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: CliCommand,
}

/// Options of every command that talks to a cluster.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// API address of any pod, or unix:PATH of the socket of a pod on this machine
    #[arg(long, global = true, env = "HOLDFAST_ENDPOINT", default_value = "127.0.0.1:7400")]
    pub endpoint: String,
    /// Directory with client-cert.pem, client-key.pem and ca-cert.pem
    #[arg(long, global = true, env = "HOLDFAST_CREDENTIALS", value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Certificate of the caller, instead of the directory's
    #[arg(long, global = true, value_name = "FILE", requires = "key", requires = "ca")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Certificate of the cluster's authority
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    /// How to print results
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The same as --output json
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// A client of the endpoint, with the credentials that were given.
    fn client(&self) -> anyhow::Result<Client> {
        Client::with_credentials(&self.endpoint, self.credentials()?.as_ref())
    }

    /// The credentials that were given.
    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        Ok(self.paths().map(|paths| paths.load()).transpose()?)
    }

    /// Where the credentials are that were given.
    fn paths(&self) -> Option<Paths> {
        match (&self.cert, &self.key, &self.ca, &self.credentials) {
            (Some(certificate), Some(key), Some(ca), _) => Some(Paths {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: ca.clone(),
            }),
            (.., Some(directory)) => Some(Paths::of_client(directory)),
            _ => None,
        }
    }

    /// How results are printed.
    pub fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    /// A table with further columns
    Wide,
    Json,
    Yaml,
}

impl Output {
    pub fn is_wide(self) -> bool {
        self == Output::Wide
    }
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run one pod
    Serve(serve::Args),
    /// Run a whole cluster on this machine, for development and tests
    Dev(dev::Args),
    /// Make the authority of a new cluster, and its first certificates, as files
    Init(init::Args),
    /// Join a cluster by a token: the pod gets its number and its certificate
    Join(token::JoinArgs),
    /// The authority that signs the cluster's certificates
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Certificates
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Copies of the catalog, and its recovery
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// The driver for Kubernetes and other container orchestrators
    #[command(subcommand)]
    Csi(csi::CsiCommand),
    /// Holdfast in Kubernetes: its certificates and its storage pods
    #[command(subcommand)]
    Kubernetes(kubernetes::KubernetesCommand),
    /// Tokens, by which pods join and people get certificates
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Simulate whole clusters from seeds, in virtual time
    Sim(sim::Args),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show the cluster, and what needs attention
    Status,
    /// Look for what keeps Holdfast from working well on this machine, and in Kubernetes
    Doctor(doctor::Args),
    /// Serve a volume on a local socket whose connections do not end when pods do
    Relay(relay::Args),
    /// Serve the block devices of this node
    Attach(attach::Args),
    /// Block devices of this node, which `holdfast attach` serves
    Device(attach::DeviceArgs),
    /// Put load on a volume, and measure its answers
    Bench(bench::Args),
    /// Tell in sentences how an object is, and what could be done
    Explain(explain::Args),
    /// Wait until an object is as wanted
    Wait(wait::Args),
    /// Block volumes
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Pieces of volumes
    #[command(subcommand)]
    Shard(shard::ShardCommand),
    /// What a volume may be
    #[command(subcommand)]
    Class(class::ClassCommand),
    /// Which node may use which closed volume
    #[command(subcommand)]
    Attachment(attachment::AttachmentCommand),
    /// What has happened to objects
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Machines on which volumes are used
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Storage pods
    #[command(subcommand)]
    Pod(pod::PodCommand),
    /// Disks of the pods
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Print a script that completes command lines in a shell
    Completion(manual::CompletionArgs),
    /// Write the manual pages
    Man(manual::ManArgs),
}

/// Parses the command line and carries it out.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        CliCommand::Serve(args) => return serve::run(&args),
        CliCommand::Dev(args) => dev::run(&args),
        CliCommand::Sim(args) => sim::run(&args),
        CliCommand::Csi(command) => csi::run(&cli.global, command),
        CliCommand::Kubernetes(command) => kubernetes::run(&cli.global, command),
        CliCommand::Completion(args) => manual::completion(&args).and_then(printed),
        CliCommand::Man(args) => manual::man(&args).and_then(printed),
        CliCommand::Init(args) => init::run(&args).and_then(printed),
        CliCommand::Join(args) => block_on(token::join(&args)).and_then(printed),
        CliCommand::Cert(command) => {
            let (endpoint, output) = (&cli.global.endpoint, cli.global.output());
            let done = block_on(cert::run(command, endpoint, || cli.global.client(), output));
            done.and_then(|text| Ok(output::print(&text)?))
        }
        CliCommand::Catalog(command) => {
            let output = cli.global.output();
            let done = block_on(catalog::run(command, || cli.global.client(), output));
            done.and_then(|text| Ok(output::print(&text)?))
        }
        CliCommand::Doctor(args) => block_on(doctor::run(&args, cli.global.output())),
        CliCommand::Relay(args) => block_on(relay::run(&cli.global, &args)).and_then(printed),
        CliCommand::Attach(args) => block_on(attach::serve(&cli.global, &args)).and_then(printed),
        CliCommand::Device(args) => {
            block_on(attach::ask(args, cli.global.output())).and_then(printed)
        }
        other => run_client(&cli.global, other),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            exit::code_of(&error)
        }
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

fn printed(text: String) -> anyhow::Result<()> {
    Ok(output::print(&text)?)
}

/// Runs a command that consists of one or a few calls to a pod.
fn run_client(global: &Global, command: CliCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = global.client()?;
        let output = global.output();
        let text = match command {
            CliCommand::Serve(_)
            | CliCommand::Dev(_)
            | CliCommand::Csi(_)
            | CliCommand::Kubernetes(_)
            | CliCommand::Sim(_)
            | CliCommand::Completion(_)
            | CliCommand::Man(_)
            | CliCommand::Init(_)
            | CliCommand::Join(_)
            | CliCommand::Doctor(_)
            | CliCommand::Relay(_)
            | CliCommand::Attach(_)
            | CliCommand::Device(_)
            | CliCommand::Catalog(_)
            | CliCommand::Cert(_) => unreachable!("handled by the caller"),
            CliCommand::Cluster(command) => cluster::run(&client, command, output).await?,
            CliCommand::Status => status::run(&client, output).await?,
            CliCommand::Bench(args) => bench::run(&client, args, output).await?,
            CliCommand::Explain(args) => explain::run(&client, args, output).await?,
            CliCommand::Wait(args) => wait::run(&client, args, output).await?,
            CliCommand::Volume(command) => volume::run(&client, command, output).await?,
            CliCommand::Shard(command) => shard::run(&client, command, output).await?,
            CliCommand::Class(command) => class::run(&client, command, output).await?,
            CliCommand::Attachment(command) => attachment::run(&client, command, output).await?,
            CliCommand::Event(command) => event::run(&client, command, output).await?,
            CliCommand::Node(command) => node::run(&client, command, output).await?,
            CliCommand::Authority(command) => authority::run(&client, command, output).await?,
            CliCommand::Token(command) => token::run(&client, command, output).await?,
            CliCommand::Pod(command) => pod::run(&client, command, output).await?,
            CliCommand::Disk(command) => disk::run(&client, command, output).await?,
        };
        Ok(output::print(&text)?)
    })
}
