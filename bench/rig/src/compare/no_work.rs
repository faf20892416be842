//! `nomagic-bench no-work`: nomagic's own edge (XDP filter, rings, batches) with an empty packet path, which forwards
//! each frame unchanged to the other interface. It is the upper limit of this edge; the distance to it is the price
//! of nomagic's packet path.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arrayvec::ArrayVec;
use clap::Args;
use nomagic_core::capture::FilterRules;
use nomagic_core::frame::{BATCH_MAX, Frame, NextHopId, Outputs, PortId, Verdict};
use nomagic_core::hash::WordSet;
use nomagic_core::pipeline::Context;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core::tuple::{HashSeed, Proto};
use nomagic_xsk::{Edge, EdgeConfig, InterfaceName, RingSize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::workload::{QUEUE_FRAMES, UDP_PORT, cluster_ip};

/// A worker that has just been started needs microseconds.
const START_MAX: Duration = Duration::from_secs(5);

/// `nomagic-bench no-work`.
#[derive(Args, Clone, Debug)]
pub struct NoWorkArgs {
    /// The two interfaces, in the network namespace of the caller
    #[arg(long, num_args = 2, value_delimiter = ',', default_values = ["cl0", "pods0"])]
    interfaces: Vec<InterfaceName>,
    /// Number of Services whose frames the filter takes
    #[arg(long, default_value_t = 1)]
    services: u32,
    /// The worker's CPU
    #[arg(long)]
    cpu: usize,
    /// Directory of its pins
    #[arg(long)]
    state_dir: PathBuf,
}

/// The empty packet path: forwards to the other port.
fn pass_on<'f>(_: &mut Context<'_>, frames: &mut [Frame<'f>], verdicts: &mut ArrayVec<Verdict, BATCH_MAX>, _: &mut Outputs<'f>) {
    verdicts.clear();
    verdicts.extend(frames.iter().map(|f| Verdict::Forward(PortId(1 - f.port.0.min(1)), NextHopId(0))));
}

impl NoWorkArgs {
    pub fn run(&self) -> Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot watch signals")?;
        let config = EdgeConfig {
            cpus: vec![self.cpu],
            path: pass_on,
            ring_size: RingSize::from_static(QUEUE_FRAMES),
            ..EdgeConfig::new(&self.state_dir, self.interfaces.clone())
        };
        let mut edge = Edge::start(config, Arc::new(Services::empty(HashSeed::new(1))), Arc::new(Routes::default()))?;
        let services = (0..self.services).map(|n| (IpAddr::V4(cluster_ip(n)), UDP_PORT, Proto::Udp)).collect();
        let applied = edge.wait_applied(START_MAX).context("the worker does not take its tables")?;
        applied.widen_filter(&FilterRules { services, ..FilterRules::default() }, &WordSet::default())?;
        println!("the empty loop is ready");
        signals.forever().next();
        edge.stop(true)?;
        Ok(())
    }
}
