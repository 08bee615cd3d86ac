//! Renders answers as text for people, and as JSON and YAML for programs. Pure; golden files in
//! `tests/golden/cli/` fix the output.

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::cli::time::{io_timeout_text, length, moment};
use crate::config::size::ByteSize;
use crate::control::objects::describe::{Object, about};
use crate::control::objects::judge::some;
use crate::control::proto::{
    Attachment, Class, Condition, ConditionStatus, Disk, Event, Node, Phase, Pod, Problem, Shard,
    StatusResponse, Summary, Volume,
};

/// A kind of object as rows of a table.
pub trait Rows: Object + Serialize {
    /// The word for one.
    const WORD: &'static str;
    /// What a table without rows says.
    const NONE: &'static str;
    const HEAD: &'static [&'static str];
    /// Columns aligned to the right.
    const RIGHT: &'static [usize];
    /// Further columns of a wide table.
    const WIDE: &'static [&'static str];

    fn row(&self) -> Vec<String>;
    fn wide(&self) -> Vec<String>;
    /// Everything, by names. What all objects have is left out.
    fn fields(&self) -> Vec<(&'static str, String)>;
    fn conditions(&self) -> &[Condition];
    /// The object whose events are its history, as in `volume/demo`. Attachments and shards have
    /// those of their volume.
    fn history(&self) -> String {
        about(Self::WORD, &self.meta().name)
    }
    /// What clients can use of it; 0 of what they do not use.
    fn usable_bytes(&self) -> u64 {
        0
    }
}

/// Indented JSON with a final newline.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A YAML document.
pub fn yaml<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_norway::to_string(value)?)
}

/// A table of objects.
pub fn objects<T: Rows>(objects: &[T], is_wide: bool) -> String {
    let rows = objects.iter().map(|object| row(object, is_wide));
    table(&head::<T>(is_wide), T::RIGHT, rows, T::NONE)
}

/// The head of a table of objects.
pub fn head<T: Rows>(is_wide: bool) -> Vec<&'static str> {
    let wide = if is_wide { T::WIDE } else { &[] };
    [T::HEAD, wide].concat()
}

/// One object as a row.
pub fn row<T: Rows>(object: &T, is_wide: bool) -> Vec<String> {
    let mut row = object.row();
    if is_wide {
        row.extend(object.wide());
    }
    row
}

/// One object with all that is known of it. `now_unix_ms`: for lengths of time.
pub fn object<T: Rows>(object: &T, now_unix_ms: u64) -> String {
    let meta = object.meta();
    let mut all = vec![("name", meta.name.clone()), ("uid", meta.uid.clone())];
    if !meta.labels.is_empty() {
        all.push(("labels", labels(object)));
    }
    if meta.created_unix_ms > 0 {
        all.push(("created", moment(meta.created_unix_ms)));
    }
    all.push(("phase", object.phase().word()));
    all.extend(object.fields());
    let mut text = fields(&all);
    if !object.conditions().is_empty() {
        text.push('\n');
        text.push_str(&conditions(object.conditions(), now_unix_ms));
    }
    text
}

fn conditions(conditions: &[Condition], now_unix_ms: u64) -> String {
    let rows = conditions.iter().map(|condition| {
        let since = match condition.since_unix_ms {
            0 => String::new(),
            since => length(now_unix_ms.saturating_sub(since)),
        };
        vec![
            condition.r#type.clone(),
            condition.status().word(),
            since,
            condition.reason.clone(),
            condition.message.clone(),
        ]
    });
    table(&["CONDITION", "STATUS", "FOR", "REASON", ""], &[], rows, "no conditions")
}

/// What is not as it should be, in the words of the conditions; empty: nothing.
fn worst(conditions: &[Condition]) -> String {
    let bad = conditions.iter().find(|it| it.status() != ConditionStatus::True);
    bad.map(|it| it.message.clone()).unwrap_or_default()
}

fn labels<T: Object>(object: &T) -> String {
    let pairs: Vec<String> =
        object.meta().labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

macro_rules! status {
    ($object:expr) => {
        $object.status.clone().unwrap_or_default()
    };
}

macro_rules! conditions {
    () => {
        fn conditions(&self) -> &[Condition] {
            self.status.as_ref().map_or(&[], |status| &status.conditions)
        }
    };
}

impl Rows for Node {
    const WORD: &'static str = "node";
    const NONE: &'static str = "no nodes";
    const HEAD: &'static [&'static str] = &["NODE", "PHASE", "PODS", "LABELS"];
    const RIGHT: &'static [usize] = &[];
    const WIDE: &'static [&'static str] = &["BOOT"];

    fn row(&self) -> Vec<String> {
        let pods: Vec<String> = status!(self).pods.iter().map(u64::to_string).collect();
        vec![self.meta().name.clone(), self.phase().word(), pods.join(","), labels(self)]
    }

    fn wide(&self) -> Vec<String> {
        vec![status!(self).boot_id]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let status = status!(self);
        let pods: Vec<String> = status.pods.iter().map(u64::to_string).collect();
        let lost = if status.lost { "yes" } else { "no" };
        vec![("pods", pods.join(" ")), ("boot", status.boot_id), ("lost", lost.to_owned())]
    }

    conditions!();
}

impl Rows for Pod {
    const WORD: &'static str = "pod";
    const NONE: &'static str = "no pods";
    const HEAD: &'static [&'static str] =
        &["POD", "PHASE", "API", "NBD", "CATALOG", "DISKS", "REPLICAS", "VERSION"];
    const RIGHT: &'static [usize] = &[0, 5, 6];
    const WIDE: &'static [&'static str] = &["NODE", "PEER", "UID"];

    fn row(&self) -> Vec<String> {
        let status = status!(self);
        vec![
            self.meta().name.clone(),
            self.phase().word(),
            status.api,
            status.nbd,
            status.catalog,
            status.disks.to_string(),
            status.replicas.to_string(),
            status.version,
        ]
    }

    fn wide(&self) -> Vec<String> {
        let status = status!(self);
        vec![status.node, status.peer, self.meta().uid.clone()]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let status = status!(self);
        vec![
            ("node", status.node),
            ("api", status.api),
            ("peer", status.peer),
            ("nbd", status.nbd),
            ("catalog", status.catalog),
            ("disks", status.disks.to_string()),
            ("replicas", status.replicas.to_string()),
            ("version", status.version),
        ]
    }

    conditions!();
}

impl Rows for Disk {
    const WORD: &'static str = "disk";
    const NONE: &'static str = "no disks";
    const HEAD: &'static [&'static str] =
        &["DISK", "POD", "PATH", "USED", "CAPACITY", "LOG", "DIRTY", "REPLICAS", "PHASE", ""];
    const RIGHT: &'static [usize] = &[1, 3, 4, 5, 6, 7];
    const WIDE: &'static [&'static str] = &["READ", "READ-DIRTY", "RESYNCS"];

    fn row(&self) -> Vec<String> {
        let status = status!(self);
        vec![
            self.meta().name.clone(),
            status.pod.to_string(),
            status.path,
            ByteSize(status.used_bytes).rounded(),
            ByteSize(status.capacity_bytes).rounded(),
            ByteSize(status.log_used_bytes).rounded(),
            ByteSize(status.dirty_bytes).rounded(),
            status.replicas.to_string(),
            self.phase().word(),
            worst(&status.conditions),
        ]
    }

    fn wide(&self) -> Vec<String> {
        let status = status!(self);
        vec![
            ByteSize(status.read_bytes).rounded(),
            ByteSize(status.read_dirty_bytes).rounded(),
            status.resyncs.to_string(),
        ]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let status = status!(self);
        let of = |used, all| format!("{} of {}", ByteSize(used).rounded(), ByteSize(all).rounded());
        vec![
            ("pod", status.pod.to_string()),
            ("path", status.path),
            ("used", of(status.used_bytes, status.capacity_bytes)),
            ("log", of(status.log_used_bytes, status.log_bytes)),
            ("dirty", ByteSize(status.dirty_bytes).rounded()),
            ("replicas", status.replicas.to_string()),
            ("resyncs", status.resyncs.to_string()),
        ]
    }

    conditions!();
}

impl Rows for Class {
    const WORD: &'static str = "class";
    const NONE: &'static str = "no classes";
    const HEAD: &'static [&'static str] = &["CLASS", "REPLICAS", "DOMAIN", "OVERCOMMIT", "TIMEOUT"];
    const RIGHT: &'static [usize] = &[1, 3];
    const WIDE: &'static [&'static str] = &["LABELS"];

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            self.meta().name.clone(),
            spec.replicas.to_string(),
            spec.failure_domain.clone(),
            format!("{}%", spec.overcommit_percent),
            io_timeout_text(spec.io_timeout_ms),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![labels(self)]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            ("replicas", spec.replicas.to_string()),
            ("domain", spec.failure_domain.clone()),
            ("overcommit", format!("{}%", spec.overcommit_percent)),
            ("timeout", io_timeout_text(spec.io_timeout_ms)),
        ]
    }

    conditions!();
}

/// The size that clients can use, and the one that is wanted if that is another.
fn size(is_bytes: u64, wanted_bytes: u64) -> String {
    match is_bytes == wanted_bytes {
        true => ByteSize(is_bytes).to_string(),
        false => format!("{} -> {}", ByteSize(is_bytes), ByteSize(wanted_bytes)),
    }
}

impl Rows for Volume {
    const WORD: &'static str = "volume";
    const NONE: &'static str = "no volumes";
    const HEAD: &'static [&'static str] =
        &["NAME", "SIZE", "CLASS", "REPLICAS", "SHARDS", "PHASE", ""];
    const RIGHT: &'static [usize] = &[1, 3, 4];
    const WIDE: &'static [&'static str] = &["UID", "LABELS"];

    fn row(&self) -> Vec<String> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), status!(self));
        vec![
            self.meta().name.clone(),
            size(status.size_bytes, spec.size_bytes),
            spec.class,
            spec.replicas.to_string(),
            status.shards.to_string(),
            self.phase().word(),
            worst(&status.conditions),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.meta().uid.clone(), labels(self)]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), status!(self));
        let name = &self.meta().name;
        let nbd: Vec<String> = status.nbd.iter().map(|at| format!("nbd://{at}/{name}")).collect();
        let mut fields = vec![
            ("id", status.id.to_string()),
            ("size", size(status.size_bytes, spec.size_bytes)),
            ("class", spec.class),
            ("replicas", spec.replicas.to_string()),
            ("access", if spec.closed { "attachments only" } else { "everybody" }.to_owned()),
            ("timeout", io_timeout_text(status.io_timeout_ms)),
            ("shards", format!("{} of {}", status.shards, ByteSize(status.stripe_bytes))),
            ("nbd", nbd.join(" ")),
        ];
        if status.purge_unix_ms > 0 {
            fields.push(("deleted", moment(status.deleted_unix_ms)));
            fields.push(("purged", moment(status.purge_unix_ms)));
        }
        if let Some(progress) = &status.progress {
            let text = format!("{} of {} {}", progress.done, progress.total, progress.unit);
            fields.push(("progress", text));
        }
        fields
    }

    fn usable_bytes(&self) -> u64 {
        self.status.as_ref().map_or(0, |status| status.size_bytes)
    }

    conditions!();
}

impl Rows for Shard {
    const WORD: &'static str = "shard";
    const NONE: &'static str = "no shards";
    const HEAD: &'static [&'static str] =
        &["SHARD", "VOLUME", "POSITION", "LEADER", "REPLICAS", "PHASE", ""];
    const RIGHT: &'static [usize] = &[0, 2, 3];
    const WIDE: &'static [&'static str] = &["MEMBERS"];

    fn row(&self) -> Vec<String> {
        let status = status!(self);
        let leader = match status.leader_pod {
            0 => "none".to_owned(),
            pod => pod.to_string(),
        };
        let pods: Vec<String> = status.replicas.iter().map(|it| it.pod.to_string()).collect();
        vec![
            self.meta().name.clone(),
            status.volume,
            status.position.to_string(),
            leader,
            pods.join(","),
            self.phase().word(),
            worst(&status.conditions),
        ]
    }

    fn wide(&self) -> Vec<String> {
        let replicas = status!(self).replicas;
        let members = replicas.iter().map(|it| format!("{}:{}:{}", it.member, it.pod, it.state));
        vec![members.collect::<Vec<_>>().join(" ")]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let status = status!(self);
        let mut fields = vec![
            ("volume", status.volume),
            ("position", status.position.to_string()),
            ("leader", format!("pod {}", status.leader_pod)),
        ];
        for it in &status.replicas {
            let text = format!("{} on pod {}, disk {}: {}", it.member, it.pod, it.disk, it.state);
            fields.push(("replica", text));
        }
        fields
    }

    fn history(&self) -> String {
        let volume = self.status.as_ref().map(|status| status.volume.as_str());
        about("volume", volume.unwrap_or_default())
    }

    conditions!();
}

impl Rows for Attachment {
    const WORD: &'static str = "attachment";
    const NONE: &'static str = "no attachments";
    const HEAD: &'static [&'static str] = &["VOLUME", "NODE", "MODE", "PHASE", ""];
    const RIGHT: &'static [usize] = &[];
    const WIDE: &'static [&'static str] = &["UID", "SINCE"];

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            spec.volume.clone(),
            spec.node.clone(),
            spec.mode().word().to_owned(),
            self.phase().word(),
            worst(&status!(self).conditions),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.meta().uid.clone(), moment(self.meta().created_unix_ms)]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            ("volume", spec.volume.clone()),
            ("node", spec.node.clone()),
            ("mode", spec.mode().word().to_owned()),
            ("timeout", io_timeout_text(spec.io_timeout_ms)),
            ("id", status!(self).id.to_string()),
        ]
    }

    fn history(&self) -> String {
        let volume = self.spec.as_ref().map(|spec| spec.volume.as_str());
        about("volume", volume.unwrap_or_default())
    }

    conditions!();
}

impl Rows for Event {
    const WORD: &'static str = "event";
    const NONE: &'static str = "no events";
    const HEAD: &'static [&'static str] = &["LAST", "OBJECT", "REASON", "COUNT", ""];
    const RIGHT: &'static [usize] = &[3];
    const WIDE: &'static [&'static str] = &["FIRST", "CONDITION", "SEVERITY", "OBJECT UID"];

    fn row(&self) -> Vec<String> {
        vec![
            moment(self.last_unix_ms),
            about(&self.object_kind, &self.object_name),
            self.reason.clone(),
            self.count.to_string(),
            self.message.clone(),
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![
            moment(self.first_unix_ms),
            self.condition.clone(),
            self.severity().word(),
            self.object_uid.clone(),
        ]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let heads = Self::HEAD.iter().chain(Self::WIDE).map(|head| match *head {
            "" => "message",
            head => head,
        });
        heads.zip(self.row().into_iter().chain(self.wide())).collect()
    }

    fn conditions(&self) -> &[Condition] {
        &[]
    }
}

/// The whole cluster, on one screen. `now_unix_ms`: for lengths of time.
pub fn status(status: &StatusResponse, now_unix_ms: u64) -> String {
    let leader = match status.leader_pod {
        0 => "none".to_owned(),
        pod => format!("pod {pod}"),
    };
    let catalog = status.catalog.unwrap_or_default();
    let voters = format!("{} of {} voters up", catalog.voters_up, catalog.voters);
    let space = |bytes| ByteSize(bytes).rounded();
    let of = |summary: &Option<Summary>| summary.as_ref().map(counts).unwrap_or_default();
    let mut text = fields(&[
        ("cluster", status.cluster.clone()),
        ("catalog", format!("revision {}, led by {leader}, {voters}", status.revision)),
        ("pods", of(&status.pods)),
        ("disks", of(&status.disks)),
        ("volumes", format!("{}; {}", of(&status.volumes), some(status.shards, "shard", "shards"))),
        ("space", format!("{} of {} used", space(status.used_bytes), space(status.capacity_bytes))),
    ]);
    text.push('\n');
    if status.problems.is_empty() {
        return text + "nothing needs attention\n";
    }
    for problem in &status.problems {
        text.push_str(&attention(problem, now_unix_ms));
    }
    let more = status.problems_total.saturating_sub(status.problems.len() as u64);
    if more > 0 {
        text.push_str(&format!("and {more} more\n"));
    }
    text + "\n`holdfast explain KIND NAME` tells more of one of them\n"
}

fn attention(problem: &Problem, now_unix_ms: u64) -> String {
    let Problem { kind, name, message, since_unix_ms, .. } = problem;
    let phase = problem.phase().word();
    let since = length(now_unix_ms.saturating_sub(*since_unix_ms));
    let why = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("attention: {kind} {name} is {phase}, for {since}{why}\n")
}

/// `4: 3 up, 1 unreachable`.
fn counts(summary: &Summary) -> String {
    let of = |count: &crate::control::proto::PhaseCount| {
        let phase = Phase::try_from(count.phase).unwrap_or_default();
        format!("{} {}", count.count, phase.word())
    };
    let phases: Vec<String> = summary.phases.iter().map(of).collect();
    match phases.is_empty() {
        true => summary.total.to_string(),
        false => format!("{}: {}", summary.total, phases.join(", ")),
    }
}

fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(9);
    fields
        .iter()
        .map(|(name, value)| format!("{name:<width$} {value}").trim_end().to_owned() + "\n")
        .collect()
}

/// A table without lines; `right` names the columns that are aligned to the right.
pub fn table(
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
