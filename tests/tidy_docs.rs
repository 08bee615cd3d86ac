//! Checks the documents against the code: `docs/invariants.md` has every rule that code and tests
//! cite, and the functions in the walk of `ARCHITECTURE.md` exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn files_below(folder: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, extension, out);
        } else if path.extension().is_some_and(|found| found == extension) {
            out.push(path);
        }
    }
}

/// Sources and documents, each with its path below the repository.
fn texts() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "fuzz/src", "benches"] {
        files_below(&root().join(folder), "rs", &mut files);
    }
    files_below(&root().join("docs"), "md", &mut files);
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        files.extend(path.extension().is_some_and(|found| found == "md").then_some(path));
    }
    // The samples below are no citations.
    files.retain(|file| !file.ends_with("tests/tidy_docs.rs"));
    files.sort();
    let text_of = |file: &PathBuf| {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
        let text = read(&path);
        (path, text)
    };
    files.iter().map(text_of).collect()
}

/// The texts in backticks, in order.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

fn is_rule_name(text: &str) -> bool {
    text.contains('-') && text.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

/// The rule names that a text cites: in backticks after the word "rule" or "rules", or at the start
/// of a docstring and before a colon (planted mistakes). A list of names may continue in the next
/// line.
fn cited_rules(text: &str) -> Vec<(usize, String)> {
    let (mut cited, mut goes_on) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        let comment = line.trim_start().trim_start_matches(['/', '!']).trim_start();
        let names_a_mistake = comment.starts_with('`') && comment.contains("`: ");
        let rest = match () {
            _ if goes_on || names_a_mistake => Some(comment),
            _ => ["rule `", "rules `", "Rule `", "Rules `"]
                .iter()
                .filter_map(|word| line.find(word).map(|at| &line[at + word.len() - 1..]))
                .max_by_key(|rest| rest.len()),
        };
        let ends_with_rule =
            line.trim_end().ends_with(" rule") || line.trim_end().ends_with(" rules");
        let Some(mut rest) = rest else {
            goes_on = ends_with_rule;
            continue;
        };
        goes_on = ends_with_rule;
        while let Some(inside) = rest.strip_prefix('`') {
            let Some((name, behind)) = inside.split_once('`') else { break };
            if is_rule_name(name) {
                cited.push((number, name.to_string()));
            }
            rest = behind.trim_start_matches([',', ' ']);
            rest = rest.strip_prefix("and ").unwrap_or(rest);
            goes_on = rest.is_empty() && behind.starts_with(',');
        }
    }
    cited
}

/// True for a number of the old list of rules, which no longer exists.
fn cites_a_number(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| {
        let number = word.strip_prefix('R').unwrap_or_default();
        (1..=2).contains(&number.len()) && number.chars().all(|c| c.is_ascii_digit())
    })
}

fn rules() -> BTreeSet<String> {
    let text = read("docs/invariants.md");
    let heads = text.lines().filter_map(|line| line.strip_prefix("### `"));
    heads.filter_map(|head| head.split('`').next()).map(str::to_string).collect()
}

#[test]
fn rules_are_cited_by_names_that_the_page_has() {
    let rules = rules();
    assert!(rules.len() >= 16, "the page has {} rules", rules.len());
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for (path, text) in texts() {
        for (line, name) in cited_rules(&text) {
            if !rules.contains(&name) {
                wrong.push(format!("{path}:{line}: docs/invariants.md has no rule `{name}`"));
            }
            used.insert(name);
        }
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| cites_a_number(line)) {
            wrong.push(format!("{path}:{number}: cite the rule by its name: {}", line.trim()));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(used.len() >= 16, "rules are cited in code and tests: {used:?}");
}

#[test]
fn citations_are_found_where_they_stand() {
    let found = |text: &str| -> Vec<String> {
        cited_rules(text).into_iter().map(|(_, name)| name).collect()
    };
    assert_eq!(found("/// Kept (rule `no-gaps`)."), ["no-gaps"]);
    assert_eq!(
        found("/// See rules `no-gaps`, `two-copies` and `a-b`."),
        ["no-gaps", "two-copies", "a-b"]
    );
    assert_eq!(found("/// See rules `no-gaps`,\n/// `two-copies`."), ["no-gaps", "two-copies"]);
    assert_eq!(found("/// by rule\n/// `no-gaps`."), ["no-gaps"]);
    assert_eq!(found("    /// `no-gaps`: a batch is lost."), ["no-gaps"]);
    assert!(found("/// `no-gaps` is not cited here").is_empty());
    assert!(cites_a_number(concat!("// rule R", "7)")) && !cites_a_number("R700 or FOUR1"));
}

/// Every list line of the walk that names a file and functions of it.
#[test]
fn the_functions_that_the_architecture_names_exist() {
    let text = read("ARCHITECTURE.md");
    let walk = text.split("## One write, one read").nth(1).expect("ARCHITECTURE.md has the walk");
    let walk = walk.split("\n## ").next().unwrap();
    let (mut steps, mut wrong) = (0, Vec::new());
    let mut source: Option<(&str, String)> = None;
    for name in walk.lines().flat_map(quoted) {
        if name.starts_with("src/") {
            source = Some((name, read(name)));
        } else if let Some((path, code)) = &source
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            steps += 1;
            let declared = [format!("fn {name}("), format!("fn {name}<")];
            if !declared.iter().any(|declaration| code.contains(declaration)) {
                wrong.push(format!("{path} has no function `{name}`"));
            }
        }
    }
    assert!(steps >= 20, "the walk names {steps} functions");
    assert!(wrong.is_empty(), "\nARCHITECTURE.md is out of date:\n{}\n", wrong.join("\n"));
}
