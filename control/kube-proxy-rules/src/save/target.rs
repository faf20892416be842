//! The words of a rule in order, and what it does in the end.

use super::Reader;
use super::matches::{Known, masked};
use super::tokens::Tokens;
use crate::matching::Test;
use crate::model::{Action, Part, Rule};

impl Reader<'_> {
    /// Reads the rule after its chain.
    pub(super) fn rule(&mut self, table: usize, tokens: &mut Tokens<'_>, rule: &mut Rule) -> Result<(), String> {
        let mut not = false;
        while let Some(option) = tokens.next() {
            match option.as_str() {
                "!" => {
                    not = true;
                    continue;
                }
                "-j" | "-g" => {
                    let name = tokens.take("a target")?;
                    let parts = self.target(table, &option, &name, tokens)?;
                    rule.parts.extend(parts);
                    if let Some(more) = tokens.peek() {
                        rule.parts.push(Part::Unknown(format!("{more} after the target {name}")));
                    }
                    return Ok(());
                }
                _ => {}
            }
            let start = tokens.place() - 1;
            match self.option(&option, not, tokens, rule)? {
                Known::Parts(parts) => rule.parts.extend(parts),
                Known::Nothing => {}
                Known::No => {
                    skip_values(tokens);
                    let words = tokens.since(start);
                    rule.parts.push(Part::Test(Test::Unknown(if not { format!("! {words}") } else { words })));
                }
            }
            not = false;
        }
        Ok(())
    }

    fn target(&self, table: usize, option: &str, name: &str, tokens: &mut Tokens<'_>) -> Result<Vec<Part>, String> {
        let start = tokens.place();
        let mut rest = |action: &dyn Fn(String) -> Action| {
            while tokens.next().is_some() {}
            action(tokens.since(start))
        };
        let action = match name {
            "ACCEPT" => Action::Accept,
            "DROP" => Action::Drop,
            "RETURN" => Action::Return,
            "REJECT" => rest(&|words| Action::Reject(words.trim_start_matches("--reject-with ").into())),
            "MASQUERADE" => rest(&|_| Action::Masquerade),
            "SNAT" => rest(&|words| Action::Snat(words.trim_start_matches("--to-source ").into())),
            "DNAT" => rest(&|words| dnat(&words).unwrap_or(Action::Unknown(format!("DNAT {words}")))),
            "REDIRECT" => rest(&|words| match words.strip_prefix("--to-ports ").map(str::parse) {
                None => Action::Redirect(None),
                Some(Ok(port)) => Action::Redirect(Some(port)),
                Some(Err(_)) => Action::Unknown(format!("REDIRECT {words}")),
            }),
            "MARK" => {
                let (how, value) = (tokens.take("an option")?, tokens.take("a mark")?);
                let (value, mask) = masked(&value)?;
                let known = match how.as_str() {
                    "--set-xmark" => Some((!mask, value)),
                    "--set-mark" => Some((!(mask | value), value)),
                    "--or-mark" => Some((!value, value)),
                    "--and-mark" => Some((value, 0)),
                    "--xor-mark" => Some((u32::MAX, value)),
                    _ => None,
                };
                return Ok(vec![known.map_or_else(|| Part::Unknown(format!("MARK {how}")), |(keep, flip)| Part::Mark { keep, flip })]);
            }
            "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPMSS" | "CHECKSUM" | "CLASSIFY" | "DSCP" | "SET" => {
                rest(&|_| Action::Continue);
                return Ok(vec![Part::Note(name.into())]);
            }
            chain => match self.find(table, chain) {
                Ok(id) if option == "-g" => Action::Goto(id),
                Ok(id) => Action::Jump(id),
                // A chain's name has at least one small letter, or is declared; the others are targets of the kernel.
                Err(missing) if chain.starts_with("KUBE-") => return Err(missing),
                Err(_) => rest(&|words| Action::Unknown(format!("{chain} {words}").trim_end().into())),
            },
        };
        Ok(vec![Part::Do(action)])
    }
}

/// Takes the values of an option that is not known: up to the next option.
fn skip_values(tokens: &mut Tokens<'_>) {
    while tokens.peek().is_some_and(|word| word != "!" && !word.starts_with('-')) {
        tokens.next();
    }
}

/// `--to-destination ADDRESS[:PORT]`; `None`: a range of addresses or ports, or with options.
fn dnat(words: &str) -> Option<Action> {
    let to = words.strip_prefix("--to-destination ")?;
    if let Ok(address) = to.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Action::Dnat(Some(address), None));
    }
    if let Some(port) = to.strip_prefix(':') {
        return Some(Action::Dnat(None, Some(port.parse().ok()?)));
    }
    let to: std::net::SocketAddr = to.parse().ok()?;
    Some(Action::Dnat(Some(to.ip()), Some(to.port())))
}
