//! The listen addresses of the HTTP servers.

use std::net::{IpAddr, SocketAddr};

use serde::de::Deserializer;

use super::values::TextVisitor;

/// kube-proxy's port of `/healthz` and `/livez`.
const HEALTHZ_PORT: u16 = 10_256;
/// kube-proxy's port of `/metrics`.
const METRICS_PORT: u16 = 10_249;

/// `0.0.0.0:10256`
pub(super) fn healthz_default() -> Option<SocketAddr> {
    Some(SocketAddr::from(([0, 0, 0, 0], HEALTHZ_PORT)))
}

/// `127.0.0.1:10249`
pub(super) fn metrics_default() -> Option<SocketAddr> {
    Some(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT)))
}

/// Parses `ADDRESS` or `ADDRESS:PORT`, an IPv6 address with or without brackets. `port` is the default port.
fn parse(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => text.parse().ok().filter(|at: &SocketAddr| at.port() != 0),
    }
}

fn read<'de, D: Deserializer<'de>>(d: D, parse: fn(&str) -> Option<Option<SocketAddr>>) -> Result<Option<SocketAddr>, D::Error> {
    d.deserialize_str(TextVisitor {
        expected: "an IP address, with or without a port, such as 0.0.0.0:10256 or [::]:10256, or \"\" for off",
        parse,
    })
}

pub(super) fn healthz<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    read(d, |text| if text.is_empty() { Some(None) } else { parse(text, HEALTHZ_PORT).map(Some) })
}

pub(super) fn metrics<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    read(d, |text| if text.is_empty() { Some(None) } else { parse(text, METRICS_PORT).map(Some) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_port_applies_if_none_is_given() {
        let table = [
            ("0.0.0.0", Some("0.0.0.0:7")),
            ("1.2.3.4:80", Some("1.2.3.4:80")),
            ("::", Some("[::]:7")),
            ("[::1]", Some("[::1]:7")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:80", None),
            ("1.2.3.4:0", None),
            ("1.2.3.4:70000", None),
            (":80", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text, 7), expected.map(|e| e.parse().unwrap()), "{text}");
        }
    }
}
