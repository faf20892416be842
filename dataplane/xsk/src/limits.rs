//! Values with limits, each limit in one place: what has one of these types is within them.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;

/// A value that is refused: what it was meant for, the value, and the rule that it breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} {value}: must be {rule}")]
pub struct OutOfLimits {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// A number with limits.
pub trait Limited: TryFrom<u64, Error = OutOfLimits> {
    /// What is allowed, in words.
    const RULE: &'static str;
}

macro_rules! limited {
    ($(#[$doc:meta])* $name:ident, $what:literal, $min:literal..=$max:literal, $rule:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(u32);

        impl $name {
            /// The least.
            pub const MIN: u32 = $min;
            /// The most.
            pub const MAX: u32 = $max;

            /// A value from the source code.
            ///
            /// # Panics
            /// When it is outside of the limits.
            pub const fn from_static(n: u32) -> $name {
                assert!($name::allows(n), concat!($what, ": must be ", $rule));
                $name(n)
            }

            /// The number.
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
    /// Worker threads. The most is `WORKERS_MAX` of bpf/maps.h.
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

/// The name of a network interface: what the kernel takes for one (`dev_valid_name` in net/core/dev.c), except for control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InterfaceName(Cow<'static, str>);

impl InterfaceName {
    /// Bytes at the most: IFNAMSIZ without the final zero.
    pub const LEN_MAX: usize = 15;
    /// What is allowed, in words.
    pub const RULE: &'static str = "1 to 15 bytes without blanks, control characters, `/` and `:`, and neither `.` nor `..`";

    /// A name from the source code.
    ///
    /// # Panics
    /// When it is none.
    pub const fn from_static(name: &'static str) -> InterfaceName {
        assert!(InterfaceName::allows(name), "not a valid interface name");
        InterfaceName(Cow::Borrowed(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether all of a text may be part of a name.
    pub const fn may_contain(text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            let byte = bytes[i];
            // The kernel's isspace() goes by Latin-1, where 0xa0 is a space.
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

    /// The numbers that are refused name the value, the rule and the limits; those at the limits are taken.
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
    into_number!(WorkerCount, RingSize, FrameSize, Headroom);

    #[test]
    fn numbers_outside_of_their_limits_are_refused_by_name() {
        check::<WorkerCount>(WorkerCount::MIN, WorkerCount::MAX, &[0]);
        check::<RingSize>(RingSize::MIN, RingSize::MAX, &[0, 32, 1_000]);
        check::<FrameSize>(FrameSize::MIN, FrameSize::MAX, &[0, 1_024, 1_500, 3_000]);
        check::<Headroom>(Headroom::MIN, Headroom::MAX, &[1, 100]);
        assert_eq!(RingSize::try_from(1_000).unwrap_err().to_string(), "ring size 1000: must be a power of two from 64 to 16384");
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "a", "fifteen-bytes-x", "enp0s3.100", "käse", "..."] {
            assert_eq!(InterfaceName::try_from(good).unwrap(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\0b", "a\u{7f}b", "sixteen-bytes-xx", "à", "a\u{a0}b"] {
            let text = InterfaceName::try_from(bad).unwrap_err().to_string();
            assert!(text.contains(&*bad.escape_debug().to_string()) && text.contains("1 to 15 bytes"), "{text}");
        }
        assert_eq!(InterfaceName::RULE.split_whitespace().nth(2), Some(&*InterfaceName::LEN_MAX.to_string()));
    }
}
