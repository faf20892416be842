//! Types of bounded values. Each limit is defined once, and a value of such a type is within it.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;

/// A rejected value: its purpose, the value, and the violated rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} {value}: must be {rule}")]
pub struct OutOfLimits {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// A bounded number.
pub trait Limited: TryFrom<u64, Error = OutOfLimits> {
    /// The allowed values, as text for messages.
    const RULE: &'static str;
}

macro_rules! limited {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal..=$max:literal, $rule:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(u32);

        impl $name {
            pub const MIN: u32 = $min;
            pub const MAX: u32 = $max;

            /// A constant.
            ///
            /// # Panics
            /// Panics outside the limits.
            pub const fn from_static(n: u32) -> $name {
                assert!($name::allows(n), concat!($what, ": must be ", $rule));
                $name(n)
            }

            pub const fn get(self) -> u32 {
                self.0
            }

            const fn allows(n: u32) -> bool {
                const fn fits(n: u32) -> bool {
                    $fits(n)
                }
                $name::MIN <= n && n <= $name::MAX && fits(n)
            }
        }

        impl Limited for $name {
            const RULE: &'static str = $rule;
        }

        impl TryFrom<u64> for $name {
            type Error = OutOfLimits;

            fn try_from(n: u64) -> Result<$name, OutOfLimits> {
                match u32::try_from(n) {
                    Ok(n) if $name::allows(n) => Ok($name(n)),
                    _ => Err(OutOfLimits { what: $what, value: n.to_string(), rule: $rule }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

const fn any(_: u32) -> bool {
    true
}

const fn multiple_of_64(n: u32) -> bool {
    n.is_multiple_of(64)
}

limited! {
    /// Worker threads. The maximum is `WORKERS_MAX` of bpf/maps.h.
    WorkerCount, "worker count", 1..=64, "a number from 1 to 64", any
}
limited! {
    /// Entries of each ring of each queue.
    RingSize, "ring size", 64..=16_384, "a power of two from 64 to 16384", u32::is_power_of_two
}
limited! {
    /// Bytes of a frame's buffer; 256 of them are headroom.
    FrameSize, "frame size", 2_048..=4_096, "2048 or 4096", u32::is_power_of_two
}
limited! {
    /// Bytes of headroom in addition to those 256.
    Headroom, "headroom", 0..=1_024, "a multiple of 64 from 0 to 1024", multiple_of_64
}
limited! {
    /// A VLAN identifier (IEEE 802.1Q); 0 stands for none and 4095 is reserved.
    VlanId, "VLAN", 1..=4_094, "a number from 1 to 4094", any
}

/// The MAC address of one interface: neither a group's nor all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// What is allowed, in words.
    pub const RULE: &'static str = "six bytes in hexadecimal such as 00:00:5e:00:01:0a, the address of one interface and not of a group";

    /// The bytes, in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    fn parse(text: &str) -> Option<MacAddress> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let digits = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *octet = u8::from_str_radix(digits, 16).ok()?;
        }
        let of_one = octets[0] & 1 == 0 && octets != [0; 6];
        (of_one && parts.next().is_none()).then_some(MacAddress(octets))
    }
}

impl std::str::FromStr for MacAddress {
    type Err = OutOfLimits;

    fn from_str(text: &str) -> Result<MacAddress, OutOfLimits> {
        let refused = || OutOfLimits { what: "MAC address", value: format!("`{}`", text.escape_debug()), rule: MacAddress::RULE };
        MacAddress::parse(text).ok_or_else(refused)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The name of a network interface: the kernel's rule (`dev_valid_name` in net/core/dev.c), without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InterfaceName(Cow<'static, str>);

impl InterfaceName {
    /// Maximum length in bytes: IFNAMSIZ without the terminating NUL.
    pub const LEN_MAX: usize = 15;
    /// The allowed names, as text for messages.
    pub const RULE: &'static str = "1 to 15 bytes without blanks, control characters, `/` and `:`, and neither `.` nor `..`";

    /// A constant.
    ///
    /// # Panics
    /// Panics if the name is invalid.
    pub const fn from_static(name: &'static str) -> InterfaceName {
        assert!(InterfaceName::allows(name), "not a valid interface name");
        InterfaceName(Cow::Borrowed(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether every character of a text may be part of a name.
    pub const fn may_contain(text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            let byte = bytes[i];
            // The kernel's isspace() uses Latin-1, where 0xa0 is a space.
            if byte == b'/' || byte == b':' || byte == 0xa0 || byte.is_ascii_whitespace() || byte.is_ascii_control() {
                return false;
            }
            i += 1;
        }
        true
    }

    const fn allows(name: &str) -> bool {
        let fits = !name.is_empty() && name.len() <= InterfaceName::LEN_MAX;
        fits && InterfaceName::may_contain(name) && !matches!(name.as_bytes(), b"." | b"..")
    }
}

impl TryFrom<&str> for InterfaceName {
    type Error = OutOfLimits;

    fn try_from(name: &str) -> Result<InterfaceName, OutOfLimits> {
        if InterfaceName::allows(name) {
            return Ok(InterfaceName(Cow::Owned(name.to_owned())));
        }
        Err(OutOfLimits { what: "interface name", value: format!("`{}`", name.escape_debug()), rule: InterfaceName::RULE })
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = OutOfLimits;

    fn try_from(name: String) -> Result<InterfaceName, OutOfLimits> {
        InterfaceName::try_from(name.as_str())
    }
}

impl std::str::FromStr for InterfaceName {
    type Err = OutOfLimits;

    fn from_str(name: &str) -> Result<InterfaceName, OutOfLimits> {
        InterfaceName::try_from(name)
    }
}

impl Deref for InterfaceName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for InterfaceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<&str> for InterfaceName {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values out of range are refused with the value, the rule and the limits; the limits themselves are accepted.
    fn check<T: Limited + Copy + Into<u64>>(min: u32, max: u32, bad: &[u64]) {
        for n in [min, max] {
            let taken = T::try_from(u64::from(n)).map(Into::into);
            assert_eq!(taken, Ok(u64::from(n)));
        }
        for &n in bad.iter().chain(&[u64::from(max) * 2, u64::from(max) + 1, u64::MAX]) {
            let text = T::try_from(n).map(Into::into).unwrap_err().to_string();
            let limits = [max.to_string(), n.to_string(), T::RULE.to_owned()];
            assert!(limits.iter().all(|word| text.contains(word)), "{text}");
            assert!(min == 0 || text.contains(&min.to_string()), "{text}");
        }
    }

    macro_rules! into_number {
        ($($name:ident),*) => {
            $(impl From<$name> for u64 {
                fn from(n: $name) -> u64 {
                    n.get().into()
                }
            })*
        };
    }
    into_number!(WorkerCount, RingSize, FrameSize, Headroom, VlanId);

    #[test]
    fn numbers_out_of_range_are_refused_with_the_rule() {
        check::<WorkerCount>(WorkerCount::MIN, WorkerCount::MAX, &[0]);
        check::<RingSize>(RingSize::MIN, RingSize::MAX, &[0, 32, 1_000]);
        check::<FrameSize>(FrameSize::MIN, FrameSize::MAX, &[0, 1_024, 1_500, 3_000]);
        check::<Headroom>(Headroom::MIN, Headroom::MAX, &[1, 100]);
        check::<VlanId>(VlanId::MIN, VlanId::MAX, &[0, 4_096]);
        assert_eq!(RingSize::try_from(1_000).unwrap_err().to_string(), "ring size 1000: must be a power of two from 64 to 16384");
    }

    #[test]
    fn interface_names_follow_the_kernels_rule() {
        for good in ["eth0", "a", "fifteen-bytes-x", "enp0s3.100", "käse", "..."] {
            assert_eq!(InterfaceName::try_from(good).unwrap(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\0b", "a\u{7f}b", "sixteen-bytes-xx", "à", "a\u{a0}b"] {
            let text = InterfaceName::try_from(bad).unwrap_err().to_string();
            assert!(text.contains(&*bad.escape_debug().to_string()) && text.contains("1 to 15 bytes"), "{text}");
        }
        assert_eq!(InterfaceName::RULE.split_whitespace().nth(2), Some(&*InterfaceName::LEN_MAX.to_string()));
    }

    #[test]
    fn mac_addresses_are_of_one_interface() {
        for good in ["00:00:5e:00:01:0a", "02:FF:00:aa:bb:cc", "ee:ee:ee:ee:ee:ee"] {
            let mac: MacAddress = good.parse().unwrap();
            assert_eq!(mac.to_string(), good.to_lowercase());
        }
        let bad = ["", "00:00:00:00:00:00", "01:00:5e:00:00:12", "ff:ff:ff:ff:ff:ff", "02:0:0:0:0:1", "02-00-00-00-00-01", "020000000001"];
        for bad in bad.into_iter().chain([
            "02:00:00:00:00:01:00",
            "02:00:00:00:00",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
            "02:00:00:00:00:01 ",
        ]) {
            let text = bad.parse::<MacAddress>().unwrap_err().to_string();
            assert!(text.contains(&format!("`{bad}`")) && text.contains("00:00:5e:00:01:0a"), "{text}");
        }
    }
}
