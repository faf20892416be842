//! The account of frames: the peers' interface counters against nomagic's own counters.
//!
//! ```text
//! sent by a peer          = seen by the port's XDP program = taken + passed + dropped
//! taken, all ports        = received by the workers + lost by the sockets
//! received by the workers = forwarded + back to the kernel + dropped + held
//! received by the peers   = forwarded + made + what the gateway's kernel sends itself (ARP, ND, its own traffic)
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nomagic_api::Status;

use super::GatewayProcess;
use crate::columns::columns;
use crate::rig::{LinkCounters, Scene};

/// Time limit for the network to become quiet.
const QUIET_LIMIT: Duration = Duration::from_secs(10);

/// Counters of a port and of the interface at the other end of its cable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct PortReading {
    peer: LinkCounters,
    taken: u64,
    passed: u64,
    dropped: u64,
}

/// All counters at one quiet moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    client_side: PortReading,
    pods_side: PortReading,
    /// Frames that the kernel sent into the internal port.
    from_kernel: u64,
    lost: u64,
    received: u64,
    forwarded: u64,
    kernel: u64,
    dropped: u64,
    held_now: u64,
    made: u64,
    created: u64,
    reasons: BTreeMap<String, u64>,
}

impl Reading {
    /// Reads all counters while no frame is in flight: the peers' counters are equal before and after.
    pub fn take(scene: &Scene, gateway: &GatewayProcess) -> Result<Reading> {
        let peers = || Ok::<_, anyhow::Error>((scene.client.link_counters("eth0")?, scene.fabric.link_counters("gw0")?));
        let end = Instant::now() + QUIET_LIMIT;
        loop {
            let before = peers()?;
            std::thread::sleep(Duration::from_millis(50));
            let status = gateway.status()?;
            let after = peers()?;
            if before == after {
                return Reading::parse(&status, after.0, after.1);
            }
            if Instant::now() > end {
                bail!("the network did not become quiet within {QUIET_LIMIT:?}: {before:?}, then {after:?}");
            }
        }
    }

    fn parse(status: &Status, client: LinkCounters, fabric: LinkCounters) -> Result<Reading> {
        let side = |name: &str, peer| -> Result<PortReading> {
            let xdp = &status.port(name).with_context(|| format!("`nomagic status` names no port {name}"))?.xdp;
            Ok(PortReading { peer, taken: xdp.counts.taken, passed: xdp.passed, dropped: xdp.dropped })
        };
        let (client_side, pods_side) = (side("cl0", client)?, side("pods0", fabric)?);
        let (totals, counts) = (&status.totals, &status.totals.counts);
        let mut reasons = BTreeMap::new();
        counts.reasons.each(|series, n| {
            let reason = series.label.map_or("", |(_, reason)| reason);
            reasons.insert(format!("{reason} ({})", series.info.key), n);
        });
        let taken: u64 = status.ports.iter().map(|p| p.xdp.counts.taken).sum();
        Ok(Reading {
            client_side,
            pods_side,
            from_kernel: taken - client_side.taken - pods_side.taken,
            lost: status.ports.iter().flat_map(|p| &p.sockets).map(|s| s.rx_dropped + s.rx_ring_full).sum(),
            received: counts.frames.received.packets,
            forwarded: counts.frames.forwarded.packets,
            kernel: counts.frames.kernel.packets,
            dropped: counts.frames.dropped.packets,
            held_now: totals.held_now,
            made: counts.frames.made.packets,
            created: counts.conntrack.created,
            reasons,
        })
    }

    pub fn created(&self) -> u64 {
        self.created
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accounts(Reading);

impl Accounts {
    pub fn between(earlier: &Reading, later: &Reading) -> Accounts {
        let side = |a: &PortReading, b: &PortReading| PortReading {
            peer: b.peer.since(&a.peer),
            taken: b.taken.wrapping_sub(a.taken),
            passed: b.passed.wrapping_sub(a.passed),
            dropped: b.dropped.wrapping_sub(a.dropped),
        };
        let diff = |f: fn(&Reading) -> u64| f(later).wrapping_sub(f(earlier));
        let before = |reason: &String| earlier.reasons.get(reason).copied().unwrap_or(0);
        let reasons = later.reasons.iter().map(|(reason, n)| (reason.clone(), n.wrapping_sub(before(reason))));
        Accounts(Reading {
            client_side: side(&earlier.client_side, &later.client_side),
            pods_side: side(&earlier.pods_side, &later.pods_side),
            from_kernel: diff(|r| r.from_kernel),
            lost: diff(|r| r.lost),
            received: diff(|r| r.received),
            forwarded: diff(|r| r.forwarded),
            kernel: diff(|r| r.kernel),
            dropped: diff(|r| r.dropped),
            // Held frames are part of the outcome of received frames, so the difference may be negative: it wraps.
            held_now: diff(|r| r.held_now),
            made: diff(|r| r.made),
            created: diff(|r| r.created),
            reasons: reasons.filter(|(_, n)| *n > 0).collect(),
        })
    }

    pub fn forwarded(&self) -> u64 {
        self.0.forwarded
    }

    /// Frames that the gateway's kernel sent itself; `None` if the peers received fewer than nomagic sent.
    fn kernel_sent(&self) -> Option<u64> {
        let r = &self.0;
        (r.client_side.peer.rx_packets + r.pods_side.peer.rx_packets).checked_sub(r.forwarded + r.made)
    }

    /// The lines of the account that do not close.
    pub fn errors(&self) -> Vec<String> {
        let r = &self.0;
        let mut errors = Vec::new();
        let mut line = |what: &str, left: u64, right: u64| {
            if left != right {
                errors.push(format!("{what}: {left} is not {right}"));
            }
        };
        for (name, side) in [("client", &r.client_side), ("pods'", &r.pods_side)] {
            let seen = side.taken + side.passed + side.dropped;
            line(&format!("{name} side: sent by the peer = taken + passed + dropped"), side.peer.tx_packets, seen);
        }
        let taken = r.client_side.taken + r.pods_side.taken + r.from_kernel;
        line("taken = received by the workers + lost by the sockets", taken, r.received + r.lost);
        line(
            "received = forwarded + back to the kernel + dropped + held",
            r.received,
            r.forwarded.wrapping_add(r.kernel).wrapping_add(r.dropped).wrapping_add(r.held_now),
        );
        if self.kernel_sent().is_none() {
            errors.push(format!("the peers received fewer frames than the {} forwarded and {} made", r.forwarded, r.made));
        }
        errors
    }
}

impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.0;
        let sides = |title: &str, value: fn(&PortReading) -> u64| {
            vec![title.to_owned(), value(&r.client_side).to_string(), value(&r.pods_side).to_string()]
        };
        let all = |title: &str, value: u64| vec![title.to_owned(), value.to_string()];
        let mut rows = vec![
            ["Frames", "client side", "pods' side"].map(str::to_owned).to_vec(),
            sides("sent to the gateway (the peer's interface)", |p| p.peer.tx_packets),
            sides("  taken by nomagic (XDP)", |p| p.taken),
            sides("  passed to the gateway's kernel (XDP)", |p| p.passed),
            sides("  dropped (XDP)", |p| p.dropped),
            sides("received from the gateway (the peer's)", |p| p.peer.rx_packets),
            Vec::new(),
            all("received by nomagic's workers", r.received),
            all("  forwarded", r.forwarded),
            all("  back to the kernel", r.kernel),
            all("  dropped", r.dropped),
            all("  held now", r.held_now),
        ];
        rows.extend(r.reasons.iter().map(|(reason, n)| all(&format!("    reason {reason}"), *n)));
        rows.push(all("made by nomagic (rejects)", r.made));
        rows.push(all("sent by the gateway's kernel (ARP, ND, ...)", self.kernel_sent().unwrap_or(0)));
        f.write_str(&columns(rows, &[1, 2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::{Rss, StatusPort, XdpMode};
    use nomagic_core::counters::{SocketCounts, Volume, XdpCounts};
    use nomagic_core::reason::Reason;

    fn status(taken: u64, forwarded: u64) -> Status {
        let port = |name: &str, taken, pass_not_ours| StatusPort {
            name: name.into(),
            ifindex: 2,
            mtu: 1_500,
            queues: 1,
            owners: vec![0],
            bound: true,
            condition: "bound".into(),
            link: nomagic_api::PortLink::Up,
            rebinds: 0,
            xdp_mode: XdpMode::Native,
            zero_copy: false,
            rss: Rss::Unknown { because: "a test".into() },
            xdp: XdpCounts { taken, pass_not_ours, ..XdpCounts::default() }.into(),
            sockets: vec![SocketCounts { rx_ring_full: 1, ..SocketCounts::default() }],
        };
        let mut status = Status { ports: vec![port("cl0", taken, 5), port("pods0", 20, 7), port("nm1", 1, 0)], ..Status::default() };
        status.totals.held_now = 2;
        let counts = &mut status.totals.counts;
        let packets = |packets| Volume { packets, bytes: 0 };
        counts.frames.received = packets(taken + 18);
        counts.frames.forwarded = packets(forwarded);
        (counts.frames.kernel, counts.frames.dropped, counts.frames.made) = (packets(3), packets(1), packets(1));
        (counts.reasons.drop[Reason::NoRoute], counts.conntrack.created) = (1, 9);
        status
    }

    fn link(tx_packets: u64, rx_packets: u64) -> LinkCounters {
        LinkCounters { tx_packets, rx_packets, ..LinkCounters::default() }
    }

    fn accounts(client: LinkCounters, pods: LinkCounters, forwarded: u64) -> Accounts {
        let reading = Reading::parse(&status(10, forwarded), client, pods).unwrap();
        Accounts::between(&Reading::default(), &reading)
    }

    #[test]
    fn an_account_that_closes() {
        let closed = accounts(link(15, 20), link(27, 10), 22);
        assert_eq!(closed.errors(), [] as [String; 0]);
        let shown = closed.to_string();
        assert!(shown.contains("reason no_route") && !shown.contains("icmp"), "{shown}");
        assert_eq!(closed.kernel_sent(), Some(7));
        let reading = Reading::parse(&status(10, 22), link(15, 20), link(27, 10)).unwrap();
        assert_eq!(Accounts::between(&reading, &reading).0, Reading::default());
    }

    #[test]
    fn each_line_can_fail() {
        for (client, pods, forwarded, word) in [
            (link(16, 20), link(27, 10), 22, "client side: sent by the peer"),
            (link(15, 20), link(26, 10), 22, "pods' side: sent by the peer"),
            (link(15, 20), link(27, 10), 23, "received = forwarded"),
            (link(15, 12), link(27, 10), 22, "fewer frames than the 22 forwarded"),
        ] {
            let errors = accounts(client, pods, forwarded).errors();
            assert!(errors.len() == 1 && errors[0].contains(word), "{errors:?}");
        }
        let mut lost = accounts(link(15, 20), link(27, 10), 22);
        lost.0.lost = 0;
        assert!(lost.errors()[0].contains("lost by the sockets"), "{:?}", lost.errors());
    }

    #[test]
    fn a_status_that_lacks_a_port_is_an_error_that_names_it() {
        let error = Reading::parse(&Status::default(), link(0, 0), link(0, 0)).unwrap_err().to_string();
        assert!(error.contains("no port cl0"), "{error}");
    }
}
