//! What is said for people, and when.

use super::*;
use nomagic_core::frame::PortId;
use nomagic_core::rss::{Kinds, Rss};
use nomagic_core::tuple::Proto;
use nomagic_xsk::RssError;

#[test]
fn a_port_says_whether_the_queues_of_answers_are_told_beforehand() {
    let known = Rss::new(&[7; 40], &[0; 128], &[0], Kinds::default().with(Proto::Tcp, false)).unwrap();
    let rows = [
        (Ok(known.into()), "1 queue(s), RSS of 128 entries", json!({ "predicted": true, "entries": 128 })),
        (Err(RssError::NotTold), "1 queue(s), RSS unknown", json!({ "predicted": false, "because": "the driver does not tell" })),
    ];
    for (rss, words, object) in rows {
        let info = PortInfo {
            id: PortId(0),
            name: "eth0".into(),
            ifindex: 2,
            mac: [2; 6],
            mtu: 1500,
            native: true,
            zero_copy: false,
            queues: 1,
            owners: vec![0],
            condition: Condition::Bound,
            rebinds: 0,
            rss,
        };
        let port = port(&PortStatus { info, xdp: XdpCounts::default(), sockets: Vec::new() });
        assert_eq!(port["rss"], object);
        let page = page(&json!({ "workers": [], "ports": [port] }));
        assert!(page.contains(words), "{page}");
    }
}

#[test]
fn a_gateway_that_waits_says_for_what() {
    let kinds = json!([
        {"kind": "Service", "state": "connected", "for_s": 5, "objects": 2, "heard_s_ago": 1, "error": "an old story"},
        {"kind": "EndpointSlice", "state": "away", "for_s": 3, "objects": 0, "heard_s_ago": null, "error": "refused"},
    ]);
    let text = page(&waiting("not listed yet: EndpointSlices", json!({ "server": "https://a", "kinds": kinds }), 7));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "NOT READY: not listed yet: EndpointSlices",
            "objects from https://a",
            "  Service              2  connected for 5 s, heard 1 s ago",
            "  EndpointSlice        0  away for 3 s, never heard of: refused",
        ]
    );
}

#[test]
fn how_full_the_source_ports_are_and_who_was_refused() {
    let snat = json!({
        "connections": 900, "fullest_endpoint": 500, "ports": 1_000, "largest_share": 300, "share_max": 450,
        "refused": { "exhausted": 7, "share": 8 },
    });
    let page = page(&json!({ "workers": [], "totals": { "snat": snat } }));
    let line = "source ports: 900 in use; towards the fullest endpoint 500 of 1000 (50 %), 300 of at most 450 for one client or Service; \
                refused: 7 as all were taken, 8 as a share was used up";
    assert!(page.lines().any(|l| l == line), "{page}");
}
