//! Constants of nft's JSON as numbers.

use serde_json::Value;

use nomagic_core::tuple::Proto;

use crate::matching::{Span, number, protocol_number, state};

/// The parts of a key: one literal, or several joined by `concat`. `None`: of a type that is not known here.
pub(super) fn key(value: &Value) -> Option<Vec<Span>> {
    let one = |part: &Value| match spans(part)?.as_slice() {
        [span] => Some(*span),
        _ => None,
    };
    match value.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(one).collect(),
        None => one(value).map(|span| vec![span]),
    }
}

/// The spans of a literal, a prefix, a range, or an anonymous set of them.
pub(super) fn spans(value: &Value) -> Option<Vec<Span>> {
    match value {
        Value::Number(n) => Some(vec![Span::one(n.as_u64()?.into())]),
        Value::String(text) => Some(vec![Span::one(word(text)?)]),
        Value::Array(all) => joined(all),
        Value::Object(fields) => {
            let (kind, inner) = fields.iter().next()?;
            match kind.as_str() {
                "set" => match inner {
                    Value::Array(all) => joined(all),
                    one => spans(one),
                },
                "elem" => spans(&inner["val"]),
                "prefix" => {
                    let length = u8::try_from(inner["len"].as_u64()?).ok()?;
                    Some(vec![Span::prefix(inner["addr"].as_str()?.parse().ok()?, length)?])
                }
                "range" => {
                    let [first, last] = inner.as_array()?.as_slice() else { return None };
                    let end = |value: &Value| spans(value)?.first().copied();
                    Some(vec![Span { first: end(first)?.first, last: end(last)?.last }])
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn joined(all: &[Value]) -> Option<Vec<Span>> {
    let mut found = Vec::new();
    for value in all {
        found.extend(spans(value)?);
    }
    Some(found)
}

/// A word as a number: an address, a protocol, a state, a well-known port or a family.
fn word(text: &str) -> Option<u128> {
    if let Ok(address) = text.parse() {
        return Some(number(address));
    }
    if let Some(bit) = state::parse(text) {
        return Some(bit.into());
    }
    match text {
        "ipv4" => Some(2),
        "ipv6" => Some(10),
        "tcp" => Some((Proto::Tcp as u8).into()),
        other => protocol_number(other).map(u128::from),
    }
}
