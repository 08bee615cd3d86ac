//! Files and folders of one folder do not import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{Source, Violation, path_at, rust_files};

/// An import of a file from the crate.
struct Import {
    line: usize,
    /// Below `crate`.
    path: String,
    /// True when a `mod.rs` only re-exports it.
    is_reexport: bool,
}

/// The modules of the crate, by their paths below `crate`.
struct Modules<'a> {
    files: BTreeMap<String, &'a str>,
    /// Re-exports of each `mod.rs`: the path here, and the path of origin.
    reexports: BTreeMap<String, String>,
}

impl<'a> Modules<'a> {
    fn new(sources: &[Source<'a>]) -> Modules<'a> {
        let files = sources.iter().map(|source| (module_of(source.path), source.path)).collect();
        let mut modules = Modules { files, reexports: BTreeMap::new() };
        for source in sources {
            let passed_on = modules.imports(source).into_iter().filter(|it| it.is_reexport);
            for Import { path, .. } in passed_on {
                let name = path.rsplit("::").next().unwrap_or_default();
                modules.reexports.insert(format!("{}::{name}", module_of(source.path)), path);
            }
        }
        modules
    }

    /// The imports of a file outside its tests.
    fn imports(&self, source: &Source<'_>) -> Vec<Import> {
        let code: Vec<(usize, &str)> = source.production().collect();
        let mut imports = Vec::new();
        for (position, &(line, text)) in code.iter().enumerate() {
            let parts = text.trim_start().split_once("use ");
            let parts = parts.filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
            let (is_public, paths) = match parts {
                Some((before, tree)) => {
                    let more = code[position + 1..].iter().map(|(_, text)| *text);
                    let whole: String = std::iter::once(tree).chain(more).collect();
                    (!before.is_empty(), leaves(&whole))
                }
                None => {
                    let found = text.match_indices("crate::");
                    (false, found.map(|(at, _)| path_at(&text[at..])).collect())
                }
            };
            let is_reexport = is_public && source.path.ends_with("/mod.rs");
            let paths = paths.into_iter().filter_map(|path| self.absolute(&path, source.path));
            imports.extend(paths.map(|path| Import { line, path, is_reexport }));
        }
        imports
    }

    /// A path in a file as a path below `crate`; `None` when it leads out of the crate.
    fn absolute(&self, path: &str, file: &str) -> Option<String> {
        if let Some(path) = path.strip_prefix("crate::") {
            return Some(path.to_string());
        }
        let (mut module, mut path) = (module_of(file), path.strip_prefix("self::").unwrap_or(path));
        let mut is_ours =
            self.files.contains_key(&format!("{module}::{}", path.split("::").next()?));
        while let Some(rest) = path.strip_prefix("super::") {
            module.truncate(module.rfind("::").unwrap_or(0));
            (path, is_ours) = (rest, true);
        }
        is_ours.then(|| format!("{module}::{path}").trim_start_matches("::").to_string())
    }

    /// The file in which a path ends.
    fn file_of(&self, path: &str) -> Option<&'a str> {
        let ends: Vec<usize> = path.match_indices("::").map(|(at, _)| at).collect();
        ends.into_iter().chain([path.len()]).rev().find_map(|end| {
            match self.files.get(&path[..end]) {
                Some(file) => Some(*file),
                None => self.file_of(self.reexports.get(&path[..end])?),
            }
        })
    }
}

/// `sim::checks` for `src/sim/checks/mod.rs`.
fn module_of(file: &str) -> String {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inside.replace('/', "::")
}

/// The paths of a `use` tree: `a::b` and `a::c::d` for `a::{b, c::{d}}`.
fn leaves(tree: &str) -> Vec<String> {
    let tree = tree.trim_start();
    let path = path_at(tree);
    let Some(group) = tree[path.len()..].strip_prefix('{') else {
        return vec![path];
    };
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found
                    .extend(leaves(&group[start..at]).into_iter().map(|leaf| path.clone() + &leaf));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// The last common folder of two files, and the names in it that lead to each.
fn parting<'a>(one: &'a str, other: &'a str) -> (&'a str, &'a str, &'a str) {
    let same = one.split_inclusive('/').zip(other.split_inclusive('/'));
    let len: usize = same.take_while(|(one, other)| one == other).map(|(one, _)| one.len()).sum();
    let first = |path: &'a str| path[len..].split('/').next().unwrap_or_default();
    (one[..len].trim_end_matches('/'), first(one), first(other))
}

/// Reports circles of imports among the files and folders of one folder.
fn circles(sources: &[Source<'_>]) -> Vec<Violation> {
    let modules = Modules::new(sources);
    let mut edges = Vec::new();
    for source in sources {
        for import in modules.imports(source).into_iter().filter(|import| !import.is_reexport) {
            let to = modules.file_of(&import.path).filter(|to| *to != source.path);
            edges.extend(to.map(|to| (parting(source.path, to), source, import.line)));
        }
    }
    let graph: BTreeSet<_> = edges.iter().map(|(edge, ..)| *edge).collect();
    let is_in_circle = |(folder, from, to): (&str, &str, &str)| leads(&graph, folder, to, from);
    let circular = edges.iter().filter(|(edge, ..)| is_in_circle(*edge));
    circular
        .map(|((folder, from, to), source, line)| {
            let what = format!(
                "`{from}` and `{to}` of {folder} import each other in a circle: move what both \
                 need to a file below both"
            );
            source.violation(*line, what)
        })
        .collect()
}

/// True when imports lead from one name of a folder to another.
fn leads(graph: &BTreeSet<(&str, &str, &str)>, folder: &str, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::from([from]), vec![from]);
    while let Some(name) = open.pop() {
        let next = graph.iter().filter(|(of, start, _)| (*of, *start) == (folder, name));
        open.extend(next.map(|(.., end)| *end).filter(|end| seen.insert(end)));
    }
    seen.contains(to)
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    assert!(files.len() > 20, "found the sources");
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let paths = files.iter().map(|file| file.strip_prefix(root).unwrap().to_str().unwrap());
    let sources: Vec<_> = paths.zip(&texts).map(|(path, text)| Source::new(path, text)).collect();
    let report: Vec<String> = circles(&sources).iter().map(Violation::to_string).collect();
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

/// Each sample with the places of the expected violations.
#[test]
fn circles_are_found() {
    type Sample = (&'static [(&'static str, &'static str)], &'static [(&'static str, usize)]);
    let samples: &[Sample] = &[
        (&[("src/a/b.rs", "use crate::a::c::X;"), ("src/a/c.rs", "struct X;")], &[]),
        (
            &[
                ("src/a/b.rs", "\nuse crate::a::c::X;"),
                ("src/a/c.rs", "fn f(y: crate::a::b::Y) {}"),
            ],
            &[("src/a/b.rs", 2), ("src/a/c.rs", 1)],
        ),
        // A longer one, through a re-export, an import in a group and one of a neighbour.
        (
            &[
                ("src/a/mod.rs", "mod b;\npub use b::{X, Z};"),
                ("src/a/b.rs", "use crate::{\n    a::{c::Y, e},\n};"),
                ("src/a/c.rs", "use super::d::W;"),
                ("src/a/d.rs", "use crate::a::X;"),
                ("src/a/e.rs", "use std::fmt;"),
            ],
            &[("src/a/b.rs", 1), ("src/a/c.rs", 1), ("src/a/d.rs", 1)],
        ),
        // A `mod.rs` with an item of its own.
        (
            &[("src/a/mod.rs", "use b::X;\nstruct Y;"), ("src/a/b.rs", "use crate::a::Y;")],
            &[("src/a/b.rs", 1), ("src/a/mod.rs", 1)],
        ),
        // A folder counts as one of its neighbours.
        (
            &[
                ("src/a/b/c.rs", "use crate::a::d::X;"),
                ("src/a/b/e.rs", "struct Y;"),
                ("src/a/d.rs", "use crate::a::b::e::Y;"),
            ],
            &[("src/a/b/c.rs", 1), ("src/a/d.rs", 1)],
        ),
        // Imports of tests do not count.
        (
            &[
                ("src/a/b.rs", "#[cfg(test)]\nmod tests {\n    use crate::a::c::X;\n}"),
                ("src/a/c.rs", "use crate::a::b::Y;"),
            ],
            &[],
        ),
    ];
    for (files, expected) in samples {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        let mut found = circles(&sources);
        found.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
        let places: Vec<_> = found.iter().map(|it| (it.file.as_str(), it.line)).collect();
        assert_eq!(places, *expected, "{files:?}: {found:?}");
    }
}
