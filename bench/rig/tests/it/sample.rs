//! Results to draw: a whole run, one in which nothing could be measured, and one with names that want to be more than names.

use nomagic_bench::results::{
    ChurnRow, ConnectionRow, CostRow, CpuRow, CpuTime, Estimate, FORMAT, Figure, FloodRow, Latency, LatencyRow, Manifest, Napi, Outcome,
    ProgrammingRow, RateRow, RatioRow, Results, Rig, RigKind, Subject, SubjectKind, Traffic, Verdict,
};

/// Rounds of the run.
const ROUNDS: u32 = 10;
const WORKLESS: &str = "no-work";
/// Subjects: id, label, kind, Services, zero-loss rate in frames a second.
const SUBJECTS: [(&str, &str, SubjectKind, u32, f64); 10] = [
    ("nomagic-1", "nomagic, 1 Service", SubjectKind::Nomagic, 1, 620_000.0),
    ("nomagic-1000", "nomagic, 1,000 Services", SubjectKind::Nomagic, 1_000, 612_000.0),
    ("nomagic-10000", "nomagic, 10,000 Services", SubjectKind::Nomagic, 10_000, 605_000.0),
    (WORKLESS, "no-work AF_XDP loop", SubjectKind::NoWork, 0, 640_000.0),
    ("nftables-1", "nftables, 1 Service", SubjectKind::Nftables, 1, 410_000.0),
    ("nftables-1000", "nftables, 1,000 Services", SubjectKind::Nftables, 1_000, 402_000.0),
    ("nftables-10000", "nftables, 10,000 Services", SubjectKind::Nftables, 10_000, 398_000.0),
    ("iptables-1", "iptables, 1 Service", SubjectKind::Iptables, 1, 395_000.0),
    ("iptables-1000", "iptables, 1,000 Services", SubjectKind::Iptables, 1_000, 371_000.0),
    ("routing", "routing alone", SubjectKind::Routing, 0, 575_000.0),
];

/// Values around a middle, as ten rounds give them.
fn rounds(middle: f64) -> Vec<f64> {
    [-0.021, 0.013, 0.004, -0.008, 0.017, -0.003, 0.009, -0.012, 0.002, 0.006].map(|d| short(middle * (1.0 + d))).to_vec()
}

/// With few digits, so that it is the same number again after it was written and read.
fn short(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn around(middle: f64) -> Outcome<Estimate> {
    let mut e = Estimate::of(&rounds(middle)).unwrap();
    e.median = short(middle);
    Outcome::Measured(e)
}

fn not(why: &str) -> Outcome<Estimate> {
    Outcome::NotMeasured(why.into())
}

fn manifest() -> Manifest {
    Manifest {
        started: "2026-11-28T14:03:22Z".into(),
        duration_s: 4_512,
        command: "nomagic-bench compare --rounds 10".into(),
        version: "0.1.0".into(),
        commit: Some("c4abd767a2f1".into()),
        dirty: false,
        cpu: "AMD EPYC 9R14".into(),
        cpus: 2,
        memory_bytes: 24 << 30,
        hypervisor: Some("KVM".into()),
        kernel: "6.1.0-31-amd64".into(),
        kernel_command_line: "root=/dev/vda1 ro console=ttyS0".into(),
        driver: "veth".into(),
        queues: 1,
        mode: "native XDP, copy".into(),
        tools: vec!["nftables v1.0.6".into(), "iptables v1.8.9 (nf_tables)".into()],
    }
}

fn rig() -> Rig {
    let napi = |interface: &str, cpu, why: &str| Napi { interface: interface.into(), cpu, why: why.into() };
    Rig {
        kind: RigKind::Veth,
        description: "The generator sends into a veth pair; the subject takes frames from its other end, changes them and sends them into a second pair, \
                      at whose end they are counted."
            .into(),
        lb_cpu: 0,
        generator_cpu: 1,
        napi: vec![
            napi("the subject's receiving end", 1, "veth runs it where the sender runs; it works for the subject"),
            napi("the sink's end", 0, "the subject's transmission schedules it; it works for the sink"),
        ],
        frame_bytes: 64,
        flows: 10_000,
        trial_s: 2.0,
        rounds: ROUNDS,
        steal_share_max: 0.0087,
        foreign_share_max: 0.004,
        trials_repeated: 7,
        trials: 1_240,
    }
}

/// A whole run, with some things missing as they are in every run.
pub fn results() -> Results {
    let subjects: Vec<Subject> = SUBJECTS
        .iter()
        .map(|&(id, label, kind, services, _)| Subject { id: id.into(), label: label.into(), kind, services })
        .chain([Subject { id: "direct".into(), label: "directly connected".into(), kind: SubjectKind::Direct, services: 0 }])
        .collect();
    let figure =
        |name: &str, wanted: &str, found: &str, verdict| Figure { name: name.into(), wanted: wanted.into(), found: found.into(), verdict };
    Results {
        format: FORMAT,
        manifest: manifest(),
        rig: rig(),
        subjects,
        figures: vec![
            figure("zero-loss rate, nomagic / no-work loop", ">= 0.95", "0.969 (0.961 to 0.977)", Verdict::Reached),
            figure("zero-loss rate, nomagic / nftables, 10,000 Services", ">= 2", "1.52 (1.49 to 1.54)", Verdict::NotReached),
            figure("rate on a 100 Gbit/s card", ">= 20 Mpps", "no NIC is in this machine", Verdict::NotMeasured),
        ],
        rates: rates(),
        ratios: ratios(),
        latencies: latencies(),
        cpu: cpu(),
        connections: connections(),
        churn: churn(),
        flood: [("nomagic-1000", 0.9994), ("nftables-1000", 0.31)]
            .map(|(id, share): (&str, f64)| {
                let goodput =
                    Outcome::Measured(Estimate { median: share, low: short(share * 0.97), high: short((share * 1.02).min(1.0)), n: 10 });
                FloodRow { subject: id.into(), offered_pps: 100_000.0, flood_pps: 200_000.0, goodput }
            })
            .into(),
        programming: [
            ("nomagic-1000", "EndpointSlice by watch", around(1.9)),
            ("nftables-1000", "nft -f with the changed chain", around(14.0)),
            ("iptables-1000", "iptables-restore --noflush", not("iptables-restore is not installed")),
        ]
        .map(|(id, how, ms)| ProgrammingRow { subject: id.into(), how: how.into(), ms })
        .into(),
        table_cost: costs(),
    }
}

fn rates() -> Vec<RateRow> {
    let mut rows = Vec::new();
    for traffic in [Traffic::Established, Traffic::NewFlows] {
        for (id, _, kind, _, pps) in SUBJECTS {
            let slower = match (traffic, kind) {
                (Traffic::Established, _) | (_, SubjectKind::NoWork | SubjectKind::Routing) => 1.0,
                (_, SubjectKind::Nomagic) => 0.93,
                _ => 0.58,
            };
            let missing = traffic == Traffic::NewFlows && id == "iptables-1000";
            rows.push(RateRow {
                subject: id.into(),
                traffic,
                zero_loss: if missing { not("steal was over 2 % in each of 5 trials") } else { around(pps * slower) },
                half_percent: if missing { not("steal was over 2 % in each of 5 trials") } else { around(pps * slower * 1.04) },
                generator_pps: (kind != SubjectKind::Routing).then_some(1_210_000.0),
                rounds: if missing { Vec::new() } else { rounds(pps * slower) },
            });
        }
    }
    rows
}

fn ratios() -> Vec<RatioRow> {
    let row = |subject: &str, over: &str, traffic, ratio: f64| RatioRow {
        subject: subject.into(),
        over: over.into(),
        traffic,
        ratio: around(ratio),
        rounds: rounds(ratio),
    };
    vec![
        row("nomagic-1", WORKLESS, Traffic::Established, 0.969),
        row("nomagic-1", "nftables-1", Traffic::Established, 1.51),
        row("nomagic-10000", "nftables-10000", Traffic::Established, 1.52),
        row("nomagic-1000", "nftables-1000", Traffic::NewFlows, 2.44),
        RatioRow {
            subject: "nomagic-1000".into(),
            over: "iptables-1000".into(),
            traffic: Traffic::NewFlows,
            ratio: not("iptables-1000 has no rate with new flows"),
            rounds: Vec::new(),
        },
    ]
}

fn latencies() -> Vec<LatencyRow> {
    let mut rows = Vec::new();
    for (load, factor) in [(10, 0.8), (50, 1.0), (90, 2.6)] {
        for (id, base, tail) in [("nomagic-1000", 23.0, 4.0), (WORKLESS, 21.0, 3.6), ("nftables-1000", 31.0, 6.5), ("routing", 26.0, 5.0)] {
            let at = |share: f64| short(base * factor * (1.0 + (tail - 1.0) * share));
            rows.push(LatencyRow {
                subject: id.into(),
                load_percent: load,
                offered_pps: 6_000.0 * f64::from(load),
                latency_us: Outcome::Measured(Latency {
                    min: at(-0.1),
                    mean: at(0.1),
                    p50: at(0.0),
                    p90: at(0.2),
                    p99: at(0.5),
                    p99_9: at(1.0),
                    p99_99: at(2.5),
                    max: at(6.0),
                }),
            });
        }
    }
    rows.push(LatencyRow {
        subject: "iptables-1000".into(),
        load_percent: 90,
        offered_pps: 330_000.0,
        latency_us: Outcome::NotMeasured("the sink lost frames at this rate".into()),
    });
    rows
}

fn cpu() -> Vec<CpuRow> {
    let time = |lb_user_ns, lb_system_ns, lb_softirq_ns, generator_softirq_ns| CpuTime {
        lb_user_ns,
        lb_system_ns,
        lb_softirq_ns,
        generator_softirq_ns,
        lb_busy_share: 0.97,
    };
    let row = |subject: &str, per_packet| CpuRow { subject: subject.into(), offered_pps: 300_000.0, per_packet };
    vec![
        row("nomagic-1000", Outcome::Measured(time(140.0, 610.0, 520.0, 330.0))),
        row(WORKLESS, Outcome::Measured(time(90.0, 600.0, 515.0, 335.0))),
        row("nftables-1000", Outcome::Measured(time(0.0, 12.0, 1_950.0, 210.0))),
        row("routing", Outcome::Measured(time(0.0, 8.0, 1_310.0, 205.0))),
        row("iptables-1000", Outcome::NotMeasured("foreign processes took 6 % of the core".into())),
    ]
}

fn connections() -> Vec<ConnectionRow> {
    let seen = |middle: f64| *around(middle).value().unwrap();
    vec![
        ConnectionRow {
            subject: "nomagic-1".into(),
            per_second: not("clients and servers were the limit (97 % of their cores busy)"),
            seen_per_second: seen(14_200.0),
            failed: 0,
        },
        ConnectionRow { subject: "nftables-1".into(), per_second: around(11_800.0), seen_per_second: seen(11_800.0), failed: 3 },
        ConnectionRow { subject: "direct".into(), per_second: around(14_900.0), seen_per_second: seen(14_900.0), failed: 0 },
    ]
}

#[expect(clippy::cast_sign_loss, reason = "numbers of frames")]
fn churn() -> Vec<ChurnRow> {
    let timeline = |offered: f64, blocked: std::ops::Range<usize>| {
        (0..120).map(|i| if blocked.contains(&i) { 0 } else { (offered * 0.005) as u64 - (i as u64 * 7) % 5 }).collect::<Vec<u64>>()
    };
    let row = |subject: &str, event: &str, offered: f64, blocked: std::ops::Range<usize>, blocked_ms| ChurnRow {
        subject: subject.into(),
        event: event.into(),
        offered_pps: offered,
        events: 20,
        lost: (blocked.len() as f64 * offered * 0.005) as u64 * 20,
        blocked_ms,
        timeline: timeline(offered, blocked),
        interval_ms: 5.0,
        event_at: vec![40],
    };
    vec![
        row("nomagic-10000", "10,000 Services reloaded", 300_000.0, 0..0, around(0.0)),
        row("nftables-10000", "10,000 Services reloaded", 200_000.0, 41..73, around(161.0)),
        row("nomagic-1000", "one endpoint gone", 300_000.0, 0..0, around(0.0)),
        ChurnRow {
            timeline: Vec::new(),
            ..row("nftables-1000", "one endpoint gone", 200_000.0, 0..0, not("the event did not come in time"))
        },
    ]
}

fn costs() -> Vec<CostRow> {
    let mut rows = Vec::new();
    for (name, base, beyond) in
        [("nomagic, established", 38.0, 34.0), ("memory floor", 4.0, 21.0), ("a hash map behind a mutex", 92.0, 60.0)]
    {
        for (i, flows) in [1_000u64, 10_000, 100_000, 1_000_000].into_iter().enumerate() {
            let missing = flows == 1_000_000 && name.starts_with("a hash");
            let ns = if missing { not("it does not fit into memory") } else { around(base + beyond * (i * i) as f64 / 9.0) };
            rows.push(CostRow { name: name.into(), flows, ns });
        }
    }
    rows
}

/// The same run when nothing could be measured, each for its own reason.
pub fn unmeasured() -> Results {
    let mut r = results();
    let mut count = 0;
    let mut why = || {
        count += 1;
        format!("reason number {count}")
    };
    for row in &mut r.rates {
        row.zero_loss = Outcome::NotMeasured(why());
        row.half_percent = Outcome::NotMeasured(why());
        row.rounds.clear();
    }
    for row in &mut r.ratios {
        row.ratio = Outcome::NotMeasured(why());
        row.rounds.clear();
    }
    r.latencies.iter_mut().for_each(|row| row.latency_us = Outcome::NotMeasured(why()));
    r.cpu.iter_mut().for_each(|row| row.per_packet = Outcome::NotMeasured(why()));
    r.connections.iter_mut().for_each(|row| row.per_second = Outcome::NotMeasured(why()));
    for row in &mut r.churn {
        row.blocked_ms = Outcome::NotMeasured(why());
        row.timeline.clear();
    }
    r.flood.iter_mut().for_each(|row| row.goodput = Outcome::NotMeasured(why()));
    r.programming.iter_mut().for_each(|row| row.ms = Outcome::NotMeasured(why()));
    r.table_cost.iter_mut().for_each(|row| row.ns = Outcome::NotMeasured(why()));
    r
}

/// The same run with names that would be elements if a page let them, and are far too long.
pub fn hostile() -> Results {
    let mut r = results();
    let script = "<script>alert(1)</script>";
    r.manifest.cpu = format!("{script} & \"CPU\"");
    r.manifest.command = "</script><img src=x onerror=alert(2)> <!-- \u{1b}[31m".into();
    r.manifest.tools.push("</style><b>tool</b>".into());
    r.rig.description = "<!--<script>".into();
    r.rig.napi[0].why = script.into();
    r.subjects[0].label = script.into();
    r.subjects[1].label = "\" onload=\"alert(3)".into();
    r.subjects[2].label = "nomagic with a name that goes on and on and on and on, much longer than any drawing is wide".into();
    r.subjects[5].label = "größer 世界 </text></svg><script>alert(4)</script>".into();
    r.figures[0].name = script.into();
    r.figures[0].found = "</td></table><script>alert(5)</script>".into();
    r.latencies[12].latency_us = Outcome::NotMeasured("</td><script>alert(6)</script>\n\u{7}second line".into());
    r.churn[0].event = "</title></desc><script>alert(7)</script>".into();
    r.churn[1].event_at = vec![0, 40, 119, 4_000_000_000];
    r.programming[0].how = "</script>".into();
    r.table_cost[0].name = "<!-- & -->".into();
    r.table_cost[4].ns = around(1e12);
    r.cpu[0].per_packet = Outcome::Measured(CpuTime { lb_user_ns: -5.0, lb_system_ns: 1e9, ..CpuTime::default() });
    r
}
