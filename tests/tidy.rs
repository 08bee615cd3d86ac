//! The rules of the code base that the compiler does not check: imports between parts, forbidden
//! tokens in pure modules, length of files and lines. Every violation says what to do, and every
//! rule has a test that it fires.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/circles.rs"]
mod circles;

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;
/// Files of one folder that may have an `impl Name` of the same type.
const IMPL_FILES_MAX: usize = 3;

/// Vocabulary and small tools without logic of their own: any part may import these.
const SHARED: &[&str] = &["types", "limits", "level", "slab", "planted", "fields"];

/// The crate's parts that each part of `src/` may import, besides itself and [`SHARED`]. An entry
/// `io::buffer` allows that module only. For unlisted parts (`main`, `cli`, `control`, `worker`,
/// `sim`) only [`FORBIDDEN`] holds.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("limits", &[]),
    ("level", &[]),
    ("slab", &[]),
    ("planted", &[]),
    ("log", &[]),
    ("fields", &[]),
    ("view", &[]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("io", &[]),
    ("security", &["io::buffer", "io::stream", "io::driver"]),
    ("net", &["io::buffer", "io::stream", "io::driver"]),
    ("replica", &["log", "io::buffer"]),
    ("store", &["log", "io::buffer", "io::stream"]),
    ("volume", &["view", "io::buffer"]),
    ("front", &["view", "volume", "io::buffer", "io::stream"]),
];

/// Importer, imported: forbidden imports of the upper parts.
const FORBIDDEN: &[(&str, &str)] = &[
    ("worker", "cli"),
    ("worker", "control"),
    ("worker", "sim"),
    ("attach", "cli"),
    ("attach", "kubernetes"),
    ("attach", "sim"),
    ("attach", "worker"),
    ("control", "attach"),
    ("control", "cli"),
    ("control", "csi"),
    ("control", "kubernetes"),
    ("control", "sim"),
    ("csi", "cli"),
    ("csi", "kubernetes"),
    ("csi", "sim"),
    ("csi", "worker"),
    ("worker", "csi"),
    ("worker", "kubernetes"),
    ("kubernetes", "cli"),
    ("kubernetes", "sim"),
    ("doctor", "cli"),
    ("doctor", "kubernetes"),
    ("doctor", "sim"),
    ("doctor", "worker"),
];

/// Tokens of clocks, I/O, threads and chance in a pure module, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("async", "return outputs from `poll` instead"),
    ("tokio", "only the control plane, the drivers and the command line have a runtime"),
    ("std::fs", "ask for an effect; files belong to io and worker"),
    ("std::thread", "threads belong to worker"),
    ("std::env", "take it as an argument"),
    ("Instant", "take `now: Mono` as an argument"),
    ("SystemTime", "take `now: Mono` as an argument"),
    ("thread_rng", "take a seed and use `mix64`"),
    ("rand::", "take a seed and use `mix64`"),
    ("TcpStream", "sockets belong to io"),
];

const UNFINISHED: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("X", "XX"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A source file, prepared for the rules.
struct Source<'a> {
    /// Relative to the repository.
    path: &'a str,
    lines: Vec<&'a str>,
    /// The lines without comments and without the content of strings.
    code: Vec<String>,
    /// Index of the line where the tests begin; the number of lines without tests.
    tests_from: usize,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Source<'a> {
        let lines: Vec<&str> = text.lines().collect();
        let code: Vec<String> = lines.iter().map(|line| code_of(line)).collect();
        let all_tests = path.starts_with("tests/")
            || path.starts_with("src/testing/")
            || path.ends_with("_test.rs");
        let tests_from = match all_tests {
            true => 0,
            false => first_test_module(&lines).unwrap_or(lines.len()),
        };
        Source { path, lines, code, tests_from }
    }

    /// The first folder or file below `src/`: `net` for `src/net/link.rs`.
    fn part(&self) -> Option<&'a str> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?;
        Some(first.strip_suffix(".rs").unwrap_or(first))
    }

    /// Code outside tests, with line numbers from 1.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.code.iter().map(String::as_str)).take(self.tests_from)
    }

    fn violation(&self, line: usize, what: String) -> Violation {
        Violation { file: self.path.to_string(), line, what }
    }
}

/// Index of the `#[cfg(test)]` of the first inline module.
fn first_test_module(lines: &[&str]) -> Option<usize> {
    (0..lines.len()).find(|at| {
        lines[*at].trim() == "#[cfg(test)]"
            && lines[at + 1..]
                .iter()
                .map(|line| line.trim())
                .find(|line| !line.starts_with("#["))
                .is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
    })
}

/// A line without its comment, and with empty strings.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '"' => {
                in_string = !in_string;
                code.push('"');
            }
            _ if in_string => {}
            // A quote as a character is not the start of a string.
            '\'' if chars.peek() == Some(&'"') => drop(chars.next()),
            '/' if chars.peek() == Some(&'/') => return code,
            _ => code.push(c),
        }
    }
    code
}

/// True when `token` is a whole word of `code`.
fn has_token(code: &str, token: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(token).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + token.len()..].chars().next().is_some_and(is_word);
        !before && (!after || token.ends_with("::"))
    })
}

/// Paths below `crate::` with their first line; `use crate::{a, b::c}` gives one per leaf.
fn crate_paths<'a>(code: impl Iterator<Item = (usize, &'a str)>) -> Vec<(usize, String)> {
    let code: Vec<(usize, &str)> = code.collect();
    let mut paths = Vec::new();
    for (position, (line, text)) in code.iter().enumerate() {
        for (at, _) in text.match_indices("crate::") {
            let rest = &text[at + "crate::".len()..];
            let Some(group) = rest.strip_prefix('{') else {
                paths.push((*line, path_at(rest)));
                continue;
            };
            let following = code[position + 1..].iter().map(|(_, text)| *text);
            let whole: String = std::iter::once(group).chain(following).collect();
            paths.extend(group_items(&whole).into_iter().map(|item| (*line, item)));
        }
    }
    paths
}

fn path_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
}

/// The items of a `{...}` group without its opening brace, at its own level only.
fn group_items(text: &str) -> Vec<String> {
    let (mut items, mut item, mut depth) = (Vec::new(), String::new(), 0);
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(std::mem::take(&mut item)),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    items.push(item);
    let items = items.iter().map(|item| path_at(item.trim()));
    items.filter(|item| !item.is_empty()).collect()
}

fn import_directions(source: &Source<'_>) -> Vec<Violation> {
    let Some(part) = source.part() else {
        return Vec::new();
    };
    let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == part);
    let permitted = |path: &str| {
        let imported = path.split("::").next().unwrap_or_default();
        let below = |entry: &&str| path == *entry || path.starts_with(&format!("{entry}::"));
        let entries_of = |entries: &[&str]| SHARED.iter().chain(entries).any(below);
        match allowed {
            _ if imported == part => true,
            Some((_, entries)) => entries_of(entries),
            None => !FORBIDDEN.contains(&(part, imported)),
        }
    };
    crate_paths(source.production())
        .into_iter()
        .filter(|(_, path)| !permitted(path))
        .map(|(line, path)| {
            let what = format!(
                "`{part}` must not import `crate::{path}`: imports point down only (see \
                 ARCHITECTURE.md); move what is shared to types, or pass it in from worker"
            );
            source.violation(line, what)
        })
        .collect()
}

/// Pure modules of the control plane, which the simulator runs too.
const PURE_CONTROL: &[&str] = &[
    "catalog_member.rs",
    "command.rs",
    "creation.rs",
    "names.rs",
    "placement.rs",
    "reason.rs",
    "reconcile.rs",
    "registration.rs",
    "state.rs",
    "state/audience.rs",
    "state/recent.rs",
    "sync/follower.rs",
    "sync/mirror.rs",
    "sync/resolve.rs",
    "sync/update.rs",
    "sync/wants.rs",
];

/// Modules without clock, socket, file, thread, randomness and `async`.
fn is_pure(path: &str) -> bool {
    let Some(inside) = path.strip_prefix("src/") else {
        return false;
    };
    let pure_folder = ["replica/", "net/", "volume/", "store/", "control/objects/"]
        .iter()
        .any(|folder| inside.starts_with(folder));
    let vocabulary = ["types.rs", "log.rs", "fields.rs", "limits.rs", "level.rs", "view.rs"];
    let vocabulary = vocabulary.contains(&inside);
    let protocol = inside.starts_with("front/") && !inside.ends_with("server.rs");
    let attach = ["relay/hello.rs", "relay/line.rs", "relay/welcome.rs", "kernel/netlink.rs"];
    let attach = attach.iter().any(|name| inside.strip_prefix("attach/") == Some(name));
    let kubernetes = [
        "authorities.rs",
        "bootstrap.rs",
        "doctor.rs",
        "failover.rs",
        "leases.rs",
        "review.rs",
        "storage_of.rs",
        "template.rs",
    ];
    let kubernetes = kubernetes.iter().any(|name| inside.strip_prefix("kubernetes/") == Some(name));
    let decisions = PURE_CONTROL.iter().any(|name| inside.strip_prefix("control/") == Some(name));
    let is_edge =
        ["security/files.rs", "security/issue.rs", "security/random.rs"].contains(&inside);
    let security = inside.starts_with("security/") && !is_edge;
    (pure_folder && inside != "store/index/rocks.rs")
        || vocabulary
        || protocol
        || attach
        || security
        || kubernetes
        || inside == "doctor/machine.rs"
        || inside.starts_with("kubernetes/manifests/")
        || decisions
}

fn purity(source: &Source<'_>) -> Vec<Violation> {
    if !is_pure(source.path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, code) in source.production() {
        for (token, remedy) in IMPURE.iter().filter(|(token, _)| has_token(code, token)) {
            let what = format!("`{token}` in a pure module: {remedy}");
            found.push(source.violation(line, what));
        }
    }
    found
}

fn sizes(source: &Source<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    if source.path.starts_with("src/") && source.lines.len() > LINES_MAX {
        let what = format!(
            "{} lines, more than {LINES_MAX}: give the second main thing in it its own file",
            source.lines.len()
        );
        found.push(source.violation(source.lines.len(), what));
    }
    for (number, line) in (1..).zip(&source.lines) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let what = format!("{columns} columns, more than {COLUMNS_MAX}: break the line");
            found.push(source.violation(number, what));
        }
    }
    found
}

fn unfinished(source: &Source<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(&source.lines) {
        for token in UNFINISHED
            .iter()
            .filter(|token| has_token(line, token.trim_end_matches("!(")) && line.contains(**token))
        {
            let what = format!("`{token}`: finish it, or write it down in ROADMAP.md");
            found.push(source.violation(number, what));
        }
    }
    found
}

fn ignored_tests(source: &Source<'_>) -> Vec<Violation> {
    let marks = |code: &&str| code.trim_start().starts_with("#[ignore");
    (1..)
        .zip(source.code.iter().map(String::as_str))
        .filter(|(_, code)| marks(code))
        .map(|(line, _)| {
            let what = "an ignored test proves nothing: make it run, or delete it";
            source.violation(line, what.to_string())
        })
        .collect()
}

fn glob_imports(source: &Source<'_>) -> Vec<Violation> {
    source
        .production()
        .filter(|(_, code)| {
            let code = code.trim_start();
            (code.starts_with("use ") || code.starts_with("pub use "))
                && (code.contains("::*;") || code.contains("::*}") || code.contains("::*,"))
                && !code.contains("messages::*")
        })
        .map(|(line, _)| {
            let what = "a glob import hides where names come from: name them";
            source.violation(line, what.to_string())
        })
        .collect()
}

/// Logs are read by people: a field that is given as `?value`, or `{:?}` in a text, shows our own
/// types as the compiler writes them, as in `Some(MemberId(7))`.
fn debug_in_logs(source: &Source<'_>) -> Vec<Violation> {
    let (mut found, mut depth) = (Vec::new(), 0i64);
    for (line, code) in source.production() {
        let begins = LOG_CALLS.iter().filter_map(|call| code.find(call)).min();
        let inside = match (depth > 0, begins) {
            (true, _) => code,
            (false, Some(at)) => &code[at..],
            (false, None) => continue,
        };
        let parens = |paren: char| inside.chars().filter(|char| *char == paren).count() as i64;
        depth = (depth + parens('(') - parens(')')).max(0);
        let mut fields = inside.split([',', '(', '=']).map(str::trim_start);
        if fields.any(|field| field.starts_with('?')) || source.lines[line - 1].contains(":?}") {
            let what = "a log line with a Debug form: give values their Display, and an optional \
                        one as `Option` of a number or text";
            found.push(source.violation(line, what.to_string()));
        }
    }
    found
}

const LOG_CALLS: &[&str] = &[
    "tracing::trace!(",
    "tracing::debug!(",
    "tracing::info!(",
    "tracing::warn!(",
    "tracing::error!(",
];

/// Variant names that do not tell the error.
const CATCH_ALL: &[&str] = &[
    "Error", "Other", "Generic", "Internal", "Message", "Custom", "Io", "Unknown", "Failed",
    "Failure", "Misc",
];

/// Variants of error enums with such a name that hold only text.
fn stringly_errors(source: &Source<'_>) -> Vec<Violation> {
    let (mut found, mut inside) = (Vec::new(), false);
    for (line, code) in source.production() {
        if let Some((_, name)) = code.split_once("enum ") {
            inside = path_at(name).ends_with("Error");
        } else if code.starts_with('}') {
            inside = false;
        }
        let name = code.trim().strip_suffix("(String),").unwrap_or_default();
        if inside && CATCH_ALL.contains(&name) {
            let what = format!(
                "`{name}(String)` is a catch-all: say what was being done in the variant's name, \
                 and keep the cause with #[source]"
            );
            found.push(source.violation(line, what));
        }
    }
    found
}

/// The types with an inherent `impl` in a source, each with the line.
fn inherent_impls(source: &Source<'_>) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (line, code) in source.production() {
        let Some(rest) = code.strip_prefix("impl") else { continue };
        let target = match rest.strip_prefix('<') {
            Some(_) => rest.split_once("> ").map_or("", |(_, target)| target),
            None => rest.trim_start(),
        };
        if !target.contains(" for ") && !path_at(target).is_empty() {
            found.push((path_at(target), line));
        }
    }
    found
}

/// A type whose `impl` is in many files has no owner for its fields: split it into parts. Types are
/// distinguished by the first folder below `src/`.
fn scattered_impls(sources: &[(&str, &str)]) -> Vec<Violation> {
    let mut files: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in sources {
        let source = Source::new(path, text);
        let Some(part) = source.part() else { continue };
        for (name, _) in inherent_impls(&source) {
            files.entry((part.to_string(), name)).or_default().insert(path);
        }
    }
    let scattered = files.into_iter().filter(|(_, files)| files.len() > IMPL_FILES_MAX);
    scattered
        .map(|((_, name), files)| Violation {
            file: files.first().map_or(String::new(), |file| (*file).to_string()),
            line: 1,
            what: format!(
                "`impl {name}` is in {} files, more than {IMPL_FILES_MAX}: make the type of parts \
                 that own their state",
                files.len()
            ),
        })
        .collect()
}

fn check(path: &str, text: &str) -> Vec<Violation> {
    let source = Source::new(path, text);
    [
        import_directions,
        purity,
        sizes,
        unfinished,
        ignored_tests,
        glob_imports,
        debug_in_logs,
        stringly_errors,
    ]
    .iter()
    .flat_map(|rule| rule(&source))
    .collect()
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn the_code_base_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        rust_files(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "found the sources");
    files.sort();
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        (path, fs::read_to_string(file).unwrap())
    };
    let texts: Vec<(String, String)> = files.iter().map(read).collect();
    let sources: Vec<(&str, &str)> =
        texts.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let mut found: Vec<Violation> =
        sources.iter().flat_map(|(path, text)| check(path, text)).collect();
    found.extend(scattered_impls(&sources));
    let report: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert!(found.is_empty(), "\n{}\n", report.join("\n"));
}

/// Each sample with the line and a word of the expected violation; 0: none.
#[test]
fn every_rule_fires() {
    let long_line = format!("// {}\n", "x".repeat(COLUMNS_MAX));
    let long_file = "\n".repeat(LINES_MAX + 1);
    let unfinished = format!("fn f() {{\n    {}\n}}\n", UNFINISHED[3].to_string() + ")");
    let remark = format!("// {}: later\n", UNFINISHED[0]);
    let samples: &[(&str, &str, usize, &str)] = &[
        ("src/net/a.rs", "use crate::store::lane::Lane;", 1, "`net` must not import"),
        ("src/net/a.rs", "use crate::io::uring::Ring;", 1, "`net` must not import"),
        ("src/net/a.rs", "use crate::io::buffer::Pool;", 0, ""),
        ("src/store/a.rs", "fn f(x: crate::replica::messages::ReqId) {}", 1, "must not import"),
        ("src/types.rs", "use crate::{\n    view::X,\n};", 1, "crate::view"),
        ("src/front/nbd/a.rs", "use crate::{types::A, replica::{B, C}};", 1, "crate::replica"),
        ("src/replica/a.rs", "use crate::types::{A, B};", 0, ""),
        ("src/worker/a.rs", "use crate::control::Catalog;", 1, "`worker` must not import"),
        ("src/worker/a.rs", "use crate::store::lane::Lane;", 0, ""),
        ("src/replica/a.rs", "async fn f() {}", 1, "`async` in a pure module"),
        ("src/replica/a.rs", "// async is banned\nlet asynchronous = \"async\";", 0, ""),
        ("src/store/wal/a.rs", "use std::fs::File;", 1, "`std::fs`"),
        ("src/store/index/rocks.rs", "use std::fs::File;", 0, ""),
        ("src/volume/a.rs", "let t = std::time::Instant::now();", 1, "`Instant`"),
        ("src/front/nbd/wire.rs", "let t = SystemTime::now();", 1, "`SystemTime`"),
        ("src/front/nbd/request.rs", "let t = SystemTime::now();", 1, "`SystemTime`"),
        ("src/front/nbd/server.rs", "let t = SystemTime::now();", 0, ""),
        ("src/fields.rs", "use std::fs::File;", 1, "`std::fs`"),
        ("src/control/catalog_member.rs", "let t = Instant::now();", 1, "`Instant`"),
        ("src/control/catalog.rs", "let t = Instant::now();", 0, ""),
        ("src/net/a.rs", "let n = rand::random();", 1, "`rand::`"),
        ("src/net/a.rs", "let n = operand::random();", 0, ""),
        ("src/net/a.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}", 0, ""),
        ("src/io/a.rs", &long_line, 1, "columns"),
        ("src/io/a.rs", &long_file, LINES_MAX + 1, "lines"),
        ("tests/a.rs", &long_file, 0, ""),
        ("src/io/a.rs", &unfinished, 2, "finish it"),
        ("tests/a.rs", &remark, 1, "finish it"),
        ("tests/a.rs", "#[ignore = \"slow\"]\n", 1, "ignored test"),
        ("src/io/a.rs", "use crate::types::*;", 1, "glob import"),
        ("src/store/a.rs", "use crate::store::messages::*;", 0, ""),
        ("src/io/a.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}", 0, ""),
        ("src/io/a.rs", "tracing::info!(%pod, ?leader, \"role\");", 1, "Debug form"),
        ("src/io/a.rs", "tracing::warn!(\n    error = ?why,\n    \"no\"\n);", 2, "Debug form"),
        ("src/io/a.rs", "tracing::warn!(\"at {place:?}\");", 1, "Debug form"),
        ("src/io/a.rs", "tracing::warn!(%why, \"why?\");\nlet x = f(g?, h);", 0, ""),
        ("src/io/a.rs", "panic!(\"{role:?}\");", 0, ""),
        ("src/io/a.rs", "enum FooError {\n    Generic(String),\n}", 2, "catch-all"),
        ("src/io/a.rs", "enum Name {\n    Text(String),\n}", 0, ""),
    ];
    for (path, text, line, what) in samples {
        let found = check(path, text);
        match line {
            0 => assert_eq!(found, [], "{text}"),
            line => {
                assert_eq!(found.len(), 1, "{text}: {found:?}");
                assert_eq!(found[0].line, *line, "{text}");
                assert!(found[0].what.contains(what), "{text}: {}", found[0]);
            }
        }
    }
}

#[test]
fn a_type_in_many_files_is_noticed() {
    let files = |paths: [&'static str; 4]| paths.map(|path| (path, "impl<T> Lane<T> {\n}\n"));
    let scattered = ["src/store/a.rs", "src/store/b.rs", "src/store/c.rs", "src/store/d.rs"];
    assert_eq!(scattered_impls(&files(scattered)).len(), 1);
    let of_two_parts = ["src/store/a.rs", "src/store/b.rs", "src/store/c.rs", "src/net/d.rs"];
    assert_eq!(scattered_impls(&files(of_two_parts)), []);
    let traits = scattered.map(|path| (path, "impl Display for Lane {\n}\n"));
    assert_eq!(scattered_impls(&traits), []);
}
