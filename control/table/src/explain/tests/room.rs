//! How much room there is for another connection.

use super::*;

#[test]
fn the_source_ports_in_use_are_reported() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &[HOPS[0]])]), settings());
    for port in 1..=5 {
        g.open(&format!("tcp 203.0.113.1:{port} -> 172.30.0.1:80"));
    }
    let text = g.steps("tcp 203.0.113.2:9 -> 172.30.0.1:80");
    assert!(text.contains("5 of the 16 source ports towards this endpoint are in use. One Service may hold 12 of them."), "{text}");
    let udp = g.steps("udp 203.0.113.2:9 -> 172.30.0.1:80");
    assert!(udp.contains("0 of the 16 source ports"), "{udp}");
}

#[test]
fn a_full_table_is_reported() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &[HOPS[0]])]), settings());
    let flow = "tcp 10.9.0.2:1 -> 172.30.0.1:80";
    assert!(!g.steps(flow).contains("table is full"));
    for port in 1_000..1_000 + CAPACITY as u16 {
        g.open(&format!("tcp 10.9.0.1:{port} -> 172.30.0.1:80"));
    }
    assert!(g.steps(flow).contains("table is full") == (g.table().live() == u64::from(CAPACITY)), "{}", g.table().live());
}
