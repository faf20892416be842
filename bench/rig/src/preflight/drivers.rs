//! Which drivers can do XDP in the driver and AF_XDP without a copy, and since which Linux.
//!
//! Only for kernels before 6.3: later ones are asked (`xdp-features` of the netlink family `netdev`), and their word counts. Versions are those of
//! the first upstream release with the change. Sources: the table in bcc's `docs/kernel-versions.md` (XDP up to 5.3), and the history of
//! `drivers/net` in Linux: `ndo_bpf` with XDP_SETUP_PROG and XDP_SETUP_XSK_POOL (XDP_SETUP_XSK_UMEM before 5.10). What distributions and vendors ship
//! beside that is not in here: their drivers may do more.

/// A version of Linux, major and minor.
pub type Version = (u32, u32);

/// A driver as `ethtool -i` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Its name.
    pub name: &'static str,
    /// XDP with XDP_REDIRECT in the driver, which AF_XDP needs.
    pub native: Version,
    /// AF_XDP sockets in zero-copy mode; `None`: not in upstream Linux before 6.3.
    pub zero_copy: Option<Version>,
    /// What one must know beside that.
    pub note: &'static str,
}

const fn driver(name: &'static str, native: Version, zero_copy: Option<Version>, note: &'static str) -> Driver {
    Driver { name, native, zero_copy, note }
}

/// XDP_REDIRECT is of 4.14: no driver counts as native before.
const DRIVERS: [Driver; 13] = [
    driver("i40e", (4, 17), Some((4, 20)), ""),
    driver("ixgbe", (4, 14), Some((4, 20)), ""),
    driver("ice", (5, 5), Some((5, 5)), "zero-copy: ring sizes a power of two"),
    driver("igb", (5, 10), None, "zero-copy came with 6.14"),
    driver("igc", (5, 13), Some((5, 14)), ""),
    driver("mlx5_core", (4, 18), Some((5, 3)), "before 6.1 its zero-copy queues are numbered from the number of channels on"),
    driver("bnxt_en", (5, 3), None, ""),
    driver("ena", (5, 12), None, "Amazon's own driver (out of tree) has zero-copy; channels: at most half of the maximum with XDP"),
    driver("stmmac", (5, 13), Some((5, 13)), ""),
    driver("mana", (6, 2), None, ""),
    driver("virtio_net", (4, 15), None, "XDP needs a transmit queue for each CPU beside its pairs"),
    driver("veth", (4, 19), None, ""),
    driver("mvneta", (5, 5), None, ""),
];

/// The driver of this name.
pub fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|d| d.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_copy_is_never_older_than_its_foundations() {
        for d in DRIVERS {
            assert!(d.native >= (4, 14), "{}: XDP_REDIRECT is of 4.14", d.name);
            assert!(d.native < (6, 3) && d.zero_copy.is_none_or(|z| z < (6, 3)), "{}: from 6.3 on the kernel is asked", d.name);
            assert!(d.zero_copy.is_none_or(|z| z >= d.native && z >= (4, 20)), "{}: zero-copy is of 4.20", d.name);
            assert_eq!(DRIVERS.iter().filter(|o| o.name == d.name).count(), 1, "{}", d.name);
        }
        assert!(find("e1000e").is_none());
    }
}
