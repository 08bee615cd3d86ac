//! Renders answers as text for people and JSON for programs. Pure; golden files in
//! `tests/golden/cli/` fix the output.

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::config::size::ByteSize;
use crate::control::proto::{Disk, Pod, StatusResponse, Volume};

/// Indented JSON with a final newline.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

pub fn volumes(volumes: &[Volume]) -> String {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            ByteSize(volume.size_bytes).to_string(),
            volume.replicas.to_string(),
            volume.shards.len().to_string(),
            volume.state_name(),
            volume.reason.clone(),
        ]
    });
    let head = ["NAME", "SIZE", "REPLICAS", "SHARDS", "STATE", ""];
    table(&head, &[1, 2, 3], rows, "no volumes")
}

/// One volume with its shards.
pub fn volume(volume: &Volume) -> String {
    let mut text = fields(&[
        ("name", volume.name.clone()),
        ("id", volume.id.to_string()),
        ("size", ByteSize(volume.size_bytes).to_string()),
        ("replicas", volume.replicas.to_string()),
        ("state", state_and_reason(volume)),
        (
            "nbd",
            volume
                .nbd
                .iter()
                .map(|at| format!("nbd://{at}/{}", volume.name))
                .collect::<Vec<_>>()
                .join(" "),
        ),
    ]);
    let rows = volume.shards.iter().flat_map(|shard| {
        shard.replicas.iter().map(|replica| {
            vec![
                shard.id.to_string(),
                replica.member.to_string(),
                replica.pod.to_string(),
                replica.disk.clone(),
                replica.state.clone(),
            ]
        })
    });
    text.push('\n');
    text + &table(&["SHARD", "REPLICA", "POD", "DISK", "STATE"], &[0, 1, 2], rows, "no shards")
}

pub fn pods(pods: &[Pod]) -> String {
    let rows = pods.iter().map(|pod| {
        vec![
            pod.id.to_string(),
            pod.state_name(),
            pod.api.clone(),
            pod.nbd.clone(),
            pod.catalog.clone(),
            pod.disks.to_string(),
            pod.replicas.to_string(),
            pod.version.clone(),
        ]
    });
    let head = ["POD", "STATE", "API", "NBD", "CATALOG", "DISKS", "REPLICAS", "VERSION"];
    table(&head, &[0, 5, 6], rows, "no pods")
}

pub fn disks(disks: &[Disk]) -> String {
    let rows = disks.iter().map(|disk| {
        vec![
            disk.id.clone(),
            disk.pod.to_string(),
            disk.path.clone(),
            ByteSize(disk.used_bytes).rounded(),
            ByteSize(disk.capacity_bytes).rounded(),
            ByteSize(disk.log_used_bytes).rounded(),
            ByteSize(disk.dirty_bytes).rounded(),
            disk.replicas.to_string(),
            disk.state_name(),
            disk.reason.clone(),
        ]
    });
    let head = ["DISK", "POD", "PATH", "USED", "CAPACITY", "LOG", "DIRTY", "REPLICAS", "STATE", ""];
    table(&head, &[1, 3, 4, 5, 6, 7], rows, "no disks")
}

/// The whole cluster.
pub fn status(status: &StatusResponse) -> String {
    let leader = match status.leader_pod {
        0 => "none".to_owned(),
        pod => format!("pod {pod}"),
    };
    let mut text = fields(&[
        ("cluster", status.cluster.clone()),
        ("catalog", format!("revision {}, led by {leader}", status.revision)),
    ]);
    for part in [pods(&status.pods), disks(&status.disks), volumes(&status.volumes)] {
        text.push('\n');
        text.push_str(&part);
    }
    text.push('\n');
    if status.problems.is_empty() {
        text.push_str("nothing needs attention\n");
    }
    for problem in &status.problems {
        text.push_str(&format!("attention: {problem}\n"));
    }
    text
}

fn state_and_reason(volume: &Volume) -> String {
    match volume.reason.as_str() {
        "" => volume.state_name(),
        reason => format!("{} ({reason})", volume.state_name()),
    }
}

fn fields(fields: &[(&str, String)]) -> String {
    fields
        .iter()
        .map(|(name, value)| format!("{name:<9} {value}").trim_end().to_owned() + "\n")
        .collect()
}

/// A table without lines; `right` names the columns that are aligned to the right.
fn table(
    head: &[&str],
    right: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
    empty: &str,
) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    let mut any = false;
    for row in rows {
        any = true;
        table.add_row(row);
    }
    if !any {
        return format!("{empty}\n");
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
