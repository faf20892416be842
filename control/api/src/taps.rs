//! Taps: packets that fit a filter, with their bytes before and after the rewrite, and the decisions about them.

use serde::{Deserialize, Serialize};

use crate::flows::FlowFilter;

/// The version of [`TappedPacket`]'s form. It grows with each incompatible change.
pub const PACKET_SCHEMA: u32 = 1;
/// Longest time that a tap may be asked for, seconds.
pub const LASTS_MAX_S: u64 = 86_400;
/// A tap that is not read for so long ends, seconds. Its reader may wait for Wireshark to start.
pub const READ_EVERY_S: u64 = 30;

/// What a tap watches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapRequest {
    /// Of the flows; the state is not looked at.
    pub filter: FlowFilter,
    /// Bytes of each packet that are kept.
    pub snap_len: u32,
    /// Packets that are watched in a second at the most.
    pub packets_per_s: u32,
    /// The tap ends after so many seconds.
    pub lasts_s: u64,
}

/// A part of what a tap has seen.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TapPage {
    pub packets: Vec<TappedPacket>,
    /// Packets that have fit the filter.
    pub matched: u64,
    /// Packets beyond the limit for a second, which were not watched.
    pub limited: u64,
    /// Packets that found the queue of this reader full.
    pub missed: u64,
    /// The tap's time is over, and this was the last page.
    pub ended: bool,
}

/// A packet that was watched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TappedPacket {
    /// [`PACKET_SCHEMA`].
    pub schema: u32,
    /// RFC 3339, UTC.
    pub time: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    pub worker: u32,
    /// `forward`, `fragment`, `kernel`, `reject`, `drop` or `hold`.
    pub verdict: String,
    /// Label of the reason, as in the metrics; `null` when forwarded.
    pub reason: Option<String>,
    pub proto: Option<String>,
    /// The packet's, as it came in.
    pub source: Option<String>,
    pub destination: Option<String>,
    /// `namespace/name:port name`
    pub service: Option<String>,
    pub backend: Option<String>,
    /// What the endpoint sees in place of the client, if something else.
    pub snat: Option<String>,
    /// The decisions, in their order.
    pub steps: Vec<String>,
    pub received: TappedFrame,
    /// As it is sent; `null`: it is not.
    pub sent: Option<TappedFrame>,
    /// What its sender is told.
    pub answer: Option<TappedFrame>,
}

/// A frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TappedFrame {
    /// By which it came in or is sent.
    pub interface: String,
    /// Its length in bytes.
    pub len: u32,
    /// Its beginning.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_on_the_way() {
        let frame = TappedFrame { interface: "eth0".into(), len: 1_500, bytes: (0..=255).collect() };
        let text = serde_json::to_string(&frame).unwrap();
        assert!(text.contains("\"bytes\":\"AAECAwQ"), "{text}");
        assert_eq!(serde_json::from_str::<TappedFrame>(&text).unwrap(), frame);
        serde_json::from_str::<TappedFrame>(r#"{"interface":"a","len":1,"bytes":"?"}"#).unwrap_err();
    }
}
