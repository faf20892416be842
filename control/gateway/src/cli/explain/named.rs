//! Questions by the name of a Service port: each of its addresses is a flow, from one client or another.

use std::net::{IpAddr, SocketAddr};

use nomagic_api::explain::Asked;
use nomagic_api::services::{Address, ExampleClients, Port, Service};
use nomagic_table::objects::addr;

/// The source port of clients, unless one is named.
const CLIENT_PORT: u16 = 40_000;

/// The name of a Service and, if given, of its port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name {
    pub(super) service: String,
    /// The name, the number, or number and protocol.
    port: Option<String>,
}

/// The client that a user names: an address, or with its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    ip: IpAddr,
    port: u16,
}

impl std::str::FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Client, String> {
        if let Some(ip) = addr::parse_ip(text) {
            return Ok(Client { ip, port: CLIENT_PORT });
        }
        let socket: Result<SocketAddr, _> = text.parse();
        let socket = socket.ok().filter(|socket| socket.port() != 0);
        socket.map(|s| Client { ip: s.ip(), port: s.port() }).ok_or_else(|| "not an address such as 203.0.113.9, or with a port".into())
    }
}

/// What to ask about one address.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct AtAddress {
    /// `default/nginx:http, clusterIP 10.96.0.1:80`
    pub(super) heading: String,
    /// Flows, with the words about their clients. The first one is always explained, another one if its answer differs.
    pub(super) questions: Vec<(String, Asked, &'static str)>,
    /// Why there is no question.
    pub(super) note: Option<String>,
}

/// Reads `default/nginx` or `default/nginx:http`.
pub(super) fn parse_name(text: &str) -> Result<Name, String> {
    let (service, port) = match text.split_once(':') {
        Some((service, port)) => (service, Some(port)),
        None => (text, None),
    };
    let is_name = service.split_once('/').is_some_and(|(ns, name)| !ns.is_empty() && !name.is_empty() && !name.contains('/'));
    if !is_name || port == Some("") || text.contains(char::is_whitespace) {
        return Err("neither a flow, such as `tcp 192.168.0.5:40000 -> 10.109.35.24:80`, nor a Service, such as default/nginx:http".into());
    }
    Ok(Name { service: service.into(), port: port.map(Into::into) })
}

/// The port that a name means.
///
/// # Errors
/// If there is none, or there are several; then all are listed.
pub(super) fn port<'s>(service: &'s Service, name: &Name) -> Result<&'s Port, String> {
    let key = service.key();
    if service.ports.is_empty() {
        let why = service.why.as_ref().or(service.problems.first()).or(service.near_misses.first());
        return Err(format!(
            "Service {key} has no ports to ask about: {}{}",
            service.state,
            why.map_or(String::new(), |why| format!(" ({why})"))
        ));
    }
    let is_meant = |port: &&Port| match &name.port {
        None => true,
        Some(meant) => {
            let (number, with_proto) = (port.port.to_string(), format!("{}/{}", port.port, port.protocol));
            *meant == port.name || *meant == number || meant.eq_ignore_ascii_case(&with_proto)
        }
    };
    let meant: Vec<&Port> = service.ports.iter().filter(is_meant).collect();
    match meant.as_slice() {
        [one] => Ok(one),
        some => {
            let all = if some.is_empty() { service.ports.iter().collect() } else { meant };
            let names: Vec<String> = all.iter().take(32).map(|port| port_name(service, port)).collect();
            let what = if name.port.is_some() { "has no such port, or several" } else { "has several ports" };
            Err(format!("Service {key} {what}; ask about one of: {}", names.join(", ")))
        }
    }
}

/// `default/nginx:http`, or by number and protocol if the port has no name.
fn port_name(service: &Service, port: &Port) -> String {
    match port.name.as_str() {
        "" => format!("{}:{}/{}", service.key(), port.port, port.protocol),
        name => format!("{}:{name}", service.key()),
    }
}

/// The questions about each address of a port.
pub(super) fn questions(service: &Service, port: &Port, clients: &ExampleClients, client: Option<Client>) -> Vec<AtAddress> {
    let name = port_name(service, port);
    let of = |address: &Address| {
        let v6 = address.ip.is_ipv6();
        let family = if v6 { "IPv6" } else { "IPv4" };
        let to = addr::socket(address.ip, address.port);
        let ask = |client: Client, who: &str, words: &'static str| {
            let flow = format!("{} {} -> {to}", port.protocol.to_lowercase(), addr::socket(client.ip, client.port));
            (flow, Asked { service_port: name.clone(), address: address.kind.clone(), client: who.into() }, words)
        };
        let example = |ip: Option<IpAddr>, who, words| ip.map(|ip| ask(Client { ip, port: CLIENT_PORT }, who, words));
        let (questions, note) = match client {
            Some(client) if client.ip.is_ipv6() == v6 => (vec![ask(client, "named", "the client that --client names")], None),
            Some(_) => (Vec::new(), Some(format!("The address is {family}, and the client that --client names is not."))),
            None => {
                let outside = example(
                    clients.outside[usize::from(v6)],
                    "outside",
                    "an example of a client outside the cluster; --client names another",
                );
                let pod = example(clients.pod[usize::from(v6)], "pod", "an example of a pod");
                let all: Vec<_> = outside.into_iter().chain(pod).collect();
                let note = all.is_empty().then(|| format!("No example of an {family} client is known: name one with --client."));
                (all, note)
            }
        };
        AtAddress { heading: format!("{name}, {} {to}", address.kind), questions, note }
    };
    port.addresses.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use nomagic_api::services::{AddressState, SERVICE_SCHEMA, ServiceState};

    use super::*;

    fn service(ports: &[(&str, u16, &str)]) -> Service {
        let address =
            |ip: &str| Address { kind: "clusterIP".into(), ip: ip.parse().unwrap(), port: 80, state: AddressState::Served, why: None };
        let port = |(name, number, proto): &(&str, u16, &str)| Port {
            name: (*name).into(),
            port: *number,
            protocol: (*proto).into(),
            node_port: None,
            addresses: vec![address("10.96.0.1"), address("fd00::1")],
            more_addresses: 0,
            backends: Vec::new(),
            more_backends: 0,
        };
        Service {
            schema: SERVICE_SCHEMA,
            namespace: "n".into(),
            name: "web".into(),
            state: ServiceState::Served,
            why: None,
            kind: None,
            internal_traffic_policy: None,
            external_traffic_policy: None,
            session_affinity_s: None,
            health_check_node_port: None,
            source_ranges: Vec::new(),
            ports: ports.iter().map(port).collect(),
            more_ports: 0,
            near_misses: Vec::new(),
            problems: Vec::new(),
            more_problems: 0,
        }
    }

    #[test]
    fn names_choose_a_port() {
        let dns = service(&[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9_153, "TCP")]);
        let chosen =
            |service: &Service, text: &str| parse_name(text).and_then(|name| port(service, &name).map(|p| (p.port, p.protocol.clone())));
        assert_eq!(chosen(&dns, "n/web:dns"), Ok((53, "UDP".into())));
        assert_eq!(chosen(&dns, "n/web:53/tcp"), Ok((53, "TCP".into())));
        assert_eq!(chosen(&dns, "n/web:9153"), Ok((9_153, "TCP".into())));
        for (name, words) in [
            ("n/web", "has several ports; ask about one of: n/web:dns, n/web:dns-tcp, n/web:metrics"),
            ("n/web:53", "or several; ask about one of: n/web:dns, n/web:dns-tcp"),
            ("n/web:http", "no such port, or several; ask about one of: n/web:dns, n/web:dns-tcp, n/web:metrics"),
            ("web", "neither a flow"),
            ("n/web:", "neither a flow"),
            ("n/a/b", "neither a flow"),
            ("tcp 1.2.3.4:1", "neither a flow"),
        ] {
            let error = chosen(&dns, name).unwrap_err();
            assert!(error.contains(words), "{name}: {error}");
        }
        assert_eq!(chosen(&service(&[("", 80, "TCP")]), "n/web"), Ok((80, "TCP".into())));
        assert!(chosen(&service(&[]), "n/web").unwrap_err().contains("no ports to ask about"));
    }

    #[test]
    fn every_address_is_asked_about_for_each_kind_of_client() {
        let web = service(&[("http", 80, "TCP")]);
        let ip = |text: &str| Some(text.parse().unwrap());
        let clients = ExampleClients { outside: [ip("203.0.113.9"), None], pod: [ip("10.1.0.9"), None] };
        let flows = |client: Option<&str>| -> Vec<Vec<String>> {
            let asked = questions(&web, &web.ports[0], &clients, client.map(|c| c.parse().unwrap()));
            asked.into_iter().map(|at| at.questions.into_iter().map(|(flow, ..)| flow).chain(at.note).collect()).collect()
        };
        let unknown = "No example of an IPv6 client is known: name one with --client.";
        assert_eq!(flows(None), [vec!["tcp 203.0.113.9:40000 -> 10.96.0.1:80", "tcp 10.1.0.9:40000 -> 10.96.0.1:80"], vec![unknown]]);
        let other = "The address is IPv4, and the client that --client names is not.";
        assert_eq!(flows(Some("[fd00::9]:7")), [vec![other], vec!["tcp [fd00::9]:7 -> [fd00::1]:80"]]);
        assert!("nowhere".parse::<Client>().is_err() && "1.2.3.4:0".parse::<Client>().is_err());
        let heading = &questions(&web, &web.ports[0], &clients, None)[0].heading;
        assert_eq!(heading, "n/web:http, clusterIP 10.96.0.1:80");
    }
}
