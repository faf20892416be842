//! The servers behind `healthCheckNodePort`s: a load balancer asks each node whether it has endpoints of a Service.
//!
//! One socket for each port and address; they come and go with the Services. A port that is taken is a problem of that Service alone.

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
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::{JSON, NOSNIFF, Shared, listen};
use crate::observe::events::{Event, Recorder};
use crate::observe::health::Moment;

/// Connections of all these servers at a time.
const CONNECTIONS_MAX: usize = 256;
/// Tells how many loads balancers should send here, by the number of endpoints.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// What `connect` and the like say when the kernel has no IPv6 at all.
const NO_SUCH_FAMILY: i32 = libc::EAFNOSUPPORT;

/// What is asked for, by port; the servers look it up for each request.
type Answers = Arc<Mutex<BTreeMap<u16, HealthCheck>>>;

/// The open sockets.
pub(super) struct Checks {
    answers: Answers,
    open: BTreeMap<SocketAddr, AbortHandle>,
    sockets_max: usize,
    permits: Arc<Semaphore>,
    problems: Vec<String>,
    events: Recorder,
}

impl Checks {
    /// None yet. `sockets_max`: how many there may be. `events`: who hears of those that cannot be opened.
    pub(super) fn new(sockets_max: usize, events: Recorder) -> Checks {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Checks { answers: Answers::default(), open: BTreeMap::new(), sockets_max, permits, problems: Vec::new(), events }
    }

    /// What could not be listened on.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// From now on these ports are answered, on these addresses, and no others. What failed before is tried again.
    pub(super) fn follow(
        &mut self,
        wanted: &BTreeMap<u16, HealthCheck>,
        addresses: &BTreeSet<IpAddr>,
        runtime: &Handle,
        shared: &Arc<Shared>,
    ) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone_from(wanted);
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

    /// `Err("")`: nothing to complain about, the kernel has no such family.
    fn listen(&self, at: SocketAddr, runtime: &Handle, shared: &Arc<Shared>) -> Result<AbortHandle, String> {
        if self.open.len() >= self.sockets_max {
            return Err(format!(
                "not answered on {at}: {} sockets are open, half of what the process may open (raise the limit of open files)",
                self.sockets_max
            ));
        }
        let listener = listen::open(at, true).map_err(|e| match e.raw_os_error() {
            Some(NO_SUCH_FAMILY) if at.ip().is_unspecified() => String::new(),
            _ => format!("not answered on {at}: {e}; load balancers do not find this node's endpoints there"),
        })?;
        let asked = Asked { port: at.port(), answers: self.answers.clone(), shared: shared.clone() };
        let router = Router::new().fallback(answer).with_state(asked);
        Ok(runtime.spawn(listen::serve(listener, router, self.permits.clone())).abort_handle())
    }
}

fn problem(check: &HealthCheck, message: String) -> String {
    let object = format!("Service {}", check.service);
    Problem { origin: Origin::default(), object, field: "spec.healthCheckNodePort".into(), message }.to_string()
}

/// Where these servers listen: on the node ports' addresses. A family whose addresses are not restricted is one socket.
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

/// What a server needs to answer.
#[derive(Clone)]
struct Asked {
    port: u16,
    answers: Answers,
    shared: Arc<Shared>,
}

async fn answer(State(asked): State<Asked>) -> Response {
    let check = asked.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&asked.port).cloned();
    // The Service has just gone, and the socket goes next.
    let Some(check) = check else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let healthy = asked.shared.lock().health.healthy(Moment::now());
    let code = if check.local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let weight = check.local_endpoints.to_string();
    (code, [(CONTENT_TYPE.as_str(), JSON), NOSNIFF, (WEIGHT, weight.as_str())], body(&check, healthy)).into_response()
}

/// kube-proxy's very bytes.
fn body(check: &HealthCheck, healthy: bool) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        quoted(&check.service.namespace),
        quoted(&check.service.name),
        check.local_endpoints,
    )
}
