//! The kernel's NAT in nomagic's place: a Service on one endpoint for both, and the ICMP errors that hosts hear.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use nomagic_testbed::rig::{GATEWAY_V4, GATEWAY_V6, Netns, Scene};
use socket2::{Domain, Protocol, Socket, Type};

pub const SERVICE: [&str; 2] = ["10.109.35.24", "fd00:10:109::24"];
/// A Service port for which nothing listens, and one for which something answers late.
pub const CLOSED: u16 = 54;
pub const LATE: u16 = 55;

/// The Service on one endpoint.
pub fn service(endpoint: [String; 2]) -> String {
    let ports = [("http", "TCP", 80), ("echo", "UDP", 53), ("closed", "UDP", CLOSED), ("late", "UDP", LATE)];
    let ports = ports.map(|(name, proto, port)| format!("{{name: {name}, protocol: {proto}, port: {port}}}")).join(", ");
    let [v4, v6] = SERVICE;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: default}}\nspec:\n  ipFamilyPolicy: PreferDualStack\n  \
         clusterIP: {v4}\n  clusterIPs: [{v4}, '{v6}']\n  ipFamilies: [IPv4, IPv6]\n  ports: [{ports}]\n"
    );
    for (family, address) in ["IPv4", "IPv6"].into_iter().zip(endpoint) {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: far-{0}, namespace: default, labels: {{kubernetes.io/service-name: far}}}}\naddressType: {family}\nendpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]\nports: [{ports}]\n",
            family.to_lowercase(),
        );
    }
    text
}

/// The same by the kernel's NAT.
pub fn kernel_rules(endpoint: &[String; 2], snat: bool) -> String {
    let mut rules = String::new();
    for ((family, service), endpoint) in ["ip", "ip6"].into_iter().zip(SERVICE).zip(endpoint) {
        let source = if family == "ip" { GATEWAY_V4.to_string() } else { GATEWAY_V6.to_string() };
        let snat = if snat { format!("ct status dnat snat to {source};") } else { String::new() };
        rules += &format!(
            "table {family} t {{\n chain pre {{ type nat hook prerouting priority -100; {family} daddr {service} dnat to {endpoint}; }}\n \
             chain post {{ type nat hook postrouting priority 100; {snat} }}\n}}\n",
        );
    }
    rules
}

/// Gives nftables rules to the gateway's kernel.
pub fn load_rules(scene: &Scene, rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    scene.gw.exec("nft", &["-f", &file.path().to_string_lossy()]).unwrap();
}

/// A socket that hears ICMP messages.
pub fn raw_icmp(ns: &Netns, v6: bool) -> Socket {
    ns.run(|| {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket
    })
    .expect("a thread in the namespace")
}

/// The ICMP errors that have arrived: sender, type and code, addresses and ports of the quoted packet. A client's port is any.
pub fn errors(socket: &Socket, v6: bool) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while let Ok(from) = socket.peek_sender() {
        let (mut packet, mut reader) = ([0; 2048], socket);
        let n = reader.read(&mut packet).expect("the same packet");
        let from = from.as_socket().expect("an IP address").ip();
        let icmp = &packet[if v6 { 0 } else { usize::from(packet[0] & 15) * 4 }..n];
        let (kind, code) = (icmp[0], icmp[1]);
        if if v6 { !(1..=4).contains(&kind) } else { ![3, 11, 12].contains(&kind) } {
            continue;
        }
        let quote = &icmp[8..];
        let addr = |at: usize| -> IpAddr {
            if v6 {
                Ipv6Addr::from(<[u8; 16]>::try_from(&quote[at..at + 16]).unwrap()).into()
            } else {
                <[u8; 4]>::try_from(&quote[at..at + 4]).unwrap().into()
            }
        };
        let (src, dst, l4) = if v6 { (addr(8), addr(24), 40) } else { (addr(12), addr(16), usize::from(quote[0] & 15) * 4) };
        let port = |at: usize| match u16::from_be_bytes([quote[at], quote[at + 1]]) {
            port @ 0..1_024 => port.to_string(),
            _ => "client".into(),
        };
        seen.insert(format!("{kind}/{code} from {from} about {src} {} -> {dst} {}", port(l4), port(l4 + 2)));
    }
    seen
}
