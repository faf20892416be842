//! The types of the fields that nomagic reads, for objects with a value of the wrong type somewhere.
//!
//! Such an object cannot be read as a whole. What is read of it is checked field by field, all else is left out, and a wrong value costs as
//! little as possible: its field, or the list entry that makes no sense without it. Only where nothing useful would remain it costs the
//! object, whose last valid version then stays in force.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What is expected of a value.
pub(super) enum Shape {
    Text,
    /// Text of a few allowed words. Another scalar is taken as text: it is none of the words, and the reader says so.
    Word,
    /// A whole number of 32 bits.
    Number,
    /// `true` or `false`.
    Truth,
    Time,
    /// Texts by key; null is "", as for the API server. A wrong value is named only under one of these keys; others are not read.
    Texts(&'static [&'static str]),
    Fields(&'static [(&'static str, Cost, Shape)]),
    List {
        of: &'static Shape,
        /// The word for an entry.
        what: &'static str,
        /// Without one readable entry the object is unreadable.
        needed: bool,
    },
    /// A list of which only the first entry is read.
    First(&'static Shape),
}

/// What a wrong value costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cost {
    /// The field, which then counts as absent.
    Field,
    /// The list entry around it.
    Entry,
    /// The object.
    Object,
    /// The field of a list that restricts clients: absent, it would admit everybody, so it admits nobody.
    Clients,
}

/// A wrong value.
#[derive(Debug)]
pub(super) struct Wrong {
    /// `spec.ports[0].port`
    pub(super) field: String,
    /// What was found and what is expected.
    pub(super) message: String,
    cost: Option<Cost>,
}

/// A checked object.
pub(super) struct Checked {
    /// The readable part. Unreadable entries of lists are empty, so that the others keep their indices.
    pub(super) value: Value,
    /// What was left out, with the handling.
    pub(super) faults: Vec<(String, String)>,
    /// The fields that are empty because of a fault.
    pub(super) emptied: Vec<String>,
}

/// Checks an object.
///
/// # Errors
/// If a wrong value costs the object.
pub(super) fn check(shape: &Shape, value: Value) -> Result<Checked, Wrong> {
    let mut checker = Checker::default();
    let value = checker.take(shape, value, "")?;
    Ok(Checked { value, faults: checker.faults, emptied: checker.emptied })
}

#[derive(Default)]
struct Checker {
    faults: Vec<(String, String)>,
    emptied: Vec<String>,
}

impl Checker {
    fn take(&mut self, shape: &Shape, value: Value, path: &str) -> Result<Value, Wrong> {
        let wrong = |value: &Value, expected: &str| {
            Err(Wrong { field: path.into(), message: format!("{}: {expected} is expected", found(value)), cost: None })
        };
        match (shape, value) {
            (Shape::Text | Shape::Word, Value::String(text)) => Ok(text.into()),
            (Shape::Word, value @ (Value::Bool(_) | Value::Number(_))) => Ok(value.to_string().into()),
            (Shape::Text, value @ (Value::Bool(_) | Value::Number(_))) => wrong(&value, "text (in quotes)"),
            (Shape::Text | Shape::Word, value) => wrong(&value, "text"),
            (Shape::Number, value) => match whole_number(&value) {
                Some(number) => Ok(number.into()),
                None if value.is_string() => wrong(&value, "a number (without quotes)"),
                None if value.is_i64() || value.is_u64() => wrong(&value, "a smaller number"),
                None => wrong(&value, "a whole number"),
            },
            (Shape::Truth, value @ Value::Bool(_)) => Ok(value),
            (Shape::Truth, value) => wrong(&value, "true or false (without quotes)"),
            (Shape::Time, Value::String(text)) if text.parse::<Timestamp>().is_ok() => Ok(text.into()),
            (Shape::Time, value) => wrong(&value, "a time such as 2026-01-31T12:00:00Z"),
            (Shape::Texts(named), Value::Object(texts)) => Ok(self.texts(named, texts, path)),
            (Shape::Fields(fields), Value::Object(values)) => self.fields(fields, values, path),
            (Shape::Texts(_) | Shape::Fields(_), value) => wrong(&value, "a mapping"),
            (Shape::List { of, what, needed }, Value::Array(values)) => self.list((of, what, *needed), values, path),
            (Shape::First(of), Value::Array(values)) => match values.into_iter().next() {
                Some(first) => Ok(json!([self.take(of, first, &format!("{path}[0]"))?])),
                None => Ok(json!([])),
            },
            (Shape::List { .. } | Shape::First(_), value) => wrong(&value, "a list"),
        }
    }

    fn texts(&mut self, named: &[&str], texts: Map<String, Value>, path: &str) -> Value {
        let mut kept = Map::new();
        for (key, value) in texts {
            match value {
                Value::Null => drop(kept.insert(key, "".into())),
                Value::String(_) => drop(kept.insert(key, value)),
                other if named.contains(&key.as_str()) => {
                    self.faults.push((format!("{path}[{key}]"), format!("{}: text (in quotes) is expected; it is skipped", found(&other))));
                }
                _ => {}
            }
        }
        kept.into()
    }

    fn fields(&mut self, fields: &[(&str, Cost, Shape)], mut values: Map<String, Value>, path: &str) -> Result<Value, Wrong> {
        let mut kept = Map::new();
        for (name, cost, shape) in fields {
            let Some(value) = values.remove(*name).filter(|v| !v.is_null()) else { continue };
            let field = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
            match self.take(shape, value, &field) {
                Ok(value) => drop(kept.insert((*name).to_owned(), value)),
                Err(wrong) => match wrong.cost.unwrap_or(*cost) {
                    Cost::Field => self.faults.push((wrong.field, format!("{}; it is skipped", wrong.message))),
                    Cost::Clients => {
                        self.faults.push((wrong.field, format!("{}; no client is admitted", wrong.message)));
                        self.emptied.push(field);
                        kept.insert((*name).to_owned(), json!([""]));
                    }
                    cost => return Err(Wrong { cost: Some(cost), ..wrong }),
                },
            }
        }
        Ok(kept.into())
    }

    fn list(&mut self, (of, what, needed): (&Shape, &str, bool), values: Vec<Value>, path: &str) -> Result<Value, Wrong> {
        let (count, mut lost) = (values.len(), 0);
        let mut kept = Vec::with_capacity(count);
        for (i, value) in values.into_iter().enumerate() {
            let entry = format!("{path}[{i}]");
            match self.take(of, value, &entry) {
                Ok(value) => kept.push(value),
                Err(wrong) if wrong.cost == Some(Cost::Object) => return Err(wrong),
                Err(wrong) => {
                    lost += 1;
                    if needed && lost == count {
                        return Err(Wrong { cost: Some(Cost::Object), ..wrong });
                    }
                    self.faults.push((wrong.field, format!("{}; the {what} is skipped", wrong.message)));
                    self.emptied.push(entry);
                    kept.push(if matches!(of, Shape::Fields(_)) { json!({}) } else { "".into() });
                }
            }
        }
        Ok(kept.into())
    }
}

/// Maximum number of characters of a text in a message.
const QUOTED_MAX: usize = 60;

/// A value in words.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(truth) => format!("{truth}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() > QUOTED_MAX => {
            format!("the text {:?}...", text.chars().take(QUOTED_MAX).collect::<String>())
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

/// A number of 32 bits; 80.0 and 8e1 are 80, as for the API server.
fn whole_number(value: &Value) -> Option<i32> {
    match value.as_i64() {
        Some(number) => i32::try_from(number).ok(),
        None => value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= f64::from(i32::MAX)).map(|f| f as i32),
    }
}
