//! Where clients are: ranges and single addresses against going through all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nomagic_core::services::{ClientClass, Services};
use nomagic_core::tuple::{HashSeed, Prefix, splitmix64};

/// Few enough addresses for ranges, pods, nodes and clients to meet, some of them equal but for the family.
fn address(random: &mut u64) -> IpAddr {
    let n = splitmix64(random);
    let low = (n >> 8) as u16 & 0x1ff;
    match n % 3 {
        0 => IpAddr::from([10, 0, (low >> 8) as u8, low as u8]),
        1 => IpAddr::from([0, 0, 0, 0, 0, 0, 0x0a00, low]),
        _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, low]),
    }
}

fn prefix(random: &mut u64) -> Prefix {
    let addr = address(random);
    let bits = if addr.is_ipv6() { 128 } else { 32 };
    // Half of them single addresses; the others hold 2 to 128.
    let host_bits = (splitmix64(random) % 14).saturating_sub(6) as u8;
    Prefix::new(addr, bits - host_bits).unwrap()
}

#[test]
fn classes_are_those_of_going_through_all_prefixes() {
    let (mut random, mut met) = (5, BTreeMap::new());
    let mut services = Services::empty(HashSeed::new(1));
    for _ in 0..400 {
        let pods: Vec<Prefix> = (0..splitmix64(&mut random) % 24).map(|_| prefix(&mut random)).collect();
        let nodes: Vec<IpAddr> = (0..4).map(|_| address(&mut random)).collect();
        services.set_pods(&pods);
        services.node_ips = nodes.iter().copied().collect();
        for _ in 0..500 {
            let client = address(&mut random);
            let naive = if nodes.contains(&client) {
                ClientClass::Node
            } else if pods.iter().any(|p| p.contains(client)) {
                ClientClass::Pod
            } else {
                ClientClass::External
            };
            assert_eq!(services.client_class(client), naive, "{client} with pods at {pods:?} and nodes at {nodes:?}");
            *met.entry(format!("{naive:?} {}", client.is_ipv6())).or_insert(0) += 1;
        }
    }
    assert!(met.len() == 6 && met.values().all(|n| *n > 100), "{met:?}");
}

#[test]
fn single_addresses_are_not_among_the_ranges() {
    let mut services = Services::empty(HashSeed::new(1));
    let read = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Prefix>>();
    services.set_pods(&read(&["10.1.0.7/32", "10.2.0.0/31", "fd00::7", "10.1.0.7", "fd00::/127", "0.0.0.0/0"]));
    assert_eq!((services.pod_ips.len(), services.pod_cidrs.len()), (2, 3));
    services.set_pods(&[]);
    assert_eq!((services.pod_ips.len(), services.pod_cidrs.len()), (0, 0), "those from before are gone");
}
