//! Clients to explain an address for, if nobody names one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_api::services::ExampleClients;
use nomagic_core::services::{ClientClass, Services};
use nomagic_core::tuple::Prefix;

use crate::objects::Service;

/// How many addresses of a range are tried.
const TRIED_MAX: u32 = 64;

/// Addresses for clients outside and in pods. Outside: of the documentation's ranges (RFC 5737, 3849), or one that the Service lets in; in the pod
/// ranges: one that is no endpoint's, since an endpoint's own packets are a special case.
pub fn example_clients(table: &Services, service: &Service, is_endpoint: impl Fn(IpAddr) -> bool) -> ExampleClients {
    let find = |v6: bool| [outside(table, service, v6), pod(table, v6, &is_endpoint)];
    let ([outside_v4, pod_v4], [outside_v6, pod_v6]) = (find(false), find(true));
    ExampleClients { outside: [outside_v4, outside_v6], pod: [pod_v4, pod_v6] }
}

fn outside(table: &Services, service: &Service, v6: bool) -> Option<IpAddr> {
    let documented: Vec<IpAddr> = match v6 {
        false => [[203, 0, 113, 9], [198, 51, 100, 9], [192, 0, 2, 9]].map(|ip| Ipv4Addr::from(ip).into()).to_vec(),
        true => vec![Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(), Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 9).into()],
    };
    let ranges = service.source_ranges.iter().filter(|range| range.addr().is_ipv6() == v6);
    let let_in = |ip: IpAddr| {
        let mut of_family = ranges.clone().peekable();
        of_family.peek().is_none() || of_family.any(|range| range.contains(ip))
    };
    let of_ranges = ranges.clone().flat_map(|range| addresses(range, TRIED_MAX));
    let is_outside = |ip: &IpAddr| table.client_class(*ip) == ClientClass::External;
    documented.into_iter().filter(|ip| let_in(*ip)).chain(of_ranges).find(is_outside)
}

fn pod(table: &Services, v6: bool, is_endpoint: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let ranges = table.pod_cidrs.iter().filter(|range| range.addr().is_ipv6() == v6).flat_map(|range| addresses(range, TRIED_MAX));
    let single = table.pod_ips.iter().copied().filter(|ip| ip.is_ipv6() == v6).take(TRIED_MAX as usize);
    ranges.chain(single).find(|ip| table.client_class(*ip) == ClientClass::Pod && !is_endpoint(*ip))
}

/// The first addresses of a range, without the network's own.
fn addresses(range: &Prefix, most: u32) -> impl Iterator<Item = IpAddr> + use<> {
    let (range, first) = (*range, range.addr());
    let single = range == Prefix::host(first);
    let from = if single { 0 } else { 1 };
    (from..=most)
        .map(move |n| match first {
            IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from_bits(ip.to_bits().wrapping_add(n))),
            IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits().wrapping_add(n.into()))),
        })
        .take_while(move |ip| range.contains(*ip))
}

#[cfg(test)]
mod tests {
    use nomagic_core::tuple::HashSeed;

    use super::*;
    use crate::problem::Origin;

    fn service(ranges: &str) -> Service {
        let yaml = format!(
            "metadata: {{name: a, namespace: n}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}], loadBalancerSourceRanges: [{ranges}]}}"
        );
        Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()
    }

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().unwrap(), length).unwrap()
    }

    #[test]
    fn clients_are_of_their_class_and_let_in() {
        let mut table = Services::empty(HashSeed::new(0));
        let found = |table: &Services, ranges: &str| {
            let clients = example_clients(table, &service(ranges), |ip| ip.to_string() == "10.1.0.1");
            [clients.outside, clients.pod].map(|of| of.map(|ip| ip.map(|ip| ip.to_string()).unwrap_or_default()))
        };
        assert_eq!(found(&table, ""), [["203.0.113.9", "2001:db8::9"], ["", ""]]);
        table.set_pods(&[prefix("10.1.0.0", 16), prefix("203.0.113.0", 24), prefix("fd00:1::", 64)]);
        assert_eq!(found(&table, ""), [["198.51.100.9", "2001:db8::9"], ["10.1.0.2", "fd00:1::1"]]);
        assert_eq!(found(&table, "100.64.0.0/10"), [["100.64.0.1", "2001:db8::9"], ["10.1.0.2", "fd00:1::1"]]);
        assert_eq!(found(&table, "100.64.0.7/32")[0][0], "100.64.0.7");
        assert_eq!(found(&table, "10.1.0.0/24")[0][0], "", "nobody outside is let in");
        table.set_pods(&[prefix("10.1.0.1", 32), prefix("10.1.0.9", 32)]);
        assert_eq!(found(&table, "")[1][0], "10.1.0.9");
    }
}
