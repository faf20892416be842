//! The core as its callers see it.

mod affinity;
mod client_class;
mod hostile;
mod lifetimes;
mod local;
mod maglev;
mod nat_model;
mod packets;
mod pieces;
mod reasons;
mod resets;
mod rss;
mod source_ports;
mod stride;
