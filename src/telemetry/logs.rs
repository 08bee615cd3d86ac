//! Logs: lines on standard error, JSON for servers and text for people.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// The client of Kubernetes logs every failed try as an error. Who tries says it in its own words,
/// and not each time.
const KUBERNETES: &str = "kube_client";

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("`log.level` is {level:?}, which is neither a level nor a list of directives")]
    Level {
        level: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("could not set up logs")]
    Install(#[source] tracing_subscriber::util::TryInitError),
}

/// Sets up the logs of this process, once. Panics are logged, too.
pub fn start(log: &Log) -> Result<(), LogsError> {
    let filter = EnvFilter::builder()
        .parse(&log.level)
        .map_err(|source| LogsError::Level { level: log.level.clone(), source })?;
    let filter = match log.level.contains(KUBERNETES) {
        true => filter,
        false => filter.add_directive(format!("{KUBERNETES}=off").parse().expect("a directive")),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder.finish().try_init(),
    }
    .map_err(LogsError::Install)?;
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name(), "a thread panicked: {panic}");
    }));
    Ok(())
}
