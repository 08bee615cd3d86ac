//! `holdfast class ...`

use std::collections::HashMap;

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::{Client, request_id};
use crate::cli::list::{WhichWatched, deleted, label, list_or_watch, one, show};
use crate::cli::noun::Noun as _;
use crate::cli::render;
use crate::cli::time::io_timeout;
use crate::config::size::ByteSize;
use crate::control::objects::describe::Object as _;
use crate::control::proto::{
    CapacityRequest, Class, ClassCapacity, ClassSpec, CreateClassRequest, DeleteClassRequest,
    UpdateClassRequest,
};

#[derive(Debug, Subcommand)]
pub enum ClassCommand {
    /// List the classes
    List {
        #[command(flatten)]
        which: WhichWatched,
    },
    /// Show one class
    Show { name: String },
    /// Create a class; the same again does nothing
    Create {
        name: String,
        #[command(flatten)]
        spec: Spec,
    },
    /// Change a class; what is not said becomes as it is by default
    Update {
        name: String,
        #[command(flatten)]
        spec: Spec,
    },
    /// Delete a class that no volume names
    Delete { name: String },
    /// Show how much room there is for volumes of each class
    Capacity {
        /// Only this class
        name: Option<String>,
    },
}

/// What a class is to be.
#[derive(Debug, clap::Args)]
pub struct Spec {
    /// Copies: 1, 3 or 5
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Label of nodes in which the copies of a shard differ, or `node`
    #[arg(long, default_value = "node")]
    failure_domain: String,
    /// Only disks of this class
    #[arg(long, default_value = "")]
    disk_class: String,
    /// Percent of its capacity that a disk may promise
    #[arg(long, default_value_t = 200, value_name = "PERCENT")]
    overcommit: u32,
    /// I/O of its volumes fails when it has waited for so long, as in 30s; 0: it waits for ever
    #[arg(long, default_value = "0", value_name = "TIME", value_parser = io_timeout)]
    io_timeout: u64,
    /// A label of the class; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl Spec {
    fn spec(&self) -> ClassSpec {
        ClassSpec {
            replicas: self.replicas,
            failure_domain: self.failure_domain.clone(),
            disk_class: self.disk_class.clone(),
            overcommit_percent: self.overcommit,
            io_timeout_ms: self.io_timeout,
            limits: None,
        }
    }

    fn labels(&self) -> HashMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

pub async fn run(client: &Client, command: ClassCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ClassCommand::List { which } => list_or_watch::<Class>(client, &which, "", output).await,
        ClassCommand::Show { name } => show::<Class>(client, &name, output).await,
        ClassCommand::Create { name, spec } => {
            let doing = format!("create class {name}");
            let (request_id, labels) = (request_id()?, spec.labels());
            let spec = Some(spec.spec());
            let request = CreateClassRequest { name, spec, labels, request_id };
            one(&client.check(doing, client.classes().create(request).await)?, output)
        }
        ClassCommand::Update { name, spec } => {
            let doing = format!("change class {name}");
            let revision = Class::get(client, &name).await?.meta().revision;
            let (request_id, labels) = (request_id()?, spec.labels());
            let spec = Some(spec.spec());
            let request = UpdateClassRequest { name, revision, spec, labels, request_id };
            one(&client.check(doing, client.classes().update(request).await)?, output)
        }
        ClassCommand::Delete { name } => {
            let doing = format!("delete class {name}");
            let request = DeleteClassRequest { name: name.clone(), request_id: request_id()? };
            client.check(doing, client.classes().delete(request).await)?;
            deleted("class", &name, output)
        }
        ClassCommand::Capacity { name } => {
            let request = CapacityRequest { class: name.unwrap_or_default(), nodes: Vec::new() };
            let answer = client.cluster().capacity(request).await;
            let classes = client.check("get the capacity of the cluster", answer)?.classes;
            match output {
                Output::Table | Output::Wide => Ok(capacities(&classes)),
                Output::Json => render::json(&classes),
                Output::Yaml => render::yaml(&classes),
            }
        }
    }
}

/// A table of what each class has.
pub fn capacities(classes: &[ClassCapacity]) -> String {
    let rows = classes.iter().map(|it| {
        let bytes = |bytes| ByteSize(bytes).rounded();
        vec![
            it.class.clone(),
            it.disks.to_string(),
            bytes(it.capacity_bytes),
            bytes(it.used_bytes),
            bytes(it.provisioned_bytes),
            bytes(it.available_bytes),
        ]
    });
    let head = ["CLASS", "DISKS", "CAPACITY", "USED", "PROVISIONED", "AVAILABLE"];
    render::table(&head, &[1, 2, 3, 4, 5], rows, "no classes")
}
