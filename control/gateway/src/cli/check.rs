//! `nomagic check`: what `run` would need, without starting anything.

mod kube_proxy;

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::Kind;

use super::config_args::{ConfigArgs, LoadedConfig};
use super::output;
use super::run::missing_fields;
use crate::config::Config;
use crate::manifests;
use crate::preflight::check_machine;
use crate::preflight::host::{Host, ThisHost};
use crate::seed;

/// `nomagic check`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:
  nomagic check --config /etc/nomagic/nomagic.yaml
  nomagic check --config nomagic.yaml --manifests services.yaml --no-machine
  nomagic check kube-proxy --config nomagic.yaml --manifests objects.yaml

It changes nothing, and an API server is not asked. Exit codes: 0 all is well, 1 a problem of an object, or the machine lacks something,
2 the configuration cannot be used.",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(super) struct CheckArgs {
    #[command(subcommand)]
    other: Option<OtherCheck>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Do not check this machine: kernel, interfaces, privileges.
    #[arg(long)]
    no_machine: bool,
}

#[derive(Debug, clap::Subcommand)]
enum OtherCheck {
    /// Compare the objects' table with the rules of the kube-proxy that runs on this node, before nomagic takes its place.
    KubeProxy(kube_proxy::CheckKubeProxyArgs),
}

/// Prints what is found. Returns the exit code.
pub(super) fn run(args: &CheckArgs) -> Result<u8> {
    if let Some(OtherCheck::KubeProxy(args)) = &args.other {
        return kube_proxy::run(args);
    }
    let LoadedConfig { mut config, drop_in } = args.config.load()?;
    let path = args.config.path().display();
    let mut page = String::new();
    if let Some(drop_in) = &drop_in {
        drop_in.apply(&mut config, &[]);
        for warning in &drop_in.warnings {
            let _ = writeln!(page, "warning: {warning}");
        }
    }
    seed::from_config(&config.hash, args.config.path()).map_err(|e| e.error)?;
    // Interfaces, and an API server, that kube-proxy's file does not name are found at the start.
    let missing = if drop_in.is_none() { missing_fields(&config) } else { Vec::new() };
    for missing in &missing {
        let _ = writeln!(page, "problem: {path}: {missing}");
    }
    let _ = writeln!(page, "configuration: {path} is valid");
    let problems = check_objects(&config, &mut page)?;
    let lacks = if args.no_machine { 0 } else { check_this_machine(&config, &ThisHost, &mut page) };
    output::print(page.trim_end())?;
    Ok(if missing.is_empty() { u8::from(problems + lacks > 0) } else { 2 })
}

/// Reads and compiles the manifests. Returns the number of problems.
fn check_objects(config: &Config, page: &mut String) -> Result<usize> {
    let Some(path) = &config.manifests else {
        let _ = writeln!(page, "objects: of an API server, which is not asked");
        return Ok(0);
    };
    let set = manifests::load(path, None).map_err(|problem| anyhow!("{problem}"))?;
    let (mut problems, files, ignored) = (set.problems, set.files, set.ignored);
    let index = Index::of(set.objects);
    problems.extend(Compiler::new(TARGETS_MAX).compile(&index, &config.settings_for(&[], &index)).problems);
    let [services, slices] = [Kind::Service, Kind::EndpointSlice].map(|kind| index.count(kind));
    let _ = writeln!(
        page,
        "objects: {services} Services and {slices} EndpointSlices in {files} files ({ignored} objects of other kinds), {} problems",
        problems.len()
    );
    let mut lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.sort();
    for line in &lines {
        let _ = writeln!(page, "problem: {line}");
    }
    Ok(lines.len())
}

/// Returns how many things the machine lacks.
fn check_this_machine(config: &Config, host: &dyn Host, page: &mut String) -> usize {
    let report = check_machine(host, config, &config.interfaces, config.workers.count.get());
    let _ = writeln!(page, "\n{report}");
    report.missing
}
