//! All values of a run as one flat list.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::number::Quantity;
use super::sections::{latency_percentiles, time_parts, traffic_name};
use crate::results::{CpuTime, Estimate, Outcome, Results, Traffic, Verdict};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    Higher,
    Lower,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Stable between runs, such as "rates/nomagic-1000/established/zero-loss".
    pub key: String,
    /// One of [`super::sections::IDS`].
    pub section: &'static str,
    pub name: String,
    pub quantity: Quantity,
    pub better: Better,
    pub value: Outcome<Estimate>,
}

/// All comparable values, in the order of the report.
pub fn entries(r: &Results) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut add = |section, path: String, name: String, quantity, better, value| {
        // Rows of the same name get numbers.
        let times = seen.entry(format!("{section}/{path}")).or_insert(0);
        *times += 1;
        let key = if *times > 1 { format!("{section}/{path}#{times}") } else { format!("{section}/{path}") };
        all.push(Entry { key, section, name, quantity, better, value });
    };
    let traffic_id = |t: Traffic| if t == Traffic::Established { "established" } else { "new-flows" };
    for row in &r.rates {
        let (label, of, id) = (r.label(&row.subject), traffic_name(row.traffic), traffic_id(row.traffic));
        for (what, words, value) in [("zero-loss", "zero loss", &row.zero_loss), ("half-percent", "0.5 % loss", &row.half_percent)] {
            let name = format!("{label}, {of}, {words}");
            add("rates", format!("{}/{id}/{what}", row.subject), name, Quantity::Pps, Better::Higher, value.clone());
        }
    }
    for row in &r.ratios {
        let name = format!("{} / {}, {}", r.label(&row.subject), r.label(&row.over), traffic_name(row.traffic));
        let path = format!("{}/{}/{}", row.subject, row.over, traffic_id(row.traffic));
        add("ratios", path, name, Quantity::Ratio, Better::Higher, row.ratio.clone());
    }
    for row in &r.latencies {
        let zero = crate::results::Latency { min: 0.0, mean: 0.0, p50: 0.0, p90: 0.0, p99: 0.0, p99_9: 0.0, p99_99: 0.0, max: 0.0 };
        for (i, (percentile, ..)) in latency_percentiles(&zero).into_iter().enumerate() {
            let value = row.latency_us.map(|l| Estimate::single(latency_percentiles(l)[i].2));
            let name = format!("{} at {} % load, {percentile}", r.label(&row.subject), row.load_percent);
            add("latency", format!("{}/{}/{percentile}", row.subject, row.load_percent), name, Quantity::Us, Better::Lower, value);
        }
    }
    for row in &r.cpu {
        let all = row.per_packet.map(|t| Estimate::single(time_parts(t).iter().map(|p| p.1).sum()));
        add("cpu", format!("{}/all", row.subject), format!("{}, all", r.label(&row.subject)), Quantity::Ns, Better::Lower, all);
        for (i, (part, _)) in time_parts(&CpuTime::default()).into_iter().enumerate() {
            let id = ["user", "system", "softirq", "generator-softirq"][i];
            let value = row.per_packet.map(|t| Estimate::single(time_parts(t)[i].1));
            add("cpu", format!("{}/{id}", row.subject), format!("{}, {part}", r.label(&row.subject)), Quantity::Ns, Better::Lower, value);
        }
    }
    for row in &r.connections {
        let name = r.label(&row.subject).to_owned();
        add("connections", row.subject.clone(), name, Quantity::PerSecond, Better::Higher, row.per_second.clone());
    }
    for row in &r.table_cost {
        let name = format!("{}, {} connections", row.name, Quantity::Count.show(row.flows as f64));
        add("cost", format!("{}/{}", row.name, row.flows), name, Quantity::Ns, Better::Lower, row.ns.clone());
    }
    for row in &r.churn {
        let name = format!("{}, {}, blocked", r.label(&row.subject), row.event);
        add("churn", format!("{}/{}", row.subject, row.event), name, Quantity::Ms, Better::Lower, row.blocked_ms.clone());
    }
    for row in &r.flood {
        let name = format!("{}, goodput", r.label(&row.subject));
        add("flood", row.subject.clone(), name, Quantity::Share, Better::Higher, row.goodput.clone());
    }
    for row in &r.programming {
        let name = format!("{}, {}", r.label(&row.subject), row.how);
        add("programming", format!("{}/{}", row.subject, row.how), name, Quantity::Ms, Better::Lower, row.ms.clone());
    }
    all
}

/// A flat object for scripts:
///
/// - `started`, `commit` (or null), `machine`, `kernel`, `rig` ("veth" or "nic");
/// - `figures/NAME`: "reached", "notReached" or "notMeasured";
/// - for each [`Entry`] its key with the median as a number (frames a second, us, ns, ms, ratios, shares of 1), or null; `KEY.low` and `KEY.high` are the
///   interval, if there is one, and `KEY.notMeasured` is the reason for null.
pub fn json(r: &Results) -> Value {
    let mut out = Map::new();
    out.insert("started".into(), json!(r.manifest.started));
    out.insert("commit".into(), json!(r.manifest.commit));
    out.insert("machine".into(), json!(r.manifest.cpu));
    out.insert("kernel".into(), json!(r.manifest.kernel));
    out.insert("rig".into(), json!(r.rig.kind));
    for figure in &r.figures {
        let verdict = match figure.verdict {
            Verdict::Reached => "reached",
            Verdict::NotReached => "notReached",
            Verdict::NotMeasured => "notMeasured",
        };
        out.insert(format!("figures/{}", figure.name), json!(verdict));
    }
    for entry in entries(r) {
        let key = entry.key;
        match entry.value {
            Outcome::Measured(e) => {
                if e.n > 1 {
                    out.insert(format!("{key}.low"), json!(e.low));
                    out.insert(format!("{key}.high"), json!(e.high));
                }
                out.insert(key, json!(e.median));
            }
            Outcome::NotMeasured(why) => {
                out.insert(format!("{key}.notMeasured"), json!(why));
                out.insert(key, Value::Null);
            }
        }
    }
    Value::Object(out)
}
