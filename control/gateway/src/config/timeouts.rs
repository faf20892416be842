//! Idle timeouts of connections.

use std::time::Duration;

use nomagic_core::conntrack::Timeouts;
use serde::{Deserialize, Deserializer};

use super::values::TextVisitor;

/// Limits of idle timeouts, milliseconds.
const MIN_MS: u64 = 1_000;
const MAX_MS: u64 = 30 * 24 * 3_600_000;
/// Maximum length of a duration, bytes, and of one number in it, digits: their product in hours is far below an overflow.
const DURATION_BYTES_MAX: usize = 64;
const DURATION_DIGITS_MAX: usize = 12;

/// Idle timeouts by protocol and state, such as `90s`, `5m`, `24h` or `1h30m`, 1s to 720h. The defaults are the kernel's
/// (nf_conntrack_*_timeout_*), with kube-proxy's for established and half-closed TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TimeoutsConfig {
    /// TCP: SYN from the client seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_syn_sent: u64,
    /// TCP: SYN-ACK from the endpoint seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_syn_received: u64,
    /// TCP: handshake complete.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_established: u64,
    /// TCP: FIN from one side seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_fin_wait: u64,
    /// TCP: FIN from one side acknowledged by the other (kube-proxy's tcpCloseWaitTimeout).
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_close_wait: u64,
    /// TCP: FIN from both sides seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_last_ack: u64,
    /// TCP: FIN from both sides acknowledged.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_time_wait: u64,
    /// TCP: RST seen.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_closed: u64,
    /// TCP: picked up mid-stream, or continued after an RST, with packets from one side only.
    #[serde(deserialize_with = "idle_ms")]
    pub tcp_picked_up: u64,
    /// UDP: one request, or one request and its reply (nf_conntrack_udp_timeout, kube-proxy's udpTimeout).
    #[serde(deserialize_with = "idle_ms")]
    pub udp: u64,
    /// UDP: two-way traffic for more than 2 s (nf_conntrack_udp_timeout_stream, kube-proxy's udpStreamTimeout).
    #[serde(deserialize_with = "idle_ms")]
    pub udp_stream: u64,
    /// SCTP: INIT-ACK from the endpoint seen.
    #[serde(deserialize_with = "idle_ms")]
    pub sctp_cookie: u64,
    /// SCTP: association established.
    #[serde(deserialize_with = "idle_ms")]
    pub sctp_established: u64,
    /// SCTP: SHUTDOWN seen.
    #[serde(deserialize_with = "idle_ms")]
    pub sctp_shutdown: u64,
    /// SCTP: aborted or shut down, or only the client's INIT seen.
    #[serde(deserialize_with = "idle_ms")]
    pub sctp_closed: u64,
    /// SCTP: picked up mid-stream, with packets from one side only.
    #[serde(deserialize_with = "idle_ms")]
    pub sctp_picked_up: u64,
}

impl Default for TimeoutsConfig {
    fn default() -> TimeoutsConfig {
        let t = Timeouts::default();
        TimeoutsConfig {
            tcp_syn_sent: t.syn_sent_ms,
            tcp_syn_received: t.syn_received_ms,
            tcp_established: t.established_ms,
            tcp_fin_wait: t.fin_wait_ms,
            tcp_close_wait: t.close_wait_ms,
            tcp_last_ack: t.last_ack_ms,
            tcp_time_wait: t.time_wait_ms,
            tcp_closed: t.closed_ms,
            tcp_picked_up: t.picked_up_ms,
            udp: t.udp_ms,
            udp_stream: t.udp_stream_ms,
            sctp_cookie: t.sctp_cookie_ms,
            sctp_established: t.sctp_established_ms,
            sctp_shutdown: t.sctp_shutdown_ms,
            sctp_closed: t.sctp_closed_ms,
            sctp_picked_up: t.sctp_picked_up_ms,
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
            close_wait_ms: c.tcp_close_wait,
            last_ack_ms: c.tcp_last_ack,
            time_wait_ms: c.tcp_time_wait,
            closed_ms: c.tcp_closed,
            picked_up_ms: c.tcp_picked_up,
            udp_ms: c.udp,
            udp_stream_ms: c.udp_stream,
            sctp_cookie_ms: c.sctp_cookie,
            sctp_established_ms: c.sctp_established,
            sctp_shutdown_ms: c.sctp_shutdown,
            sctp_closed_ms: c.sctp_closed,
            sctp_picked_up_ms: c.sctp_picked_up,
        }
    }
}

/// Whether an idle timeout is within the limits.
pub(crate) fn is_idle_time(ms: u64) -> bool {
    (MIN_MS..=MAX_MS).contains(&ms)
}

fn idle_ms<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let parse = |text: &str| duration_ms(text).filter(|ms| is_idle_time(*ms));
    d.deserialize_str(TextVisitor { expected: "a duration from 1s to 720h, such as 90s, 5m or 1h30m", parse })
}

/// Parses a duration in the form of Go and Kubernetes (`1h30m`, `1.5s`, `0s`), in milliseconds, rounded down. Negative ones are refused.
pub fn duration_ms(text: &str) -> Option<u64> {
    // kube's parser (5.0) panics on a sign inside (`1h-5s`) and on overflow, and takes empty text for zero.
    let digits_max = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max()?;
    if text.is_empty() || text.len() > DURATION_BYTES_MAX || digits_max > DURATION_DIGITS_MAX || text.contains(['+', '-']) {
        return None;
    }
    let duration: kube::core::Duration = text.parse().ok()?;
    u64::try_from(Duration::from(duration).as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reaches_the_dataplane_as_itself() {
        let text = "conntrack: {timeouts: {tcpSynSent: 1s, tcpSynReceived: 2s, tcpEstablished: 3s, tcpFinWait: 4s, tcpCloseWait: 5s, tcpLastAck: 6s, tcpTimeWait: 7s, \
                    tcpClosed: 8s, tcpPickedUp: 9s, udp: 10s, udpStream: 11s, sctpCookie: 12s, sctpEstablished: 13s, \
                    sctpShutdown: 14s, sctpClosed: 15s, sctpPickedUp: 16s}}";
        let config = crate::config::Config::parse(text, std::path::Path::new("nomagic.yaml")).unwrap().conntrack.timeouts;
        let expected = Timeouts {
            syn_sent_ms: 1_000,
            syn_received_ms: 2_000,
            established_ms: 3_000,
            fin_wait_ms: 4_000,
            close_wait_ms: 5_000,
            last_ack_ms: 6_000,
            time_wait_ms: 7_000,
            closed_ms: 8_000,
            picked_up_ms: 9_000,
            udp_ms: 10_000,
            udp_stream_ms: 11_000,
            sctp_cookie_ms: 12_000,
            sctp_established_ms: 13_000,
            sctp_shutdown_ms: 14_000,
            sctp_closed_ms: 15_000,
            sctp_picked_up_ms: 16_000,
        };
        assert_eq!(Timeouts::from(config), expected);
        assert_eq!(Timeouts::from(TimeoutsConfig::default()), Timeouts::default());
    }

    #[test]
    fn durations_as_go_writes_them() {
        let cases = [("90s", 90_000), ("1h30m", 5_400_000), ("24h0m0s", 86_400_000), ("1.5s", 1_500), ("250ms", 250), ("0s", 0), ("0", 0)];
        for (text, ms) in cases {
            assert_eq!(duration_ms(text), Some(ms), "{text}");
        }
        for text in ["", "5", "s", "1x", "1h30", "-5s", "1..5s", "99999999999999h", "5 m", "1h-5s", "+5s", "9999999999999999999999h"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
        assert_eq!(duration_ms(&"999999999999h".repeat(5)), None, "too long");
    }
}
