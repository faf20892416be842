//! Rules as text: iptables' as they were written, nftables' as `nft list ruleset` would print them.

use std::fmt::Write as _;

use crate::matching::{Field, Side, Span, Test, address, state};
use crate::model::{Action, ChainId, Part, Ruleset};

/// Maximum length of a rule's text, characters.
const TEXT_MAX: usize = 400;

/// A text from outside for people: not too long, and without anything that a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    let mut letters = text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter });
    let mut short: String = letters.by_ref().take(TEXT_MAX).collect();
    if letters.next().is_some() {
        short.push('…');
    }
    short
}

impl Ruleset {
    pub(crate) fn rule_text(&self, chain: ChainId, rule: usize) -> String {
        let v6 = self.tables[self.chains[chain].table].family.v6;
        let Some(rule) = self.chains[chain].rules.get(rule) else { return "the chain's policy".into() };
        let text = rule.text.clone().unwrap_or_else(|| {
            let parts: Vec<String> = rule.parts.iter().map(|part| self.part(part, v6)).filter(|text| !text.is_empty()).collect();
            let comment = rule.comment.as_ref().map_or(String::new(), |comment| format!(" comment \"{comment}\""));
            parts.join(" ") + &comment
        });
        clean(&text)
    }

    fn part(&self, part: &Part, v6: bool) -> String {
        match part {
            Part::Test(test) => self.test(test, v6),
            Part::Mark { keep: 0, flip } => format!("meta mark set {flip:#010x}"),
            Part::Mark { keep, flip } if keep & flip == 0 && *keep == !flip => format!("meta mark set meta mark | {flip:#010x}"),
            Part::Mark { keep: u32::MAX, flip } => format!("meta mark set meta mark ^ {flip:#010x}"),
            Part::Mark { keep, flip } => format!("meta mark set (meta mark & {keep:#010x}) ^ {flip:#010x}"),
            Part::Lookup { key, map } => format!("{} vmap @{}", keys(key), self.sets[*map].name),
            Part::Choose { of, choices } => {
                let mut text = format!("numgen random mod {of} map {{");
                for (place, (span, action)) in choices.iter().enumerate() {
                    let number = if span.first == span.last { span.first.to_string() } else { format!("{}-{}", span.first, span.last) };
                    let _ = write!(
                        text,
                        "{} {number} : {}",
                        if place > 0 { "," } else { "" },
                        self.action(action).trim_start_matches("dnat to ")
                    );
                }
                text + " }"
            }
            Part::Do(action) => self.action(action),
            Part::Remember(name) => format!("update @{name}"),
            Part::Note(text) | Part::Unknown(text) => text.clone(),
        }
    }

    fn action(&self, action: &Action) -> String {
        match action {
            Action::Accept => "accept".into(),
            Action::Drop => "drop".into(),
            Action::Reject(_) => "reject".into(),
            Action::Jump(to) => format!("jump {}", self.chains[*to].name),
            Action::Goto(to) => format!("goto {}", self.chains[*to].name),
            Action::Return => "return".into(),
            Action::Continue => "continue".into(),
            Action::Dnat(address, port) => {
                let address = address.map_or(String::new(), |a| if a.is_ipv6() { format!("[{a}]") } else { a.to_string() });
                format!("dnat to {address}{}", port.map_or(String::new(), |port| format!(":{port}")))
            }
            Action::Redirect(port) => format!("redirect{}", port.map_or(String::new(), |port| format!(" to :{port}"))),
            Action::Masquerade => "masquerade".into(),
            Action::Snat(to) => format!("snat to {to}"),
            Action::Unknown(text) => text.clone(),
        }
    }

    fn test(&self, test: &Test, v6: bool) -> String {
        let sign = |not: &bool| if *not { "!= " } else { "" };
        let (family, side) = (if v6 { "ip6" } else { "ip" }, |side: &Side| if *side == Side::Source { "saddr" } else { "daddr" });
        match test {
            Test::Field { field, not, spans } => format!("{} {}{}", name(*field), sign(not), values(*field, spans)),
            Test::InSet { key, not, set } => format!("{} {}@{}", keys(key), sign(not), self.sets[*set].name),
            Test::Mark { mask, value, not } => format!("meta mark & {mask:#010x} {} {value:#010x}", if *not { "!=" } else { "==" }),
            Test::State { bits, not } => {
                let words = if *bits >= state::SNAT { "ct status" } else { "ct state" };
                format!("{words} {}{}", sign(not), states(*bits))
            }
            Test::Local { side: of, not } => format!("fib {} type {}local", side(of), sign(not)),
            Test::Chance(probability) => format!("probability {probability:.5}"),
            Test::Recent { name, .. } => format!("{family} saddr @{name}"),
            Test::Interface { incoming, name, not } => format!("{} {}\"{name}\"", if *incoming { "iifname" } else { "oifname" }, sign(not)),
            Test::Constant { text, .. } | Test::Unknown(text) => text.clone(),
        }
    }
}

fn states(bits: u32) -> String {
    let names = ["invalid", "established", "related", "new", "untracked", "snat", "dnat"];
    let set: Vec<&str> = names.into_iter().filter(|name| state::parse(name).is_some_and(|bit| bits & bit != 0)).collect();
    set.join(",")
}

fn keys(fields: &[Field]) -> String {
    let names: Vec<String> = fields.iter().map(|field| name(*field)).collect();
    names.join(" . ")
}

fn name(field: Field) -> String {
    let side = |side: Side| if side == Side::Source { "s" } else { "d" };
    match field {
        Field::Address { side: of, v6 } => format!("{} {}addr", if v6 { "ip6" } else { "ip" }, side(of)),
        Field::Port { side: of, of: protocol } => format!("{} {}port", protocol.map_or("th".into(), protocol_name), side(of)),
        Field::Protocol => "meta l4proto".into(),
        Field::Family => "meta nfproto".into(),
        Field::Mark => "meta mark".into(),
        Field::State => "ct state".into(),
    }
}

fn protocol_name(number: u8) -> String {
    nomagic_core::tuple::Proto::from_ip_number(number).map_or(number.to_string(), |proto| proto.name().to_lowercase())
}

/// Values of a field as people write them.
pub(crate) fn values(field: Field, spans: &[Span]) -> String {
    let texts: Vec<String> = spans.iter().map(|span| value(field, span)).collect();
    if let [one] = texts.as_slice() { one.clone() } else { format!("{{ {} }}", texts.join(", ")) }
}

fn value(field: Field, span: &Span) -> String {
    match field {
        Field::Address { v6, .. } => prefix(span, v6),
        Field::Protocol => protocol_name(u8::try_from(span.first).unwrap_or(0)),
        Field::State => states(u32::try_from(span.first).unwrap_or(0)),
        _ if span.first == span.last => span.first.to_string(),
        _ => format!("{}-{}", span.first, span.last),
    }
}

/// A range of addresses: as an address or a prefix if it is one.
pub(crate) fn prefix(span: &Span, v6: bool) -> String {
    let first = address(span.first, v6);
    let size = span.last.wrapping_sub(span.first);
    let bits = if v6 { 128 } else { 32 };
    match size {
        0 => first.to_string(),
        u128::MAX => format!("{first}/0"),
        _ if (size + 1).is_power_of_two() && span.first & size == 0 => format!("{first}/{}", bits - (size + 1).trailing_zeros()),
        _ => format!("{first}-{}", address(span.last, v6)),
    }
}
