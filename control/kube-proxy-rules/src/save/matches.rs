//! What a rule of iptables asks.

use nomagic_core::tuple::Proto;

use super::Reader;
use super::tokens::Tokens;
use crate::matching::{Field, Side, Span, Test, number, protocol_number, state};
use crate::model::{Part, Rule};

/// What an option turned out to be.
pub(super) enum Known {
    Parts(Vec<Part>),
    /// Nothing that decides, or the name of a module.
    Nothing,
    No,
}

fn test(test: Test) -> Known {
    Known::Parts(vec![Part::Test(test)])
}

impl Reader<'_> {
    /// One option that asks something. `not` is a `!` before it.
    pub(super) fn option(&mut self, option: &str, not: bool, tokens: &mut Tokens<'_>, rule: &mut Rule) -> Result<Known, String> {
        let side = match option {
            "-s" | "--src-type" | "--sport" | "--sports" | "--src-range" => Side::Source,
            _ => Side::Destination,
        };
        Ok(match option {
            "-m" => {
                self.module = tokens.take("a module")?;
                Known::Nothing
            }
            "-s" | "-d" => test(self.address(side, not, &tokens.take("an address")?)?),
            "-p" => test(protocol(not, &tokens.take("a protocol")?)),
            "-i" | "-o" => test(Test::Interface { incoming: option == "-i", name: tokens.take("an interface")?, not }),
            "--comment" => {
                rule.comment = Some(tokens.take("a comment")?);
                Known::Nothing
            }
            "--dport" | "--sport" => test(ports(side, not, &tokens.take("a port")?, ':')?),
            "--dports" | "--sports" => test(ports(side, not, &tokens.take("ports")?, ':')?),
            "--src-range" | "--dst-range" => test(self.range(side, not, &tokens.take("a range")?)?),
            "--mark" if self.module == "mark" => test(mark(not, &tokens.take("a mark")?)?),
            "--ctstate" | "--state" => connection(not, &tokens.take("a state")?),
            "--dst-type" | "--src-type" => match tokens.take("a type of address")?.as_str() {
                "LOCAL" => test(Test::Local { side, not }),
                _ => Known::No,
            },
            "--mode" => chance(not, tokens)?,
            // Others use it for other things than session affinity.
            "--set" | "--rcheck" | "--update" if self.own => recent(option, not, tokens)?,
            "--nfacct-name" => Known::Parts(vec![Part::Note(format!("nfacct {}", tokens.take("a name")?))]),
            "--syn" => test(Test::Constant { text: "--syn".into(), holds: !not }),
            "--tcp-flags" => flags(not, &tokens.take("a mask")?, &tokens.take("flags")?),
            _ => Known::No,
        })
    }

    fn address(&self, side: Side, not: bool, text: &str) -> Result<Test, String> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let parsed = address.parse().ok().filter(|a: &std::net::IpAddr| a.is_ipv6() == self.v6);
        let address = parsed.ok_or_else(|| format!("{text:?} is not an address of this family"))?;
        let span = match length {
            None => Some(Span::one(number(address))),
            Some(length) => length.parse().ok().and_then(|length| Span::prefix(address, length)),
        };
        let spans = vec![span.ok_or_else(|| format!("{text:?} is not a prefix"))?];
        Ok(Test::Field { field: Field::Address { side, v6: self.v6 }, not, spans })
    }

    /// `FIRST-LAST`
    fn range(&self, side: Side, not: bool, text: &str) -> Result<Test, String> {
        let end = |text: &str| text.parse().ok().map(number);
        let ends = text.split_once('-').and_then(|(first, last)| Some(Span { first: end(first)?, last: end(last)? }));
        let spans = vec![ends.ok_or_else(|| format!("{text:?} is not a range of addresses"))?];
        Ok(Test::Field { field: Field::Address { side, v6: self.v6 }, not, spans })
    }
}

fn protocol(not: bool, name: &str) -> Test {
    match protocol_number(name) {
        // `all`
        Some(0) => Test::Constant { text: format!("-p {name}"), holds: !not },
        Some(number) => Test::Field { field: Field::Protocol, not, spans: vec![Span::one(number.into())] },
        None if name == "all" => Test::Constant { text: "-p all".into(), holds: !not },
        None => Test::Unknown(format!("-p {name}")),
    }
}

/// Ports and ranges, separated by commas.
fn ports(side: Side, not: bool, text: &str, between: char) -> Result<Test, String> {
    let one = |text: &str| {
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        let end = |text: &str| text.parse::<u16>().ok().map(u128::from);
        Some(Span { first: end(first)?, last: end(last)? })
    };
    let spans: Option<Vec<Span>> = text.split(',').map(one).collect();
    let spans = spans.ok_or_else(|| format!("{text:?} are not ports"))?;
    Ok(Test::Field { field: Field::Port { side, of: None }, not, spans })
}

/// A number of a mark, and the mask behind the slash, or all bits.
pub(super) fn masked(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let pair = number(value).zip(mask.map_or(Some(u32::MAX), number));
    pair.ok_or_else(|| format!("{text:?} is not a mark"))
}

fn mark(not: bool, text: &str) -> Result<Test, String> {
    let (value, mask) = masked(text)?;
    Ok(Test::Mark { mask, value, not })
}

fn connection(not: bool, text: &str) -> Known {
    let bits = text.split(',').try_fold(0, |bits, name| Some(bits | state::parse(name)?));
    bits.map_or(Known::No, |bits| test(Test::State { bits, not }))
}

/// `-m statistic`
fn chance(not: bool, tokens: &mut Tokens<'_>) -> Result<Known, String> {
    let mode = tokens.take("a mode")?;
    let option = tokens.peek().unwrap_or_default().to_owned();
    let probability = match (mode.as_str(), option.as_str()) {
        ("random", "--probability") => {
            tokens.next();
            tokens
                .take("a probability")?
                .parse::<f64>()
                .ok()
                .filter(|p| (0.0..=1.0).contains(p))
                .ok_or("the probability is not between 0 and 1")?
        }
        // One of N packets: seen from one packet, a chance.
        ("nth", "--every") => {
            tokens.next();
            let every = tokens.take("a number")?.parse::<u32>().ok().filter(|n| *n > 0).ok_or("`--every` is not a number above 0")?;
            if tokens.peek() == Some("--packet") {
                tokens.next();
                tokens.take("a number")?;
            }
            1.0 / f64::from(every)
        }
        _ => return Ok(Known::No),
    };
    Ok(test(Test::Chance(if not { 1.0 - probability } else { probability })))
}

/// `-m recent`, whose options follow in the order in which iptables-save writes them.
fn recent(option: &str, not: bool, tokens: &mut Tokens<'_>) -> Result<Known, String> {
    let (mut name, mut seconds, mut by_source) = (String::new(), None, true);
    loop {
        match tokens.peek() {
            Some("--reap" | "--rttl") => drop(tokens.next()),
            Some("--rsource") => drop(tokens.next()),
            Some("--rdest") => {
                tokens.next();
                by_source = false;
            }
            Some("--name") => {
                tokens.next();
                name = tokens.take("a name")?;
            }
            Some("--seconds") => {
                tokens.next();
                seconds = Some(tokens.take("seconds")?.parse().map_err(|_| "`--seconds` is not a number")?);
            }
            Some("--hitcount" | "--mask") => {
                tokens.next();
                tokens.take("a value")?;
            }
            _ => break,
        }
    }
    Ok(match (option, not || !by_source) {
        (_, true) => Known::No,
        ("--set", _) => Known::Parts(vec![Part::Remember(name)]),
        _ => test(Test::Recent { name, seconds }),
    })
}

/// The first packet of a TCP connection has the flag SYN, and of these no other.
fn flags(not: bool, mask: &str, set: &str) -> Known {
    let asks = |list: &str, flag: &str| list.split(',').any(|name| name == flag || name == "ALL");
    let holds = match set {
        "NONE" => !asks(mask, "SYN"),
        _ => set.split(',').all(|name| name == "SYN") && asks(mask, "SYN"),
    };
    let text = format!("--tcp-flags {mask} {set}");
    Known::Parts(vec![
        Part::Test(Test::Field { field: Field::Protocol, not: false, spans: vec![Span::one((Proto::Tcp as u8).into())] }),
        Part::Test(Test::Constant { text, holds: holds != not }),
    ])
}
