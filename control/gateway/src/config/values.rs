//! Deserialisation of the configuration's values into their final types, with limits and with messages that name the allowed values.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::PathBuf;

use nomagic_core::services::UnusedPorts;
use nomagic_core::tuple::Prefix;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use nomagic_table::objects::addr::{parse_cidr, parse_ip};
use nomagic_table::settings::NodePortAddresses;
use nomagic_xsk::{InterfaceName, Limited};

/// Maximum number of entries in a list.
const LIST_MAX: usize = 1_024;

/// What the XDP program does after the workers have stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FailurePolicy {
    /// Pass Service packets to the kernel (kube-proxy may handle them there).
    Pass,
    /// Drop Service packets.
    Drop,
    /// `pass` if a kernel proxy is found, else `drop`.
    #[default]
    Auto,
}

/// How connections are rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reject {
    /// ICMP port unreachable.
    #[default]
    Icmp,
    /// TCP reset for TCP, ICMP port unreachable for other protocols.
    TcpReset,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> PortRange {
        PortRange { first: 1_024, last: 65_535 }
    }
}

/// Parses a whole number between two limits.
pub(super) struct WholeVisitor {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Visitor<'_> for WholeVisitor {
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

/// Parses a string.
pub(super) struct TextVisitor<T> {
    pub(super) expected: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Parses a string of a type that has a rule; its own error names the part of the rule that the string breaks.
pub(super) struct RuleVisitor<T, E> {
    pub(super) what: &'static str,
    pub(super) rule: &'static str,
    pub(super) parse: fn(&str) -> Result<T, E>,
}

impl<T, P: fmt::Display> Visitor<'_> for RuleVisitor<T, P> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.rule)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

/// Defines a list element: a private newtype that is parsed from a string.
macro_rules! element {
    ($name:ident, $value:ty, $expected:literal, $parse:expr) => {
        struct $name($value);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                d.deserialize_str(TextVisitor { expected: $expected, parse: $parse }).map($name)
            }
        }
    };
}

element!(Cidr, Prefix, "a CIDR such as 10.0.0.0/8 or fd00::/64", |t| { parse_cidr(t).or_else(|| parse_ip(t).map(Prefix::host)) });
element!(Ip, IpAddr, "an IP address such as 192.168.0.2 or fd00::2", parse_ip);

struct InterfaceElement(InterfaceName);

impl<'de> Deserialize<'de> for InterfaceElement {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<InterfaceElement, D::Error> {
        let (what, rule) = ("the name of a network interface", InterfaceName::RULE);
        d.deserialize_str(RuleVisitor { what, rule, parse: parse_interface }).map(InterfaceElement)
    }
}

/// Parses the name of a network interface to take over.
pub(crate) fn parse_interface(text: &str) -> Result<InterfaceName, String> {
    match InterfaceName::try_from(text) {
        Ok(name) if name == "lo" => Err("interface `lo`: the loopback interface cannot be taken over".into()),
        Ok(name) => Ok(name),
        Err(e) => Err(e.to_string()),
    }
}

/// Parses a list of bounded length. `accept` converts an element, or rejects it given the previous values.
pub(super) struct ListVisitor<T, V> {
    pub(super) expected: &'static str,
    pub(super) accept: fn(T, &[V]) -> Result<V, String>,
}

impl<'de, T: Deserialize<'de>, V> Visitor<'de> for ListVisitor<T, V> {
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
            values.push((self.accept)(element, &values).map_err(A::Error::custom)?);
        }
        Ok(values)
    }
}

pub(super) fn cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Prefix>, D::Error> {
    d.deserialize_any(ListVisitor { expected: "CIDRs", accept: |Cidr(c), _| Ok(c) })
}

pub(super) fn optional_cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<Prefix>>, D::Error> {
    cidrs(d).map(Some)
}

pub(super) fn ips<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpAddr>, D::Error> {
    d.deserialize_any(ListVisitor { expected: "IP addresses", accept: |Ip(ip), _| Ok(ip) })
}

pub(super) fn ip_per_family<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpAddr>, D::Error> {
    let accept = |Ip(ip): Ip, before: &[IpAddr]| match before.iter().find(|b| b.is_ipv6() == ip.is_ipv6()) {
        Some(other) => Err(format!("both {other} and {ip}: at most one address per family is allowed")),
        None => Ok(ip),
    };
    d.deserialize_any(ListVisitor { expected: "IP addresses, at most one per family", accept })
}

pub(super) fn interfaces<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<InterfaceName>, D::Error> {
    let accept = |InterfaceElement(name): InterfaceElement, before: &[InterfaceName]| match before.contains(&name) {
        true => Err(format!("interface {name} is listed twice")),
        false => Ok(name),
    };
    d.deserialize_any(ListVisitor { expected: "interface names", accept })
}

pub(super) fn node_name<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    d.deserialize_str(TextVisitor { expected: NODE_NAME, parse: parse_node_name }).map(Some)
}

/// The rule for a Node's name.
pub(crate) const NODE_NAME: &str = "a Node's name: 1 to 253 characters without blanks";

pub(crate) fn parse_node_name(text: &str) -> Option<String> {
    ((1..=253).contains(&text.len()) && !text.chars().any(|c| c.is_whitespace() || c.is_control())).then(|| text.into())
}

pub(super) fn absolute_path<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
    let parse = |t: &str| (t.starts_with('/') && !t.ends_with('/') && !t.contains('\0')).then(|| t.into());
    d.deserialize_str(TextVisitor { expected: "a file's absolute path, such as /run/nomagic/conntrack", parse }).map(Some)
}

/// Defines a function that parses a whole number between two limits.
macro_rules! whole {
    ($name:ident, $type:ty, $min:expr, $max:expr) => {
        pub(super) fn $name<'de, D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
            d.deserialize_any(WholeVisitor { min: $min, max: $max }).map(|n| n as $type)
        }
    };
}

whole!(grace_ms, u32, 100, 60_000);
whole!(sync_period_ms, u32, 1_000, 3_600_000);
whole!(percent, u8, 1, 100);
whole!(capacity, u32, 1_024, u64::from(nomagic_core::conntrack::CAPACITY_MAX));

pub(super) fn seed<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    d.deserialize_any(WholeVisitor { min: 0, max: u64::MAX }).map(Some)
}

/// Parses a number whose type defines its limits.
struct LimitedVisitor<T>(PhantomData<T>);

impl<T: Limited> Visitor<'_> for LimitedVisitor<T> {
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
    d.deserialize_any(LimitedVisitor(PhantomData))
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PortRange, D::Error> {
        let parse = |text: &str| {
            let (first, last) = text.split_once('-')?;
            let range = PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
            (range.first >= 1_024 && range.first <= range.last).then_some(range)
        };
        d.deserialize_str(TextVisitor { expected: "a range of ports from 1024 to 65535, such as \"1024-65535\"", parse })
    }
}

/// Parses an enum from the names of its variants.
macro_rules! keywords {
    ($type:ident, $expected:literal, $($text:literal => $variant:ident),+) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
                let parse = |text: &str| match text {
                    $($text => Some($type::$variant),)+
                    _ => None,
                };
                d.deserialize_str(TextVisitor { expected: $expected, parse })
            }
        }
    };
}

pub(super) use keywords;

keywords!(FailurePolicy, "pass, drop or auto", "pass" => Pass, "drop" => Drop, "auto" => Auto);
keywords!(Reject, "icmp or tcpReset", "icmp" => Icmp, "tcpReset" => TcpReset);

/// Parses `unusedPorts`.
pub(super) fn unused_ports<'de, D: Deserializer<'de>>(d: D) -> Result<UnusedPorts, D::Error> {
    let parse = |text: &str| match text {
        "refuse" => Some(UnusedPorts::Refuse),
        "drop" => Some(UnusedPorts::Drop),
        "kernel" => Some(UnusedPorts::Kernel),
        _ => None,
    };
    d.deserialize_str(TextVisitor { expected: "refuse, drop or kernel", parse })
}

/// Parses `nodePortAddresses`.
pub(super) fn node_port_addresses<'de, D: Deserializer<'de>>(d: D) -> Result<NodePortAddresses, D::Error> {
    struct AddressesVisitor;

    impl<'de> Visitor<'de> for AddressesVisitor {
        type Value = NodePortAddresses;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`primary` or a list of CIDRs")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<NodePortAddresses, E> {
            if text == "primary" { Ok(NodePortAddresses::Primary) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<NodePortAddresses, A::Error> {
            let entries = ListVisitor { expected: "CIDRs", accept: |CidrOrPrimary(c), _: &[Option<Prefix>]| Ok(c) }.visit_seq(list)?;
            match entries.as_slice() {
                [None] => Ok(NodePortAddresses::Primary),
                _ if entries.contains(&None) => Err(A::Error::custom("`primary` must stand alone, without CIDRs")),
                _ => Ok(NodePortAddresses::Cidrs(entries.into_iter().flatten().collect())),
            }
        }
    }

    d.deserialize_any(AddressesVisitor)
}

element!(CidrOrPrimary, Option<Prefix>, "`primary` or a CIDR such as 10.0.0.0/8", |t| match t {
    "primary" => Some(None),
    t => parse_cidr(t).or_else(|| parse_ip(t).map(Prefix::host)).map(Some),
});
