//! `nomagic-bench compare`: nomagic and its peers, over veth pairs on one machine.
//!
//! [`workload`] is the Services and the traffic, [`kernel_rules`] what kube-proxy makes of them for the kernel. A
//! [`subject`] (nomagic, a rule set, the [`no_work`] loop) runs in a [`topology`] of its own; a [`trial`] sends
//! frames through it, and a [`counter`] counts them at the far end while [`cpu`] accounts for the CPUs. A
//! [`trial_runner`] repeats trials that something disturbed. [`policy`] is the table of what is measured of whom,
//! [`run`] the order: [`rates`], [`load`], [`connections`], [`churn`] by [`events`] and [`change`]s. [`figures`],
//! [`cost`] and [`manifest`] make [`results`](crate::results) of it, and [`cli`] prints them.

pub mod change;
pub mod churn;
pub mod cli;
pub mod connections;
pub mod cost;
pub mod counter;
pub mod cpu;
pub mod events;
pub mod figures;
pub mod kernel_rules;
pub mod load;
pub mod manifest;
pub mod no_work;
pub mod policy;
pub mod rates;
pub mod run;
pub mod subject;
pub mod test_bed;
pub mod topology;
pub mod trial;
pub mod trial_runner;
pub mod workload;
