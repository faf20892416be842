//! Packet memory: rings, frames and pages.

use nomagic_xsk::{FrameSize, Headroom, RingSize};
use serde::Deserialize;

use super::values::limited;

/// The packet buffers (UMEM).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PacketsConfig {
    /// Number of entries in each ring of each queue: a power of two, 64 to 16,384. Default: 2,048.
    #[serde(deserialize_with = "limited")]
    pub ring_size: RingSize,
    /// Frame size in bytes, 2,048 or 4,096; the first 256 bytes and `headroom` precede the packet. Default: 2,048.
    #[serde(deserialize_with = "limited")]
    pub frame_size: FrameSize,
    /// Bytes before the packet in addition to those 256: a multiple of 64, at most 1,024. Default: 0.
    #[serde(deserialize_with = "limited")]
    pub headroom: Headroom,
    /// Use huge pages of 2 MiB for frames. They must be reserved (`vm.nr_hugepages`). Default: false.
    pub huge_pages: bool,
}

impl Default for PacketsConfig {
    fn default() -> PacketsConfig {
        let (ring_size, frame_size) = (RingSize::from_static(2048), FrameSize::from_static(2048));
        PacketsConfig { ring_size, frame_size, headroom: Headroom::from_static(0), huge_pages: false }
    }
}
