//! Rules that a real kube-proxy wrote, and damaged copies of them.

mod damages;
mod data;
mod foreign;
mod hostile;
mod mirror;
mod recorded;
