//! A run: starts the sink's and the generator's threads, shows progress, and makes the report.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nomagic_sys::time::monotonic_ns;

use super::backend::{AfXdp, Backend, Sent};
use super::interface::{Interface, Place};
use super::live::LiveFrames;
use super::options::{BackendKind, COUNT_MAX, Options};
use super::pace::Pacer;
use super::pcap::{Capture, Replay};
use super::profile::Protocol;
use super::program::LIVE_FLOWS_MAX;
use super::report::{Outcome, Report};
use super::sink::{Sink, SinkControl, SinkMode, SinkResult};
use super::stream::{Source, Stream};
use super::template::{ETH_LEN, Macs};

/// After the last frame was sent, the run ends when nothing has arrived for `QUIET`, or after `DRAIN_MAX`.
const QUIET: Duration = Duration::from_millis(200);
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// Shorter waits spin.
const SPIN_NS: u64 = 60_000;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    sink: SinkControl,
}

/// The result of the generator's thread.
struct Generated {
    backend: String,
    sent: Sent,
    elapsed: Duration,
    forgone: u64,
}

/// Runs to the end or to an error. `stop` ends it early.
pub fn run(options: &Options, stop: &Arc<AtomicBool>, progress: bool) -> Result<Report> {
    options.check()?;
    let mut options = options.clone();
    if options.backend == BackendKind::Live && options.profile.protocol == Protocol::SynFlood {
        // Each template of the BPF program has one source: use as many as fit.
        options.profile.flows = options.profile.tuples().min(LIVE_FLOWS_MAX.into()) as u32;
    }
    let shared = Arc::new(Shared::default());
    let run = (monotonic_ns() >> 20) as u16 & super::payload::RUN_MAX;
    let sink = options.rx.clone().map(|rx| start_sink(&options, rx, run, &shared)).transpose()?;
    let dst = options.dst_mac.or(sink.as_ref().map(|(mac, _)| *mac)).context("--dst-mac must name the first hop")?;
    let generator = start_generator(&options, dst, run, &shared);
    let generated = generator.and_then(|handle| {
        watch(&handle, stop, &shared, progress);
        join(handle)
    });
    if generated.is_ok() && sink.is_some() {
        drain(&shared);
    }
    shared.sink.stop.store(true, Relaxed);
    let received = sink.map(|(_, handle)| join(handle)).transpose();
    let generated = generated?;
    let outcome = Outcome {
        options: &options,
        backend: generated.backend,
        sent: generated.sent,
        elapsed: generated.elapsed,
        forgone: generated.forgone,
        stopped: stop.load(Relaxed),
        sink: received?,
    };
    Ok(Report::new(&outcome))
}

fn join<T>(handle: JoinHandle<Result<T>>) -> Result<T> {
    handle.join().map_err(|_| anyhow!("a thread of pktgen panicked; its message is above"))?
}

/// Starts a thread and waits until it reports that it is ready. Returns its report.
fn start<R: Send + 'static, T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&dyn Fn(R)) -> Result<T> + Send + 'static,
) -> Result<(R, JoinHandle<Result<T>>)> {
    let (ready, said) = mpsc::channel();
    let body = move || {
        work(&|r| {
            // The receiver may be gone; the thread then ends by the stop flag.
            let _ = ready.send(r);
        })
    };
    let handle = std::thread::Builder::new().name(name.into()).spawn(body).context("cannot start a thread")?;
    match said.recv() {
        Ok(r) => Ok((r, handle)),
        Err(_) => Err(join(handle).err().unwrap_or_else(|| anyhow!("{name} ended before it was ready"))),
    }
}

fn start_sink(options: &Options, rx: Place, run: u16, shared: &Arc<Shared>) -> Result<([u8; 6], JoinHandle<Result<SinkResult>>)> {
    // Frames of a capture carry no payload of the generator's.
    let any_payload = options.pcap.is_some();
    let mode = if any_payload || options.count_only {
        SinkMode::Count { any_payload }
    } else {
        SinkMode::Check { run, flows: options.profile.flows }
    };
    let (shared, allow_host) = (shared.clone(), options.allow_host);
    start("pktgen-sink", move |ready| {
        let interface = rx.enter(allow_host)?;
        ensure!(
            interface.named_namespace || !any_payload,
            "--rx {rx}: the frames of --pcap cannot be told from other traffic, so the sink takes all TCP and UDP, ssh too: \
             use a namespace of `ip netns`"
        );
        let sink = Sink::open(&interface, mode)?;
        ready(interface.link.mac);
        sink.run(&shared.sink)
    })
}

fn start_generator(options: &Options, dst: [u8; 6], run: u16, shared: &Arc<Shared>) -> Result<JoinHandle<Result<Generated>>> {
    let (options, shared) = (options.clone(), shared.clone());
    let generate = move |ready: &dyn Fn(())| {
        let interface = options.tx.enter(options.allow_host)?;
        let macs = Macs { src: interface.link.mac, dst };
        let mut backend = open_backend(&options, &interface, macs, run)?;
        ready(());
        generate(&options, &mut *backend, &shared)
    };
    start("pktgen", generate).map(|((), handle)| handle)
}

fn open_backend(options: &Options, interface: &Interface, macs: Macs, run: u16) -> Result<Box<dyn Backend>> {
    let (link, profile) = (&interface.link, &options.profile);
    let room = link.mtu as usize + ETH_LEN;
    let fits = |len: usize| {
        ensure!(len <= room, "--tx {}: its MTU {} is too small for frames of {len} bytes", link.name, link.mtu);
        Ok(())
    };
    let source = || -> Result<Box<dyn Source>> {
        let source: Box<dyn Source> = match &options.pcap {
            Some(path) => Box::new(Replay::new(Capture::open(path)?, macs)),
            None => Box::new(Stream::new(profile, macs, run)),
        };
        fits(source.frame_max())?;
        Ok(source)
    };
    if options.pcap.is_none() {
        fits(profile.buffer_max())?;
    }
    Ok(match options.backend {
        BackendKind::AfXdp => Box::new(AfXdp::open(&link.name, source()?)?),
        BackendKind::Live => Box::new(LiveFrames::open(link.ifindex, profile, macs, run, options.rate)?),
    })
}

fn generate(options: &Options, backend: &mut dyn Backend, shared: &Shared) -> Result<Generated> {
    let start_ns = monotonic_ns();
    let end_ns = start_ns + options.duration.as_nanos() as u64;
    let mut pacer = options.rate.filter(|_| !backend.paces_itself()).map(|pps| Pacer::new(pps, start_ns));
    let mut left = options.count.unwrap_or(COUNT_MAX);
    let mut now = start_ns;
    while left > 0 && now < end_ns && !shared.stop.load(Relaxed) {
        let burst = backend.burst_max().min(left.min(u32::MAX.into()) as u32);
        let allowed = pacer.as_mut().map_or(burst, |p| p.take(now, burst));
        if allowed == 0 {
            let wait_ns = pacer.as_ref().map_or(0, Pacer::wait_ns);
            if wait_ns > SPIN_NS {
                std::thread::sleep(Duration::from_nanos(wait_ns - SPIN_NS / 2).min(Duration::from_millis(50)));
            } else {
                std::hint::spin_loop();
            }
        } else {
            let n = backend.send(allowed, end_ns)?;
            if let Some(pacer) = &mut pacer {
                pacer.give_back(allowed - n);
            }
            left -= u64::from(n);
            shared.sent.store(backend.sent().frames, Relaxed);
        }
        now = monotonic_ns();
    }
    let last_ns = if backend.sent().last_ns > 0 { backend.sent().last_ns } else { now };
    let elapsed = Duration::from_nanos(last_ns - start_ns);
    let drained = Instant::now() + DRAIN_MAX;
    while !backend.finished()? && Instant::now() < drained {
        std::thread::sleep(Duration::from_micros(100));
    }
    let sent = backend.sent();
    Ok(Generated { backend: backend.describe(), elapsed, forgone: pacer.map_or(sent.forgone, |p| p.forgone()), sent })
}

/// Waits for the generator's end; shows progress each second.
fn watch(handle: &JoinHandle<Result<Generated>>, stop: &AtomicBool, shared: &Shared, progress: bool) {
    let terminal = std::io::stderr().is_terminal();
    let (start, mut shown, mut before) = (Instant::now(), Instant::now(), (0, 0));
    while !handle.is_finished() {
        if stop.load(Relaxed) {
            shared.stop.store(true, Relaxed);
        }
        std::thread::sleep(Duration::from_millis(5));
        let past = shown.elapsed();
        if progress && past >= Duration::from_secs(1) {
            let now = (shared.sent.load(Relaxed), shared.sink.received.load(Relaxed));
            let pps = |now: u64, before: u64| (now - before) as f64 / past.as_secs_f64();
            let line = format!(
                "[{:6.1} s] sent {:>12} ({:>10.0}/s)  received {:>12} ({:>10.0}/s)",
                start.elapsed().as_secs_f32(),
                now.0,
                pps(now.0, before.0),
                now.1,
                pps(now.1, before.1)
            );
            // A terminal shows one line that is overwritten; a log gets all lines. A closed standard error does not end the run.
            let _ = if terminal { write!(std::io::stderr(), "\r{line}") } else { writeln!(std::io::stderr(), "{line}") };
            (shown, before) = (Instant::now(), now);
        }
    }
    if progress && terminal && before != (0, 0) {
        eprintln!();
    }
}

/// Waits until no more frames arrive.
fn drain(shared: &Shared) {
    let end = Instant::now() + DRAIN_MAX;
    let (mut before, mut since) = (u64::MAX, Instant::now());
    while Instant::now() < end && since.elapsed() < QUIET {
        let now = shared.sink.received.load(Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
