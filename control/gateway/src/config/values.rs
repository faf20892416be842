//! The configuration's leaves: each read straight into its final type, each with limits, each saying what it allows.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::PathBuf;

use nomagic_core::tuple::Prefix;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer};

use nomagic_table::objects::addr::{parse_cidr, parse_ip};
use nomagic_table::settings::NodePortAddresses;
use nomagic_xsk::{InterfaceName, Limited, WorkerCount};

/// Entries of one list at the most.
const LIST_MAX: usize = 1_024;
/// Highest CPU number.
const CPU_MAX: u64 = 1_023;

/// What the XDP program does once the workers are gone for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFailure {
    /// Services' packets go to the kernel (a kube-proxy there may serve them).
    Pass,
    /// Services' packets are dropped.
    Drop,
    /// `pass` where a kernel proxy is found, else `drop`.
    #[default]
    Auto,
}

/// How clients are told that they are rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reject {
    /// By ICMP port unreachable.
    #[default]
    Icmp,
    /// Of TCP by a reset, else by ICMP port unreachable.
    TcpReset,
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Idle {
    /// Poll on: lowest latency, one CPU always busy.
    Spin,
    /// Sleep in the kernel until a frame comes.
    #[default]
    Sleep,
}

/// The dataplane's threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workers {
    /// How many.
    pub count: WorkerCount,
    /// The CPU of each, 0 to 1,023; empty: not pinned.
    pub cpus: Vec<u16>,
    /// What they do when there is nothing to do.
    pub idle: Idle,
}

impl Default for Workers {
    fn default() -> Workers {
        Workers { count: WorkerCount::from_static(1), cpus: Vec::new(), idle: Idle::default() }
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> PortRange {
        PortRange { first: 61_000, last: 65_535 }
    }
}

/// A whole number between two limits.
struct Whole {
    min: u64,
    max: u64,
}

impl Visitor<'_> for Whole {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {} to {}", self.min, self.max)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<u64, E> {
        if (self.min..=self.max).contains(&n) { Ok(n) } else { Err(E::invalid_value(Unexpected::Unsigned(n), &self)) }
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<u64, E> {
        match u64::try_from(n) {
            Ok(n) => self.visit_u64(n),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(n), &self)),
        }
    }
}

/// A piece of text with a meaning.
pub(super) struct Text<T> {
    pub(super) expected: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Defines a list's element: a private newtype around text of some form.
macro_rules! element {
    ($name:ident, $value:ty, $expected:literal, $parse:expr) => {
        struct $name($value);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                d.deserialize_str(Text { expected: $expected, parse: $parse }).map($name)
            }
        }
    };
}

element!(Cidr, Prefix, "a CIDR such as 10.0.0.0/8 or fd00::/64", |t| { parse_cidr(t).or_else(|| parse_ip(t).map(Prefix::host)) });
element!(Ip, IpAddr, "an IP address such as 192.168.0.2 or fd00::2", parse_ip);

struct Interface(InterfaceName);

impl<'de> Deserialize<'de> for Interface {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Interface, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Interface;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the name of a network interface: {}", InterfaceName::RULE)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Interface, E> {
                parse_interface(text).map(Interface).map_err(E::custom)
            }
        }

        d.deserialize_str(Name)
    }
}

/// The name of a network interface to take over.
pub(crate) fn parse_interface(text: &str) -> Result<InterfaceName, String> {
    match InterfaceName::try_from(text) {
        Ok(name) if name == "lo" => Err("interface `lo`: the loopback interface cannot be taken over".into()),
        Ok(name) => Ok(name),
        Err(e) => Err(e.to_string()),
    }
}

struct Cpu(u16);

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Cpu, D::Error> {
        d.deserialize_any(Whole { min: 0, max: CPU_MAX }).map(|n| Cpu(n as u16))
    }
}

/// A list without repetitions, of bounded length, with a rule about each next element.
pub(super) struct List<T, V> {
    pub(super) expected: &'static str,
    pub(super) take: fn(T, &[V]) -> Result<V, String>,
}

impl<'de, T: Deserialize<'de>, V> Visitor<'de> for List<T, V> {
    type Value = Vec<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<V>, A::Error> {
        let mut values = Vec::new();
        while let Some(element) = list.next_element::<T>()? {
            if values.len() == LIST_MAX {
                return Err(A::Error::custom(format!("a list of more than {LIST_MAX} {}", self.expected)));
            }
            values.push((self.take)(element, &values).map_err(A::Error::custom)?);
        }
        Ok(values)
    }
}

pub(super) fn cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Prefix>, D::Error> {
    d.deserialize_any(List { expected: "CIDRs", take: |Cidr(c), _| Ok(c) })
}

pub(super) fn ips<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpAddr>, D::Error> {
    d.deserialize_any(List { expected: "IP addresses", take: |Ip(ip), _| Ok(ip) })
}

pub(super) fn ip_per_family<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpAddr>, D::Error> {
    let take = |Ip(ip): Ip, before: &[IpAddr]| match before.iter().find(|b| b.is_ipv6() == ip.is_ipv6()) {
        Some(other) => Err(format!("both {other} and {ip}: at most one address a family is allowed")),
        None => Ok(ip),
    };
    d.deserialize_any(List { expected: "IP addresses, at most one a family", take })
}

pub(super) fn interfaces<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<InterfaceName>, D::Error> {
    let take = |Interface(name): Interface, before: &[InterfaceName]| match before.contains(&name) {
        true => Err(format!("interface {name} is listed twice")),
        false => Ok(name),
    };
    d.deserialize_any(List { expected: "interface names", take })
}

fn cpus<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u16>, D::Error> {
    let take = |Cpu(cpu): Cpu, before: &[u16]| match before.contains(&cpu) {
        true => Err(format!("CPU {cpu} is listed twice: one worker a CPU is allowed")),
        false => Ok(cpu),
    };
    d.deserialize_any(List { expected: "CPU numbers", take })
}

pub(super) fn node_name<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    d.deserialize_str(Text { expected: NODE_NAME, parse: parse_node_name }).map(Some)
}

/// What a Node's name must be.
pub(crate) const NODE_NAME: &str = "a Node's name: 1 to 253 characters without blanks";

/// A Node's name.
pub(crate) fn parse_node_name(text: &str) -> Option<String> {
    ((1..=253).contains(&text.len()) && !text.chars().any(|c| c.is_whitespace() || c.is_control())).then(|| text.into())
}

pub(super) fn absolute_path<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
    let parse = |t: &str| (t.starts_with('/') && !t.ends_with('/') && !t.contains('\0')).then(|| t.into());
    d.deserialize_str(Text { expected: "a file's absolute path, such as /run/nomagic/conntrack", parse }).map(Some)
}

pub(super) fn grace_ms<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    d.deserialize_any(Whole { min: 100, max: 60_000 }).map(|n| n as u32)
}

pub(super) fn sync_period_ms<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    d.deserialize_any(Whole { min: 1_000, max: 3_600_000 }).map(|n| n as u32)
}

pub(super) fn percent<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    d.deserialize_any(Whole { min: 1, max: 100 }).map(|n| n as u8)
}

pub(super) fn capacity<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    d.deserialize_any(Whole { min: 1_024, max: u64::from(nomagic_core::conntrack::CAPACITY_MAX) }).map(|n| n as u32)
}

pub(super) fn seed<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    d.deserialize_any(Whole { min: 0, max: u64::MAX })
}

/// A number whose type knows its limits.
struct Number<T>(PhantomData<T>);

impl<T: Limited> Visitor<'_> for Number<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::RULE)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<T, E> {
        T::try_from(n).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<T, E> {
        match u64::try_from(n) {
            Ok(n) => self.visit_u64(n),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(n), &self)),
        }
    }
}

pub(super) fn limited<'de, D: Deserializer<'de>, T: Limited>(d: D) -> Result<T, D::Error> {
    d.deserialize_any(Number(PhantomData))
}

fn worker_count<'de, D: Deserializer<'de>>(d: D) -> Result<Option<WorkerCount>, D::Error> {
    limited(d).map(Some)
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PortRange, D::Error> {
        let parse = |text: &str| {
            let (first, last) = text.split_once('-')?;
            let range = PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
            (range.first >= 1_024 && range.first <= range.last).then_some(range)
        };
        d.deserialize_str(Text { expected: "a range of ports from 1024 to 65535, as \"61000-65535\"", parse })
    }
}

impl<'de> Deserialize<'de> for OnFailure {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<OnFailure, D::Error> {
        let parse = |text: &str| match text {
            "pass" => Some(OnFailure::Pass),
            "drop" => Some(OnFailure::Drop),
            "auto" => Some(OnFailure::Auto),
            _ => None,
        };
        d.deserialize_str(Text { expected: "pass, drop or auto", parse })
    }
}

impl<'de> Deserialize<'de> for Reject {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Reject, D::Error> {
        let parse = |text: &str| match text {
            "icmp" => Some(Reject::Icmp),
            "tcpReset" => Some(Reject::TcpReset),
            _ => None,
        };
        d.deserialize_str(Text { expected: "icmp or tcpReset", parse })
    }
}

impl<'de> Deserialize<'de> for Idle {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Idle, D::Error> {
        let parse = |text: &str| match text {
            "spin" => Some(Idle::Spin),
            "sleep" => Some(Idle::Sleep),
            _ => None,
        };
        d.deserialize_str(Text { expected: "spin or sleep", parse })
    }
}

/// `nodePortAddresses`: the type is the table's, its form in the file is described here.
pub fn node_port_addresses<'de, D: Deserializer<'de>>(d: D) -> Result<NodePortAddresses, D::Error> {
    struct Addresses;

    impl<'de> Visitor<'de> for Addresses {
        type Value = NodePortAddresses;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`primary` or a list of CIDRs")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<NodePortAddresses, E> {
            if text == "primary" { Ok(NodePortAddresses::Primary) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<NodePortAddresses, A::Error> {
            let entries = List { expected: "CIDRs", take: |CidrOrPrimary(c), _: &[Option<Prefix>]| Ok(c) }.visit_seq(list)?;
            match entries.as_slice() {
                [None] => Ok(NodePortAddresses::Primary),
                _ if entries.contains(&None) => Err(A::Error::custom("`primary` must stand alone, without CIDRs beside it")),
                _ => Ok(NodePortAddresses::Cidrs(entries.into_iter().flatten().collect())),
            }
        }
    }

    d.deserialize_any(Addresses)
}

element!(CidrOrPrimary, Option<Prefix>, "`primary` or a CIDR such as 10.0.0.0/8", |t| match t {
    "primary" => Some(None),
    t => parse_cidr(t).or_else(|| parse_ip(t).map(Prefix::host)).map(Some),
});

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Workers, D::Error> {
        #[derive(serde::Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        struct Fields {
            #[serde(deserialize_with = "worker_count")]
            count: Option<WorkerCount>,
            #[serde(deserialize_with = "cpus")]
            cpus: Vec<u16>,
            idle: Idle,
        }

        struct NumberOrFields;

        impl<'de> Visitor<'de> for NumberOrFields {
            type Value = Workers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a mapping with count, cpus and idle", WorkerCount::RULE)
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<Workers, E> {
                Ok(Workers { count: WorkerCount::try_from(n).map_err(E::custom)?, ..Workers::default() })
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<Workers, E> {
                let count = u64::try_from(n).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))?;
                self.visit_u64(count)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Workers, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                let listed = fields.cpus.len();
                let count = match fields.count {
                    Some(count) => count,
                    None => WorkerCount::try_from(listed.max(1) as u64).map_err(A::Error::custom)?,
                };
                if listed > 0 && listed != count.get() as usize {
                    return Err(A::Error::custom(format!("count is {count}, but {listed} cpus are listed: one a worker, or none")));
                }
                Ok(Workers { count, cpus: fields.cpus, idle: fields.idle })
            }
        }

        d.deserialize_any(NumberOrFields)
    }
}
