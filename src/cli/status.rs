//! `holdfast status`

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::control::observed::unix_ms;
use crate::control::proto::StatusRequest;

pub async fn run(client: &Client, output: Output) -> anyhow::Result<String> {
    let answer = client.cluster().status(StatusRequest {}).await;
    let status = client.check("get the status of the cluster", answer)?;
    match output {
        Output::Table | Output::Wide => Ok(render::status(&status, unix_ms())),
        Output::Json => render::json(&status),
        Output::Yaml => render::yaml(&status),
    }
}
