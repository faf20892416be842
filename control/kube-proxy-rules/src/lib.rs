//! The rules that a kube-proxy wrote, as `nft -j list ruleset`, `iptables-save` and `ip6tables-save` print them, and what they do with
//! the first packet of a connection.
//!
//! Text goes in and decisions come out: nothing here reads files or asks the kernel. [`Ruleset::read`] takes a text of any of the three
//! formats into one model of base chains, chains, rules, sets and verdict maps. [`Ruleset::follow`] leads a packet through all base chains
//! in the kernel's order and gives a [`Decision`] in the words of nomagic's `explain`. [`compare()`] holds a decision against what
//! is expected, and [`parity::check`] all of the rules against nomagic's table.
//!
//! The texts come from outside: sizes, depths and the work for a packet are limited, and what is not known is kept and named.

pub mod compare;
mod decision;
mod destinations;
mod follow;
mod matching;
mod model;
mod names;
mod nft;
mod packet;
pub mod parity;
mod read;
mod render;
mod save;
mod shortcut;
mod words;

pub use compare::{Difference, Expected, compare};
pub use decision::{Backend, Decision, Step};
pub use destinations::Destination;
pub use model::{RulePlace, Ruleset};
pub use packet::{Node, Origin, Packet};
pub use read::{Format, ReadError, TEXT_MAX};
