//! Sentences about the limits of a Service's connections.

use nomagic_core::services::Limits;

use crate::explain::Match;
use crate::objects::limits::{PER_CLIENT, PER_SECOND};
use crate::objects::{Annotated, LimitAnnotations};

/// Describes the limits that a new connection to the Service is subject to. `client_flows`: how many connections of the client count now, if
/// a gateway was asked.
pub(in crate::explain) fn sentences(found: &Match<'_>, v6: bool, client_flows: Option<u64>) -> Vec<String> {
    let (Limits { rate, per_client }, LimitAnnotations { per_second, per_client: of_client }) =
        (&found.frontend.port.limits, found.service.limits);
    let rate = rate.as_ref().map(|limit| {
        let origin = origin(per_second, PER_SECOND, "connectionsPerSecond");
        format!(
            "All clients together may open {} connections a second to this port ({origin}); the first packets of further connections are dropped silently \
             (service_rate_limited).",
            limit.most.get()
        )
    });
    let per_client = per_client.map(|limit| {
        let whose = if v6 { "One client, an IPv6 /64," } else { "One client" };
        let origin = origin(of_client, PER_CLIENT, "maxConnectionsPerClient");
        let has = match client_flows {
            Some(flows) => format!("This client has {flows} counted connections."),
            None => "Only the running gateway knows how many this one has.".into(),
        };
        format!(
            "{whose} may have {} connections to the Service at a time ({origin}); the first packets of further connections are dropped silently \
             (client_connection_limit). {has}",
            limit.most.get()
        )
    });
    rate.into_iter().chain(per_client).collect()
}

fn origin<T>(annotated: Annotated<T>, annotation: &str, field: &str) -> String {
    match annotated {
        Annotated::Absent => format!("limits.{field} in the configuration"),
        Annotated::Off | Annotated::Limit(_) => format!("the Service's annotation {annotation}"),
    }
}
