//! A report for a bug: one tar file with what helps to find a fault, of bounded size. A part that cannot be had is named in the manifest, and costs
//! nothing else.

pub mod bundle;
mod command;
mod configuration;
mod gateway;
mod host;
mod replace;

use std::path::PathBuf;

use bundle::Bundle;
use replace::Replacer;

/// What to report on.
#[derive(Clone, Debug)]
pub struct Subject {
    pub state_dir: PathBuf,
    /// The configuration file; `None`: the one that the running gateway was started with.
    pub config: Option<PathBuf>,
    /// Replace IP and MAC addresses.
    pub replace_addresses: bool,
}

/// Collects everything.
///
/// # Errors
/// If there is no randomness to replace addresses with.
pub fn collect(subject: &Subject) -> anyhow::Result<Bundle> {
    let replacer = if subject.replace_addresses { Some(Replacer::with_random_key()?) } else { None };
    let mut bundle = Bundle::new(replacer);
    host::version(&mut bundle);
    let running = gateway::collect(&mut bundle, &subject.state_dir);
    let configured = configuration::collect(&mut bundle, subject.config.as_deref(), running.as_ref());
    host::collect(&mut bundle, &subject.state_dir, &configured);
    // Last: logs are the largest and the least sure.
    host::logs(&mut bundle);
    Ok(bundle)
}
