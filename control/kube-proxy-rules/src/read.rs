//! Reads a text of any of the three formats.

use std::fmt;

use crate::model::{Ruleset, Source};
use crate::render::clean;
use crate::{nft, save};

/// Maximum length of a text, bytes. 10,000 Services with ten endpoints take about 40 MB in iptables-save.
pub const TEXT_MAX: usize = 256 << 20;

/// Maximum number of rules, chains and elements of sets together.
pub(crate) const PIECES_MAX: usize = 4_000_000;

/// What wrote a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `nft -j list ruleset`
    NftJson,
    /// `iptables-save`
    Iptables,
    /// `ip6tables-save`
    Ip6tables,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::NftJson => "nft -j list ruleset",
            Format::Iptables => "iptables-save",
            Format::Ip6tables => "ip6tables-save",
        })
    }
}

/// Why a text cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ReadError {
    /// The line, or the element: `line 17`, `nftables[44]`.
    pub place: String,
    pub message: String,
}

impl ReadError {
    pub(crate) fn new(place: impl Into<String>, message: impl Into<String>) -> ReadError {
        ReadError { place: place.into(), message: clean(&message.into()) }
    }

    pub(crate) fn line(number: usize, message: impl Into<String>) -> ReadError {
        ReadError::new(format!("line {number}"), message)
    }
}

impl Ruleset {
    /// Adds the rules of a text. An iptables with the nf_tables backend keeps its rules where `nft` lists them too, without their
    /// matches: then the text of iptables-save counts, and nft's tables of the same names do not.
    ///
    /// # Errors
    /// The text is none of the three formats, is damaged, or too long. Nothing is added then.
    pub fn read(&mut self, text: &str) -> Result<Format, ReadError> {
        if text.len() > TEXT_MAX {
            return Err(ReadError::new("size", format!("{} bytes, {TEXT_MAX} are allowed", text.len())));
        }
        let mut with = self.clone();
        let (format, shared_with_nft) = match text.trim_start().as_bytes().first() {
            None => return Err(ReadError::line(1, "the text is empty")),
            Some(b'{') => (nft::read(&mut with, text)?, false),
            Some(_) => save::read(&mut with, text)?,
        };
        if with.sources.iter().any(|source| source.format == format) {
            return Err(ReadError::new("file", format!("a second text of `{format}`: one of each kind is allowed")));
        }
        with.sources.push(Source { format, shared_with_nft });
        with.ignore_doubles();
        with.order_hooks();
        *self = with;
        Ok(format)
    }

    fn ignore_doubles(&mut self) {
        let shares = |format| self.sources.iter().any(|source| source.format == format && source.shared_with_nft);
        let (v4, v6) = (shares(Format::Iptables), shares(Format::Ip6tables));
        let ours: Vec<(bool, String)> = self.tables.iter().filter(|t| t.iptables).map(|t| (t.family.v6, t.name.clone())).collect();
        for table in self.tables.iter_mut().filter(|table| !table.iptables) {
            let double = |of_v6: bool| ours.iter().any(|(v6, name)| (*v6, name) == (of_v6, &table.name));
            table.ignored = match table.family.label() {
                "ip" => v4 && double(false),
                "ip6" => v6 && double(true),
                _ => false,
            };
        }
    }
}
