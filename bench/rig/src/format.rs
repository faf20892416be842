//! Output formats of a result.

use std::fmt::Display;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// Text for a terminal.
    Text,
    /// JSON.
    Json,
}

impl Format {
    /// Prints a result on standard output.
    pub fn print<T: Display + Serialize>(self, result: &T) -> Result<()> {
        match self {
            Format::Text => println!("{}", result.to_string().trim_end()),
            Format::Json => println!("{}", serde_json::to_string_pretty(result)?),
        }
        Ok(())
    }
}
