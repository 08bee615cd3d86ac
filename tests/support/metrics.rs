//! Reads the metrics of a pod, and takes nothing that the OpenMetrics text format does not allow.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::ports::{HTTP_PORT, port_of};

/// Only ends tests that hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks a pod for a page: status and body.
pub fn get(pod: usize, offset: u16, path: &str) -> std::io::Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port_of(HTTP_PORT, pod, offset)));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers, then a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Ok((status, body.to_owned()))
}

/// All series of a pod.
pub fn scrape(pod: usize, offset: u16) -> Scrape {
    let (status, text) = get(pod, offset, "/metrics").expect("a pod answers");
    assert_eq!(status, 200, "{text}");
    Scrape::parse(&text)
}

/// One answer, with each sample by its name and labels as the text has them.
pub struct Scrape {
    pub families: BTreeMap<String, Family>,
    pub samples: BTreeMap<String, f64>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub kind: String,
    pub unit: String,
}

impl Scrape {
    pub fn parse(text: &str) -> Scrape {
        let (mut families, mut samples) = (BTreeMap::new(), BTreeMap::new());
        let text = text.strip_suffix("# EOF\n").expect("the text ends with its end mark");
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = comment(line, "HELP");
            assert!(!help.is_empty(), "{line}");
            let (typed, kind) = comment(lines.next().unwrap(), "TYPE");
            assert_eq!(typed, name);
            let is_unit = |line: &&str| line.starts_with("# UNIT ");
            let unit = lines.next_if(is_unit).map_or("", |line| {
                let (of, unit) = comment(line, "UNIT");
                assert_eq!(of, name);
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
                unit
            });
            let mut count = 0;
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (series, value) = sample(line, name, kind);
                assert!(samples.insert(series, value).is_none(), "twice: {line}");
                count += 1;
            }
            assert!(count > 0, "{name} has no samples");
            let family = Family { kind: kind.to_owned(), unit: unit.to_owned() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} comes twice");
        }
        let scrape = Scrape { families, samples };
        scrape.check_histograms();
        scrape
    }

    /// The value of a series, written as in the text.
    pub fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("{series} is not there"))
    }

    /// The sum over all series of a name.
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        self.samples.iter().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
    }

    /// All series that only grow.
    pub fn growing(&self) -> impl Iterator<Item = (&String, f64)> {
        let grows = |series: &str| {
            let name = series.split('{').next().unwrap();
            ["_total", "_bucket", "_count", "_sum"].iter().any(|ending| name.ends_with(ending))
        };
        let all = self.samples.iter().filter(move |(series, _)| grows(series));
        all.map(|(series, value)| (series, *value))
    }

    /// Buckets add up, to the count in the end, and their bounds rise.
    fn check_histograms(&self) {
        let mut before: Option<(String, f64, f64)> = None;
        let mut ended = 0;
        for (name, family) in &self.families {
            if family.kind != "histogram" {
                continue;
            }
            let mut buckets: Vec<(String, f64, f64)> = Vec::new();
            for (series, value) in &self.samples {
                let Some(labels) = series.strip_prefix(&format!("{name}_bucket{{")) else {
                    continue;
                };
                let le = labels.split("le=\"").nth(1).and_then(|le| le.split('"').next()).unwrap();
                let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                let rest = labels.replace(&format!("le=\"{le}\""), "");
                buckets.push((rest.replace('}', "").trim_matches(',').to_owned(), bound, *value));
            }
            buckets
                .sort_by(|one, other| (&one.0, one.1).partial_cmp(&(&other.0, other.1)).unwrap());
            assert!(!buckets.is_empty(), "{name} has buckets");
            for (labels, bound, value) in buckets {
                if let Some((_, _, less)) = before.take().filter(|(of, ..)| *of == labels) {
                    assert!(less <= value, "{name}{{{labels}}} at {bound}");
                }
                if bound.is_infinite() {
                    let labels = match labels.is_empty() {
                        true => String::new(),
                        false => format!("{{{labels}}}"),
                    };
                    assert_eq!(self.get(&format!("{name}_count{labels}")), value);
                    assert!(self.get(&format!("{name}_sum{labels}")) >= 0.0);
                    ended += 1;
                }
                before = Some((labels, bound, value));
            }
            before = None;
        }
        assert!(ended > 0, "some histogram");
    }
}

/// Name and text of a comment of this kind.
fn comment<'a>(line: &'a str, kind: &str) -> (&'a str, &'a str) {
    let rest = line.strip_prefix(&format!("# {kind} ")).unwrap_or_else(|| panic!("{kind}: {line}"));
    let (name, text) = rest.split_once(' ').unwrap_or_else(|| panic!("{kind}: {line}"));
    assert!(is_name(name), "{line}");
    (name, text)
}

fn is_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(rest)
}

/// The series and the value of a sample of this family.
fn sample(line: &str, family: &str, kind: &str) -> (String, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("labels end")),
    };
    let endings: &[&str] = match kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        other => panic!("a type that we do not use: {other}"),
    };
    let ending = name.strip_prefix(family).unwrap_or_else(|| panic!("not of {family}: {line}"));
    assert!(endings.contains(&ending), "of {kind}: {line}");
    assert!(kind == "gauge" || value >= 0.0, "{line}");
    assert!(kind != "info" || value == 1.0, "{line}");
    check_labels(labels, line);
    (series.to_owned(), value)
}

/// `name="value",...`, with `\\`, `\"` and `\n` in values.
fn check_labels(labels: &str, line: &str) {
    let mut rest = labels;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("a label: {line}"));
        assert!(is_name(name) && !names.contains(&name), "{line}");
        names.push(name);
        let mut escaped = false;
        let end = value.find(|c: char| {
            let ends = c == '"' && !escaped;
            assert!(!escaped || matches!(c, '\\' | '"' | 'n'), "an escape: {line}");
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = &value[end.unwrap_or_else(|| panic!("a value ends: {line}")) + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("a comma: {line}"));
            assert!(!rest.is_empty(), "nothing after a comma: {line}");
        }
    }
}
