//! `nomagic cleanup`: removes everything that outlives the process.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{StateArgs, output, state_paths};
use crate::net::internal;
use crate::net::local::{LocalRoutes, RouteChanges};
use crate::run::lock::StateLock;
use crate::run::signals::{SignalRequest, Signals};
use crate::run::{drain, socket};
use crate::seed;

/// Where the DaemonSet of deploy/base has its pins, on the node.
const POD_PINS: &str = "/sys/fs/bpf/nomagic";
/// The state directory of that DaemonSet.
const POD_STATE: &str = "/run/nomagic";

/// `nomagic cleanup`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic cleanup
  nomagic cleanup --config /etc/nomagic/nomagic.yaml

Exit codes: 0 done, 1 failure or a nomagic runs (also one that is stopped or hangs): then nothing is changed. 2 invalid arguments.
In a pod it removes everything but the mount of its bpffs, which belongs to the container runtime.")]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Also remove the pins in this directory of a bpffs, which a pod had [default: /sys/fs/bpf/nomagic with the state directory
    /// /run/nomagic, as the DaemonSet has them].
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// Wait for a signal afterwards, as the pod of a DaemonSet must.
    #[arg(long)]
    stay: bool,
}

/// What was removed, and what could not be.
#[derive(Debug, Default)]
struct Cleaned {
    removed: Vec<&'static str>,
    left: Vec<String>,
}

/// Removes everything and prints what it was.
pub(super) fn run(args: &CleanupArgs) -> Result<()> {
    let config = args.state.config.as_deref();
    let state_dir = state_paths::state_dir(args.state.state_dir.clone(), config)?;
    let pins = args.pins.clone().or_else(|| (state_dir == Path::new(POD_STATE)).then(|| POD_PINS.into()));
    let Cleaned { removed, left } = cleanup(&state_dir, &state_paths::table_file(&state_dir, config)?, pins.as_deref())?;
    let what = if removed.is_empty() { "nothing to remove".to_owned() } else { format!("removed {}", removed.join(", ")) };
    output::print(&left.iter().fold(what, |text, left| text + "\nleft " + left))?;
    if args.stay { wait_for_signal() } else { Ok(()) }
}

fn wait_for_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        while signals.next().await != SignalRequest::Stop {}
        Ok(())
    })
}

/// Detaches the XDP programs and removes pins, mount, internal port, routes, rules, control socket, hash seed and the connection table's file.
///
/// # Errors
/// If a gateway runs with this state directory or this table, before anything is changed; if a system call fails.
fn cleanup(state_dir: &Path, table_file: &Path, pod_pins: Option<&Path>) -> Result<Cleaned> {
    let _lock = StateLock::take(state_dir)?;
    if socket::is_running(state_dir) {
        bail!("a gateway is running with the state directory {}: stop it first (SIGTERM)", state_dir.display());
    }
    let table = nomagic_xsk::region::lock(table_file)?;
    let mut cleaned = Cleaned::default();
    let pins = nomagic_xsk::cleanup(state_dir)?;
    if let Some((mount, e)) = pins.left_mounted {
        cleaned.left.push(format!(
            "the mount of an empty bpffs on {}: {e}; a container's runtime unmounts it, elsewhere `umount {}` does",
            mount.display(),
            mount.display()
        ));
    }
    if pins.removed | pod_pins.map_or(Ok(false), nomagic_xsk::cleanup_directory)? {
        cleaned.removed.push("XDP programs and maps");
    }
    if LocalRoutes::open()?.clear()? != RouteChanges::default() {
        cleaned.removed.push("routes and rules for the node's own connections");
    }
    let names = internal::PairNames::default();
    if nomagic_xsk::Link::query(&names.kernel).is_ok() {
        internal::remove(&names)?;
        cleaned.removed.push("the internal port");
    }
    if std::fs::remove_file(socket::path(state_dir)).is_ok() {
        cleaned.removed.push("the control socket");
    }
    if drain::remove(&drain::path(state_dir))? {
        cleaned.removed.push("the mark of draining");
    }
    if seed::remove(state_dir)? {
        cleaned.removed.push("the hash seed");
    }
    if nomagic_xsk::region::remove_locked(table_file, table)? {
        cleaned.removed.push("the connection table");
    }
    Ok(cleaned)
}
