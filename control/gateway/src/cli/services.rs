//! `nomagic services`: the Services that the running gateway knows, with addresses, endpoints and problems.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};
use nomagic_api::services::{AddressState, Backend, Port, Service, ServiceFilter, ServiceState, ServicesPage};
use nomagic_api::socket::{Request, Response};
use nomagic_table::objects::addr;
use nomagic_table::problem::shown;

use super::{StateArgs, state_paths};
use crate::flows::parse_service;
use crate::run::socket;

/// `nomagic services`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  Every Service:
    nomagic services
  One, with all that there is to say about it:
    nomagic services --service default/nginx
  What needs attention in a namespace:
    nomagic services --namespace default --problems
  One JSON object for each Service:
    nomagic services --format json

The gateway answers in parts; a Service is shown as it is when its part is asked for. An endpoint gets new connections unless it is left
out, or is left out only for clients outside.
Exit codes: 0 done, 1 failure, no gateway answers or it does not know the Service, 2 invalid arguments.")]
pub(super) struct ServicesArgs {
    /// Only this Service; near misses are then searched among all objects.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// Only Services of this namespace.
    #[arg(long, conflicts_with = "service")]
    namespace: Option<String>,
    /// Only Services with problems, with near misses, without endpoints, or not served in some other way that is not by design.
    #[arg(long)]
    problems: bool,
    #[command(flatten)]
    state_dir: StateArgs,
    /// Output format; json: one object a line.
    #[arg(long, value_enum, default_value = "text")]
    format: super::StatusFormat,
}

/// Runs the command and prints its outcome. Returns the exit code.
pub(super) fn run(args: &ServicesArgs) -> Result<u8> {
    if let Some(e) = args.service.as_deref().and_then(|name| parse_service(name).err()) {
        super::output::print_error(&e);
        return Ok(2);
    }
    let filter = ServiceFilter { namespace: args.namespace.clone(), service: args.service.clone(), problems: args.problems };
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match show(&filter, args.format, &state_dir, &mut out) {
        // The reader of the output has closed its end, as `head` does.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(0),
        shown => shown.map(|()| 0),
    }
}

fn show(filter: &ServiceFilter, format: super::StatusFormat, state_dir: &Path, out: &mut impl Write) -> Result<()> {
    let mut states: BTreeMap<ServiceState, u64> = BTreeMap::new();
    each_service(state_dir, filter, |service| {
        *states.entry(service.state).or_default() += 1;
        match format {
            super::StatusFormat::Json => writeln!(out, "{}", serde_json::to_string(service)?)?,
            super::StatusFormat::Text => out.write_all(text(service).as_bytes())?,
        }
        Ok(())
    })?;
    if format == super::StatusFormat::Text && filter.service.is_none() {
        let all: u64 = states.values().sum();
        let by_state: Vec<String> = states.iter().map(|(state, n)| format!("{n} {state}")).collect();
        writeln!(out, "{all} Services{}{}", if all > 0 { ": " } else { "" }, by_state.join(", "))?;
    }
    Ok(out.flush()?)
}

/// Asks for the Services that fit, page by page.
///
/// # Errors
/// What the gateway refuses, and the errors of `take`.
pub(crate) fn each_service(state_dir: &Path, filter: &ServiceFilter, mut take: impl FnMut(&Service) -> Result<()>) -> Result<()> {
    let mut from = None;
    loop {
        let page = page(state_dir, filter, from)?;
        page.services.iter().try_for_each(&mut take)?;
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(()),
        }
    }
}

pub(crate) fn page(state_dir: &Path, filter: &ServiceFilter, from: Option<String>) -> Result<ServicesPage> {
    match socket::ask(state_dir, &Request::Services { filter: filter.clone(), from })? {
        Response::Services(page) => Ok(page),
        _ => bail!("unexpected response from the gateway: not Services"),
    }
}

/// A Service as lines of text. Tenants choose names and messages, so control characters are escaped.
fn text(service: &Service) -> String {
    let mut lines = vec![head(service)];
    for port in &service.ports {
        lines.push(format!("  {}", port_name(port)));
        lines.extend(port.addresses.iter().map(|address| {
            let at = addr::socket(address.ip, address.port);
            let why = address.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
            let state = if address.state == AddressState::Served { String::new() } else { format!("  {}{why}", address.state.text()) };
            format!("    {:<14} {at}{state}", address.kind)
        }));
        lines.extend(more(port.more_addresses, "addresses"));
        lines.extend(port.backends.iter().map(backend));
        lines.extend(more(port.more_backends, "endpoints"));
    }
    lines.extend(more(service.more_ports, "ports"));
    lines.extend(service.near_misses.iter().map(|words| format!("  near miss: {words}")));
    lines.extend(service.problems.iter().map(|words| format!("  problem: {words}")));
    lines.extend(more(service.more_problems, "problems and near misses"));
    lines.iter().map(|line| shown(line) + "\n").collect::<String>() + "\n"
}

fn head(service: &Service) -> String {
    let mut words = vec![format!("{}: {}", service.key(), service.state)];
    words.extend(service.why.iter().map(|why| format!("({why})")));
    words.extend(service.kind.clone());
    let local = |policy: &Option<String>, name: &str| policy.as_deref().filter(|p| *p == "Local").map(|_| format!("{name} Local"));
    words.extend(local(&service.internal_traffic_policy, "internalTrafficPolicy"));
    words.extend(local(&service.external_traffic_policy, "externalTrafficPolicy"));
    words.extend(service.session_affinity_s.map(|s| format!("sessionAffinity ClientIP ({s} s)")));
    words.extend(service.health_check_node_port.map(|port| format!("healthCheckNodePort {port}")));
    let ranges = Some(service.source_ranges.join(" ")).filter(|ranges| !ranges.is_empty());
    words.extend(ranges.map(|ranges| format!("loadBalancerSourceRanges {ranges}")));
    words.join("  ")
}

fn port_name(port: &Port) -> String {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
    let node_port = port.node_port.map_or(String::new(), |number| format!(", node port {number}"));
    format!("{name}{}/{}{node_port}", port.port, port.protocol)
}

fn backend(backend: &Backend) -> String {
    let node = backend.node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
    let out = match (&backend.left_out, &backend.left_out_outside) {
        (None, None) => String::new(),
        (Some(inside), Some(outside)) if inside == outside => format!("  left out: {inside}"),
        (Some(inside), None) => format!("  left out: {inside}"),
        (None, Some(outside)) => format!("  left out for clients outside: {outside}"),
        (Some(inside), Some(outside)) => format!("  left out: {inside}; for clients outside: {outside}"),
    };
    format!("    -> {}{node}{out}", backend.endpoint)
}

fn more(count: u64, what: &str) -> Option<String> {
    (count > 0).then(|| format!("    and {count} more {what}"))
}

#[cfg(test)]
mod tests {
    use nomagic_api::services::{Address, SERVICE_SCHEMA};

    use super::*;

    #[test]
    fn text_shows_what_matters_and_escapes_what_tenants_choose() {
        let backend = |endpoint: &str, inside: Option<&str>, outside: Option<&str>| Backend {
            endpoint: endpoint.into(),
            node: Some("gw".into()),
            left_out: inside.map(Into::into),
            left_out_outside: outside.map(Into::into),
        };
        let address = Address {
            kind: "externalIP".into(),
            ip: [198, 51, 100, 7].into(),
            port: 80,
            state: AddressState::Taken,
            why: Some("by Service a/b (externalIP)".into()),
        };
        let port = Port {
            name: "ht\u{1b}[31mtp".into(),
            port: 80,
            protocol: "TCP".into(),
            node_port: Some(30_080),
            addresses: vec![address],
            more_addresses: 0,
            backends: vec![
                backend("10.1.0.1:8080", None, None),
                backend("10.1.0.2:8080", None, Some("on another node")),
                backend("10.1.0.3:8080", Some("not ready"), Some("not ready")),
            ],
            more_backends: 7,
        };
        let service = Service {
            schema: SERVICE_SCHEMA,
            namespace: "default".into(),
            name: "nginx".into(),
            state: ServiceState::PartlyServed,
            why: None,
            kind: Some("NodePort".into()),
            internal_traffic_policy: Some("Cluster".into()),
            external_traffic_policy: Some("Local".into()),
            session_affinity_s: Some(60),
            health_check_node_port: None,
            source_ranges: Vec::new(),
            ports: vec![port],
            more_ports: 0,
            near_misses: vec!["a\nb".into()],
            problems: Vec::new(),
            more_problems: 0,
        };
        let expected = r"default/nginx: partly served  NodePort  externalTrafficPolicy Local  sessionAffinity ClientIP (60 s)
  ht\u{1b}[31mtp 80/TCP, node port 30080
    externalIP     198.51.100.7:80  taken (by Service a/b (externalIP))
    -> 10.1.0.1:8080 on gw
    -> 10.1.0.2:8080 on gw  left out for clients outside: on another node
    -> 10.1.0.3:8080 on gw  left out: not ready
    and 7 more endpoints
  near miss: a\nb

";
        assert_eq!(text(&service), expected);
    }
}
