//! The senders for which both are asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nomagic_core::services::{Action, ClientClass};
use nomagic_core::tuple::Proto;

use super::{Standing, Table, is_external};
use crate::matching::{Field, Side, Span, Test, address};
use crate::model::{Part, Ruleset};
use crate::packet::Origin;

/// Maximum number of ends of client ranges that are tried at one address.
const RANGES_MAX: usize = 32;

/// Maximum number of endpoints among which one of this node is looked for.
const BACKENDS_MAX: usize = 64;

/// A port of no meaning.
const PORT: u16 = 40_000;

#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub address: IpAddr,
    pub port: u16,
    pub origin: Origin,
    /// `pods`, `outside`, `the node`, ...
    pub name: String,
}

/// The senders of both families.
pub(super) struct Senders {
    general: Vec<Sender>,
    /// The ends of the ranges by which rules keep clients away from load balancer IPs.
    ranges: Vec<IpAddr>,
}

impl Senders {
    pub(super) fn of(table: &Table<'_>, rules: &Ruleset) -> Senders {
        let mut general = Vec::new();
        for v6 in [false, true] {
            let sender = |address, origin, name: &str| Sender { address, port: PORT, origin, name: name.into() };
            general.extend(a_pod(table, v6).map(|address| sender(address, Origin::Pod, "pods")));
            general.extend(outsider(table, rules, v6).map(|address| sender(address, Origin::Outside, "outside")));
            let own = table.primary.iter().find(|address| address.is_ipv6() == v6);
            general.extend(own.map(|address| sender(*address, Origin::Node, "the node")));
        }
        Senders { general, ranges: client_ranges(rules) }
    }

    /// The senders to ask about an address: also clients in its source ranges, and an endpoint of this node as its own client.
    pub(super) fn for_destination(&self, table: &Table<'_>, to: SocketAddr, proto: Proto) -> Vec<Sender> {
        let mut senders: Vec<Sender> = self.general.iter().filter(|sender| sender.address.is_ipv6() == to.is_ipv6()).cloned().collect();
        let Some(frontend) = table.services.frontend(to.ip(), to.port(), proto) else { return senders };
        let mut add = |address: IpAddr, name: String| {
            if !senders.iter().any(|sender| sender.address == address) {
                senders.push(Sender { address, port: PORT, origin: origin(table, address), name });
            }
        };
        let prefixes = frontend.source_ranges.iter().flat_map(|ranges| ranges.prefixes());
        let prefixes =
            prefixes.filter_map(|prefix| Span::prefix(prefix.addr(), prefix.prefix_len())).flat_map(|span| ends(&span, to.is_ipv6()));
        let ranges: BTreeSet<IpAddr> = match is_external(frontend.kind) {
            true => prefixes.chain(self.ranges.iter().copied()).filter(|a| a.is_ipv6() == to.is_ipv6()).take(RANGES_MAX).collect(),
            false => BTreeSet::new(),
        };
        ranges.into_iter().for_each(|address| add(address, format!("{address}")));
        if let Action::Forward { pool, .. } = &frontend.pod {
            let own = pool.backends.iter().take(BACKENDS_MAX).find(|backend| {
                let place = SocketAddr::new(backend.addr, backend.port);
                table.objects.standing(&frontend.port, place) == Standing::Usable { local: true } && !table.node.is_local(backend.addr)
            });
            own.into_iter().for_each(|backend| add(backend.addr, format!("the endpoint {} itself", backend.addr)));
        }
        senders
    }
}

/// Where the table says that packets of an address come from.
pub fn origin(table: &Table<'_>, address: IpAddr) -> Origin {
    match table.services.client_class(address) {
        _ if table.node.is_local(address) => Origin::Node,
        ClientClass::Node => Origin::Node,
        ClientClass::Pod => Origin::Pod,
        ClientClass::External => Origin::Outside,
    }
}

/// An address of a pod, near the end of the first range, where an endpoint is least likely.
fn a_pod(table: &Table<'_>, v6: bool) -> Option<IpAddr> {
    let range = table.services.pod_cidrs.iter().find(|range| range.addr().is_ipv6() == v6)?;
    let (first, bits) = (crate::matching::number(range.addr()), if v6 { 128 } else { 32 });
    let size = 1_u128.checked_shl(bits - u32::from(range.prefix_len())).unwrap_or(0).wrapping_sub(1);
    (1..=16).filter_map(|back| size.checked_sub(back)).map(|offset| address(first + offset, v6)).find(|a| !table.node.is_local(*a))
}

/// An address that nobody in the cluster has, and that no rule or Service names.
fn outsider(table: &Table<'_>, rules: &Ruleset, v6: bool) -> Option<IpAddr> {
    let v4 = [[203, 0, 113, 77], [198, 51, 100, 77], [192, 0, 2, 77], [100, 127, 255, 77], [9, 255, 255, 77]];
    let candidates: Vec<IpAddr> = match v6 {
        false => v4.into_iter().map(|bytes| Ipv4Addr::from(bytes).into()).collect(),
        true => [0xdb8, 0xdb9, 0xbad].into_iter().map(|part| Ipv6Addr::new(0x2001, part, 0xffff, 0, 0, 0, 0, 0x77).into()).collect(),
    };
    let ranged =
        |address: &IpAddr| table.services.frontends().any(|(.., f)| f.source_ranges.as_ref().is_some_and(|r| r.contains(*address)));
    let free = |address: &&IpAddr| origin(table, **address) == Origin::Outside && !table.node.is_local(**address);
    let named = |address: &&IpAddr| rules.asks_for_source(**address) || ranged(address);
    candidates.iter().filter(free).find(|address| !named(address)).or_else(|| candidates.iter().find(free)).copied()
}

/// The first and the last address of a range. Two ranges that are not the same differ in one of them.
fn ends(span: &Span, v6: bool) -> [IpAddr; 2] {
    [address(span.first, v6), address(span.last, v6)]
}

/// The ends of the ranges in the chains that guard load balancer IPs.
fn client_ranges(rules: &Ruleset) -> Vec<IpAddr> {
    let mut found = BTreeSet::new();
    for chain in &rules.chains {
        if !chain.name.starts_with("KUBE-FW-") && !chain.name.starts_with("firewall-") {
            continue;
        }
        for part in chain.rules.iter().flat_map(|rule| &rule.parts) {
            if let Part::Test(Test::Field { field: Field::Address { side: Side::Source, v6 }, spans, .. }) = part {
                found.extend(spans.iter().flat_map(|span| ends(span, *v6)));
            }
        }
    }
    found.into_iter().collect()
}

impl Ruleset {
    /// Whether a rule asks for sources of a range that has this address, and is not for everybody.
    pub(crate) fn asks_for_source(&self, address: IpAddr) -> bool {
        let number = crate::matching::number(address);
        self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.parts).any(|part| match part {
            Part::Test(Test::Field { field: Field::Address { side: Side::Source, v6 }, not: false, spans }) => {
                *v6 == address.is_ipv6() && spans.iter().any(|span| span.contains(number))
            }
            _ => false,
        })
    }
}
