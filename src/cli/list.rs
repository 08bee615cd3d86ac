//! What `list` and `show` do for every noun.

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::exit::UsageError;
use crate::cli::noun::{Noun, Watched, all};
use crate::cli::output::{line, print};
use crate::cli::render;
use crate::cli::watch::Follow;
use crate::control::objects::selector::Selector;
use crate::control::observed::unix_ms;
use crate::control::proto::{Change, Phase, Query, View};

/// Which objects to list.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Which {
    /// Labels that the objects must have, as in zone=a,tier!=gold,!old
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<String>,
    /// Only objects in this phase, as in degraded; may be repeated
    #[arg(long, value_name = "PHASE", value_parser = phase)]
    phase: Vec<Phase>,
}

impl Which {
    pub fn query(&self) -> Query {
        Query {
            selector: self.selector.clone().unwrap_or_default(),
            phases: self.phase.iter().map(|phase| (*phase).into()).collect(),
            ..Query::default()
        }
    }
}

/// Which objects to list, for those that can be watched.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct WhichWatched {
    #[command(flatten)]
    which: Which,
    /// Go on with the changes until interrupted
    #[arg(short, long)]
    watch: bool,
}

/// Parser for clap.
fn selector(text: &str) -> Result<String, String> {
    Selector::parse(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Parser for clap.
pub fn phase(text: &str) -> Result<Phase, String> {
    Phase::of(text).ok_or_else(|| format!("{text:?} is no phase such as ready, degraded or up"))
}

/// All objects that are asked for. `within`: the object that they must belong to.
pub async fn list<T: Noun>(
    client: &Client,
    which: &Which,
    within: &str,
    output: Output,
) -> anyhow::Result<String> {
    let mut objects = all::<T>(client, which.query(), within).await?;
    if T::KIND == crate::control::objects::key::Kind::Volume {
        objects.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
    }
    match output {
        Output::Table => Ok(render::objects(&objects, false)),
        Output::Wide => Ok(render::objects(&objects, true)),
        Output::Json => render::json(&objects),
        Output::Yaml => render::yaml(&objects),
    }
}

/// Lists, or watches.
pub async fn list_or_watch<T: Watched>(
    client: &Client,
    which: &WhichWatched,
    within: &str,
    output: Output,
) -> anyhow::Result<String> {
    if !which.watch {
        return list::<T>(client, &which.which, within, output).await;
    }
    if !within.is_empty() {
        return Err(UsageError("--watch cannot be combined with --pod".to_owned()).into());
    }
    watch::<T>(client, which.which.query(), output).await?;
    Ok(String::new())
}

/// Prints changes until nobody reads them.
pub async fn watch<T: Watched>(
    client: &Client,
    query: Query,
    output: Output,
) -> anyhow::Result<()> {
    watch_within::<T>(client, query, "", output).await
}

/// As [`watch`], of objects that belong to another.
pub async fn watch_within<T: Watched>(
    client: &Client,
    query: Query,
    within: &str,
    output: Output,
) -> anyhow::Result<()> {
    let is_wide = output == Output::Wide;
    let view = if is_wide { View::Full } else { View::Basic };
    let mut follow = Follow::<T>::new(client, Query { view: view.into(), ..query }, within);
    let (mut present, mut widths) = (Some(Vec::new()), Vec::new());
    let head: Vec<String> = render::head::<T>(is_wide).into_iter().map(str::to_owned).collect();
    loop {
        let told = follow.next().await?;
        let word = told.change.as_str_name().trim_start_matches("CHANGE_").to_ascii_lowercase();
        let Some(object) = told.object else {
            // Everything that is there is known now: the columns have their widths.
            for row in present.take().into_iter().flatten() {
                tell(&mut widths, row)?;
            }
            continue;
        };
        match output {
            Output::Json => {
                let told = serde_json::json!({ "change": word, "object": object });
                line(&told.to_string())?;
            }
            Output::Yaml => {
                let told = serde_json::json!({ "change": word, "object": object });
                print(&format!("---\n{}", render::yaml(&told)?))?;
            }
            Output::Table | Output::Wide => {
                // Of what is gone, nothing but the name is known.
                let row = match told.change {
                    Change::Deleted => vec![object.meta().name.clone()],
                    _ => render::row(&object, is_wide),
                };
                let row = [vec![word], row].concat();
                match &mut present {
                    Some(rows) if told.change == Change::Present => {
                        if rows.is_empty() {
                            rows.push([vec!["CHANGE".to_owned()], head.clone()].concat());
                        }
                        widen(&mut widths, &row);
                        widen(&mut widths, &rows[0]);
                        rows.push(row);
                    }
                    _ => tell(&mut widths, row)?,
                }
            }
        }
    }
}

fn widen(widths: &mut Vec<usize>, row: &[String]) {
    widths.resize(widths.len().max(row.len()), 0);
    for (width, cell) in widths.iter_mut().zip(row) {
        *width = (*width).max(cell.chars().count());
    }
}

/// Prints a row whose columns are at least as wide as those before.
fn tell(widths: &mut Vec<usize>, row: Vec<String>) -> anyhow::Result<()> {
    widen(widths, &row);
    let cells = row.iter().zip(widths.iter()).map(|(cell, width)| format!("{cell:<width$}"));
    Ok(line(cells.collect::<Vec<_>>().join("  ").trim_end())?)
}

/// One object.
pub async fn show<T: Noun>(client: &Client, name: &str, output: Output) -> anyhow::Result<String> {
    one(&T::get(client, name).await?, output)
}

/// What a deletion prints.
pub fn deleted(kind: &str, name: &str, output: Output) -> anyhow::Result<String> {
    let deleted = serde_json::json!({ "deleted": name });
    match output {
        Output::Table | Output::Wide => Ok(format!("{kind} {name} is deleted\n")),
        Output::Json => render::json(&deleted),
        Output::Yaml => render::yaml(&deleted),
    }
}

/// Parser for clap.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in tier=gold")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Prints one object.
pub fn one<T: Noun>(object: &T, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Table | Output::Wide => Ok(render::object(object, unix_ms())),
        Output::Json => render::json(object),
        Output::Yaml => render::yaml(object),
    }
}
