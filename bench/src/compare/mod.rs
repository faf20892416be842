//! `nomagic-bench compare`.

pub mod bed;
pub mod cli;
pub mod counter;
pub mod cpu;
pub mod kernel_rules;
pub mod lane;
pub mod no_work;
pub mod rates;
pub mod subject;
pub mod trial;
pub mod workload;
