//! Reads the templates of the Helm chart. They keep to the small part of Go's template language
//! that is described here, and are translated to Jinja's, which `minijinja` renders.
//!
//! ```text
//! {{ .Values.a.b | quote }}   a value; operands are `.path`, `$.path`, `$name`, "text", numbers;
//!                             filters are quote, default OPERAND, toYaml, nindent N
//! {{ toYaml .Values.a | nindent 8 }}
//! {{ if .Values.a }} {{ if eq .Values.a "b" }} {{ if ne A B }} {{ if not A }} {{ else }} {{ end }}
//! {{ range .Values.list }} {{ .name }} {{ end }}
//! {{ range $key, $value := .Values.map }} {{ $key }} {{ end }}
//! ```
//!
//! `{{-` takes away the space before it, `-}}` that after it, in both languages.

use std::fmt::Write as _;

/// Why a template cannot be read. Templates are part of the program: a test reads them all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("`{{{{` in line {line} has no `}}}}`")]
    NoEnd { line: usize },
    #[error("`{action}` in line {line} is not in the part of the language that is understood")]
    NotUnderstood { line: usize, action: String },
    #[error("`end` or `else` in line {line} belongs to nothing")]
    NothingToEnd { line: usize },
    #[error("{0} blocks have no `end`")]
    NotEnded(usize),
    #[error("line {line} has `{{%` or `{{#`, which Jinja would take for its own")]
    JinjaInText { line: usize },
}

/// A block that waits for its end.
#[derive(Debug)]
enum Block {
    If,
    /// With the name that stands for the dot, if the dot changes.
    Range(Option<String>),
}

/// Translates a template.
pub fn jinja_of(source: &str) -> Result<String, TemplateError> {
    let mut made = String::with_capacity(source.len());
    let (mut rest, mut blocks) = (source, Vec::new());
    while let Some((text, after)) = rest.split_once("{{") {
        let line = line_of(source, after);
        check_text(text, line)?;
        let (action, after) = after.split_once("}}").ok_or(TemplateError::NoEnd { line })?;
        made.push_str(text);
        made.push_str(&translate(action, &mut blocks, line)?);
        rest = after;
    }
    check_text(rest, line_of(source, rest))?;
    made.push_str(rest);
    match blocks.len() {
        0 => Ok(made),
        count => Err(TemplateError::NotEnded(count)),
    }
}

/// The line in which `rest`, the end of `source`, begins.
fn line_of(source: &str, rest: &str) -> usize {
    source[..source.len() - rest.len()].lines().count().max(1)
}

fn check_text(text: &str, line: usize) -> Result<(), TemplateError> {
    match text.contains("{%") || text.contains("{#") {
        true => Err(TemplateError::JinjaInText { line }),
        false => Ok(()),
    }
}

/// Translates what is between the braces.
fn translate(action: &str, blocks: &mut Vec<Block>, line: usize) -> Result<String, TemplateError> {
    let (before, inner) = match action.strip_prefix('-') {
        Some(inner) => ("-", inner),
        None => ("", action),
    };
    let (after, inner) = match inner.strip_suffix('-') {
        Some(inner) => ("-", inner),
        None => ("", inner),
    };
    let refuse = || TemplateError::NotUnderstood { line, action: inner.trim().to_owned() };
    let words = words(inner).ok_or_else(refuse)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let statement = match &words[..] {
        ["end"] => match blocks.pop().ok_or(TemplateError::NothingToEnd { line })? {
            Block::If => "endif".to_owned(),
            Block::Range(_) => "endfor".to_owned(),
        },
        ["else"] if matches!(blocks.last(), Some(Block::If)) => "else".to_owned(),
        ["else"] => return Err(TemplateError::NothingToEnd { line }),
        ["if", condition @ ..] => {
            let condition = condition_of(condition, blocks).ok_or_else(refuse)?;
            blocks.push(Block::If);
            format!("if {condition}")
        }
        ["range", key, value, ":=", list] => {
            let list = operand(list, blocks).ok_or_else(refuse)?;
            let (key, value) = (variable(key), variable(value));
            let (key, value) = key.zip(value).ok_or_else(refuse)?;
            blocks.push(Block::Range(None));
            format!("for {key}, {value} in {list}|items")
        }
        ["range", list] => {
            let list = operand(list, blocks).ok_or_else(refuse)?;
            let dot = format!("dot{}", blocks.len());
            let statement = format!("for {dot} in {list}");
            blocks.push(Block::Range(Some(dot)));
            statement
        }
        words => {
            let value = pipeline(words, blocks).ok_or_else(refuse)?;
            return Ok(format!("{{{{{before} {value} {after}}}}}"));
        }
    };
    Ok(format!("{{%{before} {statement} {after}%}}"))
}

/// Splits at space, at commas and around pipes; texts in quotes stay whole.
fn words(inner: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut is_text) = (Vec::new(), String::new(), false);
    for letter in inner.chars() {
        match letter {
            '"' => {
                word.push('"');
                is_text = !is_text;
            }
            // Escapes differ between the two languages.
            '\\' => return None,
            letter if is_text => word.push(letter),
            ' ' | '\n' | ',' | '|' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if letter == '|' {
                    words.push("|".to_owned());
                }
            }
            letter => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    (!is_text).then_some(words)
}

fn condition_of(words: &[&str], blocks: &[Block]) -> Option<String> {
    let operand = |word: &str| operand(word, blocks);
    match words {
        ["eq", one, other] => Some(format!("{} == {}", operand(one)?, operand(other)?)),
        ["ne", one, other] => Some(format!("{} != {}", operand(one)?, operand(other)?)),
        ["not", one] => Some(format!("not {}", operand(one)?)),
        [one] => operand(one),
        _ => None,
    }
}

fn pipeline(words: &[&str], blocks: &[Block]) -> Option<String> {
    let mut parts = words.split(|word| *word == "|");
    let mut value = match parts.next()? {
        ["toYaml", of] => format!("{}|toyaml", operand(of, blocks)?),
        [one] => operand(one, blocks)?,
        _ => return None,
    };
    for filter in parts {
        match filter {
            ["quote"] => value.push_str("|quote"),
            ["toYaml"] => value.push_str("|toyaml"),
            ["nindent", by] => {
                let by: usize = by.parse().ok()?;
                write!(value, "|nindent({by})").ok()?;
            }
            // In both languages it also stands for what is empty.
            ["default", of] => write!(value, "|default({}, true)", operand(of, blocks)?).ok()?,
            _ => return None,
        }
    }
    Some(value)
}

/// `$name`, as a name.
fn variable(word: &str) -> Option<&str> {
    let name = word.strip_prefix('$')?;
    let is_name = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric());
    is_name.then_some(name)
}

fn operand(word: &str, blocks: &[Block]) -> Option<String> {
    let is_text = word.len() > 1 && word.starts_with('"') && word.ends_with('"');
    if is_text || word.parse::<u64>().is_ok() {
        return Some(word.to_owned());
    }
    if let Some(path) = word.strip_prefix("$.") {
        return is_path(path).then(|| path.to_owned());
    }
    if word.starts_with('$') {
        return variable(word).map(str::to_owned);
    }
    let path = word.strip_prefix('.')?;
    let dot = blocks.iter().rev().find_map(|block| match block {
        Block::Range(dot) => Some(dot.as_deref()),
        Block::If => None,
    });
    match dot {
        None => is_path(path).then(|| path.to_owned()),
        Some(Some(dot)) if path.is_empty() => Some(dot.to_owned()),
        Some(Some(dot)) => is_path(path).then(|| format!("{dot}.{path}")),
        // In Go the dot is the value there. A name is clearer.
        Some(None) => None,
    }
}

fn is_path(path: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric());
    path.split('.').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_translated() {
        for (go, jinja) in [
            ("a: {{ .Values.a.b }}", "a: {{ Values.a.b }}"),
            ("{{ .Values.a | quote }}", "{{ Values.a|quote }}"),
            ("{{- toYaml .Values.a | nindent 8 }}", "{{- Values.a|toyaml|nindent(8) }}"),
            ("{{ .A | default .B.C }}", "{{ A|default(B.C, true) }}"),
            ("{{ .A | default \"a, b | c\" -}}", "{{ A|default(\"a, b | c\", true) -}}"),
            ("{{- if .A }}x{{ else }}y{{- end }}", "{%- if A %}x{% else %}y{%- endif %}"),
            ("{{ if eq .A \"on\" }}x{{ end }}", "{% if A == \"on\" %}x{% endif %}"),
            ("{{ if ne .A .B }}{{ end }}", "{% if A != B %}{% endif %}"),
            ("{{ if not .A }}{{ end }}", "{% if not A %}{% endif %}"),
            (
                "{{ range .L }}{{ if .a }}{{ $.Values.b }}{{ . }}{{ end }}{{ end }}{{ .a }}",
                "{% for dot0 in L %}{% if dot0.a %}{{ Values.b }}{{ dot0 }}{% endif %}{% endfor %}\
                 {{ a }}",
            ),
            (
                "{{ range $key, $value := .M }}{{ $key }}{{ $.A }}{{ end }}",
                "{% for key, value in M|items %}{{ key }}{{ A }}{% endfor %}",
            ),
        ] {
            assert_eq!(jinja_of(go).as_deref(), Ok(jinja), "{go}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (go, error) in [
            ("a\n\n{{ .A", TemplateError::NoEnd { line: 3 }),
            ("{{ end }}", TemplateError::NothingToEnd { line: 1 }),
            ("{{ range .A }}{{ else }}{{ end }}", TemplateError::NothingToEnd { line: 1 }),
            ("{{ if .A }}{{ if .B }}", TemplateError::NotEnded(2)),
            ("x {% if a %}", TemplateError::JinjaInText { line: 1 }),
        ] {
            assert_eq!(jinja_of(go), Err(error), "{go}");
        }
        for go in [
            "{{ include \"a\" . }}",
            "{{ .A | upper }}",
            "{{ A }}",
            "{{ .A.b-c }}",
            "{{ .A | nindent x }}",
            "{{ }}",
            "{{ \"a }}",
            "{{ \"a\\n\" }}",
            "{{ if and .A .B }}{{ end }}",
            "{{ range $k, $v := .M }}{{ .a }}{{ end }}",
        ] {
            let refused = matches!(jinja_of(go), Err(TemplateError::NotUnderstood { .. }));
            assert!(refused, "{go}");
        }
    }
}
