//! `mss`: the maximum segment size in SYNs.

use std::fmt;

use nomagic_core::mss::SegmentSize;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Fewer bytes than every host takes (RFC 9293, section 3.7.1), and more than a packet has room for, make no sense.
const LEAST: u64 = 536;
const MOST: u64 = 65_495;

/// See [`SegmentSize`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mss(pub SegmentSize);

impl<'de> Deserialize<'de> for Mss {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Mss, D::Error> {
        d.deserialize_any(MssVisitor)
    }
}

struct MssVisitor;

impl Visitor<'_> for MssVisitor {
    type Value = Mss;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keep, clamp, or a number of bytes from {LEAST} to {MOST}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Mss, E> {
        match text {
            "keep" => Ok(Mss(SegmentSize::Keep)),
            "clamp" => Ok(Mss(SegmentSize::Clamp)),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Mss, E> {
        let size = u16::try_from(bytes).ok().filter(|_| (LEAST..=MOST).contains(&bytes));
        size.map(|size| Mss(SegmentSize::AtMost(size))).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(bytes), &self))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<Mss, E> {
        match u64::try_from(bytes) {
            Ok(bytes) => self.visit_u64(bytes),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(bytes), &self)),
        }
    }
}
