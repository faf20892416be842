//! A running nomagic in the scene's gateway: its files, its process, its frame accounts.

mod accounts;
mod files;

pub use accounts::{Accounts, Reading};
pub use files::{ECHO_V4, ECHO_V6, NGINX_V4, NGINX_V6, scene_config, scene_manifests, write_files};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nomagic_api::Status;

use crate::rig::{Guard, Netns, Process, Undo, run, undo_later};

/// Time limit to become ready, which includes loading the XDP program and pinning memory.
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// `nomagic run` in a namespace. Its pins are removed when this value is dropped.
#[derive(Debug)]
pub struct GatewayProcess {
    process: Process,
    program: PathBuf,
    config: PathBuf,
    state_dir: PathBuf,
    _cleanup: Guard,
}

impl GatewayProcess {
    /// Starts `program run --config <config>` and waits until it is ready. `state_dir` must be that of the configuration.
    pub fn start(netns: &Netns, program: &Path, config: &Path, state_dir: &Path) -> Result<GatewayProcess> {
        let net = format!("--net={}", netns.path().display());
        let words = ["nsenter", &net, path(program)?, "cleanup", "--state-dir", path(state_dir)?];
        let cleanup = undo_later(Undo::Command(words.map(str::to_owned).to_vec()));
        let mut process = netns.spawn(path(program)?, &["run", "--config", path(config)?])?;
        process.wait_for_line("nomagic is ready", READY_LIMIT)?;
        let own = |p: &Path| p.to_path_buf();
        Ok(GatewayProcess { process, program: own(program), config: own(config), state_dir: own(state_dir), _cleanup: cleanup })
    }

    /// `nomagic status --format json`, also of a gateway that is not ready (exit code 3).
    pub fn status(&self) -> Result<Status> {
        let args = ["status", "--state-dir", path(&self.state_dir)?, "--format", "json"];
        let out = Command::new(&self.program).args(args).output().context("cannot run `nomagic status`")?;
        let said = String::from_utf8_lossy(&out.stderr);
        serde_json::from_slice(&out.stdout)
            .with_context(|| format!("`nomagic status --format json` did not write a status of this version: {}", said.trim()))
    }

    /// `nomagic explain` of one flow, in words.
    pub fn explain(&self, flow: &str) -> Result<String> {
        run(path(&self.program)?, &["explain", "--config", path(&self.config)?, flow])
    }

    /// The process, for its output and for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it with SIGTERM. An exit code other than 0 is an error with its output.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(STOP_LIMIT)?;
        if !status.success() {
            bail!("nomagic ended with {status} after SIGTERM:\n{}", self.process.output());
        }
        Ok(())
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}
