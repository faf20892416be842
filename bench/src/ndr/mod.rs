//! The highest rate at which nothing (or at most a share) is lost.

pub mod search;
