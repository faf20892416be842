//! Where answers come from: files, the running gateway, or both, to compare them.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use nomagic_api::explain::Answer;
use nomagic_api::services::{ExampleClients, Service, ServiceFilter};
use nomagic_api::socket::{Request, Response};
use nomagic_core::tuple::Tuple;
use nomagic_table::explain::{Explainer, parse_flow};
use nomagic_table::findings::near_service;
use nomagic_table::listing::{Listing, Said, example_clients};
use nomagic_table::objects::NamespacedName;

use super::{ExplainArgs, LoadedFiles, compare, print_problems};
use crate::cli::services::page;
use crate::config::Config;
use crate::flows::parse_service;
use crate::run::socket;

/// Where to ask. At least one of them is there.
pub(super) struct Sources {
    /// The state directory of a running gateway.
    pub(super) live: Option<PathBuf>,
    pub(super) files: Option<Box<LoadedFiles>>,
}

impl Sources {
    /// Loads the files that are named. `None`: they are invalid, and the error has been printed.
    pub(super) fn open(args: &ExplainArgs, err: &mut dyn Write) -> io::Result<Option<Sources>> {
        let named = args.config.file.config.is_some() || args.config.file.kube_proxy_config.is_some();
        if !named && args.config.manifests.is_some() {
            writeln!(err, "error: --manifests needs the configuration too: --config or --kube-proxy-config")?;
            return Ok(None);
        }
        if !named {
            return Ok(Some(Sources { live: Some(state_dir(args, None)), files: None }));
        }
        // The gateway has found its node's addresses itself, if the configuration does not list them.
        let discovered: Vec<IpAddr> = if args.live { crate::net::node::local_addresses().unwrap_or_default() } else { Vec::new() };
        match LoadedFiles::load(&args.config, &discovered) {
            Ok((loaded, problems)) => {
                loaded.warnings(&args.config).iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
                print_problems(&problems, err)?;
                let live = args.live.then(|| state_dir(args, Some(&loaded)));
                Ok(Some(Sources { live, files: Some(Box::new(loaded)) }))
            }
            Err(message) => {
                writeln!(err, "error: {message}")?;
                Ok(None)
            }
        }
    }

    /// An explainer of the files.
    pub(super) fn explainer(&self) -> Option<Explainer<'_>> {
        let loaded = self.files.as_ref()?;
        let explainer = Explainer::new(&loaded.index, &loaded.settings, &loaded.compiled).with_denied(&loaded.denied);
        Some(if loaded.seed_unknown { explainer.with_unknown_seed() } else { explainer })
    }

    /// The answer about a flow: the gateway's, if it is asked, and then with what the files answer otherwise.
    pub(super) fn answer(&self, explainer: Option<&Explainer<'_>>, flow: &str) -> Result<(Tuple, Answer), String> {
        let tuple = parse_flow(flow)?;
        let Some(live) = &self.live else {
            let explainer = explainer.ok_or("no files are loaded")?;
            return Ok((tuple, explainer.answer(flow, &tuple)));
        };
        let ask = |as_new: bool| match socket::ask(live, &Request::Explain { flow: flow.into(), as_new }) {
            Ok(Response::Explain(answer)) => Ok(*answer),
            Ok(_) => Err("unexpected response from the gateway: not an explanation".to_owned()),
            Err(e) => Err(format!("{e:#}")),
        };
        let mut answer = ask(false)?;
        if let Some(explainer) = explainer {
            let of_files = explainer.answer(flow, &tuple);
            match answer.known_flow {
                // Files know no flows.
                Some(_) => compare::add(&mut answer, Some(&ask(true)?), &of_files),
                None => compare::add(&mut answer, None, &of_files),
            }
        }
        Ok((tuple, answer))
    }

    /// A Service, and clients to ask for.
    pub(super) fn service(&self, name: &str) -> Result<(Service, ExampleClients), String> {
        if let Some(live) = &self.live {
            let filter = ServiceFilter { service: Some(name.into()), ..ServiceFilter::default() };
            let page = page(live, &filter, None).map_err(|e| format!("{e:#}"))?;
            let service = page.services.into_iter().next().ok_or("the gateway's answer has no Service")?;
            return Ok((service, page.clients.unwrap_or_default()));
        }
        let loaded = self.files.as_ref().ok_or("no files are loaded")?;
        let (namespace, name) = parse_service(name)?;
        let (key, index) = (NamespacedName { namespace, name }, &loaded.index);
        let Some(service) = index.service(&key) else {
            return Err(format!("the files have no Service {key}{}", near_service(index, &key)));
        };
        let table = &loaded.compiled.services;
        let (listed, _) = Listing { index, settings: &loaded.settings, table }.describe(service, Said::default(), false);
        let is_endpoint = |ip| index.slices_of(&key).flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.addr == ip);
        Ok((listed, example_clients(table, service, is_endpoint)))
    }
}

/// The state directory: the named one, the configuration's, or the default.
fn state_dir(args: &ExplainArgs, loaded: Option<&LoadedFiles>) -> PathBuf {
    let configured = || loaded.map_or_else(|| Config::default().state_dir, |loaded| loaded.state_dir.clone());
    args.state_dir.clone().unwrap_or_else(configured)
}
