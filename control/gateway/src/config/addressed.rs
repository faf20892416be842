//! Which frames are captured: MAC addresses and VLANs.

use nomagic_xsk::{MAC_ADDRESSES_MAX, MacAddress, VLANS_MAX, VlanId};
use serde::de::{Deserialize, Deserializer};

use super::values::{ListVisitor, RuleVisitor, limited};

struct Mac(MacAddress);

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        d.deserialize_str(RuleVisitor { what: "a MAC address", rule: MacAddress::RULE, parse: str::parse }).map(Mac)
    }
}

struct Vlan(VlanId);

impl<'de> Deserialize<'de> for Vlan {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Vlan, D::Error> {
        limited(d).map(Vlan)
    }
}

/// Refuses a duplicate, and a value beyond the limit.
fn next<T: PartialEq + std::fmt::Display>(value: T, known: &[T], max: usize, what: &str) -> Result<T, String> {
    match known.contains(&value) {
        true => Err(format!("{what} {value} is listed twice")),
        false if known.len() == max => Err(format!("more than {max} of them")),
        false => Ok(value),
    }
}

pub(super) fn mac_addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<MacAddress>, D::Error> {
    let accept = |Mac(mac): Mac, known: &[MacAddress]| next(mac, known, MAC_ADDRESSES_MAX, "MAC address");
    d.deserialize_any(ListVisitor { expected: "MAC addresses", accept })
}

pub(super) fn vlans<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<VlanId>, D::Error> {
    let accept = |Vlan(vlan): Vlan, known: &[VlanId]| next(vlan, known, VLANS_MAX, "VLAN");
    d.deserialize_any(ListVisitor { expected: "VLANs", accept })
}
