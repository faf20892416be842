//! The report of a comparison: a page, a plot, a table for terminals, a summary for scripts.
//!
//! [`sections`] decides what is shown, as [`table`]s and plots ([`plot`], [`line`], [`row`]); [`page`] and [`text`] put it into a form. [`summary`] makes
//! one flat list of all values, which [`against`] compares with another run's.

pub mod against;
pub mod cli;
pub mod line;
pub mod number;
pub mod page;
pub mod plot;
pub mod row;
pub mod scale;
pub mod sections;
pub mod style;
pub mod summary;
pub mod svg;
pub mod table;
pub mod text;

pub use cli::ReportArgs;

#[cfg(test)]
#[path = "../../tests/common/results.rs"]
mod fixture;
#[cfg(test)]
use crate::results as model;
