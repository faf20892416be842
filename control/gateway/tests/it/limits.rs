//! Limits of a Service's connections, by annotation, with real clients in two namespaces. Needs root.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nomagic_api::Carried;
use nomagic_api::explain::Verdict;
use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{ClientOptions, LoadReport, udp_load};
use nomagic_testbed::rig::{CLIENT_V4, Netns};

use crate::common::*;

const TCP: [&str; 2] = ["10.109.35.24:80", "[fd00:10:109::24]:80"];
const UDP: [&str; 2] = ["10.109.35.24:53", "[fd00:10:109::24]:53"];
/// How long a client waits for the answer to its first packet. A SYN that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(800);

/// The Service of [`nginx`] on two pods, with these annotations. The third pod is a client.
fn annotated(annotations: &str) -> String {
    let plain = "metadata: {name: nginx, namespace: default}";
    let all = nginx(&[0, 1]);
    assert_eq!(all.matches(plain).count(), 1, "{all}");
    all.replace(plain, &format!("metadata: {{name: nginx, namespace: default, annotations: {{{annotations}}}}}"))
}

/// Connections that stay open, up to the first that gets no answer.
fn open(from: &Netns, to: &str, count: usize) -> Vec<(TcpStream, String)> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(move || {
        let connect = |_| match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let pod = ask(&mut stream);
                Some((stream, pod))
            }
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::TimedOut, "silence, not a refusal");
                None
            }
        };
        (0..count).map_while(connect).collect()
    })
    .unwrap()
}

/// What the backends of the Service's ports carried and refused, all together.
fn carried(g: &Gateway) -> Carried {
    let mut sum = Carried::default();
    for target in g.status().targets.iter().filter(|t| (t.namespace.as_str(), t.service.as_str()) == ("default", "nginx")) {
        sum.flows += target.carried.flows;
        sum.rate_limited += target.carried.rate_limited;
        sum.client_limited += target.carried.client_limited;
    }
    sum
}

#[test]
fn each_client_has_as_many_connections_as_the_annotation_says() {
    let mut g = Gateway::start("per-client", "masqueradeAll: true", &annotated("nomagic.io/max-connections-per-client: '4'"));
    let mut kept = Vec::new();
    for to in TCP {
        for client in [&g.scene.client, &g.scene.pods[2]] {
            let opened = open(client, to, 6);
            assert_eq!(opened.len(), 4, "to {to}\n{}", g.account());
            kept.extend(opened);
        }
    }
    // The SYN of each fifth connection, and no other.
    let (refused, by_service) = (g.reason(Reason::ClientConnectionLimit), carried(&g));
    assert_eq!((refused, by_service.client_limited, by_service.rate_limited, by_service.flows), (4, 4, 0, 16), "{}", g.account());
    let answer = g.explain(&format!("tcp {CLIENT_V4}:9 -> {}", TCP[0]));
    assert_eq!((answer.verdict, answer.reason.as_deref()), (Verdict::Drop, Some("client_connection_limit")), "{answer:#?}");
    assert!(answer.steps.iter().any(|s| s.contains("annotation nomagic.io/max-connections-per-client")), "{answer:#?}");
    // All ports of the Service count together, and the connections that are open go on.
    let options = ClientOptions { limit: PATIENCE, ..ClientOptions::default() };
    let to: SocketAddr = UDP[0].parse().unwrap();
    let report = g.scene.client.block_on(move || udp_load(to, 3, options)).unwrap();
    assert_eq!((report.answered(), report.failed()), (0, 3), "{report:?}");
    for (stream, pod) in &mut kept {
        assert_eq!(&ask(stream), pod);
    }
    // A client that closes a connection may open another one.
    kept.truncate(3);
    wait_for("a connection to be closed", Duration::from_secs(5), || {
        g.explain(&format!("tcp {CLIENT_V4}:9 -> {}", TCP[0])).verdict == Verdict::Forward
    });
    kept.extend(open(&g.scene.client, TCP[0], 2));
    assert_eq!(kept.len(), 4, "{}", g.account());

    // An annotation that cannot be read is named, and the default, no limit, counts; so it does without an annotation.
    g.apply(&annotated("nomagic.io/max-connections-per-client: four"));
    let problems = g.status().services.problems;
    assert!(problems.iter().any(|p| p.contains("metadata.annotations[nomagic.io/max-connections-per-client]: \"four\"")), "{problems:?}");
    assert_eq!(open(&g.scene.client, TCP[0], 10).len(), 10, "{}", g.account());
    g.assert_accounts_close();
}

/// Datagrams of both clients at once, each from a new socket.
fn burst(g: &Gateway, to: &str, each: u32) -> (LoadReport, LoadReport) {
    let to: SocketAddr = to.parse().unwrap();
    let options = ClientOptions { concurrency: each as usize, limit: PATIENCE };
    let send = |client: &Netns| client.block_on(move || udp_load(to, each, options)).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| send(&g.scene.pods[2]));
        (send(&g.scene.client), other.join().unwrap())
    })
}

#[test]
fn a_service_port_takes_as_many_connections_a_second_as_the_annotation_says() {
    const RATE: u32 = 10;
    let annotation = format!("nomagic.io/connections-per-second: '{RATE}'");
    let g = Gateway::start("per-second", "masqueradeAll: true\nlimits: {connectionsPerSecond: 1}", &annotated(&annotation));
    for to in UDP {
        let start = Instant::now();
        let (a, b) = burst(&g, to, 20);
        // A full bucket, and what it earned until the last datagram; at most until its client gave up.
        let most = RATE + u32::try_from(start.elapsed().as_millis() * u128::from(RATE) / 1_000).unwrap() + 1;
        let answered = a.answered() + b.answered();
        assert!((RATE..=most).contains(&answered), "{answered} of at most {most}: {a:?} {b:?}\n{}", g.account());
        std::thread::sleep(Duration::from_secs(1));
    }
    // TCP's clients send their SYN again, so all get through; this port has a bucket of its own.
    let before = carried(&g).rate_limited;
    let report = g.http(&g.scene.client, TCP[0], 16);
    assert_eq!((report.answered(), report.failed()), (16, 0), "{report:?}\n{}", g.account());
    let refused = carried(&g).rate_limited;
    assert!(refused > before && refused == g.reason(Reason::ServiceRateLimited), "{before} {refused}\n{}", g.account());
    let answer = g.explain(&format!("tcp {CLIENT_V4}:9 -> {}", TCP[0]));
    let words = format!("may open {RATE} connections a second to this port (the Service's annotation nomagic.io/connections-per-second)");
    assert!(answer.steps.iter().any(|s| s.contains(&words)), "{answer:#?}");
    g.assert_accounts_close();
}
