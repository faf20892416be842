//! The comparison of two runs.

use std::collections::HashMap;

use super::number::significant;
use super::sections::IDS;
use super::summary::{Better, Entry, entries};
use super::table::{Cell, Mark, Table};
use crate::results::{Estimate, Manifest, Outcome, Results};

/// The change of a value from the old to the new run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The intervals do not overlap, and the new one is better.
    Better,
    /// The intervals do not overlap, and the new one is worse.
    Worse,
    NoDifference,
    /// One of them is a single value without an interval: a difference may be chance.
    NoInterval,
    /// One of them was not measured.
    NotMeasured,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// The entry with the new value.
    pub new: Entry,
    pub old: Outcome<Estimate>,
    pub change: Change,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Comparison {
    /// Differences of machine and programs, such as "kernel: 6.1 then, 6.12 now".
    pub differences: Vec<String>,
    pub pairs: Vec<Pair>,
    /// Names of values without an old one.
    pub only_new: Vec<String>,
    /// Names of values without a new one.
    pub only_old: Vec<String>,
}

pub fn change(new: &Outcome<Estimate>, old: &Outcome<Estimate>, better: Better) -> Change {
    let (Some(new), Some(old)) = (new.value(), old.value()) else { return Change::NotMeasured };
    if new.n < 2 || old.n < 2 {
        return Change::NoInterval;
    }
    if new.low <= old.high && old.low <= new.high {
        return Change::NoDifference;
    }
    if (new.median > old.median) == (better == Better::Higher) { Change::Better } else { Change::Worse }
}

impl Comparison {
    pub fn new(new: &Results, old: &Results) -> Comparison {
        let olds = entries(old);
        let news = entries(new);
        let by_key: HashMap<&str, &Entry> = olds.iter().map(|e| (e.key.as_str(), e)).collect();
        let known: HashMap<&str, &Entry> = news.iter().map(|e| (e.key.as_str(), e)).collect();
        let (mut pairs, mut only_new) = (Vec::new(), Vec::new());
        for entry in &news {
            match by_key.get(entry.key.as_str()) {
                Some(old) => {
                    let change = change(&entry.value, &old.value, entry.better);
                    pairs.push(Pair { new: entry.clone(), old: old.value.clone(), change });
                }
                None => only_new.push(entry.name.clone()),
            }
        }
        let only_old = olds.iter().filter(|e| !known.contains_key(e.key.as_str())).map(|e| e.name.clone()).collect();
        Comparison { differences: differences(new, old), pairs, only_new, only_old }
    }

    pub fn count(&self, change: Change) -> usize {
        self.pairs.iter().filter(|p| p.change == change).count()
    }

    pub fn verdict(&self) -> String {
        format!(
            "{} worse, {} better, {} without a clear difference (the intervals overlap), {} single values that have no interval, {} not measured in one of the runs.",
            self.count(Change::Worse),
            self.count(Change::Better),
            self.count(Change::NoDifference),
            self.count(Change::NoInterval),
            self.count(Change::NotMeasured),
        )
    }

    /// A table for each section that both runs have.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        let table = |id: &'static str| {
            let rows: Vec<_> = self.pairs.iter().filter(|p| p.new.section == id).map(row).collect();
            let head = vec!["value", "better is", "old", "new", "change", "outcome"];
            (!rows.is_empty()).then(|| (id, Table { caption: format!("New against old: {id}"), head, rows }))
        };
        IDS.into_iter().filter_map(table).collect()
    }
}

fn row(pair: &Pair) -> Vec<Cell> {
    let quantity = pair.new.quantity;
    let value = |outcome: &Outcome<Estimate>| match outcome {
        Outcome::Measured(e) => Cell::Number(quantity.estimate(e)),
        Outcome::NotMeasured(why) => Cell::Missing(why.clone(), 1),
    };
    let (mark, words) = match pair.change {
        Change::Better => (Mark::Good, "better"),
        Change::Worse => (Mark::Bad, "worse"),
        Change::NoDifference => (Mark::Open, "no clear difference"),
        Change::NoInterval => (Mark::Open, "one value, no interval"),
        Change::NotMeasured => (Mark::Open, "cannot be compared"),
    };
    vec![
        Cell::Text(pair.new.name.clone()),
        Cell::Text(if pair.new.better == Better::Higher { "higher".into() } else { "lower".into() }),
        value(&pair.old),
        value(&pair.new.value),
        percent(&pair.new.value, &pair.old),
        Cell::Mark(mark, words.into()),
    ]
}

/// Change of the median in percent of the old one.
fn percent(new: &Outcome<Estimate>, old: &Outcome<Estimate>) -> Cell {
    match (new.value(), old.value()) {
        (Some(new), Some(old)) if new.median == old.median => Cell::Number("0 %".into()),
        (Some(new), Some(old)) if old.median != 0.0 => {
            let percent = (new.median - old.median) / old.median.abs() * 100.0;
            Cell::Number(format!("{}{} %", if percent > 0.0 { "+" } else { "" }, significant(percent)))
        }
        (Some(_), Some(_)) => Cell::Text("from zero".into()),
        _ => Cell::Text("unknown".into()),
    }
}

/// Differences of machine, kernel, rig and program.
fn differences(new: &Results, old: &Results) -> Vec<String> {
    type Get = fn(&Results) -> String;
    let facts: [(&str, Get); 18] = [
        ("commit", |r| commit(&r.manifest)),
        ("version", |r| r.manifest.version.clone()),
        ("CPU", |r| r.manifest.cpu.clone()),
        ("CPUs", |r| r.manifest.cpus.to_string()),
        ("memory", |r| format!("{:.1} GiB", r.manifest.memory_bytes as f64 / f64::from(1u32 << 30))),
        ("hypervisor", |r| r.manifest.hypervisor.clone().unwrap_or("none".into())),
        ("kernel", |r| r.manifest.kernel.clone()),
        ("kernel command line", |r| r.manifest.kernel_command_line.clone()),
        ("tools", |r| r.manifest.tools.join(", ")),
        ("driver", |r| r.manifest.driver.clone()),
        ("queues", |r| r.manifest.queues.to_string()),
        ("mode", |r| r.manifest.mode.clone()),
        ("kind of interfaces", |r| format!("{:?}", r.rig.kind)),
        ("way of a frame", |r| r.rig.description.clone()),
        ("CPUs of subject and generator", |r| format!("{} and {}", r.rig.lb_cpu, r.rig.generator_cpu)),
        ("NAPI", |r| r.rig.napi.iter().map(|n| format!("{} on CPU {}", n.interface, n.cpu)).collect::<Vec<_>>().join(", ")),
        ("frames and flows", |r| format!("{} bytes, {} flows", r.rig.frame_bytes, r.rig.flows)),
        ("trials", |r| format!("{} rounds, {} s a trial", r.rig.rounds, r.rig.trial_s)),
    ];
    facts
        .into_iter()
        .map(|(name, get)| (name, get(old), get(new)))
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name}: {old} then, {new} now"))
        .collect()
}

pub fn commit(m: &Manifest) -> String {
    let dirty = if m.dirty { ", with changes" } else { "" };
    format!("{}{dirty}", m.commit.as_deref().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(low: f64, median: f64, high: f64) -> Outcome<Estimate> {
        Outcome::Measured(Estimate { median, low, high, n: 10 })
    }

    #[test]
    fn a_change_counts_only_when_the_intervals_do_not_overlap() {
        let single = |v| Outcome::Measured(Estimate::single(v));
        let none = || Outcome::NotMeasured("no".into());
        for (new, old, higher, lower) in [
            (of(9.0, 10.0, 11.0), of(10.5, 12.0, 13.0), Change::NoDifference, Change::NoDifference),
            (of(9.0, 10.0, 11.0), of(11.0, 12.0, 13.0), Change::NoDifference, Change::NoDifference),
            (of(9.0, 10.0, 11.0), of(11.1, 12.0, 13.0), Change::Worse, Change::Better),
            (of(14.0, 15.0, 16.0), of(11.0, 12.0, 13.0), Change::Better, Change::Worse),
            (of(5.0, 5.0, 5.0), of(5.0, 5.0, 5.0), Change::NoDifference, Change::NoDifference),
            (of(0.0, 0.0, 0.0), of(1.0, 1.0, 1.0), Change::Worse, Change::Better),
            (single(1.0), of(11.0, 12.0, 13.0), Change::NoInterval, Change::NoInterval),
            (single(1.0), single(9.0), Change::NoInterval, Change::NoInterval),
            (none(), of(11.0, 12.0, 13.0), Change::NotMeasured, Change::NotMeasured),
            (none(), none(), Change::NotMeasured, Change::NotMeasured),
        ] {
            assert_eq!((change(&new, &old, Better::Higher), change(&new, &old, Better::Lower)), (higher, lower), "{new:?} {old:?}");
        }
    }

    #[test]
    fn changes_in_percent_have_a_sign_and_no_division_by_zero() {
        for (new, old, words) in [
            (of(0.0, 110.0, 0.0), of(0.0, 100.0, 0.0), "+10.0 %"),
            (of(0.0, 97.5, 0.0), of(0.0, 100.0, 0.0), "-2.50 %"),
            (of(0.0, 5.0, 0.0), of(0.0, 0.0, 0.0), "from zero"),
            (of(0.0, 0.0, 0.0), of(0.0, 0.0, 0.0), "0 %"),
            (Outcome::NotMeasured("no".into()), of(0.0, 1.0, 0.0), "unknown"),
        ] {
            assert_eq!(percent(&new, &old).words(), words);
        }
    }
}
