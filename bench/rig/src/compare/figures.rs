//! Targets, and whether they were reached.

use crate::results::{Estimate, Figure, Outcome, Results, Traffic, Verdict};

/// A figure to reach, and where it is in the results.
struct Target {
    name: &'static str,
    least: f64,
    found: Outcome<Estimate>,
}

/// The table of figures for what was measured.
pub fn figures(results: &Results) -> Vec<Figure> {
    let ratio = |subject: &str, over: &str| {
        let row = results.ratios.iter().find(|r| r.traffic == Traffic::Established && r.subject == subject && r.over == over);
        row.map_or_else(|| Outcome::NotMeasured("not part of this run".into()), |r| r.ratio.clone())
    };
    let goodput = results.flood.iter().find(|r| r.subject == "nomagic-1").map(|r| r.goodput.clone());
    let mut table: Vec<Figure> = [
        Target { name: "zero-loss rate, nomagic / no-work AF_XDP loop", least: 0.95, found: ratio("nomagic-1", "no-work") },
        Target { name: "zero-loss rate, nomagic / nftables (1 Service)", least: 1.3, found: ratio("nomagic-1", "nftables-1") },
        Target { name: "zero-loss rate, nomagic / iptables (1 Service)", least: 1.8, found: ratio("nomagic-1", "iptables-1") },
        Target { name: "zero-loss rate, nomagic with 10,000 Services / with 1", least: 0.98, found: ratio("nomagic-10000", "nomagic-1") },
        Target {
            name: "established goodput under a SYN flood, at half the zero-loss rate",
            least: 0.99,
            found: goodput.unwrap_or_else(|| Outcome::NotMeasured("not part of this run".into())),
        },
    ]
    .into_iter()
    .map(|w| at_least(w.name, w.least, &w.found))
    .collect();
    let reload = results.churn.iter().find(|r| r.subject == "nomagic-10000" && r.event == RELOAD);
    let found = reload.map_or_else(|| Outcome::NotMeasured("not part of this run".into()), |r| r.blocked_ms.clone());
    table.push(match &found {
        Outcome::Measured(e) => Figure {
            name: "blocked time of a 10,000-Service reload".into(),
            wanted: "0 ms".into(),
            found: format!("{e:.3} ms"),
            verdict: if e.high <= 0.0 { Verdict::Reached } else { Verdict::NotReached },
        },
        Outcome::NotMeasured(why) => not_measured("blocked time of a 10,000-Service reload", "0 ms", why),
    });
    table
}

/// The name of the reload in the results.
pub const RELOAD: &str = "10,000 Services reloaded";

fn at_least(name: &str, least: f64, found: &Outcome<Estimate>) -> Figure {
    let wanted = format!(">= {least}");
    match found {
        Outcome::Measured(e) => Figure {
            name: name.into(),
            wanted,
            found: format!("{e:.3}"),
            verdict: if e.median >= least { Verdict::Reached } else { Verdict::NotReached },
        },
        Outcome::NotMeasured(why) => not_measured(name, &wanted, why),
    }
}

fn not_measured(name: &str, wanted: &str, why: &str) -> Figure {
    Figure { name: name.into(), wanted: wanted.into(), found: why.into(), verdict: Verdict::NotMeasured }
}
