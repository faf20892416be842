//! Rules that a real kube-proxy wrote, and damaged copies of them.

mod data;
mod recorded;
