//! `holdfast explain KIND NAME`: in sentences, what is wrong with an object, since when, what the
//! cluster does about it, and what a person could do.

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::exit::UsageError;
use crate::cli::noun::{Noun, all};
use crate::cli::render::{self, Rows};
use crate::cli::time::{length, moment};
use crate::control::objects::condition::Why;
use crate::control::objects::key::Kind;
use crate::control::observed::unix_ms;
use crate::control::proto::{
    Attachment, Class, Condition, ConditionStatus, Disk, Event, Node, Phase, Pod, Query, Shard,
    Volume,
};

/// Parts of an object that are named at most.
const PARTS_MAX: usize = 8;
/// Events of an object that are told at most.
const EVENTS_MAX: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// node, pod, disk, class, volume, shard or attachment
    #[arg(value_parser = kind)]
    kind: Kind,
    name: String,
}

fn kind(text: &str) -> Result<Kind, String> {
    let kinds = || Kind::ALL.into_iter().filter(|kind| *kind != Kind::Event);
    kinds().find(|kind| kind.word() == text).ok_or_else(|| {
        let words: Vec<&str> = kinds().map(Kind::word).collect();
        format!("{text:?} is none of {}", words.join(", "))
    })
}

pub async fn run(client: &Client, args: Args, output: Output) -> anyhow::Result<String> {
    let Args { kind, name } = args;
    match kind {
        Kind::Node => explain::<Node>(client, &name, Vec::new(), output).await,
        Kind::Pod => {
            let disks = all::<Disk>(client, bad_disks(), &name).await?;
            explain::<Pod>(client, &name, disks.iter().map(bad_disk).collect(), output).await
        }
        Kind::Disk => explain::<Disk>(client, &name, Vec::new(), output).await,
        Kind::Attachment => explain::<Attachment>(client, &name, Vec::new(), output).await,
        Kind::Class => explain::<Class>(client, &name, Vec::new(), output).await,
        Kind::Shard => {
            let shard = Shard::get(client, &name).await?;
            explain::<Shard>(client, &name, bad_replicas(&shard), output).await
        }
        Kind::Volume => {
            let shards = all::<Shard>(client, bad_shards(), &name).await?;
            let parts = shards.iter().flat_map(bad_replicas).collect();
            explain::<Volume>(client, &name, parts, output).await
        }
        Kind::Event => Err(UsageError("an event says everything itself".to_owned()).into()),
    }
}

async fn explain<T: Noun>(
    client: &Client,
    name: &str,
    parts: Vec<String>,
    output: Output,
) -> anyhow::Result<String> {
    let object = T::get(client, name).await?;
    let now_unix_ms = unix_ms();
    let mut sentences = sentences(&object, &parts, now_unix_ms);
    let events = all::<Event>(client, Query::default(), &object.history()).await?;
    sentences.extend(history(&events, now_unix_ms));
    match output {
        Output::Table | Output::Wide => Ok(sentences.join("\n") + "\n"),
        Output::Json => render::json(&sentences),
        Output::Yaml => render::yaml(&sentences),
    }
}

fn phases(phases: &[Phase]) -> Query {
    let phases = phases.iter().map(|phase| (*phase).into()).collect();
    Query { phases, ..Query::default() }
}

fn bad_disks() -> Query {
    phases(&[Phase::Failed, Phase::Unreachable])
}

fn bad_shards() -> Query {
    phases(&[Phase::Creating, Phase::Degraded, Phase::Paused, Phase::Deleting])
}

fn bad_disk(disk: &Disk) -> String {
    let status = disk.status.clone().unwrap_or_default();
    format!("disk {} in {} is {}", disk.meta_name(), status.path, status.phase().word())
}

/// The replicas of a shard that are not as they should be.
fn bad_replicas(shard: &Shard) -> Vec<String> {
    let status = shard.status.clone().unwrap_or_default();
    let is_bad = |state: &str| !matches!(state, "leader" | "follower");
    let bad = status.replicas.iter().filter(|replica| is_bad(&replica.state));
    bad.map(|it| {
        format!("the replica of shard {} on pod {} is {}", shard.meta_name(), it.pod, it.state)
    })
    .collect()
}

trait Named {
    fn meta_name(&self) -> &str;
}

impl<T: Rows> Named for T {
    fn meta_name(&self) -> &str {
        &self.meta().name
    }
}

/// What there is to say of an object. `parts`: what of it is not as it should be.
pub fn sentences<T: Rows>(object: &T, parts: &[String], now_unix_ms: u64) -> Vec<String> {
    let (word, name) = (T::WORD, object.meta_name());
    let mut said = vec![format!("{word} {name} is {}.", object.phase().word())];
    let is_bad = |condition: &&Condition| condition.status() != ConditionStatus::True;
    for condition in object.conditions().iter().filter(is_bad) {
        said.extend(explained(condition, now_unix_ms));
    }
    if said.len() == 1 {
        for condition in object.conditions() {
            let means = Why::of(&condition.reason).map_or("", |why| why.explained().means);
            said.push(format!("{}, {}.", capital(means), since(condition, now_unix_ms)));
        }
        return said;
    }
    said.extend(parts.iter().take(PARTS_MAX).map(|part| format!("{}.", capital(part))));
    let more = parts.len().saturating_sub(PARTS_MAX);
    if more > 0 {
        said.push(format!("And {more} more like these."));
    }
    said
}

/// Sentences about something that is wrong.
fn explained(condition: &Condition, now_unix_ms: u64) -> Vec<String> {
    let since = since(condition, now_unix_ms);
    let message = match condition.message.as_str() {
        "" => String::new(),
        message => format!(" ({message})"),
    };
    let Some(why) = Why::of(&condition.reason) else {
        return vec![format!("{}: {}{message}, {since}.", condition.r#type, condition.reason)];
    };
    let words = why.explained();
    let mut said = vec![format!("{}{message}, {since}.", capital(words.means))];
    if !words.doing.is_empty() {
        said.push(format!("What happens about it: {}.", words.doing));
        said.push(format!("What you could do: {}.", words.advice));
    }
    said
}

/// The newest events of an object, the newest first.
pub fn history(events: &[Event], now_unix_ms: u64) -> Vec<String> {
    let newest = events.iter().rev().take(EVENTS_MAX);
    let told = newest.map(|event| {
        let ago = length(now_unix_ms.saturating_sub(event.last_unix_ms));
        let message = match event.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        let times = match event.count {
            0 | 1 => String::new(),
            count => format!(", {count} times since {}", moment(event.first_unix_ms)),
        };
        format!("{ago} ago{times}: {}{message}.", event.reason)
    });
    told.collect()
}

fn since(condition: &Condition, now_unix_ms: u64) -> String {
    match condition.since_unix_ms {
        0 => "since a time that nobody recorded".to_owned(),
        since => {
            let for_long = length(now_unix_ms.saturating_sub(since));
            format!("for {for_long}, since {}", moment(since))
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
