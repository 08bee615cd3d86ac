//! What is applied to a Kubernetes cluster, made from the templates of the Helm chart and its
//! values. The program has both in it, so that what runs and what is applied are of one version.

pub mod removal;
pub mod template;
pub mod values;

use minijinja::value::{Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, escape_formatter};
use serde_json::{Value, json};

use template::{TemplateError, jinja_of};
use values::ValuesError;

macro_rules! chart {
    ($path:literal) => {
        include_str!(concat!("../../../deploy/helm/holdfast/", $path))
    };
}

/// The defaults, with comments.
pub const VALUES: &str = chart!("values.yaml");
/// The namespace is a file of its own: deleting the rest must not delete it, and the Secret in it.
const NAMESPACE: &str = include_str!("../../../deploy/kubernetes/namespace.yaml");
/// Where `deploy/kubernetes/namespace.yaml` and the defaults put things.
pub const DEFAULT_NAMESPACE: &str = "holdfast";

/// In the order in which they are applied.
const TEMPLATES: &[(&str, &str)] = &[
    ("accounts.yaml", chart!("templates/accounts.yaml")),
    ("cluster.yaml", chart!("templates/cluster.yaml")),
    ("rights.yaml", chart!("templates/rights.yaml")),
    ("storage.yaml", chart!("templates/storage.yaml")),
    ("node.yaml", chart!("templates/node.yaml")),
    ("controller.yaml", chart!("templates/controller.yaml")),
    ("classes.yaml", chart!("templates/classes.yaml")),
    ("monitoring.yaml", chart!("templates/monitoring.yaml")),
];

/// Why there are no manifests.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    #[error(transparent)]
    Values(#[from] ValuesError),
    #[error("{name} is no template of this program's")]
    Template {
        name: &'static str,
        #[source]
        source: TemplateError,
    },
    #[error("{name} could not be rendered with these values")]
    Render {
        name: &'static str,
        #[source]
        source: Error,
    },
    #[error("with these values, {name} becomes no YAML; look for quotes and line ends in them")]
    Yaml {
        name: &'static str,
        #[source]
        source: serde_norway::Error,
    },
    #[error("{0:?} is no name of a namespace: it has a-z, 0-9 and -, and at most 63 of them")]
    Namespace(String),
}

/// What a person has chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    pub namespace: String,
    /// All values.
    pub values: Value,
}

impl Choice {
    /// The defaults, in a namespace.
    pub fn of_defaults(namespace: &str) -> Result<Choice, ManifestsError> {
        let is_letter = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let ends = namespace.bytes().next().zip(namespace.bytes().next_back());
        let is_name = ends.is_some_and(|(first, last)| is_letter(first) && is_letter(last))
            && namespace.bytes().all(|letter| is_letter(letter) || letter == b'-')
            && namespace.len() <= 63;
        if !is_name {
            return Err(ManifestsError::Namespace(namespace.to_owned()));
        }
        Ok(Choice { namespace: namespace.to_owned(), values: values::parse(VALUES)? })
    }

    /// Changes values by a text in YAML.
    pub fn merge(&mut self, text: &str) -> Result<(), ManifestsError> {
        Ok(values::merge(&mut self.values, values::parse(text)?)?)
    }

    /// Changes one value, as in `csi.failOver=off`.
    pub fn assign(&mut self, assignment: &str) -> Result<(), ManifestsError> {
        Ok(values::assign(&mut self.values, assignment)?)
    }

    /// Name of the driver.
    pub fn driver(&self) -> &str {
        self.values["csi"]["driverName"].as_str().unwrap_or_default()
    }
}

/// The namespace, as YAML.
pub fn namespace(choice: &Choice) -> String {
    let name = format!("name: {}\n", choice.namespace);
    NAMESPACE.replace(&format!("name: {DEFAULT_NAMESPACE}\n"), &name)
}

/// Everything but the namespace, as YAML.
pub fn render(choice: &Choice) -> Result<String, ManifestsError> {
    let environment = environment();
    let version = env!("CARGO_PKG_VERSION");
    let context = minijinja::Value::from(Serde(json!({
        "Values": choice.values,
        "Release": { "Namespace": choice.namespace },
        "Chart": { "AppVersion": version },
    })));
    let mut made = format!(
        "# Holdfast {version} for Kubernetes, made by `holdfast kubernetes manifests`.\n\
         # The namespace is a file of its own: namespace.yaml.\n"
    );
    for &(name, source) in TEMPLATES {
        let jinja = jinja_of(source).map_err(|source| ManifestsError::Template { name, source })?;
        let text = environment.render_str(&jinja, context.clone());
        let text = text.map_err(|source| ManifestsError::Render { name, source })?;
        let documents = documents(&text).map_err(|source| ManifestsError::Yaml { name, source })?;
        if !documents.is_empty() {
            made.push_str("---\n");
            made.push_str(text.trim());
            made.push('\n');
        }
    }
    Ok(made)
}

/// The objects of a text, which has `---` between them.
pub fn documents(text: &str) -> Result<Vec<Value>, serde_norway::Error> {
    use serde::Deserialize as _;
    let all = serde_norway::Deserializer::from_str(text).map(Value::deserialize);
    let all: Vec<Value> = all.collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|object| !object.is_null()).collect())
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Bool => Ok(out.write_str(&word_of(value))?),
        _ => escape_formatter(out, state, value),
    });
    environment.add_filter("quote", quote);
    environment.add_filter("toyaml", to_yaml);
    environment.add_filter("nindent", indent_on_new_line);
    environment
}

/// As YAML and Go write it.
fn word_of(value: &minijinja::Value) -> String {
    match value.kind() {
        ValueKind::Bool => value.is_true().to_string(),
        _ => value.to_string(),
    }
}

/// As a text in quotes, whatever it is.
fn quote(value: minijinja::Value) -> String {
    Value::String(word_of(&value)).to_string()
}

fn to_yaml(value: minijinja::Value) -> Result<String, Error> {
    let refuse = |error: &dyn std::error::Error| {
        Error::new(ErrorKind::BadSerialization, format!("could not write YAML: {error}"))
    };
    let value = serde_json::to_value(value).map_err(|error| refuse(&error))?;
    let text = serde_norway::to_string(&value).map_err(|error| refuse(&error))?;
    Ok(text.trim_end().to_owned())
}

/// Begins a new line, and moves all lines to the right.
fn indent_on_new_line(text: String, by: usize) -> String {
    let lines = text.lines().map(|line| format!("\n{:by$}{line}", ""));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects of a kind.
    fn of_kind(text: &str, kind: &str) -> Vec<Value> {
        let all = documents(text).unwrap();
        all.into_iter().filter(|object| object["kind"] == kind).collect()
    }

    fn rendered(assignments: &[&str]) -> String {
        let mut choice = Choice::of_defaults("there").unwrap();
        for assignment in assignments {
            choice.assign(assignment).unwrap();
        }
        render(&choice).unwrap()
    }

    #[test]
    fn values_get_where_they_belong() {
        let text =
            rendered(&["csi.controller.replicas=1", "image.tag=7", "global.imageRegistry=r"]);
        let deployments = of_kind(&text, "Deployment");
        let controller = deployments.iter().find(|it| it["spec"]["replicas"] == 1).unwrap();
        assert_eq!(controller["metadata"]["namespace"], "there");
        let images: Vec<&str> = of_kind(&text, "DaemonSet")
            .iter()
            .chain([controller])
            .flat_map(|it| it["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone())
            .map(|container| container["image"].as_str().unwrap().to_owned().leak() as &str)
            .collect();
        assert!(images.contains(&"r/holdfast:7"), "{images:?}");
        assert!(images.iter().all(|image| image.starts_with("r/")), "{images:?}");
    }

    #[test]
    fn nothing_lies_in_another_namespace() {
        for object in documents(&rendered(&[])).unwrap() {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("there");
            let is_lease_role = namespace == "kube-node-lease";
            assert!(namespace == "there" || is_lease_role, "{object}");
        }
        let choice = Choice::of_defaults("there").unwrap();
        let namespaces = documents(&namespace(&choice)).unwrap();
        assert_eq!(namespaces[0]["metadata"]["name"], "there");
        for name in ["", "-a", "a b", "A", &"a".repeat(64)] {
            assert!(Choice::of_defaults(name).is_err(), "{name}");
        }
    }

    /// Rights that could do harm are there for fail-over only, and only when it is on.
    #[test]
    fn fail_over_takes_its_rights_along() {
        let verbs = |text: &str, resource: &str| -> Vec<String> {
            let roles = of_kind(text, "ClusterRole");
            let rules = roles.iter().flat_map(|role| role["rules"].as_array().unwrap());
            let rules = rules.filter(|rule| {
                rule["resources"].as_array().unwrap().iter().any(|it| it == resource)
            });
            rules
                .flat_map(|rule| rule["verbs"].as_array().unwrap())
                .map(|verb| verb.as_str().unwrap().to_owned())
                .collect()
        };
        let on = rendered(&[]);
        assert!(verbs(&on, "pods").contains(&"delete".to_owned()));
        assert_eq!(verbs(&on, "nodes/status"), ["patch"]);
        for mode in ["off", "dry-run"] {
            let text = rendered(&[&format!("csi.failOver={mode}")]);
            assert!(!verbs(&text, "pods").contains(&"delete".to_owned()), "{mode}");
            assert!(!verbs(&text, "nodes").contains(&"patch".to_owned()), "{mode}");
            assert!(verbs(&text, "nodes/status").is_empty(), "{mode}");
        }
        // Secrets of the whole cluster are for nobody.
        assert!(verbs(&on, "secrets").is_empty());
    }

    /// With the right to create Secrets, a storage pod could make a token of another account.
    /// `data` in the template would overwrite what the pods have written.
    #[test]
    fn storage_pods_find_their_objects_and_create_none() {
        let text = rendered(&[]);
        let roles = of_kind(&text, "Role");
        let role = roles.iter().find(|role| role["metadata"]["name"] == "holdfast-pod").unwrap();
        let mut named = Vec::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(rule["verbs"], json!(["get", "update"]));
            named.extend(rule["resourceNames"].as_array().unwrap().iter().cloned());
        }
        let mut made: Vec<Value> = of_kind(&text, "Secret");
        made.extend(of_kind(&text, "ConfigMap"));
        made.retain(|it| it["metadata"]["name"] != "holdfast-pod");
        let names: Vec<Value> = made.iter().map(|it| it["metadata"]["name"].clone()).collect();
        assert_eq!(names, named);
        for object in made {
            assert!(object["data"].is_null() && object["stringData"].is_null(), "{object}");
        }
    }

    /// A rolling update replaces pods that are not available at once, whatever it is told.
    #[test]
    fn storage_pods_wait_for_a_person_and_drains_for_guards() {
        let text = rendered(&[]);
        let sets = of_kind(&text, "DaemonSet");
        let pods = sets.iter().find(|set| set["metadata"]["name"] == "holdfast-pod").unwrap();
        assert_eq!(pods["spec"]["updateStrategy"], json!({ "type": "OnDelete" }));
        let budget = &of_kind(&text, "PodDisruptionBudget")[0]["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        assert_eq!(budget["unhealthyPodEvictionPolicy"], "IfHealthyBudget");
    }

    /// A text that would end its place in the YAML is no way to smuggle objects in.
    #[test]
    fn values_that_break_the_yaml_are_refused() {
        let mut choice = Choice::of_defaults("there").unwrap();
        choice.values["storage"]["directory"] = json!("/a\n  x: [");
        assert!(matches!(render(&choice), Err(ManifestsError::Yaml { .. })));
    }
}
