//! The MAC addresses and VLANs whose frames the XDP filter captures on a port, in the layout of bpf/maps.h.

use crate::limits::{MacAddress, VlanId};
use crate::link::Link;

/// Maximum number of configured MAC addresses: `MORE_MACS_MAX` of bpf/maps.h.
pub const MAC_ADDRESSES_MAX: usize = 8;
/// Maximum number of configured VLANs. The filter has a bit for each VLAN; a longer list is more likely a mistake than a trunk for one gateway.
pub const VLANS_MAX: usize = 64;
/// `VLAN_IDS` of bpf/maps.h, in words.
const VLAN_WORDS: usize = 4096 / 64;
/// `NO_MAC` and `ANY_UNICAST` of bpf/maps.h: no frame has these.
const NO_MAC: u64 = u64::MAX;
const ANY_UNICAST: u64 = u64::MAX - 1;

/// An address as the program reads it from a frame: the first byte is the lowest.
fn number([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The configured MAC addresses and VLANs, which hold for all ports: constants of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Configured {
    /// MAC addresses in addition to the port's own.
    pub macs: [u64; MAC_ADDRESSES_MAX],
    /// A bit for each VLAN. Priority tags (VLAN 0) belong to the port itself (IEEE 802.1Q, 6.9).
    pub vlans: [u64; VLAN_WORDS],
}

impl Configured {
    /// Leaves out addresses beyond [`MAC_ADDRESSES_MAX`]; a validated configuration has none.
    pub fn new(macs: &[MacAddress], vlans: &[VlanId]) -> Configured {
        let mut all = Configured { macs: [NO_MAC; MAC_ADDRESSES_MAX], vlans: [0; VLAN_WORDS] };
        all.macs.iter_mut().zip(macs).for_each(|(place, mac)| *place = number(mac.octets()));
        for id in vlans.iter().map(|vlan| vlan.get() as usize).chain([0]) {
            all.vlans[id / 64] |= 1 << (id % 64);
        }
        all
    }
}

/// The MAC addresses of one port: `struct port_macs`. They are not constants, because an interface's address may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PortMacs([u64; 2]);

impl PortMacs {
    /// The addresses of an interface and of its bridge or bond.
    pub fn of(link: &Link) -> PortMacs {
        PortMacs([number(link.mac), link.master_mac.map_or(NO_MAC, number)])
    }

    /// The addresses of a redirect port. Behind a port of a bridge is one pod, which also answers other pods directly, by their own MAC
    /// addresses; the filter must see these answers.
    pub fn of_redirect(link: &Link) -> PortMacs {
        PortMacs([number(link.mac), link.master_mac.map_or(NO_MAC, |_| ANY_UNICAST)])
    }

    /// The value of the map.
    pub fn value(self) -> [u64; 2] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_bits_and_priority_tags_always_belong_to_the_port() {
        let configured = |ids: &[u64]| Configured::new(&[], &ids.iter().map(|&id| VlanId::try_from(id).unwrap()).collect::<Vec<_>>());
        let bits = |ids: &[u64]| configured(ids).vlans.iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!((configured(&[]).vlans[0], bits(&[])), (1, 1));
        assert_eq!((configured(&[100, 4094]).vlans[1], configured(&[100, 4094]).vlans[63], bits(&[100, 4094])), (1 << 36, 1 << 62, 3));
    }

    #[test]
    fn places_without_an_address_match_no_frame() {
        let one = Configured::new(&["00:00:5e:00:01:0a".parse().unwrap()], &[]);
        assert_eq!(one.macs[0], 0x0a01_005e_0000);
        assert!(one.macs[1..].iter().all(|mac| mac >> 48 != 0));
        assert!([NO_MAC, ANY_UNICAST].iter().all(|mac| mac >> 48 != 0));
    }
}
