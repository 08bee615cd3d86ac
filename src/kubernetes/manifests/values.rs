//! The values of the chart: the defaults of `values.yaml`, and what a person has changed. A value
//! that does not exist, or is of another kind, is refused, with what there is.

use serde_json::{Map, Value, json};

/// Maps and lists that a person fills as they like.
const FREE: &[&str] =
    &["additionalLabels", "imagePullSecrets", "nodeSelector", "resources", "tolerations"];

/// Values that are one of a few words.
const CHOICES: &[(&str, &[&str])] = &[
    ("csi.failOver", &["on", "off", "dry-run"]),
    ("csi.spec", &["1.12", "1.13"]),
    ("image.pullPolicy", &["Always", "IfNotPresent", "Never"]),
    ("sidecars.pullPolicy", &["Always", "IfNotPresent", "Never"]),
    ("persistence.reclaimPolicy", &["Delete", "Retain"]),
    ("persistence.volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
];

/// Why a value cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    #[error("the values are no YAML")]
    Yaml(#[source] serde_norway::Error),
    #[error("{path} has to be {wanted}, and is {found}")]
    Kind { path: String, wanted: &'static str, found: &'static str },
    #[error("there is no value {path}: there are {there}")]
    Unknown { path: String, there: String },
    #[error("{path} is {found:?}, and has to be one of {choices}")]
    Choice { path: String, found: String, choices: String },
    #[error("{0:?} is not NAME=VALUE, as in csi.failOver=off")]
    NoAssignment(String),
}

/// Reads YAML. An empty text is a map without keys.
pub fn parse(text: &str) -> Result<Value, ValuesError> {
    match serde_norway::from_str(text).map_err(ValuesError::Yaml)? {
        Value::Null => Ok(Value::Object(Map::new())),
        value => Ok(value),
    }
}

/// Sets one value by its path: `csi.controller.replicas=1`.
pub fn assign(values: &mut Value, assignment: &str) -> Result<(), ValuesError> {
    let refuse = || ValuesError::NoAssignment(assignment.to_owned());
    let (path, text) = assignment.split_once('=').ok_or_else(refuse)?;
    let mut names = path.split('.').rev();
    let mut change = parse_word(text);
    // A text that looks like a number or a truth is meant as what is there.
    if matches!(at(values, path), Some(Value::String(_))) {
        change = Value::String(text.to_owned());
    }
    if names.clone().any(str::is_empty) {
        return Err(refuse());
    }
    change = names.try_fold(change, |inner, name| Ok(json!({ name: inner })))?;
    merge(values, change)
}

fn parse_word(text: &str) -> Value {
    serde_norway::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn at<'a>(values: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(values, |value, name| value.get(name))
}

/// Changes values. Maps are merged, lists are replaced.
pub fn merge(values: &mut Value, change: Value) -> Result<(), ValuesError> {
    merge_at(values, change, "")
}

fn merge_at(value: &mut Value, change: Value, path: &str) -> Result<(), ValuesError> {
    let (wanted, found) = (kind(value), kind(&change));
    if wanted != found {
        let path = if path.is_empty() { "the whole".to_owned() } else { path.to_owned() };
        return Err(ValuesError::Kind { path, wanted, found });
    }
    let is_free = FREE.contains(&path.rsplit('.').next().unwrap_or_default());
    let choices = CHOICES.iter().find(|(name, _)| *name == path);
    match (value, change) {
        (Value::Object(there), Value::Object(changes)) if is_free => {
            there.extend(changes);
            // Helm takes this for: not there.
            there.retain(|_, value| !value.is_null());
        }
        (Value::Object(there), Value::Object(changes)) => {
            for (name, change) in changes {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match there.get_mut(&name) {
                    Some(value) => merge_at(value, change, &path)?,
                    None => return Err(ValuesError::Unknown { path, there: names(there) }),
                }
            }
        }
        (Value::Array(there), Value::Array(changes)) => match there.first() {
            Some(pattern) if !is_free => *there = items_like(pattern, changes, path)?,
            _ => *there = changes,
        },
        (value, change) => {
            let choices = choices.map(|(_, choices)| *choices).unwrap_or_default();
            let word = change.as_str().unwrap_or_default();
            if !choices.is_empty() && !choices.contains(&word) {
                let (path, found, choices) = (path.to_owned(), word.to_owned(), choices.join(", "));
                return Err(ValuesError::Choice { path, found, choices });
            }
            *value = change;
        }
    }
    Ok(())
}

/// The items of a list, each as the first one of the defaults is.
fn items_like(pattern: &Value, items: Vec<Value>, path: &str) -> Result<Vec<Value>, ValuesError> {
    let path = format!("{path}[]");
    let complete = |item| {
        let mut whole = blank(pattern);
        merge_at(&mut whole, item, &path).map(|()| whole)
    };
    items.into_iter().map(complete).collect()
}

/// What an item of a list has where a person says nothing: what is empty.
fn blank(pattern: &Value) -> Value {
    match pattern {
        Value::Object(map) => {
            Value::Object(map.iter().map(|(name, value)| (name.clone(), blank(value))).collect())
        }
        Value::Bool(_) => Value::Bool(false),
        Value::String(_) => Value::String(String::new()),
        Value::Number(_) => json!(0),
        Value::Array(_) => json!([]),
        Value::Null => Value::Null,
    }
}

fn names(map: &Map<String, Value>) -> String {
    let names: Vec<&str> = map.keys().map(String::as_str).collect();
    names.join(", ")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text (in quotes, if it looks like something else)",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// The JSON schema by which Helm refuses the same.
pub fn schema(defaults: &Value) -> Value {
    let mut schema = schema_at(defaults, "");
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema
}

fn schema_at(value: &Value, path: &str) -> Value {
    let name = path.rsplit('.').next().unwrap_or_default();
    if let Some((_, choices)) = CHOICES.iter().find(|(name, _)| *name == path) {
        return json!({ "type": "string", "enum": choices });
    }
    match value {
        Value::Object(_) if FREE.contains(&name) => json!({ "type": "object" }),
        Value::Object(map) => {
            let inner = |(name, value): (&String, &Value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                (name.clone(), schema_at(value, &path))
            };
            let properties: Map<String, Value> = map.iter().map(inner).collect();
            json!({ "type": "object", "additionalProperties": false, "properties": properties })
        }
        Value::Array(items) => match items.first() {
            Some(pattern) if !FREE.contains(&name) => {
                json!({ "type": "array", "items": schema_at(pattern, &format!("{path}[]")) })
            }
            _ => json!({ "type": "array" }),
        },
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::Number(_) => json!({ "type": "integer" }),
        Value::String(_) | Value::Null => json!({ "type": "string" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Value {
        parse(
            "csi: {failOver: 'on', replicas: 3}\nnodeSelector: {a: b}\ntag: ''\n\
             disks: [{name: a, create: true}]\ntolerations: [{operator: Exists}]",
        )
        .unwrap()
    }

    #[test]
    fn changes_are_merged_into_the_defaults() {
        let mut values = defaults();
        let change =
            parse("nodeSelector: {c: d, e: null}\ndisks: [{name: x}, {name: y, create: true}]");
        merge(&mut values, change.unwrap()).unwrap();
        assign(&mut values, "csi.replicas=1").unwrap();
        assign(&mut values, "csi.failOver=off").unwrap();
        assign(&mut values, "tag=1.0").unwrap();
        assign(&mut values, "tolerations=[]").unwrap();
        let wanted = json!({
            "csi": { "failOver": "off", "replicas": 1 },
            "nodeSelector": { "a": "b", "c": "d" },
            "tag": "1.0",
            "disks": [{ "name": "x", "create": false }, { "name": "y", "create": true }],
            "tolerations": [],
        });
        assert_eq!(values, wanted);
        merge(&mut values, parse("").unwrap()).unwrap();
        assert_eq!(values, wanted);
    }

    #[test]
    fn what_does_not_exist_is_refused_with_words() {
        let refusal = |assignment: &str| assign(&mut defaults(), assignment).unwrap_err();
        for (assignment, words) in [
            ("csi.failover=off", "there is no value csi.failover: there are failOver, replicas"),
            ("csi.failOver=maybe", "has to be one of on, off, dry-run"),
            ("csi.replicas=many", "csi.replicas has to be a number, and is a text"),
            ("csi=1", "csi has to be a map, and is a number"),
            ("disks=[{nam: x}]", "there is no value disks[].nam: there are create, name"),
            ("csi.replicas", "is not NAME=VALUE"),
            (".a=1", "is not NAME=VALUE"),
        ] {
            let said = refusal(assignment).to_string();
            assert!(said.contains(words), "{assignment}: {said}");
        }
        let mut values = defaults();
        assert!(merge(&mut values, json!([1])).unwrap_err().to_string().contains("the whole"));
        assert!(matches!(parse("a: ["), Err(ValuesError::Yaml(_))));
    }

    #[test]
    fn the_schema_has_what_the_program_checks() {
        let schema = schema(&defaults());
        let csi = &schema["properties"]["csi"];
        assert_eq!(csi["additionalProperties"], json!(false));
        assert_eq!(csi["properties"]["failOver"]["enum"], json!(["on", "off", "dry-run"]));
        assert_eq!(schema["properties"]["nodeSelector"], json!({ "type": "object" }));
        let item = &schema["properties"]["disks"]["items"];
        assert_eq!(item["properties"]["create"], json!({ "type": "boolean" }));
    }
}
