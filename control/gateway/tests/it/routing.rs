//! Random rules and routes: nomagic's answer against the kernel's own (`ip route get`, by netlink), in a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use nomagic::net::{Mirror, MirrorLimits};
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_core::routes::{Resolution, RouteQuery, Routes};
use nomagic_core::tuple::{Proto, addr_words, splitmix64};
use nomagic_testbed::rig::{Netns, cable};

/// Configurations, each a change of the one before, and packets asked about in each. The variable `NOMAGIC_ROUTING_CONFIGURATIONS` asks for more.
const CONFIGURATIONS: usize = 4_000;
const PACKETS: usize = 8;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        splitmix64(&mut self.0) % n
    }

    fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }

    fn addr(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(10, 20 + self.below(3) as u8, self.below(3) as u8, 1 + self.below(3) as u8)
    }

    fn prefix(&mut self) -> String {
        let addr = self.addr();
        match self.below(5) {
            0 => "default".into(),
            1 => format!("10.{}.0.0/16", addr.octets()[1]),
            2 => format!("{addr}/32"),
            _ => format!("10.{}.{}.0/24", addr.octets()[1], addr.octets()[2]),
        }
    }

    /// A route, without the verb.
    fn route(&mut self) -> String {
        let prefix = self.prefix();
        let way = match self.below(9) {
            0 => return format!("unreachable {prefix}{}", self.rest()),
            1 => return format!("prohibit {prefix}{}", self.rest()),
            2 => return format!("blackhole {prefix}{}", self.rest()),
            3 => return format!("throw {prefix}{}", self.rest()),
            4 => "dev o0".to_owned(),
            5 => "nexthop via 10.1.0.2 weight 2 nexthop via 10.2.0.2".to_owned(),
            6 => "via 10.2.0.7".to_owned(),
            _ => format!("via 10.{}.0.2", 1 + self.below(2)),
        };
        let rest = self.rest();
        let tos = if self.below(20) == 0 { " tos 0x10" } else { "" };
        // Next hops come last on the command line.
        format!("{prefix}{tos}{rest} {way}")
    }

    fn rest(&mut self) -> String {
        format!(" proto static metric {}{}", self.below(3), self.one(&["", "", " table 100", " table 101", " table 253"]))
    }

    /// A rule, without the verb.
    fn rule(&mut self) -> String {
        let mut rule = String::new();
        if self.below(6) == 0 {
            rule += "not ";
        }
        for (odds, selector) in [(2, "from"), (4, "to")] {
            let prefix = self.prefix();
            if self.below(odds) == 0 && prefix != "default" {
                let _ = write!(rule, "{selector} {prefix} ");
            }
        }
        if !rule.contains("from") {
            rule += "from all ";
        }
        if self.below(3) == 0 {
            let _ = write!(rule, "iif {} ", self.one(&["a0", "b0", "o0", "lo", "gone0"]));
        }
        for (odds, selector) in [
            (6, "ipproto udp"),
            (10, "ipproto icmp"),
            (8, "ipproto tcp dport 80"),
            (10, "ipproto udp sport 1000-2000"),
            (10, "fwmark 1"),
            (12, "fwmark 0/0xff"),
            (16, "oif a0"),
            (16, "tos 0x10"),
            (16, "uidrange 5-9"),
            (16, "uidrange 0-9"),
        ] {
            if self.below(odds) == 0 && !(selector.contains("ipproto") && rule.contains("ipproto")) {
                let _ = write!(rule, "{selector} ");
            }
        }
        let priority = 100 + self.below(30);
        let action = match self.below(10) {
            0 => "unreachable".to_owned(),
            1 => "prohibit".to_owned(),
            2 => "blackhole".to_owned(),
            3 => format!("goto {}", priority + 1 + self.below(20)),
            4 => "nop".to_owned(),
            5 => format!("lookup main suppress_prefixlength {}", self.one(&["0", "16", "24"])),
            _ => format!("lookup {}", self.one(&["100", "101", "main", "default"])),
        };
        rule + &format!("pref {priority} {action}")
    }

    /// Commands that change a configuration. One in eight starts anew.
    fn changes(&mut self) -> Vec<String> {
        let mut commands = Vec::new();
        if self.below(8) == 0 {
            for table in ["main", "100", "101", "253"] {
                commands.push(format!("route flush table {table} proto static"));
            }
            (100..130).for_each(|priority| (0..2).for_each(|_| commands.push(format!("rule del pref {priority}"))));
        }
        for _ in 0..2 + self.below(4) {
            let verb = self.one(&["add", "append", "replace"]);
            commands.push(format!("route {verb} {}", self.route()));
        }
        if self.below(2) == 0 {
            commands.push(format!("rule add {}", self.rule()));
        }
        if self.below(3) == 0 {
            commands.push(format!("rule del pref {}", 100 + self.below(30)));
        }
        commands
    }

    fn packet(&mut self) -> Packet {
        let udp = self.below(2) == 0;
        Packet {
            src: self.addr(),
            dst: self.addr(),
            port: self.below(2) as u16,
            proto: if udp { Proto::Udp } else { Proto::Tcp },
            sport: self.one(&["1000", "3000"]).parse().unwrap(),
            dport: self.one(&["80", "53"]).parse().unwrap(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    port: u16,
    proto: Proto,
    sport: u16,
    dport: u16,
}

impl Packet {
    fn question(&self) -> String {
        let Packet { src, dst, port, proto, sport, dport } = self;
        format!(
            "route get {dst} from {src} iif {} ipproto {} sport {sport} dport {dport}",
            PORTS[usize::from(*port)],
            proto.name().to_lowercase()
        )
    }

    fn query(&self) -> RouteQuery {
        let ((src, v6), (dst, _)) = (addr_words(self.src.into()), addr_words(self.dst.into()));
        RouteQuery { src, dst, v6, port: PortId(self.port), proto: self.proto, sport: self.sport, dport: self.dport }
    }
}

const PORTS: [&str; 2] = ["a0", "b0"];

/// Where a packet goes: an interface with the gateway, or nowhere for a reason.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Way {
    /// `None` as the interface: one that is no port.
    Out(Option<String>, Option<IpAddr>),
    Nowhere(&'static str),
    /// nomagic leaves the decision to the kernel.
    Left,
}

/// Runs the commands, which may fail, then asks the kernel about the packets.
fn ask_kernel(commands: &[String], packets: &[Packet]) -> Vec<Way> {
    let questions: Vec<String> = packets.iter().map(Packet::question).collect();
    let mut child = Command::new("ip")
        .args(["-force", "-oneline", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iproute2");
    let input = [commands, &questions[..]].concat().join("\n") + "\n";
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // Errors name the line that failed after the cause.
    let mut failed: BTreeMap<usize, String> = BTreeMap::new();
    let mut cause = String::new();
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        match line.strip_prefix("Command failed -:") {
            Some(number) => _ = failed.insert(number.parse().unwrap(), std::mem::take(&mut cause)),
            None => cause = line.to_owned(),
        }
    }
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut answers = stdout.lines().filter(|line| !line.trim().is_empty());
    let first = commands.len() + 1;
    (0..packets.len())
        .map(|i| failed.get(&(first + i)).map_or_else(|| way_out(answers.next().expect("an answer")), |cause| nowhere(cause)))
        .collect()
}

fn way_out(answer: &str) -> Way {
    let word_after = |name: &str| answer.split_whitespace().skip_while(|word| *word != name).nth(1);
    let device = word_after("dev").filter(|device| PORTS.contains(device)).map(str::to_owned);
    let via = word_after("via").filter(|_| device.is_some()).map(|via| via.parse().unwrap());
    Way::Out(device, via)
}

fn nowhere(cause: &str) -> Way {
    let causes = [
        ("Network is unreachable", Reason::NoRoute),
        ("No route to host", Reason::Unreachable),
        ("Permission denied", Reason::RouteProhibited),
        ("Invalid argument", Reason::RouteBlackhole),
    ];
    let found = causes.iter().find(|(words, _)| cause.contains(words));
    Way::Nowhere(found.unwrap_or_else(|| panic!("unexpected: {cause}")).1.label())
}

/// The ways that nomagic may choose: one for each leg of a multipath route.
fn ask_nomagic(routes: &Routes, packet: &Packet) -> BTreeSet<Way> {
    let way = |hash: u64| match routes.resolve_with(&packet.query(), || hash).0 {
        Resolution::Ask(wanted) => {
            let via = Some(wanted.addr).filter(|addr| *addr != IpAddr::from(packet.dst));
            Way::Out(Some(PORTS[usize::from(wanted.port.0)].to_owned()), via)
        }
        Resolution::Kernel { captured: true } => Way::Left,
        Resolution::Kernel { captured: false } => Way::Out(None, None),
        Resolution::Nowhere(reason) => Way::Nowhere(reason.label()),
        Resolution::Hop(_) => unreachable!("no neighbours are known"),
    };
    (0..16).map(|i| way(i << 28)).collect()
}

#[test]
fn packets_go_where_the_kernel_would_send_them() {
    let net = Netns::new("routing").unwrap();
    for (interface, addr) in [("a0", "10.1.0.1/24"), ("b0", "10.2.0.1/24"), ("o0", "10.3.0.1/24")] {
        let peer = format!("{interface}p");
        cable(&net, interface, &net, &peer, 1).unwrap();
        net.ip(&format!("addr add {addr} dev {interface}")).unwrap();
        net.exec("sysctl", &["-qw", &format!("net.ipv4.conf.{interface}.rp_filter=0")]).unwrap();
    }
    net.exec("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.ip_forward=1"]).unwrap();
    let configurations = std::env::var("NOMAGIC_ROUTING_CONFIGURATIONS").map_or(CONFIGURATIONS, |n| n.parse().expect("a number"));
    let ports = PORTS.map(str::to_owned);
    let mut random = Random(2_026);
    let mut said: BTreeMap<Way, usize> = BTreeMap::new();
    let work = || async move {
        for round in 0..configurations {
            let (commands, packets) = (random.changes(), (0..PACKETS).map(|_| random.packet()).collect::<Vec<_>>());
            let kernel = ask_kernel(&commands, &packets);
            // Read anew: that it follows changes is tested elsewhere.
            let routes = Mirror::start(MirrorLimits::default()).unwrap().routes(1, &ports, &BTreeSet::new(), None);
            for (packet, kernel) in packets.iter().zip(kernel) {
                let ours = ask_nomagic(&routes, packet);
                if !ours.contains(&kernel) && !ours.contains(&Way::Left) {
                    let state = ["rule", "route show table all"].map(|what| {
                        let output = Command::new("ip").args(what.split(' ')).output().unwrap();
                        String::from_utf8_lossy(&output.stdout).into_owned()
                    });
                    panic!(
                        "configuration {round}: `ip {}`: the kernel says {kernel:?}, nomagic {ours:?}\n{}",
                        packet.question(),
                        state.join("\n")
                    );
                }
                ours.into_iter().for_each(|way| *said.entry(way).or_default() += 1);
            }
        }
        said
    };
    let said = net.block_on(work).unwrap();
    println!("{configurations} configurations: {said:?}");
    let asked = configurations * PACKETS;
    assert!(said[&Way::Left] < asked / 4, "most are decided here: {said:?}");
    for reason in [Reason::NoRoute, Reason::Unreachable, Reason::RouteProhibited, Reason::RouteBlackhole] {
        assert!(said[&Way::Nowhere(reason.label())] > asked / 200, "{reason:?} is met: {said:?}");
    }
}
