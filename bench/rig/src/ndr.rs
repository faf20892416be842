//! The highest rate at which nothing (or at most a share) is lost, by [`search`]; [`measure`] makes its trials with the generator and the sink.

pub mod cli;
pub mod measure;
pub mod search;

pub use cli::NdrArgs;
