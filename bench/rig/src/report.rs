//! The report of a comparison: a page, a plot, a table for terminals, a summary for scripts.
//!
//! [`sections`] choose the content, as [`table`]s and [`plot`]s; [`draw`] draws the plots; [`page`] and [`text`]
//! render all of it. [`summary`] is a flat list of all values, which [`against`] compares with those of another run.

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
