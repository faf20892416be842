//! Network namespaces, cables and processes that end with their owner.
//!
//! All of them are named `nm-<tag>-<pid>-<n>` and registered in [`cleanup`]. They are removed when their value is
//! dropped, on SIGINT or SIGTERM ([`clean_on_signals`]), and after a crash at the next start ([`remove_leftovers`]).
//! Traffic stays inside these namespaces.

mod calls;
mod cleanup;
mod link;
mod netns;
mod process;
mod scene;
mod setting;
mod sys;

pub use calls::Call;
pub use cleanup::{Guard, TABLE_SUFFIX, TABLES, Undo, clean_on_signals, remove_leftovers, undo_later};
pub use link::{LinkCounters, cable};
pub use netns::Netns;
pub use process::Process;
pub use scene::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, POD_GATEWAY_V4, POD_GATEWAY_V6, PODS, PodAddr, Scene};
pub use setting::Setting;
pub use sys::enter_netns;

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Refuses with a clear message unless this process may make namespaces.
pub fn require_root() -> Result<()> {
    if sys::effective_uid() != 0 {
        bail!("network namespaces need root: run it with sudo");
    }
    Ok(())
}

/// Runs a command to its end; its error output becomes the error.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    finish(Command::new(program).args(args))
}

fn finish(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let title = words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let out = command.output().with_context(|| format!("cannot run `{title}`: is it installed? (make setup)"))?;
    if !out.status.success() {
        bail!("`{title}` failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
