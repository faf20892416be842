//! What a rule of nft's JSON does.

use serde_json::Value;

use super::expression::{field, fields};
use super::{Reader, choice_span};
use crate::matching::{Field, Span, Test};
use crate::model::{Action, Element, Part, Set};

/// Statements that decide nothing.
const NOTES: [&str; 3] = ["counter", "log", "last"];

impl Reader<'_> {
    /// The parts of a statement. What is not known becomes [`Part::Unknown`]; an error is a name that does not exist, or a shape that nft
    /// does not print.
    pub(super) fn statement(&mut self, table: usize, statement: &Value) -> Result<Vec<Part>, String> {
        let Some((kind, value)) = statement.as_object().and_then(|fields| fields.iter().next()) else {
            return Err("not a statement".into());
        };
        let unknown = || vec![Part::Unknown(statement.to_string())];
        let one = match kind.as_str() {
            "match" => Part::Test(self.test(table, value)),
            "xt" if value["name"] == "comment" => Part::Note("comment".into()),
            // Of iptables' nf_tables backend: a match or a target that nft does not know.
            "xt" if value["type"] != "target" => Part::Test(Test::Unknown(statement.to_string())),
            "vmap" => return self.verdict_map(table, value).map(|part| part.map_or_else(unknown, |part| vec![part])),
            "mangle" => match mark(value) {
                Some((keep, flip)) => Part::Mark { keep, flip },
                None if value["key"]["meta"]["key"] == "mark" => return Ok(unknown()),
                None => Part::Note(statement.to_string()),
            },
            "dnat" => return Ok(destination(value).map_or_else(unknown, |part| vec![part])),
            "snat" => Part::Do(Action::Snat(value["addr"].as_str().map_or_else(|| value.to_string(), str::to_owned))),
            "masquerade" => Part::Do(Action::Masquerade),
            "redirect" => match value.get("port") {
                None => Part::Do(Action::Redirect(None)),
                Some(port) => match port.as_u64().and_then(|port| u16::try_from(port).ok()) {
                    Some(port) => Part::Do(Action::Redirect(Some(port))),
                    None => return Ok(unknown()),
                },
            },
            "reject" => Part::Do(Action::Reject(value["expr"].as_str().or(value["type"].as_str()).unwrap_or("port-unreachable").into())),
            "set" => Part::Remember(value["set"].as_str().unwrap_or_default().trim_start_matches('@').into()),
            kind if NOTES.contains(&kind) => Part::Note(kind.into()),
            _ => match self.action(table, statement)? {
                Action::Unknown(text) => Part::Unknown(text),
                known => Part::Do(known),
            },
        };
        Ok(vec![one])
    }

    /// `None`: the key is not known.
    fn verdict_map(&mut self, table: usize, value: &Value) -> Result<Option<Part>, String> {
        if let Some(generator) = value["key"].get("numgen") {
            let Some(entries) = value["data"]["set"].as_array() else { return Ok(None) };
            let mut choices = Vec::new();
            for entry in entries {
                let Some([key, verdict]) = entry.as_array().map(Vec::as_slice) else { return Err("not a pair in a map".into()) };
                choices.push((choice_span(key)?, self.action(table, verdict)?));
            }
            return Ok(random(generator, choices));
        }
        let Some(key) = fields(&value["key"]) else { return Ok(None) };
        if let Some(name) = value["data"].as_str().and_then(|text| text.strip_prefix('@')) {
            let map = *self.rules.tables[table].sets.get(name).ok_or_else(|| format!("map {name:?} does not exist"))?;
            return Ok(Some(Part::Lookup { key, map }));
        }
        let Some(entries) = value["data"]["set"].as_array() else { return Ok(None) };
        let mut set = Set { name: format!("__map{}", self.rules.sets.len()), ..Set::default() };
        for entry in entries {
            let Some([literal, verdict]) = entry.as_array().map(Vec::as_slice) else { return Err("not a pair in a map".into()) };
            let (literal, comment) = super::commented(literal);
            let Some(spans) = super::literal::key(literal) else { return Ok(None) };
            set.insert(spans, Element { action: Some(self.action(table, verdict)?), comment });
        }
        Ok(Some(Part::Lookup { key, map: self.rules.add_set(table, set) }))
    }
}

/// `numgen random mod N offset O`. Keys are what the map holds, that is, numbers from the offset on.
fn random(generator: &Value, choices: Vec<(Span, Action)>) -> Option<Part> {
    let (of, offset) = (generator["mod"].as_u64()?, u128::from(generator["offset"].as_u64().unwrap_or(0)));
    let within = |span: &Span| span.first >= offset && span.last < offset + u128::from(of) && span.first <= span.last;
    if of == 0 || choices.iter().any(|(span, _)| !within(span)) {
        return None;
    }
    Some(Part::Choose { of, choices })
}

/// `meta mark set` with a constant, or with the mark itself and one operator.
fn mark(value: &Value) -> Option<(u32, u32)> {
    if value["key"]["meta"]["key"] != "mark" {
        return None;
    }
    let small = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let new = &value["value"];
    if let Some(constant) = small(new) {
        return Some((0, constant));
    }
    let (operator, sides) = new.as_object()?.iter().next()?;
    let [a, b] = sides.as_array()?.as_slice() else { return None };
    let (of, number) = if a.is_number() { (b, a) } else { (a, b) };
    (field(of)? == Field::Mark).then_some(())?;
    let number = small(number)?;
    match operator.as_str() {
        "|" => Some((!number, number)),
        "^" => Some((u32::MAX, number)),
        "&" => Some((number, 0)),
        _ => None,
    }
}

/// `dnat to ADDRESS[:PORT]`, or to one of several by a random number.
fn destination(value: &Value) -> Option<Part> {
    let address = &value["addr"];
    if let Some(map) = address.get("map") {
        let mut choices = Vec::new();
        for entry in map["data"]["set"].as_array()? {
            let [key, to] = entry.as_array()?.as_slice() else { return None };
            choices.push((choice_span(key).ok()?, translated(to, value.get("port"))?));
        }
        return random(map["key"].get("numgen")?, choices);
    }
    if address.is_null() {
        return Some(Part::Do(Action::Dnat(None, Some(port(value.get("port")?)?))));
    }
    translated(address, value.get("port")).map(Part::Do)
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// An address, alone or joined with a port.
fn translated(to: &Value, beside: Option<&Value>) -> Option<Action> {
    let (address, number) = match to.get("concat").and_then(Value::as_array).map(Vec::as_slice) {
        Some([address, number]) => (address, Some(number)),
        Some(_) => return None,
        None => (to, beside),
    };
    let number = match number {
        Some(number) => Some(port(number)?),
        None => None,
    };
    Some(Action::Dnat(Some(address.as_str()?.parse().ok()?), number))
}
