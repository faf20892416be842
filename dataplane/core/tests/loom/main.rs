//! The connection table under every interleaving that loom finds (up to a number of preemptions): `make loom`.
#![cfg(loom)]

mod clients;
mod events;
mod pipeline;
mod table;
