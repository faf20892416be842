//! Cost of many Services in the control plane, in memory: `make bench-scale`.
//!
//! Compiling from nothing; one changed slice, from the bytes of the watch event until a spinning worker uses the new
//! table; a Service of 100,000 endpoints; memory. Objects are decoded like those of an API server. Tests in network
//! namespaces measure the time from event to packet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nomagic::config::Config;
use nomagic_core::services::Services;
use nomagic_table::changes::Changes;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, Object, read};
use nomagic_table::problem::Origin;
use nomagic_table::settings::Settings;
use nomagic_xsk::{Published, Reader};
use serde_json::{Value, json};

const HELP: &str = "What many Services cost the control plane.

Usage: cargo bench -p nomagic-bench --bench scale -- [--services N] [--endpoints N] [--changes N] [--json FILE]

  --services N   Services (default 10000)
  --endpoints N  endpoints of each (default 10)
  --changes N    changed slices to measure (default 2000)
  --json FILE    where the figures go (default target/bench-scale.json)";

/// Endpoints of a slice, Kubernetes' default.
const PER_SLICE: u32 = 100;
/// Endpoints of the one large Service.
const LARGE: u32 = 100_000;

/// A Service with a cluster IP, one port, and every tenth with a node port as well.
fn service(n: u32) -> Value {
    let (kind, node_port) = if n.is_multiple_of(10) { ("NodePort", 30_000 + n / 10 % 2_768) } else { ("ClusterIP", 0) };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{n}"), "namespace": format!("team-{}", n % 50), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": kind, "clusterIP": address(0x0a60_0000, n), "clusterIPs": [address(0x0a60_0000, n)], "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": node_port}]},
    })
}

/// A slice of a Service. `life`: which of its pods live.
fn slice(service: u32, number: u32, endpoints: u32, life: u32) -> Value {
    let first = service.wrapping_mul(16) + number * PER_SLICE;
    let endpoint = |i: u32| {
        // The pod that was replaced has a new address.
        let addr = address(0x0b00_0000, first + i + if i == 0 && life > 0 { (1 + life % 7) << 20 } else { 0 });
        json!({"addresses": [addr], "conditions": {"ready": true, "serving": true, "terminating": false},
               "nodeName": format!("node-{}", i % 40), "zone": format!("zone-{}", i % 3),
               "targetRef": {"kind": "Pod", "name": format!("pod-{i}"), "namespace": "team", "uid": "6f1f8f7e-2c6d-4b64-9a2e-0d6c8f3f6b11"}})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("service-{service}-{number}"), "namespace": format!("team-{}", service % 50),
                     "labels": {"kubernetes.io/service-name": format!("service-{service}")}, "resourceVersion": life.to_string()},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

fn address(base: u32, n: u32) -> String {
    std::net::Ipv4Addr::from(base + n + 1).to_string()
}

fn object(kind: Kind, value: Value) -> Object {
    read(kind, value, &Origin::default()).expect("an object that can be read")
}

struct Control {
    index: Index,
    compiler: Compiler,
    settings: Settings,
    published: Published<Services>,
}

impl Control {
    fn new(readers: usize) -> (Control, Vec<Reader<Services>>) {
        let text = "node: {name: node-1, ips: [192.168.0.2]}\nclusterCIDRs: [11.0.0.0/8]\nserviceCIDRs: [10.96.0.0/12]";
        let settings = Config::parse(text, std::path::Path::new("bench")).expect("a configuration").settings(&[]);
        let (published, readers) = Published::new(Arc::new(Services::empty(settings.seed)), readers);
        (Control { index: Index::default(), compiler: Compiler::new(TARGETS_MAX), settings, published }, readers)
    }

    /// Compiles the changes and publishes them to every worker.
    fn put_in_force(&mut self) {
        let touched = self.index.take_touched();
        let compiled = self.compiler.recompile(&self.index, &self.settings, &touched);
        std::hint::black_box(Changes::of(&touched, &self.index));
        let ticket = self.published.publish(Arc::new(compiled.services));
        assert!(self.published.wait(ticket, Duration::from_secs(10), |_| true), "a worker does not follow");
    }
}

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::from_secs(t.tv_sec.cast_unsigned()) + Duration::from_nanos(t.tv_nsec.cast_unsigned())
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|s| s.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// The wall and CPU time of something.
fn timed(run: impl FnOnce()) -> (f64, f64) {
    let (wall, before) = (Instant::now(), cpu());
    run();
    (ms(wall.elapsed()), ms(cpu() - before))
}

struct Figures {
    rows: Vec<Value>,
}

impl Figures {
    fn add(&mut self, name: &str, value: f64, unit: &str, wanted: Option<f64>) {
        let reached = wanted.map(|w| value <= w);
        let verdict = reached.map_or(String::new(), |r| if r { "reached".into() } else { "NOT reached".into() });
        let wanted_text = wanted.map_or(String::new(), |w| format!("<= {w} {unit}"));
        println!("{name:<72} {value:>10.3} {unit:<3} {wanted_text:<12} {verdict}");
        self.rows.push(json!({"name": name, "value": value, "unit": unit, "wanted_max": wanted, "reached": reached}));
    }

    fn spread(&mut self, name: &str, values: &mut [f64], wanted_p99: Option<f64>) {
        values.sort_by(f64::total_cmp);
        #[expect(clippy::cast_sign_loss, reason = "an index")]
        let at = |q: f64| values[((values.len() - 1) as f64 * q).round() as usize];
        self.add(&format!("{name}, median"), at(0.5), "ms", None);
        self.add(&format!("{name}, p99"), at(0.99), "ms", wanted_p99);
        self.add(&format!("{name}, longest of {}", values.len()), at(1.0), "ms", None);
    }
}

/// Stops the worker, even if the measurement panics.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `measure` while a spinning worker takes each new table.
fn beside_a_worker(mut reader: Reader<Services>, measure: impl FnOnce()) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut taken = 0u64;
            while !stop.load(Ordering::Relaxed) {
                taken += u64::from(reader.refresh());
                std::hint::spin_loop();
            }
            taken
        });
        let ending = Stop(&stop);
        measure();
        drop(ending);
        worker.join().expect("the worker")
    })
}

fn many(figures: &mut Figures, services: u32, endpoints: u32, changes: u32) {
    let what = format!("{services} Services x {endpoints}");
    let before = resident();
    let (mut control, mut readers) = Control::new(1);
    for n in 0..services {
        control.index.apply(object(Kind::Service, service(n)));
        control.index.apply(object(Kind::EndpointSlice, slice(n, 0, endpoints, 0)));
    }
    let objects = resident();
    let reader = readers.remove(0);
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut compiler = Compiler::new(TARGETS_MAX);
        let (wall, cpu) = timed(|| drop(std::hint::black_box(compiler.compile(&control.index, &control.settings))));
        walls.push(wall);
        cpus.push(cpu);
    }
    walls.sort_by(f64::total_cmp);
    cpus.sort_by(f64::total_cmp);
    figures.add(&format!("{what}: compiled from nothing, wall"), walls[2], "ms", Some(1_000.0));
    figures.add(&format!("{what}: compiled from nothing, CPU"), cpus[2], "ms", None);
    let touched = resident();
    let taken = beside_a_worker(reader, || {
        control.put_in_force();
        let full = resident();
        figures.add(&format!("{what}: memory of the objects"), (objects - before) as f64 / 1e6, "MB", None);
        figures.add(
            &format!("{what}: memory of the table and the compiler"),
            full.saturating_sub(touched.min(objects)) as f64 / 1e6,
            "MB",
            None,
        );
        let (mut walls, mut cpus) = (Vec::new(), Vec::new());
        for change in 0..changes {
            let n = change.wrapping_mul(7_919) % services;
            let event = json!({"type": "MODIFIED", "object": slice(n, 0, endpoints, 1 + change)}).to_string();
            let (wall, cpu) = timed(|| {
                let mut event: Value = serde_json::from_str(&event).expect("JSON");
                assert!(control.index.apply(object(Kind::EndpointSlice, event["object"].take())), "a change");
                control.put_in_force();
            });
            walls.push(wall);
            cpus.push(cpu);
        }
        figures.spread(&format!("{what}: one changed slice in force in the worker, wall"), &mut walls, Some(5.0));
        figures.spread(&format!("{what}: one changed slice in force in the worker, CPU"), &mut cpus, None);
        let mut walls: Vec<f64> = (0..changes / 10)
            .map(|n| {
                timed(|| {
                    assert!(control.index.apply(object(Kind::Service, service(services + n))), "a new Service");
                    control.index.apply(object(Kind::EndpointSlice, slice(services + n, 0, endpoints, 0)));
                    control.put_in_force();
                })
                .0
            })
            .collect();
        figures.spread(&format!("{what}: one more Service in force in the worker, wall"), &mut walls, None);
        let list: Vec<Object> = (0..services).map(|n| object(Kind::EndpointSlice, slice(n, 0, endpoints, 0))).collect();
        let (wall, _) = timed(|| {
            control.index.replace(Kind::EndpointSlice, list, &BTreeSet::new());
            control.put_in_force();
        });
        figures.add(&format!("{what}: all slices listed anew, wall"), wall, "ms", None);
    });
    assert!(taken >= u64::from(changes), "the worker took {taken} tables");
}

fn large(figures: &mut Figures) {
    let what = format!("one Service x {LARGE}");
    let (mut control, mut readers) = Control::new(1);
    let before = resident();
    control.index.apply(object(Kind::Service, service(0)));
    for number in 0..LARGE / PER_SLICE {
        control.index.apply(object(Kind::EndpointSlice, slice(0, number, PER_SLICE, 0)));
    }
    beside_a_worker(readers.remove(0), || {
        let (wall, cpu) = timed(|| control.put_in_force());
        figures.add(&format!("{what}: compiled from nothing, wall"), wall, "ms", None);
        figures.add(&format!("{what}: compiled from nothing, CPU"), cpu, "ms", None);
        figures.add(&format!("{what}: memory, objects included"), (resident() - before) as f64 / 1e6, "MB", None);
        let change = |life: u32| {
            timed(|| {
                control.index.apply(object(Kind::EndpointSlice, slice(0, life * 37 % (LARGE / PER_SLICE), PER_SLICE, life)));
                control.put_in_force();
            })
            .0
        };
        let mut walls: Vec<f64> = (1..=20).map(change).collect();
        figures.spread(&format!("{what}: one changed slice in force in the worker, wall"), &mut walls, None);
    });
}

#[derive(Clone)]
struct Options {
    services: u32,
    endpoints: u32,
    changes: u32,
    json: String,
    /// Only this part, in this process.
    part: Option<String>,
}

impl Options {
    /// `None` for `--help`.
    fn read() -> Option<Options> {
        let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target").into());
        let mut options = Options { services: 10_000, endpoints: 10, changes: 2_000, json: target + "/bench-scale.json", part: None };
        let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value\n\n{HELP}"));
            match arg.as_str() {
                "--services" => options.services = value().parse().expect("a number"),
                "--endpoints" => options.endpoints = value().parse().expect("a number"),
                "--changes" => options.changes = value().parse().expect("a number"),
                "--json" => options.json = value(),
                "--part" => options.part = Some(value()),
                _ => return None,
            }
        }
        Some(options)
    }

    /// Measures a part in its own process: memory that was freed before would not count again.
    fn run_part(&self, part: &str) -> Vec<Value> {
        let file = format!("{}.{part}", self.json);
        let numbers = [("--services", self.services), ("--endpoints", self.endpoints), ("--changes", self.changes)];
        let numbers = numbers.into_iter().flat_map(|(name, n)| [name.to_string(), n.to_string()]);
        let program = std::env::current_exe().expect("this program");
        let status = std::process::Command::new(program).args(["--part", part, "--json", &file]).args(numbers).status();
        assert!(status.as_ref().is_ok_and(|s| s.success()), "the part {part} failed: {status:?}");
        let text = std::fs::read_to_string(&file).expect("what the part has written");
        let _ = std::fs::remove_file(&file);
        let mut report: Value = serde_json::from_str(&text).expect("JSON");
        report["rows"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }
}

fn main() {
    let Some(options) = Options::read() else { return println!("{HELP}") };
    let mut figures = Figures { rows: Vec::new() };
    match options.part.as_deref() {
        Some("large") => large(&mut figures),
        Some(_) => many(&mut figures, options.services, options.endpoints, options.changes),
        None => ["many", "large"].iter().for_each(|part| figures.rows.extend(options.run_part(part))),
    }
    let report = json!({"benchmark": "scale", "rows": figures.rows});
    match std::fs::write(&options.json, format!("{report:#}\n")) {
        Ok(()) if options.part.is_none() => println!("\nwritten: {}", options.json),
        Ok(()) => {}
        Err(e) => eprintln!("{}: {e}", options.json),
    }
}
