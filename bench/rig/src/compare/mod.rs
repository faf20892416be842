//! `nomagic-bench compare`: nomagic beside its peers, over veth pairs on one machine.
//!
//! [`workload`] is the Services and the traffic, [`kernel_rules`] what kube-proxy makes of them for the kernel, [`lane`] the namespaces. A [`subject`]
//! runs in a lane of its own ([`no_work`] is one of them); a [`trial`] sends through it and a [`counter`] counts at its end, while [`cpu`] looks who uses the
//! CPUs. [`bed`] says which trials count. [`run`] is the order of all that is measured: [`rates`], [`load`], [`connections`], [`churn`] by [`change`]s;
//! [`figures`], [`cost`] and [`manifest`] make [`results`](crate::results) of it, and [`cli`] prints them.

pub mod bed;
pub mod change;
pub mod churn;
pub mod cli;
pub mod connections;
pub mod cost;
pub mod counter;
pub mod cpu;
pub mod figures;
pub mod kernel_rules;
pub mod lane;
pub mod load;
pub mod manifest;
pub mod no_work;
pub mod rates;
pub mod run;
pub mod subject;
pub mod trial;
pub mod workload;
