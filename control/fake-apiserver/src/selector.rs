//! Label and field selectors: `!key`, `key`, `key=value`, `key!=value`, joined by commas.

use serde_json::Value;

/// Maximum number of requirements in a selector.
const REQUIREMENTS_MAX: usize = 32;
/// Supported fields.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"];

/// The operator of a requirement, with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Operator {
    Exists,
    DoesNotExist,
    Equals(String),
    NotEquals(String),
}

/// A label selector and a field selector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    labels: Vec<(String, Operator)>,
    fields: Vec<(String, Operator)>,
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`. `Err`: why they are invalid.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector, String> {
        let selector = Selector { labels: requirements(labels)?, fields: requirements(fields)? };
        for (field, operator) in &selector.fields {
            if !FIELDS.contains(&field.as_str()) || matches!(operator, Operator::Exists | Operator::DoesNotExist) {
                return Err(format!("field label not supported: {field}"));
            }
        }
        Ok(selector)
    }

    /// Whether an object satisfies all requirements.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str).map(str::to_owned);
        // An absent field has the value "".
        let field = |path: &str| Some(path.split('.').fold(object, |v, step| &v[step]).as_str().unwrap_or("").to_owned());
        let holds = |value: Option<String>, operator: &Operator| match operator {
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Equals(text) => value.as_ref() == Some(text),
            Operator::NotEquals(text) => value.as_ref() != Some(text),
        };
        self.labels.iter().all(|(key, operator)| holds(label(key), operator))
            && self.fields.iter().all(|(path, operator)| holds(field(path), operator))
    }
}

fn requirements(text: &str) -> Result<Vec<(String, Operator)>, String> {
    let mut list = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, operator) = if let Some((key, value)) = part.split_once("!=") {
            (key, Operator::NotEquals(value.trim().into()))
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (key, Operator::Equals(value.trim().into()))
        } else if let Some(key) = part.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (part, Operator::Exists)
        };
        let key = key.trim();
        if key.is_empty() || key.contains([' ', '(', ')', '!']) {
            return Err(format!("unable to parse requirement: {part:?}"));
        }
        list.push((key.to_owned(), operator));
    }
    if list.len() > REQUIREMENTS_MAX {
        return Err(format!("{} requirements, {REQUIREMENTS_MAX} are allowed", list.len()));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_selected() {
        let object = json!({"metadata": {"name": "web", "labels": {"app": "x", "empty": ""}}, "spec": {"clusterIP": "None"}});
        let table = [
            ("", "", true),
            ("app", "", true),
            ("!app", "", false),
            ("!other", "", true),
            ("empty", "", true),
            ("app=x,!other", "", true),
            ("app==y", "", false),
            ("app!=y", "", true),
            ("other!=y", "", true),
            ("", "spec.clusterIP!=None", false),
            ("", "metadata.name=web", true),
            ("app=x", "metadata.name=api", false),
            ("", "spec.type!=ClusterIP", true),
        ];
        for (labels, fields, expected) in table {
            assert_eq!(Selector::parse(labels, fields).unwrap().matches(&object), expected, "{labels:?} {fields:?}");
        }
    }

    #[test]
    fn invalid_selectors_are_rejected() {
        for (labels, fields) in [("a in (b)", ""), ("=x", ""), ("!", ""), ("", "spec.ports=1"), ("", "metadata.name")] {
            assert!(Selector::parse(labels, fields).is_err(), "{labels:?} {fields:?}");
        }
        Selector::parse(&"a,".repeat(REQUIREMENTS_MAX), "").unwrap();
        assert!(Selector::parse(&"a,".repeat(REQUIREMENTS_MAX + 1), "").unwrap_err().contains("32"));
    }
}
