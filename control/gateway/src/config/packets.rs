//! Packet memory: rings, frames, pages.

use nomagic_xsk::{FrameSize, Headroom, RingSize};
use serde::Deserialize;

use super::values::limited;

/// The memory that packets are received into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PacketsConfig {
    /// Entries of each ring of each queue: a power of two, 64 to 16,384. Default: 2,048.
    #[serde(deserialize_with = "limited")]
    pub ring_size: RingSize,
    /// Bytes of a frame, 2,048 or 4,096; 256 of them, and `headroom`, lie before the packet. Default: 2,048.
    #[serde(deserialize_with = "limited")]
    pub frame_size: FrameSize,
    /// Bytes before the packet beside those 256, a multiple of 64 up to 1,024. Default: 0.
    #[serde(deserialize_with = "limited")]
    pub headroom: Headroom,
    /// Frames lie on huge pages of 2 MiB, which must have been set aside (`vm.nr_hugepages`). Default: false.
    pub huge_pages: bool,
}

impl Default for PacketsConfig {
    fn default() -> PacketsConfig {
        let (ring_size, frame_size) = (RingSize::from_static(2048), FrameSize::from_static(2048));
        PacketsConfig { ring_size, frame_size, headroom: Headroom::from_static(0), huge_pages: false }
    }
}
