//! The servers for `healthCheckNodePort`s, where a load balancer asks each node whether it has local endpoints of a Service.
//!
//! Each port has one socket per address, opened and closed with the Services. A port in use is reported as a problem of that Service only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use nomagic_table::compile::HealthCheck;
use nomagic_table::problem::{Origin, Problem};
use nomagic_table::settings::NodePortAddresses;
use nomagic_table::settings::Settings;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::clients::{CameBy, ServerKind};
use super::{HttpShared, JSON, NOSNIFF, listen};
use crate::observe::events::{Event, Recorder};
use crate::observe::health::Moment;

/// The header with the number of local endpoints, by which a load balancer may weight nodes.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// The error of `socket` if the kernel has no IPv6.
const NO_SUCH_FAMILY: i32 = libc::EAFNOSUPPORT;

/// The health checks by port; looked up for each request.
type ChecksByPort = Arc<Mutex<BTreeMap<u16, HealthCheck>>>;

/// The open health check sockets.
pub(super) struct Checks {
    by_port: ChecksByPort,
    open: BTreeMap<SocketAddr, AbortHandle>,
    sockets_max: usize,
    problems: Vec<String>,
    events: Recorder,
}

impl Checks {
    /// Creates an empty set of at most `sockets_max` sockets. Sockets that cannot be opened are recorded in `events`.
    pub(super) fn new(sockets_max: usize, events: Recorder) -> Checks {
        Checks { by_port: ChecksByPort::default(), open: BTreeMap::new(), sockets_max, problems: Vec::new(), events }
    }

    /// The sockets that cannot be opened, as messages.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Serves exactly these ports on these addresses. Retries sockets that could not be opened before.
    pub(super) fn follow(
        &mut self,
        wanted: &BTreeMap<u16, HealthCheck>,
        addresses: &BTreeSet<IpAddr>,
        runtime: &Handle,
        shared: &Arc<HttpShared>,
    ) {
        self.by_port.lock().unwrap_or_else(PoisonError::into_inner).clone_from(wanted);
        self.open.retain(|at, server| {
            let stays = wanted.contains_key(&at.port()) && addresses.contains(&at.ip());
            if !stays {
                server.abort();
            }
            stays
        });
        let mut problems = Vec::new();
        for (&port, check) in wanted {
            for &addr in addresses {
                let at = SocketAddr::new(addr, port);
                if self.open.contains_key(&at) {
                    continue;
                }
                match self.listen(at, runtime, shared) {
                    Ok(server) => drop(self.open.insert(at, server)),
                    Err(message) if message.is_empty() => {}
                    Err(message) => {
                        let problem = problem(check, message.clone());
                        if !self.problems.contains(&problem) {
                            tracing::warn!("{problem}");
                            self.events.record_here(|node| Event::no_health_check(node, &check.service, port, &message));
                        }
                        problems.push(problem);
                    }
                }
            }
        }
        self.problems = problems;
    }

    /// Returns `Err("")`, which is not reported, if the kernel lacks the address family.
    fn listen(&self, at: SocketAddr, runtime: &Handle, shared: &Arc<HttpShared>) -> Result<AbortHandle, String> {
        if self.open.len() >= self.sockets_max {
            return Err(format!(
                "cannot listen on {at}: {} sockets are open, half of the limit of open files (raise it)",
                self.sockets_max
            ));
        }
        let listener = listen::open(at, true).map_err(|e| match e.raw_os_error() {
            Some(NO_SUCH_FAMILY) if at.ip().is_unspecified() => String::new(),
            _ => format!("cannot listen on {at}: {e}; load balancers do not see this node's endpoints there"),
        })?;
        let context = CheckContext { port: at.port(), by_port: self.by_port.clone(), shared: shared.clone() };
        let router = Router::new().fallback(respond).with_state(context);
        let server = listen::Server { router, clients: shared.clients.clone(), kind: ServerKind::HealthCheckNodePort };
        Ok(runtime.spawn(server.serve(listener, CameBy::Any)).abort_handle())
    }
}

fn problem(check: &HealthCheck, message: String) -> String {
    let object = format!("Service {}", check.service);
    Problem { origin: Origin::default(), object, field: "spec.healthCheckNodePort".into(), message }.to_string()
}

/// The listening addresses: those of node ports. A family without restriction gets one socket on the unspecified address.
pub fn addresses(settings: &Settings) -> BTreeSet<IpAddr> {
    let of_family = |v6: bool| {
        let unrestricted = match &settings.node_port_addresses {
            NodePortAddresses::Primary => false,
            NodePortAddresses::Cidrs(cidrs) => !cidrs.iter().any(|c| c.addr().is_ipv6() == v6),
        };
        let all: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        if unrestricted { vec![all] } else { settings.node_port_ips(v6) }
    };
    [false, true].into_iter().flat_map(of_family).collect()
}

/// The state of one socket's request handler.
#[derive(Clone)]
struct CheckContext {
    port: u16,
    by_port: ChecksByPort,
    shared: Arc<HttpShared>,
}

async fn respond(State(context): State<CheckContext>) -> Response {
    let check = context.by_port.lock().unwrap_or_else(PoisonError::into_inner).get(&context.port).cloned();
    // The Service was just removed; the socket is about to be closed.
    let Some(check) = check else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let healthy = context.shared.lock().health.attracts(Moment::now());
    let code = if check.local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let weight = check.local_endpoints.to_string();
    (code, [(CONTENT_TYPE.as_str(), JSON), NOSNIFF, (WEIGHT, weight.as_str())], body(&check, healthy)).into_response()
}

/// Byte for byte the same as kube-proxy's body.
fn body(check: &HealthCheck, healthy: bool) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        quoted(&check.service.namespace),
        quoted(&check.service.name),
        check.local_endpoints,
    )
}
