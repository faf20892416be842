//! What is known about one interface and its namespace, parsed and not judged.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::cpus::CpuSet;
use super::facts::json;
use super::host::Host;

/// What `ethtool` was asked for and could not tell, in its words.
pub type Told<T> = Result<T, String>;

/// An attached XDP program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its id.
    pub id: u64,
    /// Its name, if it can be had.
    pub name: Option<String>,
}

/// How an interface spreads what it receives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rss {
    /// Queues that the indirection table names.
    pub queues: BTreeSet<u32>,
}

/// An interrupt of the device's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// What /proc/interrupts calls it.
    pub name: String,
    /// The CPUs where it may be handled.
    pub cpus: Option<CpuSet>,
}

/// The PCI slot.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pci {
    /// NUMA node; -1 where the firmware does not say.
    pub node: Option<i64>,
    /// Transfers a second in 10^9 now and at the most.
    pub speed: Option<(f64, f64)>,
    /// Lanes now and at the most.
    pub width: Option<(u32, u32)>,
}

/// Settings of its network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Namespace {
    /// net.ipv4.ip_forward.
    pub ip_forward: Option<i64>,
    /// net.ipv4.ip_local_port_range.
    pub local_ports: Option<(u16, u16)>,
    /// net.ipv4.ip_local_reserved_ports, as ranges.
    pub reserved_ports: Option<Vec<(u16, u16)>>,
    /// /proc/net/pktgen is there.
    pub pktgen: bool,
}

/// The interface.
#[derive(Clone, PartialEq, Debug)]
pub struct Nic {
    /// Its name, as `ip` knows it.
    pub name: String,
    /// The namespace of `ip netns` that it is in, if another than the caller's.
    pub netns: Option<String>,
    /// `ip -d -j link show`; or why there is nothing.
    pub link: Told<Link>,
    /// The kernel's word on XDP (`enum netdev_xdp_act`).
    pub xdp_features: Option<u64>,
    /// The driver's name.
    pub driver: Told<String>,
    /// Megabit a second.
    pub speed: Told<u64>,
    /// Receive queues in use, and how many there may be.
    pub queues: Told<(u32, Option<u32>)>,
    /// Queues that receive are others than those that send, as ethtool counts them.
    pub separate_queues: bool,
    /// Entries of the receive and of the transmit ring: now, and at the most.
    pub rings: Told<[(u32, u32); 2]>,
    /// Flow control: receive and transmit.
    pub pause: Told<(bool, bool)>,
    /// Offloads by ethtool's name: on or off.
    pub features: Told<BTreeMap<String, bool>>,
    /// Adaptive receive coalescing, and microseconds to wait for more frames.
    pub coalesce: Told<(Option<bool>, Option<u32>)>,
    /// The indirection table.
    pub rss: Told<Rss>,
    /// UDP over IPv4 and over IPv6 is hashed by addresses and ports.
    pub udp_ports_hashed: [Told<bool>; 2],
    /// Its place on the PCI bus; `None` if it is on none.
    pub pci: Option<Pci>,
    /// The queues' interrupts; `None` if the device's interrupts are not known.
    pub irqs: Option<Vec<Irq>>,
    /// Its namespace.
    pub namespace: Namespace,
}

/// What netlink says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Administratively up.
    pub up: bool,
    /// There is a carrier.
    pub carrier: bool,
    /// Bytes behind the Ethernet header at the most.
    pub mtu: u64,
    /// The attached program.
    pub program: Option<Program>,
}

impl Nic {
    /// Looks at an interface of the calling thread's namespace.
    pub fn gather(host: &dyn Host, name: &str) -> Nic {
        let ask = |args: &[&str]| host.run("ethtool", args);
        let info = ask(&["-i", name]);
        let bus = info.as_ref().ok().and_then(|t| value(t, "bus-info")).filter(|b| !b.is_empty() && !b.contains('/')).map(str::to_owned);
        let device = bus.map(|b| format!("sys/bus/pci/devices/{b}")).filter(|d| host.list(d).is_some());
        let hash = |kind| ask(&["-n", name, "rx-flow-hash", kind]).and_then(|t| ports_hashed(&t));
        Nic {
            name: name.to_owned(),
            netns: None,
            link: host.run("ip", &["-d", "-j", "link", "show", "dev", name]).and_then(|t| link(host, &t)),
            xdp_features: host.xdp_features(name),
            driver: info.and_then(|t| value(&t, "driver").map(str::to_owned).ok_or_else(|| "ethtool -i names no driver".into())),
            speed: ask(&[name]).and_then(|t| speed(&t)),
            queues: ask(&["-l", name]).and_then(|t| queues(&t)),
            separate_queues: ask(&["-l", name]).is_ok_and(|t| matches!(maximum_and_now(&t, "Combined"), (_, None | Some(0)))),
            rings: ask(&["-g", name]).and_then(|t| rings(&t)),
            pause: ask(&["-a", name]).and_then(|t| pause(&t)),
            features: ask(&["-k", name]).map(|t| features(&t)),
            coalesce: ask(&["-c", name]).map(|t| coalesce(&t)),
            rss: ask(&["-x", name]).and_then(|t| rss(&t)),
            udp_ports_hashed: [hash("udp4"), hash("udp6")],
            pci: device.as_deref().map(|d| pci(host, d)),
            irqs: device.as_deref().and_then(|d| irqs(host, d)),
            namespace: Namespace::gather(host),
        }
    }

    /// Receive queues, if they are known: by ethtool. A driver that does not tell is not guessed at.
    pub fn queue_count(&self) -> Option<u32> {
        self.queues.as_ref().ok().map(|(n, _)| *n)
    }
}

impl Namespace {
    fn gather(host: &dyn Host) -> Namespace {
        let range = |text: String| {
            let mut words = text.split_whitespace().map_while(|w| w.parse().ok());
            Some((words.next()?, words.next()?))
        };
        Namespace {
            ip_forward: host.number("proc/sys/net/ipv4/ip_forward"),
            local_ports: host.line("proc/sys/net/ipv4/ip_local_port_range").and_then(range),
            // An empty line when nothing is reserved.
            reserved_ports: host.read("proc/sys/net/ipv4/ip_local_reserved_ports").map(|t| port_ranges(&t)),
            pktgen: host.list("proc/thread-self/net/pktgen").is_some(),
        }
    }
}

fn port_ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

/// The value behind `name:` at the start of a line.
fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|l| l.trim_start().strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn link(host: &dyn Host, text: &str) -> Told<Link> {
    let json = json(text).ok_or("`ip -j` did not write JSON")?;
    let link = json.get(0).ok_or("`ip -j` names no interface")?;
    let flags: Vec<&str> = link.get("flags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    // With programs in several modes at once there is a list of them.
    let id = link.pointer("/xdp/prog/id").or_else(|| link.pointer("/xdp/attached/0/prog/id")).and_then(Value::as_u64);
    let name = |id: u64| u32::try_from(id).ok().and_then(|id| host.program_name(id));
    Ok(Link {
        up: flags.contains(&"UP"),
        carrier: flags.contains(&"LOWER_UP"),
        mtu: link.get("mtu").and_then(Value::as_u64).ok_or("`ip -j` names no MTU")?,
        program: id.map(|id| Program { id, name: name(id) }),
    })
}

fn speed(text: &str) -> Told<u64> {
    let speed = value(text, "Speed").ok_or("the driver does not tell")?;
    speed.strip_suffix("Mb/s").and_then(|n| n.parse().ok()).ok_or_else(|| format!("`{speed}`"))
}

/// Numbers named `name` before and after `Current hardware settings`.
fn maximum_and_now(text: &str, name: &str) -> (Option<u32>, Option<u32>) {
    let (maximum, now) = text.split_once("Current hardware settings").unwrap_or(("", text));
    let number = |t| value(t, name)?.parse().ok();
    (number(maximum), number(now))
}

fn queues(text: &str) -> Told<(u32, Option<u32>)> {
    let ((combined_max, combined), (rx_max, rx)) = (maximum_and_now(text, "Combined"), maximum_and_now(text, "RX"));
    let queues = combined.unwrap_or(0) + rx.unwrap_or(0);
    if queues == 0 {
        return Err("ethtool -l names no queues".into());
    }
    Ok((queues, combined_max.map(|c| c + rx_max.unwrap_or(0)).or(rx_max)))
}

fn rings(text: &str) -> Told<[(u32, u32); 2]> {
    let ring = |name| match maximum_and_now(text, name) {
        (Some(maximum), Some(now)) => Ok((now, maximum)),
        _ => Err(format!("ethtool -g names no {name} ring")),
    };
    Ok([ring("RX")?, ring("TX")?])
}

fn on(word: &str) -> Option<bool> {
    match word.split_whitespace().next()? {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn pause(text: &str) -> Told<(bool, bool)> {
    match (value(text, "RX").and_then(on), value(text, "TX").and_then(on)) {
        (Some(rx), Some(tx)) => Ok((rx, tx)),
        _ => Err("ethtool -a names no RX and TX".into()),
    }
}

fn features(text: &str) -> BTreeMap<String, bool> {
    let line = |l: &str| l.trim().split_once(':').and_then(|(k, v)| Some((k.to_owned(), on(v)?)));
    text.lines().filter_map(line).collect()
}

fn coalesce(text: &str) -> (Option<bool>, Option<u32>) {
    let adaptive = value(text, "Adaptive RX").and_then(on);
    (adaptive, value(text, "rx-usecs").and_then(|n| n.parse().ok()))
}

fn rss(text: &str) -> Told<Rss> {
    let table = text.split_once("RX ring(s):").ok_or("ethtool -x names no indirection table")?.1;
    let rows = table.lines().skip(1).map_while(|l| l.trim().split_once(':').filter(|(n, _)| n.parse::<u32>().is_ok()));
    let queues: BTreeSet<u32> = rows.flat_map(|(_, row)| row.split_whitespace()).filter_map(|q| q.parse().ok()).collect();
    if queues.is_empty() { Err("the driver tells of no indirection table".into()) } else { Ok(Rss { queues }) }
}

fn ports_hashed(text: &str) -> Told<bool> {
    if !text.contains("use these fields") {
        return Err("ethtool does not name the fields".into());
    }
    Ok(["IP SA", "IP DA", "L4 bytes 0 & 1", "L4 bytes 2 & 3"].iter().all(|field| text.contains(field)))
}

fn pci(host: &dyn Host, dir: &str) -> Pci {
    // `16.0 GT/s PCIe`; `Unknown` for a virtual function.
    let speed = |name: &str| host.line(&format!("{dir}/{name}"))?.split_whitespace().next()?.parse().ok();
    let width = |name: &str| host.line(&format!("{dir}/{name}"))?.parse().ok().filter(|w| (1..=32).contains(w));
    Pci {
        node: host.number(&format!("{dir}/numa_node")),
        speed: speed("current_link_speed").zip(speed("max_link_speed")),
        width: width("current_link_width").zip(width("max_link_width")),
    }
}

/// Words in the names of the queues' interrupts; drivers have others for their own affairs.
const QUEUE_WORDS: [&str; 9] = ["txrx", "tx-rx", "rxtx", "-rx", "rx-", "comp", "input", "ntfy", "mana_q"];

fn irqs(host: &dyn Host, dir: &str) -> Option<Vec<Irq>> {
    let own: BTreeSet<u32> = host.list(&format!("{dir}/msi_irqs"))?.iter().filter_map(|n| n.parse().ok()).collect();
    let text = host.read("proc/interrupts")?;
    let line = |l: &str| {
        let (number, rest) = l.trim_start().split_once(':')?;
        let number: u32 = number.parse().ok().filter(|n| own.contains(n))?;
        let set = |file: &str| host.line(&format!("proc/irq/{number}/{file}"))?.parse::<CpuSet>().ok().filter(|s| !s.is_empty());
        let cpus = set("effective_affinity_list").or_else(|| set("smp_affinity_list"));
        Some(Irq { number, name: rest.split_whitespace().last()?.to_owned(), cpus })
    };
    let all: Vec<Irq> = text.lines().filter_map(line).collect();
    let of_queues = |i: &&Irq| QUEUE_WORDS.iter().any(|w| i.name.to_lowercase().contains(w));
    let queues: Vec<Irq> = all.iter().filter(of_queues).cloned().collect();
    Some(if queues.is_empty() { all } else { queues }).filter(|i| !i.is_empty())
}

#[cfg(test)]
#[path = "nic_tests.rs"]
mod tests;
