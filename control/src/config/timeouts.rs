//! How long connections that nobody uses are remembered.

use nomagic_core::conntrack::Timeouts;
use serde::{Deserialize, Deserializer};

use super::values::Text;

/// Idle times are between these, milliseconds.
const MIN_MS: u64 = 1_000;
const MAX_MS: u64 = 30 * 24 * 3_600_000;

/// Idle times by what is known of a connection, as `90s`, `5m`, `24h` or `1h30m`, 1s to 720h. SCTP goes by TCP's. The defaults are
/// the kernel's (nf_conntrack_*_timeout_*), with kube-proxy's for established TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TimeoutsConfig {
    /// TCP: the client's SYN was seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_syn_sent: u64,
    /// TCP: the endpoint answered it.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_syn_received: u64,
    /// TCP: both have agreed.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_established: u64,
    /// TCP: one side is done.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_fin_wait: u64,
    /// TCP: both sides are done.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_closing: u64,
    /// TCP: reset.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_closed: u64,
    /// TCP: met in its middle, and no answer seen yet.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_picked_up: u64,
    /// UDP: only the client has spoken.
    #[serde(deserialize_with = "idle_ms")]
    pub udp_one_way: u64,
    /// UDP: both have.
    #[serde(deserialize_with = "idle_ms")]
    pub udp_two_way: u64,
}

impl Default for TimeoutsConfig {
    fn default() -> TimeoutsConfig {
        let t = Timeouts::default();
        TimeoutsConfig {
            tcp_syn_sent: t.syn_sent_ms,
            tcp_syn_received: t.syn_received_ms,
            tcp_established: t.established_ms,
            tcp_fin_wait: t.fin_wait_ms,
            tcp_closing: t.closing_ms,
            tcp_closed: t.closed_ms,
            tcp_picked_up: t.picked_up_ms,
            udp_one_way: t.udp_one_way_ms,
            udp_two_way: t.udp_two_way_ms,
        }
    }
}

impl From<TimeoutsConfig> for Timeouts {
    fn from(c: TimeoutsConfig) -> Timeouts {
        Timeouts {
            syn_sent_ms: c.tcp_syn_sent,
            syn_received_ms: c.tcp_syn_received,
            established_ms: c.tcp_established,
            fin_wait_ms: c.tcp_fin_wait,
            closing_ms: c.tcp_closing,
            closed_ms: c.tcp_closed,
            picked_up_ms: c.tcp_picked_up,
            udp_one_way_ms: c.udp_one_way,
            udp_two_way_ms: c.udp_two_way,
        }
    }
}

/// Whether a connection may be remembered for so long.
pub(crate) fn is_idle_time(ms: u64) -> bool {
    (MIN_MS..=MAX_MS).contains(&ms)
}

fn idle_ms<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let parse = |text: &str| duration_ms(text).filter(|ms| is_idle_time(*ms));
    d.deserialize_str(Text { expected: "a duration from 1s to 720h, such as 90s, 5m or 1h30m", parse })
}

/// Reads a duration as Go and Kubernetes write them (`1h30m`, `1.5s`, `0s`), in milliseconds; what is below one is cut off.
pub fn duration_ms(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let ms = match &rest[..unit] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1_000.0,
            "ms" => 1.0,
            "us" | "µs" => 1e-3,
            "ns" => 1e-6,
            _ => return None,
        };
        total += number * ms;
        rest = &rest[unit..];
    }
    // Larger numbers are no durations that anybody means.
    (!text.is_empty() && total < 1e15).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let cases = [("90s", 90_000), ("1h30m", 5_400_000), ("24h0m0s", 86_400_000), ("1.5s", 1_500), ("250ms", 250), ("0s", 0), ("0", 0)];
        for (text, ms) in cases {
            assert_eq!(duration_ms(text), Some(ms), "{text}");
        }
        for text in ["", "5", "s", "1x", "1h30", "-5s", "1..5s", "99999999999999h", "5 m"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
