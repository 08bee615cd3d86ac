//! `holdfast wait KIND/NAME --for ...`: a watch, no polling.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::exit::{NotThere, UsageError, WaitedInVain};
use crate::cli::list::{one, phase};
use crate::cli::noun::Watched;
use crate::cli::watch::Follow;
use crate::config::size::ByteSize;
use crate::control::objects::condition::Type;
use crate::control::objects::key::Kind;
use crate::control::proto::{
    Attachment, Change, Class, Condition, ConditionStatus, Disk, Node, Phase, Pod, Query, View,
    Volume,
};

/// What an object is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Phase(Phase),
    Condition(Type, ConditionStatus),
    /// Of a new volume.
    Usable,
    /// Clients can use so many bytes of a volume.
    Size(u64),
    Deleted,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// As in volume/demo
    #[arg(value_name = "KIND/NAME", value_parser = kind_and_name)]
    object: (Kind, String),
    /// A phase, `condition=TYPE`, `condition=TYPE=false`, or `deleted`
    #[arg(long = "for", value_name = "WANTED", value_parser = wanted)]
    wanted: Wanted,
    /// Give up after this time
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

pub async fn run(client: &Client, args: Args, output: Output) -> anyhow::Result<String> {
    let (kind, name) = args.object;
    let within = Duration::from_secs(args.timeout);
    let wanted = args.wanted;
    match kind {
        Kind::Node => wait_and_print::<Node>(client, &name, &wanted, within, output).await,
        Kind::Pod => wait_and_print::<Pod>(client, &name, &wanted, within, output).await,
        Kind::Disk => wait_and_print::<Disk>(client, &name, &wanted, within, output).await,
        Kind::Volume => wait_and_print::<Volume>(client, &name, &wanted, within, output).await,
        Kind::Attachment => {
            wait_and_print::<Attachment>(client, &name, &wanted, within, output).await
        }
        Kind::Class => wait_and_print::<Class>(client, &name, &wanted, within, output).await,
        Kind::Shard | Kind::Event => {
            Err(UsageError(format!("a {} cannot be waited for", kind.word())).into())
        }
    }
}

async fn wait_and_print<T: Watched>(
    client: &Client,
    name: &str,
    wanted: &Wanted,
    within: Duration,
    output: Output,
) -> anyhow::Result<String> {
    let found = until(client, name, wanted, within, |_: &T| ()).await?;
    match (found, output) {
        (Some(object), _) => one(&object, output),
        (None, Output::Table | Output::Wide) => Ok(format!("{} {name} is gone\n", T::WORD)),
        (None, _) => Ok(String::new()),
    }
}

/// Waits until an object is what it is to be, and returns it; `None`: it is gone, as it should.
/// `tell` is shown the object whenever it changes.
pub async fn until<T: Watched>(
    client: &Client,
    name: &str,
    wanted: &Wanted,
    within: Duration,
    mut tell: impl FnMut(&T),
) -> anyhow::Result<Option<T>> {
    let query = Query { name: name.to_owned(), view: View::Full.into(), ..Query::default() };
    let mut follow = Follow::<T>::new(client, query, "");
    let (deadline, mut last) = (Instant::now() + within, None);
    loop {
        let told = match timeout_at(deadline, follow.next()).await {
            Ok(told) => told?,
            Err(_) => return Err(in_vain::<T>(name, wanted, within, last.as_ref()).into()),
        };
        // The first bookmark comes behind everything that is there.
        let is_gone = match told.change {
            Change::Deleted => true,
            Change::Bookmark => last.is_none(),
            _ => false,
        };
        if is_gone && *wanted == Wanted::Deleted {
            return Ok(None);
        }
        if is_gone {
            return Err(NotThere { kind: T::WORD, name: name.to_owned() }.into());
        }
        let Some(object) = told.object else { continue };
        if is(&object, wanted) {
            return Ok(Some(object));
        }
        tell(&object);
        last = Some(object);
    }
}

fn is<T: Watched>(object: &T, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Phase(phase) => object.phase() == *phase,
        Wanted::Condition(kind, status) => {
            object.conditions().iter().any(|it| it.r#type == kind.word() && it.status() == *status)
        }
        Wanted::Usable => object.phase() != Phase::Creating,
        Wanted::Size(bytes) => object.usable_bytes() >= *bytes,
        Wanted::Deleted => false,
    }
}

fn in_vain<T: Watched>(
    name: &str,
    wanted: &Wanted,
    waited: Duration,
    last: Option<&T>,
) -> WaitedInVain {
    let bad = |conditions: &[Condition]| {
        let bad = conditions.iter().find(|it| it.status() != ConditionStatus::True);
        bad.map(|it| format!(" ({})", it.message)).unwrap_or_default()
    };
    let now = last.map_or_else(
        || "not known yet".to_owned(),
        |object| object.phase().word() + &bad(object.conditions()),
    );
    let wanted = match wanted {
        Wanted::Phase(phase) => phase.word(),
        Wanted::Condition(kind, status) => format!("{}={}", kind.word(), status.word()),
        Wanted::Usable => "usable".to_owned(),
        Wanted::Size(bytes) => format!("{} large", ByteSize(*bytes)),
        Wanted::Deleted => "deleted".to_owned(),
    };
    WaitedInVain { kind: T::WORD, name: name.to_owned(), wanted, now, waited }
}

/// Parser for clap.
pub fn kind_and_name(text: &str) -> Result<(Kind, String), String> {
    let kinds = || Kind::ALL.map(Kind::word).join(", ");
    let (kind, name) = text.split_once('/').ok_or("write KIND/NAME, as in volume/demo")?;
    let kind = Kind::of(kind).ok_or_else(|| format!("{kind:?} is none of {}", kinds()))?;
    Ok((kind, name.to_owned()))
}

/// Parser for clap.
fn wanted(text: &str) -> Result<Wanted, String> {
    if text == "deleted" {
        return Ok(Wanted::Deleted);
    }
    let Some(condition) = text.strip_prefix("condition=") else {
        return phase(text).map(Wanted::Phase);
    };
    let (word, status) = condition.split_once('=').unwrap_or((condition, "true"));
    let kind = Type::ALL.into_iter().find(|kind| kind.word().eq_ignore_ascii_case(word));
    let kind = kind.ok_or_else(|| {
        format!("{word:?} is none of the conditions {}", Type::ALL.map(Type::word).join(", "))
    })?;
    let status = match status.to_ascii_lowercase().as_str() {
        "true" => ConditionStatus::True,
        "false" => ConditionStatus::False,
        "unknown" => ConditionStatus::Unknown,
        _ => return Err(format!("{status:?} is none of true, false and unknown")),
    };
    Ok(Wanted::Condition(kind, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_understood_or_explained() {
        assert_eq!(wanted("ready"), Ok(Wanted::Phase(Phase::Ready)));
        assert_eq!(wanted("deleted"), Ok(Wanted::Deleted));
        let condition = Wanted::Condition(Type::Available, ConditionStatus::True);
        assert_eq!(wanted("condition=available"), Ok(condition));
        let condition = Wanted::Condition(Type::Redundant, ConditionStatus::False);
        assert_eq!(wanted("condition=Redundant=False"), Ok(condition));
        for text in ["", "unspecified", "fine", "condition=", "condition=Available=maybe"] {
            assert!(wanted(text).is_err(), "{text}");
        }
        assert_eq!(kind_and_name("volume/demo"), Ok((Kind::Volume, "demo".to_owned())));
        for text in ["", "demo", "thing/demo"] {
            assert!(kind_and_name(text).is_err(), "{text}");
        }
    }
}
