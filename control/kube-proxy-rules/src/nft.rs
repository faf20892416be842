//! Reads `nft -j list ruleset`: libnftables' JSON, schema version 1.

mod expression;
mod literal;
mod statement;

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::matching::Span;
use crate::model::{Action, Base, Element, Families, Hook, Rule, Ruleset, Set};
use crate::read::{Format, PIECES_MAX, ReadError};

/// Adds the tables of the text.
pub(crate) fn read(rules: &mut Ruleset, text: &str) -> Result<Format, ReadError> {
    let whole: Value = serde_json::from_str(text).map_err(|e| ReadError::line(e.line(), format!("not JSON: {e}")))?;
    let objects = whole["nftables"].as_array().ok_or_else(|| ReadError::line(1, "no list `nftables`: not the output of `nft -j`"))?;
    let mut reader = Reader { rules, pieces: 0, tables: HashMap::new() };
    for pass in [Reader::declare, Reader::fill] {
        for (place, object) in objects.iter().enumerate() {
            let in_place = |message: String| ReadError::new(format!("nftables[{place}]"), message);
            let parts = object.as_object().ok_or_else(|| in_place("not an object".into()))?;
            for (kind, value) in parts {
                let fields = value.as_object().ok_or_else(|| in_place(format!("{kind}: not an object")))?;
                pass(&mut reader, kind, fields).map_err(|message| in_place(format!("{kind}: {message}")))?;
            }
        }
    }
    Ok(Format::NftJson)
}

pub(crate) struct Reader<'r> {
    rules: &'r mut Ruleset,
    pieces: usize,
    /// By family and name.
    tables: HashMap<(String, String), usize>,
}

type Fields = Map<String, Value>;

fn text<'f>(fields: &'f Fields, name: &str) -> Result<&'f str, String> {
    fields.get(name).and_then(Value::as_str).ok_or_else(|| format!("no text `{name}`"))
}

impl Reader<'_> {
    fn count(&mut self) -> Result<(), String> {
        self.pieces += 1;
        if self.pieces > PIECES_MAX { Err(format!("more than {PIECES_MAX} rules, chains and elements")) } else { Ok(()) }
    }

    /// The table of an object. `None`: of a family that carries no IP packets to Services.
    fn table_of(&mut self, fields: &Fields, name: &str) -> Result<Option<usize>, String> {
        let (family, name) = (text(fields, "family")?, text(fields, name)?);
        if let Some(id) = self.tables.get(&(family.to_owned(), name.to_owned())) {
            return Ok(Some(*id));
        }
        let families = match family {
            "ip" => Families { v4: true, v6: false },
            "ip6" => Families { v4: false, v6: true },
            "inet" => Families { v4: true, v6: true },
            "arp" | "bridge" | "netdev" => return Ok(None),
            other => return Err(format!("family {other:?} is not known")),
        };
        let id = self.rules.table(families, name, false);
        self.tables.insert((family.to_owned(), name.to_owned()), id);
        Ok(Some(id))
    }

    /// First pass: the names of everything that rules can name.
    fn declare(&mut self, kind: &str, fields: &Fields) -> Result<(), String> {
        match kind {
            "table" => self.table_of(fields, "name").map(drop),
            "chain" => {
                let Some(table) = self.table_of(fields, "table")? else { return Ok(()) };
                self.count()?;
                let id = self.rules.chain(table, text(fields, "name")?);
                if let Some(hook) = fields.get("hook").and_then(Value::as_str) {
                    self.rules.chains[id].base = base(hook, fields)?;
                }
                Ok(())
            }
            "set" | "map" => {
                let Some(table) = self.table_of(fields, "table")? else { return Ok(()) };
                self.count()?;
                let flag = |name: &str| fields.get("flags").is_some_and(|flags| has(flags, name));
                let seconds = fields.get("timeout").and_then(Value::as_u64).map(|s| u32::try_from(s).unwrap_or(u32::MAX));
                let timeout_s = seconds.or((flag("timeout") || flag("dynamic")).then_some(0));
                self.rules.add_set(table, Set { name: text(fields, "name")?.into(), timeout_s, ..Set::default() });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Second pass: elements and rules.
    fn fill(&mut self, kind: &str, fields: &Fields) -> Result<(), String> {
        if !matches!(kind, "set" | "map" | "rule") {
            return Ok(());
        }
        let Some(table) = self.table_of(fields, "table")? else { return Ok(()) };
        if kind != "rule" {
            return self.fill_set(table, fields);
        }
        self.count()?;
        let chain = text(fields, "chain")?;
        let id = *self.rules.tables[table].chains.get(chain).ok_or_else(|| format!("chain {chain:?} does not exist"))?;
        let expressions = fields.get("expr").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut parts = Vec::new();
        for (place, statement) in expressions.iter().enumerate() {
            parts.extend(self.statement(table, statement).map_err(|e| format!("chain {chain}: expr[{place}]: {e}"))?);
        }
        let comment = fields.get("comment").and_then(Value::as_str).map(str::to_owned);
        self.rules.chains[id].rules.push(Rule { text: None, comment, parts });
        Ok(())
    }

    fn fill_set(&mut self, table: usize, fields: &Fields) -> Result<(), String> {
        let name = text(fields, "name")?;
        let Some(id) = self.rules.tables[table].sets.get(name).copied() else { return Err(format!("{name:?} is not declared")) };
        let verdicts = fields.get("map").and_then(Value::as_str) == Some("verdict");
        let elements = fields.get("elem").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (place, element) in elements.iter().enumerate() {
            self.count()?;
            let in_place = |message: String| format!("{name}: elem[{place}]: {message}");
            let (key, value) = match (fields.contains_key("map"), element.as_array().map(Vec::as_slice)) {
                (true, Some([key, value])) => (key, Some(value)),
                (true, _) => return Err(in_place("not a pair of key and value".into())),
                (false, _) => (element, None),
            };
            let (key, comment) = commented(key);
            // Of types that a rule about Services does not ask for, such as interfaces: such a rule is not known either.
            let Some(spans) = literal::key(key) else { continue };
            let action = match value.filter(|_| verdicts) {
                Some(verdict) => Some(self.action(table, verdict).map_err(in_place)?),
                None => None,
            };
            self.rules.sets[id].insert(spans, Element { action, comment });
        }
        Ok(())
    }

    /// A verdict as a value of a map or a statement.
    fn action(&self, table: usize, verdict: &Value) -> Result<Action, String> {
        let Some((kind, value)) = verdict.as_object().and_then(|fields| fields.iter().next()) else {
            return Err("not a verdict".into());
        };
        let target = || {
            let name = value["target"].as_str().ok_or("no `target`")?;
            let known = self.rules.tables[table].chains.get(name).copied();
            known.ok_or_else(|| format!("chain {name:?} does not exist"))
        };
        Ok(match kind.as_str() {
            "accept" => Action::Accept,
            "drop" => Action::Drop,
            "return" => Action::Return,
            "continue" => Action::Continue,
            "jump" => Action::Jump(target()?),
            "goto" => Action::Goto(target()?),
            _ => Action::Unknown(verdict.to_string()),
        })
    }
}

/// A flag, alone or in a list.
fn has(flags: &Value, name: &str) -> bool {
    flags.as_str() == Some(name) || flags.as_array().is_some_and(|all| all.iter().any(|flag| flag.as_str() == Some(name)))
}

/// The value and the comment of an element with extras.
fn commented(element: &Value) -> (&Value, Option<String>) {
    match element.get("elem") {
        Some(extras) => (&extras["val"], extras["comment"].as_str().map(str::to_owned)),
        None => (element, None),
    }
}

/// `None`: a hook that no packet to a Service passes.
fn base(hook: &str, fields: &Fields) -> Result<Option<Base>, String> {
    let Some(hook) = Hook::parse(hook) else { return Ok(None) };
    let priority = fields.get("prio").and_then(Value::as_i64).ok_or("no number `prio`")?;
    let drops = fields.get("policy").and_then(Value::as_str) == Some("drop");
    Ok(Some(Base { hook, nat: text(fields, "type")? == "nat", priority, drops }))
}

/// Spans with weights of `numgen`.
fn choice_span(key: &Value) -> Result<Span, String> {
    match literal::spans(commented(key).0).as_deref() {
        Some([span]) => Ok(*span),
        _ => Err(format!("{key} is not a number or a range")),
    }
}
