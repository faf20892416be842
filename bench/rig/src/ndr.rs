//! The highest rate without loss, or with at most a share of it (the non-drop rate). [`search`] is the algorithm;
//! [`measure`] makes its trials with the generator and the sink.

pub mod cli;
pub mod measure;
pub mod search;

pub use cli::NdrArgs;
