//! Label and field selectors: `!key`, `key`, `key=value`, `key!=value`, joined by commas.

use serde_json::Value;

/// Requirements of a selector at the most.
const REQUIREMENTS_MAX: usize = 32;
/// Fields that can be selected by.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"];

#[derive(Clone, PartialEq, Eq, Debug)]
enum Wanted {
    Present,
    Absent,
    Equal(String),
    NotEqual(String),
}

/// Which objects are wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    labels: Vec<(String, Wanted)>,
    fields: Vec<(String, Wanted)>,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`. `Err`: what is wrong with them.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector, String> {
        let selector = Selector { labels: requirements(labels)?, fields: requirements(fields)? };
        for (field, wanted) in &selector.fields {
            if !FIELDS.contains(&field.as_str()) || matches!(wanted, Wanted::Present | Wanted::Absent) {
                return Err(format!("field label not supported: {field}"));
            }
        }
        Ok(selector)
    }

    /// Whether an object is wanted.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str).map(str::to_owned);
        // A field that is not there counts as empty.
        let field = |path: &str| Some(path.split('.').fold(object, |v, step| &v[step]).as_str().unwrap_or("").to_owned());
        let holds = |value: Option<String>, wanted: &Wanted| match wanted {
            Wanted::Present => value.is_some(),
            Wanted::Absent => value.is_none(),
            Wanted::Equal(text) => value.as_ref() == Some(text),
            Wanted::NotEqual(text) => value.as_ref() != Some(text),
        };
        self.labels.iter().all(|(key, wanted)| holds(label(key), wanted))
            && self.fields.iter().all(|(path, wanted)| holds(field(path), wanted))
    }
}

fn requirements(text: &str) -> Result<Vec<(String, Wanted)>, String> {
    let mut list = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, wanted) = if let Some((key, value)) = part.split_once("!=") {
            (key, Wanted::NotEqual(value.trim().into()))
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (key, Wanted::Equal(value.trim().into()))
        } else if let Some(key) = part.strip_prefix('!') {
            (key, Wanted::Absent)
        } else {
            (part, Wanted::Present)
        };
        let key = key.trim();
        if key.is_empty() || key.contains([' ', '(', ')', '!']) {
            return Err(format!("unable to parse requirement: {part:?}"));
        }
        list.push((key.to_owned(), wanted));
    }
    if list.len() > REQUIREMENTS_MAX {
        return Err(format!("{} requirements, {REQUIREMENTS_MAX} are allowed", list.len()));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_matches() {
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
    fn what_cannot_be_read() {
        for (labels, fields) in [("a in (b)", ""), ("=x", ""), ("!", ""), ("", "spec.ports=1"), ("", "metadata.name")] {
            assert!(Selector::parse(labels, fields).is_err(), "{labels:?} {fields:?}");
        }
        assert!(Selector::parse(&"a,".repeat(REQUIREMENTS_MAX), "").is_ok());
        assert!(Selector::parse(&"a,".repeat(REQUIREMENTS_MAX + 1), "").unwrap_err().contains("32"));
    }
}
