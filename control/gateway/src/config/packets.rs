//! Packet memory: rings, frames, pages.

use serde::{Deserialize, Deserializer};

use super::values::whole;

/// The memory that packets are received into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PacketsConfig {
    /// Entries of each ring of each queue: a power of two, 64 to 16,384. Default: 2,048.
    #[serde(deserialize_with = "ring_size")]
    pub ring_size: u32,
    /// Bytes of a frame, 2,048 or 4,096; 256 of them, and `headroom`, lie before the packet. Default: 2,048.
    #[serde(deserialize_with = "frame_size")]
    pub frame_size: u32,
    /// Bytes before the packet beside those 256, a multiple of 64 up to 1,024. Default: 0.
    #[serde(deserialize_with = "headroom")]
    pub headroom: u32,
    /// Frames lie on huge pages of 2 MiB, which must have been set aside (`vm.nr_hugepages`). Default: false.
    pub huge_pages: bool,
}

impl Default for PacketsConfig {
    fn default() -> PacketsConfig {
        PacketsConfig { ring_size: 2048, frame_size: 2048, headroom: 0, huge_pages: false }
    }
}

fn ring_size<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    whole(d, 64, 16_384, "a power of two", |n| n.is_power_of_two())
}

fn frame_size<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    whole(d, 2_048, 4_096, "2048 or 4096", |n| n.is_power_of_two())
}

fn headroom<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    whole(d, 0, 1_024, "a multiple of 64", |n| n.is_multiple_of(64))
}
