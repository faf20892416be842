//! Configuration and objects from files, compiled: what `explain` and `check kube-proxy` answer from.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use nomagic_core::deny::DenyList;
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::problem::Problem;
use nomagic_table::settings::Settings;
use nomagic_xsk::Denied;

use super::super::config_args::{ConfigArgs, LoadedConfig};
use crate::config::error::ConfigError;
use crate::deny::DenySources;
use crate::kubeproxy::Warning;
use crate::manifests;
use crate::run::findings::Findings;
use crate::seed::{self, Seed, SeedFileError};

const NO_NODE: &str = "missing: unlike `run`, this command does not discover the node's addresses; until they are listed, it knows neither \
    node ports nor an address for SNAT";

/// The parsed and compiled files.
pub(in super::super) struct LoadedFiles {
    pub index: Index,
    pub settings: Settings,
    pub compiled: Compiled,
    pub denied: DenyList,
    /// What keeps prefixes out of the deny list.
    pub deny_problems: Vec<String>,
    /// The configuration leaves the seed to the running gateway, or `unread_seed` says why this process cannot read it.
    pub seed_unknown: bool,
    pub unread_seed: Option<ConfigError>,
    /// Unsupported fields of kube-proxy's file.
    pub unsupported: Vec<Warning>,
    /// Where a gateway with this configuration has its state.
    pub state_dir: PathBuf,
}

impl LoadedFiles {
    /// Loads the files. `discovered` are this machine's addresses, for a configuration that does not list the node's. Also returns the
    /// problems of the objects.
    pub fn load(args: &ConfigArgs, discovered: &[IpAddr]) -> Result<(LoadedFiles, Vec<Problem>), String> {
        let LoadedConfig { mut config, drop_in } = args.load().map_err(|e| e.to_string())?;
        let unsupported = drop_in.map_or(Vec::new(), |drop_in| {
            drop_in.apply(&mut config, &[]);
            drop_in.warnings
        });
        let missing = || match config.kubernetes {
            Some(_) => {
                let message =
                    "this command reads files, but the configuration names an API server: set `manifests` instead, or use --manifests";
                ConfigError::in_field(args.path(), "kubernetes", message)
            }
            None => {
                let message = "missing: set the file or directory with the Kubernetes YAML in nomagic's configuration or with --manifests";
                ConfigError::in_field(args.path(), "manifests", message)
            }
        };
        let manifests =
            manifests::load(config.manifests.as_deref().ok_or_else(|| missing().to_string())?, None).map_err(|p| p.to_string())?;
        let index = Index::of(manifests.objects);
        let (seed, unread_seed) = match seed::from_config(&config.hash, args.path()) {
            Ok(seed) => (seed, None),
            Err(SeedFileError { unreadable: true, error }) => (None, Some(error)),
            Err(SeedFileError { error, .. }) => return Err(error.to_string()),
        };
        let mut settings = config.settings_for(discovered, &index);
        settings.incomplete = manifests.incomplete;
        settings.seed = seed.unwrap_or(Seed::configured(0)).hash_seed();
        let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
        let mut problems = manifests.problems;
        problems.extend(compiled.problems.iter().cloned());
        let unread: BTreeSet<String> = problems.iter().map(|p| p.object.clone()).collect();
        let mut findings = Findings::of_files();
        findings.examine(&index, &settings.node, &unread, Instant::now());
        problems.extend(findings.problems().cloned());
        let deny = DenySources::open(&config.deny, &Denied::new());
        let (denied, deny_problems) = (deny.list(), deny.problems());
        Ok((
            LoadedFiles {
                index,
                settings,
                compiled,
                denied,
                deny_problems,
                seed_unknown: seed.is_none(),
                unread_seed,
                unsupported,
                state_dir: config.state_dir,
            },
            problems,
        ))
    }

    /// What of the configuration is not used, or missing.
    pub fn warnings(&self, args: &ConfigArgs) -> Vec<String> {
        let mut warnings: Vec<String> = self.unsupported.iter().map(ToString::to_string).collect();
        warnings.extend(self.unread_seed.iter().map(|error| format!("{error}; the running gateway may read it")));
        if self.settings.node.ips.is_empty() {
            let field = if args.file.kube_proxy_config.is_some() { "bindAddress" } else { "node.primaryIPs" };
            warnings.push(format!("{}: {field}: {NO_NODE}", args.path().display()));
        }
        warnings.extend(self.deny_problems.iter().cloned());
        warnings
    }
}
