//! `holdfast cluster ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::control::proto::{GetLevelRequest, GetLevelResponse, RaiseLevelRequest};

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show how far an upgrade of all pods is, or finish it
    Upgrade {
        /// Raise the feature level to the newest that every pod supports. There is no way back
        #[arg(long)]
        finish: bool,
    },
}

pub async fn run(
    client: &Client,
    command: ClusterCommand,
    output: Output,
) -> anyhow::Result<String> {
    let ClusterCommand::Upgrade { finish } = command;
    if finish {
        let answer = client.cluster().raise_level(RaiseLevelRequest { level: 0 }).await;
        client.check("raise the feature level", answer)?;
    }
    let answer = client.cluster().get_level(GetLevelRequest {}).await;
    let levels = client.check("show the feature level", answer)?;
    match output {
        Output::Table | Output::Wide => Ok(told(&levels)),
        Output::Json => render::json(&levels),
        Output::Yaml => render::yaml(&levels),
    }
}

/// The levels, in sentences.
pub fn told(levels: &GetLevelResponse) -> String {
    let GetLevelResponse { level, level_of_all, newest_level, older_pods } = levels;
    let mut text = format!("the cluster is at feature level {level}\n");
    if level_of_all > level {
        text += &format!(
            "every pod supports level {level_of_all}: `holdfast cluster upgrade --finish` raises \
             it, and there is no way back\n"
        );
    }
    if newest_level > level_of_all {
        let pods: Vec<String> = older_pods.iter().map(u64::to_string).collect();
        text += &format!(
            "some pods support level {newest_level}, but not pods {}: upgrade them\n",
            pods.join(", ")
        );
    }
    if newest_level == level {
        text += "no pod supports a newer one\n";
    }
    text
}
