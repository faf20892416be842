//! The report of a comparison: a page, a plot, a table for terminals, a summary for scripts.
//!
//! [`sections`] decides what is shown, as [`table`]s and [`plot`]s, which [`draw`] draws; [`page`] and [`text`] put them into a form. [`summary`] makes
//! one flat list of all values, which [`against`] compares with another run's.

pub mod against;
pub mod cli;
pub mod draw;
pub mod number;
pub mod page;
pub mod plot;
pub mod sections;
pub mod summary;
pub mod table;
pub mod text;

pub use cli::ReportArgs;
