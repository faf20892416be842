//! Answers of ip and ethtool (6.1), as real programs write them for drivers that tell much and little.

use super::*;
use crate::preflight::fake::FakeHost;

const LINK: &str = r#"[{"ifindex":4,"ifname":"eth1","flags":["BROADCAST","UP","LOWER_UP"],"mtu":1500,
    "xdp":{"mode":1,"prog":{"id":7,"tag":"00","jited":1}}}]"#;
const CHANNELS: &str = "Channel parameters for eth1:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t63\n\
    Current hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t4\n";
const RINGS: &str = "Ring parameters for eth1:\nPre-set maximums:\nRX:\t\t8160\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t8160\n\
    Current hardware settings:\nRX:\t\t512\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t256\n";
const RSS: &str = "RX flow hash indirection table for eth1 with 4 RX ring(s):\n    0:      0     1     2     3     0     1     2     3\n\
    \x20   8:      0     1     2     3     0     1     2     3\nRSS hash key:\n6d:5a:56\nRSS hash function:\n    toeplitz: on\n    xor: off\n";
const HASH: &str = "UDP over IPV4 flows use these fields for computing Hash flow key:\nIP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\n\
    L4 bytes 2 & 3 [TCP/UDP dst port]\n\n";
const INTERRUPTS: &str = "           CPU0       CPU1\n  24:    1    0  IO-APIC 5-edge  ACPI:Ged\n 120:    7    0  PCI-MSIX-0000:17:00.0 0-edge  ice-0000:17:00.0:misc\n\
    \x20121:    7    0  PCI-MSIX-0000:17:00.0 1-edge  ice-eth1-TxRx-0\n 122:    7    0  PCI-MSIX-0000:17:00.0 2-edge  ice-eth1-TxRx-1\nNMI: 0 0 Non-maskable\n";

#[test]
fn a_driver_that_tells_everything() {
    let pci = "sys/bus/pci/devices/0000:17:00.0";
    let files = [
        (format!("{pci}/numa_node"), "1\n"),
        (format!("{pci}/current_link_speed"), "8.0 GT/s PCIe\n"),
        (format!("{pci}/max_link_speed"), "16.0 GT/s PCIe\n"),
        (format!("{pci}/current_link_width"), "8\n"),
        (format!("{pci}/max_link_width"), "16\n"),
        (format!("{pci}/msi_irqs/120"), "msix\n"),
        (format!("{pci}/msi_irqs/121"), "msix\n"),
        (format!("{pci}/msi_irqs/122"), "msix\n"),
        ("proc/interrupts".into(), INTERRUPTS),
        ("proc/irq/121/effective_affinity_list".into(), "4\n"),
        ("proc/irq/122/effective_affinity_list".into(), "\n"),
        ("proc/irq/122/smp_affinity_list".into(), "0-7\n"),
        ("proc/sys/net/ipv4/ip_forward".into(), "1\n"),
        ("proc/sys/net/ipv4/ip_local_port_range".into(), "32768\t60999\n"),
        ("proc/sys/net/ipv4/ip_local_reserved_ports".into(), "8080,61000-65535\n"),
        ("proc/thread-self/net/pktgen/pgctrl".into(), ""),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    let mut host = FakeHost::new(&files)
        .says("ip -d -j link show dev eth1", LINK)
        .says("ethtool -i eth1", "driver: ice\nversion: 6.12\nbus-info: 0000:17:00.0\n")
        .says("ethtool eth1", "Settings for eth1:\n\tSpeed: 25000Mb/s\n\tDuplex: Full\n")
        .says("ethtool -l eth1", CHANNELS)
        .says("ethtool -g eth1", RINGS)
        .says("ethtool -a eth1", "Pause parameters for eth1:\nAutonegotiate:\ton\nRX:\t\toff\nTX:\t\ton\n")
        .says("ethtool -k eth1", "Features for eth1:\nlarge-receive-offload: off [fixed]\nntuple-filters: on\n")
        .says("ethtool -c eth1", "Coalesce parameters for eth1:\nAdaptive RX: on  TX: on\nrx-usecs: 50\nrx-usecs-irq: n/a\n")
        .says("ethtool -x eth1", RSS)
        .says("ethtool -n eth1 rx-flow-hash udp4", HASH)
        .says("ethtool -n eth1 rx-flow-hash udp6", "UDP over IPV6 flows use these fields for computing Hash flow key:\nIP SA\nIP DA\n\n");
    host.features = Some(0x7f);
    let nic = Nic::gather(&host, "eth1");
    let program = Some(Program { id: 7, name: Some("nomagic_filter".into()) });
    assert_eq!(nic.link, Ok(Link { up: true, carrier: true, mtu: 1500, program }));
    assert_eq!((nic.driver, nic.speed, nic.queues), (Ok("ice".into()), Ok(25_000), Ok((4, Some(63)))));
    assert!(!nic.separate_queues);
    assert_eq!((nic.rings, nic.pause, nic.coalesce), (Ok([(512, 8160), (256, 8160)]), Ok((false, true)), Ok((Some(true), Some(50)))));
    assert_eq!(nic.features.unwrap(), BTreeMap::from([("large-receive-offload".into(), false), ("ntuple-filters".into(), true)]));
    assert_eq!(nic.rss.unwrap().queues, BTreeSet::from([0, 1, 2, 3]));
    assert_eq!((nic.udp_ports_hashed, nic.xdp_features), ([Ok(true), Ok(false)], Some(0x7f)));
    assert_eq!(nic.pci, Some(Pci { node: Some(1), speed: Some((8.0, 16.0)), width: Some((8, 16)) }));
    let irqs: Vec<_> = nic.irqs.unwrap().into_iter().map(|i| (i.number, i.cpus.unwrap().to_string())).collect();
    assert_eq!(irqs, [(121, "4".to_owned()), (122, "0-7".to_owned())], "not the one for the card's own affairs");
    assert_eq!(
        nic.namespace,
        Namespace {
            ip_forward: Some(1),
            local_ports: Some((32_768, 60_999)),
            reserved_ports: Some(vec![(8080, 8080), (61_000, 65_535)]),
            pktgen: true,
        }
    );
}

#[test]
fn a_driver_that_tells_little() {
    let host = FakeHost::new(&[])
        .says("ip -d -j link show dev eth0", r#"[{"ifname":"eth0","flags":["UP"],"mtu":9000}]"#)
        .says("ethtool -i eth0", "driver: virtio_net\nbus-info: ../../etc\n")
        .says("ethtool eth0", "Settings for eth0:\n\tSpeed: Unknown!\n")
        .says(
            "ethtool -l eth0",
            "Channel parameters for eth0:\nPre-set maximums:\nCombined:\tn/a\nCurrent hardware settings:\nCombined:\tn/a\n",
        )
        .says("ethtool -g eth0", "Ring parameters\nCurrent hardware settings:\nRX:\t256\n")
        .says("ethtool -a eth0", "Pause parameters for eth0:\n")
        .says("ethtool -c eth0", "Coalesce parameters for eth0:\nAdaptive RX: n/a  TX: n/a\nrx-usecs: n/a\n")
        .says("ethtool -x eth0", "RX flow hash indirection table for eth0 with 1 RX ring(s):\nOperation not supported\nRSS hash key:\n")
        .says("ethtool -n eth0 rx-flow-hash udp4", "nothing of use");
    let nic = Nic::gather(&host, "eth0");
    assert_eq!(nic.link, Ok(Link { up: true, carrier: false, mtu: 9000, program: None }));
    assert_eq!((nic.speed, nic.coalesce, nic.pci, nic.irqs), (Err("`Unknown!`".into()), Ok((None, None)), None, None));
    assert!(nic.queues.is_err() && nic.rings.is_err() && nic.pause.is_err() && nic.rss.is_err());
    assert!(nic.udp_ports_hashed.iter().all(Result::is_err));
    let gone = Nic::gather(&FakeHost::new(&[]).says("ip -d -j link show dev eth0", "[]"), "eth0");
    assert_eq!(gone.link, Err("`ip -j` names no interface".into()));
    assert!(gone.driver.is_err() && gone.features.is_err() && gone.namespace == Namespace::default());
}
