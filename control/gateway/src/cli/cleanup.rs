//! `nomagic cleanup`: everything that outlives the process goes.

use std::path::Path;

use anyhow::{Result, bail};

use crate::net::internal;
use crate::net::local::{Changes, LocalRoutes};
use crate::run::socket;

/// Detaches the XDP programs, removes pins, mount, internal port, routes, rules, socket and the connection table's file. Returns what was removed, in words.
///
/// # Errors
/// When a nomagic runs with this state directory, or the kernel refuses.
pub fn cleanup(state_dir: &Path, table_file: &Path) -> Result<Vec<&'static str>> {
    if socket::somebody_listens(state_dir) {
        bail!("a nomagic runs with the state directory {}: end it first (SIGTERM)", state_dir.display());
    }
    let mut removed = Vec::new();
    if nomagic_xsk::cleanup(state_dir)? {
        removed.push("XDP programs and maps");
    }
    if LocalRoutes::open()?.clear()? != Changes::default() {
        removed.push("routes and rules for the node's own connections");
    }
    let names = internal::Names::default();
    if nomagic_xsk::Link::query(&names.kernel).is_ok() {
        internal::remove(&names)?;
        removed.push("the internal port");
    }
    if std::fs::remove_file(socket::path(state_dir)).is_ok() {
        removed.push("the control socket");
    }
    if nomagic_xsk::region::remove(table_file)? {
        removed.push("the connection table");
    }
    Ok(removed)
}
