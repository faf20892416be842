//! The notation of a flow: `tcp 192.168.0.5:40000 -> 10.109.35.24:80`, `udp [fd00::5]:40000 -> [fd00:10:109::24]:53`.

use std::net::IpAddr;

use nomagic_core::tuple::{Proto, Tuple};

use crate::objects::addr::parse_ip;

/// Maximum length of a line, bytes.
pub const LINE_MAX: usize = 512;

/// Parses a flow. The error names the problem and the expected format.
pub fn parse_flow(text: &str) -> Result<Tuple, String> {
    const SHAPE: &str = "a flow looks like `tcp 192.168.0.5:40000 -> 10.109.35.24:80`";
    if text.len() > LINE_MAX {
        return Err(format!("{} bytes long, {LINE_MAX} are allowed; {SHAPE}", text.len()));
    }
    let (left, right) = text.split_once("->").ok_or_else(|| format!("no `->`; {SHAPE}"))?;
    let mut words = left.split_whitespace();
    let (Some(proto), Some(source), None) = (words.next(), words.next(), words.next()) else {
        return Err(format!("a protocol and a source are expected before `->`; {SHAPE}"));
    };
    let proto = match proto.to_ascii_lowercase().as_str() {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        "sctp" => Proto::Sctp,
        other => return Err(format!("{other:?} is not a protocol that Services have: tcp, udp or sctp")),
    };
    let (src, sport) = endpoint(source)?;
    let (dst, dport) = endpoint(right.trim())?;
    Tuple::new(proto, src, sport, dst, dport).ok_or_else(|| format!("{src} and {dst} are of different families"))
}

fn endpoint(text: &str) -> Result<(IpAddr, u16), String> {
    let shape = || format!("{text:?} is not an address with a port, such as 10.0.0.1:80 or [fd00::1]:80");
    let (addr, port) = text.rsplit_once(':').ok_or_else(shape)?;
    let (bare, bracketed) = match addr.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(inner) => (inner, true),
        None => (addr, false),
    };
    let ip = parse_ip(bare).filter(|_| bracketed == bare.contains(':')).ok_or_else(shape)?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = digits.then(|| port.parse().ok()).flatten().filter(|&p: &u16| p != 0);
    Ok((ip, port.ok_or_else(|| format!("{text:?}: the port must be a number from 1 to 65535"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows() {
        let table = [
            ("tcp 192.168.0.5:40000 -> 10.109.35.24:80", Ok("tcp 192.168.0.5:40000 -> 10.109.35.24:80")),
            ("  UDP   [fd00::5]:1->[fd00:0::24]:53 ", Ok("udp [fd00::5]:1 -> [fd00::24]:53")),
            ("sctp 010.0.0.1:1 -> 10.0.0.2:65535", Ok("sctp 10.0.0.1:1 -> 10.0.0.2:65535")),
            ("tcp 1.2.3.4:1 10.0.0.1:2", Err("no `->`")),
            ("1.2.3.4:1 -> 10.0.0.1:2", Err("a protocol and a source")),
            ("tcp a b -> 10.0.0.1:2", Err("a protocol and a source")),
            ("icmp 1.2.3.4:1 -> 10.0.0.1:2", Err("tcp, udp or sctp")),
            ("tcp 1.2.3.4 -> 10.0.0.1:2", Err("not an address with a port")),
            ("tcp 1.2.3.4:x -> 10.0.0.1:2", Err("from 1 to 65535")),
            ("tcp 1.2.3.4:70000 -> 10.0.0.1:2", Err("from 1 to 65535")),
            ("tcp 1.2.3.4:0 -> 10.0.0.1:2", Err("from 1 to 65535")),
            ("tcp 1.2.3.4:+1 -> 10.0.0.1:2", Err("from 1 to 65535")),
            ("tcp fd00::1:80 -> [fd00::2]:80", Err("not an address with a port")),
            ("tcp [1.2.3.4]:80 -> 10.0.0.1:80", Err("not an address with a port")),
            ("tcp [fd00::1]:80 -> 10.0.0.1:80", Err("different families")),
            ("", Err("no `->`")),
        ];
        for (text, expected) in table {
            match (parse_flow(text), expected) {
                (Ok(tuple), Ok(shown)) => assert_eq!(tuple.to_string(), shown),
                (Err(message), Err(words)) => assert!(message.contains(words), "{text}: {message}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        assert!(parse_flow(&"x".repeat(LINE_MAX + 1)).unwrap_err().contains("bytes long"));
    }
}
