//! Finds addresses in text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

/// The longest text of an IPv6 address, with an IPv4 address in it.
const V6_LEN_MAX: usize = 45;
/// The shortest hardware address that is looked for, and the longest (InfiniBand's), bytes.
const MAC_BYTES: Range<usize> = 6..21;

/// An address that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Ip(IpAddr),
    /// An IPv4 address with dashes, as in names of nodes: `ip-10-0-0-1`.
    Dashed(Ipv4Addr),
    Mac {
        bytes: Vec<u8>,
        separator: char,
    },
}

/// All addresses of a text, in order.
pub(super) fn addresses(text: &str) -> impl Iterator<Item = (Range<usize>, Found)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            // Most bytes begin no address.
            if !(bytes[at].is_ascii_hexdigit() || bytes[at] == b':') {
                at += 1;
                continue;
            }
            if let Some((end, found)) = address_at(text, at) {
                let range = at..end;
                at = end;
                return Some((range, found));
            }
            at += 1;
        }
        None
    })
}

fn address_at(text: &str, at: usize) -> Option<(usize, Found)> {
    mac(text.as_bytes(), at).or_else(|| v6(text, at)).or_else(|| v4(text.as_bytes(), at))
}

/// Whether a word may begin here: before it is no letter or digit, or one that belongs to an escape such as `\n`.
fn begins(bytes: &[u8], at: usize) -> bool {
    match at.checked_sub(1).map(|before| bytes[before]) {
        Some(before) if before.is_ascii_alphanumeric() => {
            let escape = matches!(before, b'n' | b't' | b'r' | b'b' | b'f');
            escape && at >= 2 && bytes[at - 2] == b'\\'
        }
        _ => true,
    }
}

fn ends(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_none_or(|after| !after.is_ascii_alphanumeric())
}

/// Bytes of two digits each, with colons or dashes between them.
fn mac(bytes: &[u8], at: usize) -> Option<(usize, Found)> {
    if !begins(bytes, at) {
        return None;
    }
    let digits = |at: usize| {
        let two = bytes.get(at..at + 2).filter(|two| two.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()
    };
    let separator = *bytes.get(at + 2).filter(|b| matches!(b, b':' | b'-'))?;
    let (mut all, mut end) = (vec![digits(at)?], at + 2);
    while all.len() < MAC_BYTES.end && bytes.get(end) == Some(&separator) {
        let Some(byte) = digits(end + 1) else { break };
        all.push(byte);
        end += 3;
    }
    (MAC_BYTES.contains(&all.len()) && ends(bytes, end)).then(|| (end, Found::Mac { bytes: all, separator: separator.into() }))
}

/// The longest IPv6 address that begins here.
fn v6(text: &str, at: usize) -> Option<(usize, Found)> {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    // A colon begins an address only as a pair.
    if rest[0] == b':' && !(rest.get(1) == Some(&b':') && rest.get(2) != Some(&b':')) {
        return None;
    }
    if !begins(bytes, at) {
        return None;
    }
    let run = rest.iter().take(V6_LEN_MAX).take_while(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')).count();
    let colons = rest[..run].iter().filter(|b| **b == b':').count();
    if colons < 2 {
        return None;
    }
    (2..=run).rev().filter(|len| ends(bytes, at + len)).find_map(|len| {
        let ip: Ipv6Addr = text[at..at + len].parse().ok()?;
        Some((at + len, Found::Ip(ip.into())))
    })
}

/// Four numbers with dots or dashes between them. Letters may be around it.
fn v4(bytes: &[u8], at: usize) -> Option<(usize, Found)> {
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    if !is_digit(at) || at.checked_sub(1).is_some_and(is_digit) {
        return None;
    }
    let mut octets = [0; 4];
    let (mut end, mut separator) = (at, None);
    for (i, octet) in octets.iter_mut().enumerate() {
        if i > 0 {
            let found = *bytes.get(end).filter(|b| matches!(b, b'.' | b'-'))?;
            if *separator.get_or_insert(found) != found {
                return None;
            }
            end += 1;
        }
        let digits = bytes[end.min(bytes.len())..].iter().take(4).take_while(|b| b.is_ascii_digit()).count();
        let number = std::str::from_utf8(bytes.get(end..end + digits)?).ok()?;
        *octet = number.parse().ok().filter(|_| digits <= 3)?;
        end += digits;
    }
    let ip = Ipv4Addr::from(octets);
    match separator {
        Some(b'.') => Some((end, Found::Ip(ip.into()))),
        _ => Some((end, Found::Dashed(ip))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        addresses(text).map(|(range, _)| text[range].to_owned()).collect()
    }

    #[test]
    fn addresses_are_found_where_they_begin_and_end() {
        assert_eq!(found("10.0.0.1:80->[fd00::1]:80"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(found("src:fd00::1, fd00::1: unreachable"), ["fd00::1", "fd00::1"]);
        assert_eq!(found("gw10.0.0.1 ip-10-1-2-3"), ["10.0.0.1", "10-1-2-3"]);
        assert_eq!(found("52:54:00:12:34:56 52-54-00-12-34-56"), ["52:54:00:12:34:56", "52-54-00-12-34-56"]);
        assert_eq!(found("80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:12:34:56").len(), 1, "an InfiniBand address is one");
        assert_eq!(found("10.0.0.1.5 1.2.3.4.5.6.7.8"), ["10.0.0.1", "1.2.3.4", "5.6.7.8"]);
    }

    #[test]
    fn what_is_none_is_not() {
        for text in ["run::x", "a::run::c", "12:34:56", "1.2.3", "256.1.1.1", ":", "x", "", "deadbeef", "1-2.3-4"] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    /// Long runs without an address cost little.
    #[test]
    fn hostile_text_is_scanned_in_linear_time() {
        for text in [":", "a", "1.", "a:", "::", "1-"] {
            let start = std::time::Instant::now();
            addresses(&text.repeat(1 << 17)).for_each(drop);
            assert!(start.elapsed() < std::time::Duration::from_secs(5), "{text}: {:?}", start.elapsed());
        }
    }
}
