//! What a rule of nft's JSON asks: fields, and matches of fields.

use serde_json::Value;

use super::{Reader, has, literal};
use crate::matching::{Field, Side, Test, protocol_number, state};

/// A field, if it is one that has a number here.
pub(super) fn field(expression: &Value) -> Option<Field> {
    let (kind, value) = expression.as_object()?.iter().next()?;
    match (kind.as_str(), value["key"].as_str()) {
        ("meta", Some("l4proto")) => Some(Field::Protocol),
        ("meta", Some("nfproto")) => Some(Field::Family),
        ("meta", Some("mark")) => Some(Field::Mark),
        ("ct", Some("state")) => Some(Field::State),
        ("payload", _) => payload(value["protocol"].as_str()?, value["field"].as_str()?),
        _ => None,
    }
}

fn payload(protocol: &str, name: &str) -> Option<Field> {
    let side = match name {
        "saddr" | "sport" => Side::Source,
        "daddr" | "dport" => Side::Destination,
        "protocol" if protocol == "ip" => return Some(Field::Protocol),
        "nexthdr" if protocol == "ip6" => return Some(Field::Protocol),
        _ => return None,
    };
    match (protocol, name.ends_with("port")) {
        ("ip", false) => Some(Field::Address { side, v6: false }),
        ("ip6", false) => Some(Field::Address { side, v6: true }),
        ("th", true) => Some(Field::Port { side, of: None }),
        (other, true) => protocol_number(other).map(|number| Field::Port { side, of: Some(number) }),
        _ => None,
    }
}

/// The fields of a key: one, or several joined by `concat`.
pub(super) fn fields(expression: &Value) -> Option<Vec<Field>> {
    match expression.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(field).collect(),
        None => field(expression).map(|one| vec![one]),
    }
}

impl Reader<'_> {
    /// A `match` statement.
    pub(super) fn test(&self, table: usize, value: &Value) -> Test {
        self.known_test(table, value).unwrap_or_else(|| Test::Unknown(value.to_string()))
    }

    fn known_test(&self, table: usize, value: &Value) -> Option<Test> {
        let (left, right) = (&value["left"], &value["right"]);
        let not = match value["op"].as_str()? {
            "==" | "in" => false,
            "!=" => true,
            _ => return None,
        };
        if let Some(set) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let set = *self.rules.tables[table].sets.get(set)?;
            let key = fields(left)?;
            // kube-proxy's sets with a time-out are those of session affinity.
            return Some(match self.rules.sets[set].timeout_s.filter(|_| self.rules.tables[table].name == "kube-proxy") {
                Some(seconds) => Test::Recent { name: self.rules.sets[set].name.clone(), seconds: Some(seconds) },
                None => Test::InSet { key, not, set },
            });
        }
        if let Some(test) = connection(left, right, not).or_else(|| masked(left, right, not)).or_else(|| interface(left, right, not)) {
            return Some(test);
        }
        if let Some(fib) = left.get("fib") {
            let side = if has(&fib["flags"], "saddr") { Side::Source } else { Side::Destination };
            let plain = fib["result"] == "type" && right == "local" && fib["flags"].as_array().is_none_or(|flags| flags.len() == 1);
            return plain.then_some(Test::Local { side, not });
        }
        Some(Test::Field { field: field(left)?, not, spans: literal::spans(right)? })
    }
}

/// `ct state` and `ct status`.
fn connection(left: &Value, right: &Value, not: bool) -> Option<Test> {
    let key = left["ct"]["key"].as_str()?;
    let names: Vec<&Value> = match right.get("set").unwrap_or(right) {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    };
    let mut bits = 0;
    for name in names {
        bits |= state::parse(name.as_str()?).filter(|bit| (*bit >= state::SNAT) == (key == "status"))?;
    }
    matches!(key, "state" | "status").then_some(Test::State { bits, not })
}

/// `meta mark & MASK == VALUE`
fn masked(left: &Value, right: &Value, not: bool) -> Option<Test> {
    let [a, b] = left["&"].as_array()?.as_slice() else { return None };
    let (of, mask) = if a.is_number() { (b, a) } else { (a, b) };
    let small = |value: &Value| u32::try_from(value.as_u64()?).ok();
    (field(of)? == Field::Mark).then_some(())?;
    Some(Test::Mark { mask: small(mask)?, value: small(right)?, not })
}

fn interface(left: &Value, right: &Value, not: bool) -> Option<Test> {
    let incoming = match left["meta"]["key"].as_str()? {
        "iif" | "iifname" => true,
        "oif" | "oifname" => false,
        _ => return None,
    };
    Some(Test::Interface { incoming, name: right.as_str()?.replace('*', "+"), not })
}
