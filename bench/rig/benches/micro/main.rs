//! Cost of a packet in memory, without sockets: `make bench-micro`. Criterion cannot measure a row and its floor in
//! the same round, hence this harness.
//!
//! Every row is measured in rounds together with its floor: one prefetched random line of the same memory and one
//! written header, in batches of the same size, over the same rotating frames. The rows of a group take turns; the
//! table shows medians. Ratios hold on other machines too. Headers are written and keys drawn before the clock
//! starts. One thread, unless the row says two.

mod crowded;
mod icmp_flood;
mod leaves;
mod report;
mod rig;
mod rows;
mod scaling;

use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::Instant;

use crowded::Crowded;
use icmp_flood::{Flood, IcmpFlood, Told};
use leaves::{Build, Evenness, Parse, Pick, Predict, Rewrite, SLOTS};
use report::{Line, Machine, Wanted, heading, median};
use rig::{Filled, PacketKind, Rig};
use rows::{Draw, Find, Known, Lookup, Opening, OpeningAtHome, Row, Turnover, small_floor};
use scaling::Scaling;

const HELP: &str = "What a packet costs in memory.

Usage: cargo bench -p nomagic-bench --bench micro -- [WORDS] [--rounds N] [--json FILE]

  WORDS        only rows whose group and name contain this, for instance `pipeline` or `look-up`
  --rounds N   rounds of each row (default 11)
  --json FILE  where the figures go (default target/bench-micro.json)";

/// A row with its name and target.
type Entry = (String, Box<dyn Row>, Option<Wanted>);

struct Run {
    filter: String,
    rounds: usize,
    lines: Vec<Line>,
    start: Instant,
    /// Connections in the tables of a group, if all have the same number.
    flows: Option<u64>,
}

impl Run {
    /// Whether the filter selects a row of this group.
    fn wants(&self, group: &str, name: &str) -> bool {
        format!("{group} {name}").contains(&self.filter)
    }

    fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
        } else {
            eprintln!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
        }
        let _ = std::io::stderr().flush();
    }

    /// Measures the rows in turn, many rounds, and prints them.
    fn group(&mut self, group: &str, rig: &mut Rig, rows: Vec<Entry>) {
        let mut rows: Vec<Entry> = rows.into_iter().filter(|(name, ..)| self.wants(group, name)).collect();
        if rows.is_empty() {
            return;
        }
        let (mut values, mut floors) = (vec![Vec::new(); rows.len()], vec![Vec::new(); rows.len()]);
        for round in 0..self.rounds {
            self.progress(&format!("{group}: round {} of {}", round + 1, self.rounds));
            for (i, (_, row, _)) in rows.iter_mut().enumerate() {
                values[i].push(row.round(rig));
                floors[i].extend(row.floor(rig));
            }
        }
        self.progress("");
        heading(group);
        for (i, (name, _, wanted)) in rows.iter().enumerate() {
            let floor = (!floors[i].is_empty()).then(|| median(&floors[i]));
            let line = Line::new(name, "ns", median(&values[i]), floor, *wanted);
            self.add(Line { flows: self.flows, values: values[i].clone(), floors: floors[i].clone(), ..line });
        }
    }

    fn add(&mut self, line: Line) {
        line.print();
        self.lines.push(line);
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut filter, mut rounds, mut json) = (String::new(), 11, String::from("target/bench-micro.json"));
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" => return println!("{HELP}"),
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0).expect("--rounds N"),
            "--json" => json = args.next().expect("--json FILE"),
            words => filter = words.into(),
        }
    }
    let machine = Machine::here();
    println!("{} ({} CPUs), Linux {}; nanoseconds of one thread, medians of {rounds} rounds", machine.cpu, machine.cpus, machine.kernel);
    let mut run = Run { filter, rounds, lines: Vec::new(), start: Instant::now(), flows: None };
    let mut rig = Rig::new();
    known_flows(&mut run, &mut rig);
    new_flows(&mut run, &mut rig);
    icmp_floods(&mut run, &mut rig);
    alternatives(&mut run, &mut rig);
    leaves(&mut run, &mut rig);
    workers(&mut run, &mut rig);
    let command = "make bench-micro";
    let report = serde_json::json!({ "command": command, "machine": machine, "rounds": rounds, "rows": run.lines });
    // cargo runs benchmarks in the package's directory; the path is relative to the workspace's.
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&json);
    match std::fs::write(&path, format!("{report:#}\n")) {
        Ok(()) => eprintln!("\nwritten to {json}"),
        Err(e) => {
            eprintln!("{}: {e}", path.display());
            std::process::exit(1);
        }
    }
}

/// Whole packets of known connections, and lookups in the same tables, by size.
fn known_flows(run: &mut Run, rig: &mut Rig) {
    let sizes = [(1_000, "1 k", 30.0), (1 << 16, "64 k", 60.0), (1 << 20, "1 M", 60.0), (1 << 22, "4 M", 100.0), (1 << 24, "16 M", 100.0)];
    for (flows, label, most) in sizes {
        let group = format!("{label} flows");
        let names = ["pipeline, DNAT", "pipeline, DNAT, Zipf", "look-up, hit", "look-up, hit, Zipf", "look-up, miss"];
        if !names.iter().any(|n| run.wants(&group, n)) {
            continue;
        }
        run.progress(&format!("opening {label} connections"));
        let filled = Rc::new(Filled::new(PacketKind::Dnat, flows, rig));
        let zipf = Draw::zipf(flows, &mut rig.random);
        let known = |draw: &Draw| -> Box<dyn Row> { Box::new(Known { filled: filled.clone(), draw: draw.clone(), reply: false }) };
        let find = |draw: &Draw, miss| -> Box<dyn Row> {
            Box::new(Find { filled: filled.clone(), draw: draw.clone(), miss, table: Lookup::Ours })
        };
        let most = Some(Wanted::MostAndFloors(most, 3.0));
        let rows: [(Box<dyn Row>, Option<Wanted>); 5] = [
            (known(&Draw::Uniform), most),
            (known(&zipf), None),
            (find(&Draw::Uniform, false), None),
            (find(&zipf, false), None),
            (find(&Draw::Uniform, true), None),
        ];
        run.flows = Some(u64::from(flows));
        run.group(&group, rig, names.iter().zip(rows).map(|(name, (row, wanted))| ((*name).into(), row, wanted)).collect());
        run.flows = None;
    }
    let group = "64 k flows, other ways";
    if ["pipeline, SNAT", "pipeline, reply", "pipeline, IPv6"].iter().any(|n| run.wants(group, n)) {
        let mut row = |kind, reply| -> Box<dyn Row> {
            Box::new(Known { filled: Rc::new(Filled::new(kind, 1 << 16, rig)), draw: Draw::Uniform, reply })
        };
        let rows = vec![
            ("pipeline, SNAT".into(), row(PacketKind::Snat, false), None),
            ("pipeline, reply".into(), row(PacketKind::Dnat, true), None),
            ("pipeline, IPv6".into(), row(PacketKind::DnatV6, false), None),
        ];
        run.group(group, rig, rows);
    }
}

fn new_flows(run: &mut Run, rig: &mut Rig) {
    let turnover = |expire| -> Box<dyn Row> { Box::new(Turnover { filled: Filled::empty(PacketKind::Dnat, 1 << 16), expire }) };
    let reject = Known { filled: Rc::new(Filled::empty(PacketKind::Reject, 1_000)), draw: Draw::Uniform, reply: false };
    let rows: Vec<Entry> = vec![
        ("pipeline, new flow, DNAT".into(), Box::new(Opening::new(PacketKind::Dnat)), Some(Wanted::Most(300.0))),
        ("pipeline, new flow, SNAT".into(), Box::new(Opening::new(PacketKind::Snat)), Some(Wanted::Most(300.0))),
        ("pipeline, new flow, SNAT, RSS".into(), Box::new(OpeningAtHome(Opening::new(PacketKind::Snat))), None),
        ("pipeline, new flow, IPv6".into(), Box::new(Opening::new(PacketKind::DnatV6)), None),
        ("pipeline, reject".into(), Box::new(reject), None),
        ("table, insert".into(), turnover(false), None),
        ("table, expire".into(), turnover(true), None),
    ];
    run.group("connections that come and go", rig, rows);
    let crowded = |percent: u32| -> Entry { (format!("pipeline, {percent} % taken"), Box::new(Crowded::new(percent)), None) };
    run.group("new flows, SNAT, by the endpoint's source ports taken", rig, [0, 50, 90, 99, 100].map(crowded).into());
}

/// What others' packets cost beside forged ICMP errors.
fn icmp_floods(run: &mut Run, rig: &mut Rig) {
    let group = "TCP connections beside as many forged ICMP errors";
    if !run.wants(group, "") {
        return;
    }
    run.progress("opening connections");
    let row = |name: &str, flood, told, wanted| -> Entry { (name.into(), Box::new(IcmpFlood::new(flood, told)), wanted) };
    let little = Some(Wanted::MostFloors(1.5));
    let rows = vec![
        row("pipeline, no errors", Flood::Off, Told::Packet, None),
        row("pipeline, beside errors about no flow", Flood::NoFlow, Told::Packet, little),
        row("pipeline, beside guesses at flows", Flood::Guesses, Told::Packet, little),
        row("an error about no flow", Flood::NoFlow, Told::Error, None),
        row("an error that guesses at a flow", Flood::Guesses, Told::Error, None),
        row("packet and error about no flow, one batch", Flood::NoFlow, Told::Both, None),
        row("packet and guess at a flow, one batch", Flood::Guesses, Told::Both, None),
    ];
    run.group(group, rig, rows);
}

/// The same lookups in alternative tables.
fn alternatives(run: &mut Run, rig: &mut Rig) {
    for (flows, label) in [(1 << 16, "64 k"), (1 << 20, "1 M")] {
        let group = format!("look-up, hit, {label} flows, beside others");
        if !run.wants(&group, "") {
            continue;
        }
        run.progress(&format!("filling other tables with {label} connections"));
        let filled = Rc::new(Filled::new(PacketKind::Dnat, flows, rig));
        let row = |table| -> Box<dyn Row> { Box::new(Find { filled: filled.clone(), draw: Draw::Uniform, miss: false, table }) };
        let rows = vec![
            ("nomagic".into(), row(Lookup::Ours), None),
            ("Mutex<HashMap>".into(), row(Lookup::locked(&filled)), None),
            ("DashMap".into(), row(Lookup::dash(&filled)), None),
        ];
        run.group(&group, rig, rows);
    }
}

fn leaves(run: &mut Run, rig: &mut Rig) {
    let filled = |kind| Filled::empty(kind, 1_000);
    let known = [PacketKind::Dnat, PacketKind::DnatV6].map(|kind| Filled::new(kind, 1_000, rig));
    let [known_v4, known_v6] = known;
    let rows: Vec<Entry> = vec![
        ("parse, IPv4".into(), Box::new(Parse { filled: filled(PacketKind::Dnat), etherparse: false }), None),
        ("parse, IPv4, by etherparse".into(), Box::new(Parse { filled: filled(PacketKind::Dnat), etherparse: true }), None),
        ("parse, IPv6".into(), Box::new(Parse { filled: filled(PacketKind::DnatV6), etherparse: false }), None),
        ("parse, IPv6, by etherparse".into(), Box::new(Parse { filled: filled(PacketKind::DnatV6), etherparse: true }), None),
        ("rewrite, IPv4".into(), Box::new(Rewrite { filled: known_v4 }), None),
        ("rewrite, IPv6".into(), Box::new(Rewrite { filled: known_v6 }), None),
        ("Maglev, pick".into(), Box::new(Pick::new()), None),
        ("RSS, IPv4, 1 port".into(), Box::new(Predict { v6: false, ports: 1 }), None),
        ("RSS, IPv4, 64 ports".into(), Box::new(Predict { v6: false, ports: 64 }), None),
        ("RSS, IPv6, 1 port".into(), Box::new(Predict { v6: true, ports: 1 }), None),
    ];
    run.group("leaves", rig, rows);
    let group = format!("Maglev, {SLOTS} slots, 100 backends");
    if !run.wants(&group, "") {
        return;
    }
    heading(&group);
    let builds: Vec<f64> = (0..run.rounds).map(|_| Build.round(rig) / 1e6).collect();
    run.add(Line::new("build", "ms", median(&builds), None, Some(Wanted::Most(3.0))));
    let e = Evenness::measure();
    run.add(Line::new("fullest backend over the average", "ratio", e.max_over_average, None, Some(Wanted::Most(1.002))));
    run.add(Line::new("other slots that move when one goes", "ratio", e.moved, None, Some(Wanted::Most(0.008))));
    run.add(Line::new("weights 1 to 4: furthest share from its own", "ratio", e.weighted, None, Some(Wanted::Most(0.01))));
    let floor = small_floor(rig, filled(PacketKind::Dnat).words, filled(PacketKind::Dnat).template());
    run.add(Line::new("the floor itself, 128 kB", "ns", floor, None, None));
}

fn workers(run: &mut Run, rig: &mut Rig) {
    let group = "two workers on one table, 64 k flows";
    if !run.wants(group, "") {
        return;
    }
    run.progress(group);
    let filled = Filled::new(PacketKind::Dnat, 1 << 16, rig);
    let scaling = Scaling::measure(&filled, run.rounds.min(7));
    run.progress("");
    heading(group);
    run.add(Line::new("pipeline: two over one", "ratio", scaling.pipeline, None, None));
    run.add(Line::new("floor: two over one", "ratio", scaling.floor, None, None));
    run.add(Line::new("pipeline's scaling over the floor's", "ratio", scaling.relative(), None, Some(Wanted::Least(0.9))));
}
