//! Replaces IP and MAC addresses in text: the same address by the same stand-in, everywhere in a report.
//!
//! A stand-in depends on a random key that nobody keeps, so that addresses cannot be tried out against a report. Loopback and unspecified addresses
//! stay. What only looks like an address (a version with four numbers) is replaced too: better one number too many than an address too few.

mod scan;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow};
use ring::hmac;
use ring::rand::SystemRandom;
use serde_json::Value;

use scan::Found;

/// Stand-ins of IPv4: the benchmarking range, 198.18.0.0/15. Those that find no place there are in 240.0.0.0/4.
const V4: (u32, u32) = (0xc612_0000, 1 << 17);
const V4_MORE: (u32, u32) = (0xf000_0000, 1 << 28);
/// Stand-ins of IPv6: the documentation's range.
const V6: u128 = 0x2001_0db8 << 96;
/// How many places are tried before the larger range.
const TRIED_MAX: u32 = 64;

/// Replaces addresses.
#[derive(Debug)]
pub struct Replacer {
    key: hmac::Key,
    v4: HashMap<Ipv4Addr, Ipv4Addr>,
    v4_used: HashSet<u32>,
}

impl Replacer {
    /// A replacer with a random key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn with_random_key() -> Result<Replacer> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| anyhow!("the system has no random numbers"))?;
        Ok(Replacer { key, v4: HashMap::new(), v4_used: HashSet::new() })
    }

    /// Replaces all addresses in a text. Lines that are JSON are taken apart, so that no escape hides an address.
    pub fn replace(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            let bare = line.trim_end_matches('\n');
            let value = if bare.trim_start().starts_with(['{', '[', '"']) { serde_json::from_str::<Value>(bare).ok() } else { None };
            match value {
                Some(mut value) => {
                    self.replace_json(&mut value);
                    out += &value.to_string();
                    out += &line[bare.len()..];
                }
                None => self.replace_plain(line, &mut out),
            }
        }
        out
    }

    /// Replaces all addresses in the texts and keys of a value.
    pub fn replace_json(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.replaced(text),
            Value::Array(list) => list.iter_mut().for_each(|value| self.replace_json(value)),
            Value::Object(fields) => {
                let old = std::mem::take(fields);
                for (key, mut value) in old {
                    self.replace_json(&mut value);
                    fields.insert(self.replaced(&key), value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn replaced(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        self.replace_plain(text, &mut out);
        out
    }

    fn replace_plain(&mut self, text: &str, out: &mut String) {
        let mut at = 0;
        for (range, found) in scan::addresses(text) {
            *out += &text[at..range.start];
            at = range.end;
            match found {
                Found::Ip(ip) => *out += &self.ip(ip).to_string(),
                Found::Dashed(ip) => *out += &self.v4(ip).to_string().replace('.', "-"),
                Found::Mac { bytes, separator } => {
                    let bytes = self.mac(&bytes);
                    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    *out += &digits.join(&separator.to_string());
                }
            }
        }
        *out += &text[at..];
    }

    fn ip(&mut self, ip: IpAddr) -> IpAddr {
        match ip {
            _ if ip.is_loopback() || ip.is_unspecified() => ip,
            IpAddr::V4(ip) => self.v4(ip).into(),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(inner) if inner.is_loopback() || inner.is_unspecified() => ip.into(),
                Some(inner) => self.v4(inner).to_ipv6_mapped().into(),
                None => self.v6(ip).into(),
            },
        }
    }

    fn v4(&mut self, ip: Ipv4Addr) -> Ipv4Addr {
        if ip.is_loopback() || ip.is_unspecified() {
            return ip;
        }
        if let Some(known) = self.v4.get(&ip) {
            return *known;
        }
        let digest = self.digest(&ip.octets());
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        let places = |(base, size): (u32, u32), most: u32| (0..most).map(move |n| base + number.wrapping_add(n) % size);
        let place = places(V4, TRIED_MAX).chain(places(V4_MORE, V4_MORE.1)).find(|place| !self.v4_used.contains(place));
        // The larger range has more places than a report has bytes.
        let stand_in = place.unwrap_or(V4_MORE.0);
        self.v4_used.insert(stand_in);
        let stand_in = Ipv4Addr::from_bits(stand_in);
        self.v4.insert(ip, stand_in);
        stand_in
    }

    /// 96 bits of the digest: two addresses do not meet.
    fn v6(&self, ip: Ipv6Addr) -> Ipv6Addr {
        let digest = self.digest(&ip.octets());
        let low = digest[..12].iter().fold(0u128, |low, byte| (low << 8) | u128::from(*byte));
        Ipv6Addr::from_bits(V6 | low)
    }

    /// A locally administered address. Those of all zeros and all ones stay.
    fn mac(&self, bytes: &[u8]) -> Vec<u8> {
        if bytes.iter().all(|b| *b == 0) || bytes.iter().all(|b| *b == 0xff) {
            return bytes.to_vec();
        }
        let digest = self.digest(bytes);
        let mut stand_in: Vec<u8> = digest.iter().copied().cycle().take(bytes.len()).collect();
        stand_in[0] = 2;
        stand_in
    }

    fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.key, bytes);
        let mut digest = [0; 32];
        digest.copy_from_slice(tag.as_ref());
        digest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn replacer() -> Replacer {
        Replacer::with_random_key().unwrap()
    }

    #[test]
    fn an_address_has_one_stand_in_in_every_form() {
        let mut r = replacer();
        let v4 = r.replaced("10.0.0.7");
        assert!(v4.starts_with("198.18.") || v4.starts_with("198.19."), "{v4}");
        assert_eq!(
            r.replaced("to 10.0.0.7:80, 10.0.0.7/24 and ip-10-0-0-7.example"),
            format!("to {v4}:80, {v4}/24 and ip-{}.example", v4.replace('.', "-"))
        );
        assert_eq!(r.replaced("[::ffff:10.0.0.7]:80"), format!("[::ffff:{v4}]:80"));
        let v6 = r.replaced("fd00::7");
        assert!(v6.starts_with("2001:db8:"), "{v6}");
        assert_eq!(r.replaced("[fd00:0:0::7]:80 -> FD00::7%eth0, fd00::7."), format!("[{v6}]:80 -> {v6}%eth0, {v6}."));
        let mac = r.replaced("52:54:00:12:34:56");
        assert!(mac.starts_with("02:") && mac.len() == 17 && mac != "52:54:00:12:34:56");
        assert_eq!(r.replaced("lladdr 52:54:00:12:34:56 REACHABLE"), format!("lladdr {mac} REACHABLE"));
        assert_ne!(replacer().replaced("fd00::7"), v6, "another run has another key");
    }

    #[test]
    fn what_is_no_secret_stays() {
        let same = [
            "127.0.0.1:10249 and [::1]:80, ::, 0.0.0.0/0, ::/0",
            "00:00:00:00:00:00 ff:ff:ff:ff:ff:ff",
            "12:34:56 up 1:02, nomagic::run::socket, 5.15.0-105, 1.2.3, 2026-12-01T13:00:00Z",
            "Größe 日本 a:b 999.1.1.1",
        ];
        for text in same {
            assert_eq!(replacer().replaced(text), text);
        }
    }

    #[test]
    fn json_is_replaced_in_values_keys_and_lines() {
        let mut r = replacer();
        let (a, b) = (r.replaced("10.0.0.7"), r.replaced("fd00::7"));
        let mut value = json!({"10.0.0.7:80": ["x\nfd00::7", 7], "n": {"k": "10.0.0.7"}});
        r.replace_json(&mut value);
        assert_eq!(value, json!({format!("{a}:80"): [format!("x\n{b}"), 7], "n": {"k": a}}));
        let lines = r.replace("{\"m\":\"bad\\nfd00::7\"}\nat 10.0.0.7\n{broken 10.0.0.7");
        assert_eq!(lines, format!("{{\"m\":\"bad\\n{b}\"}}\nat {a}\n{{broken {a}"));
    }

    proptest! {
        /// Whatever the text is, it is valid afterwards, and an address in it is gone.
        #[test]
        fn any_text_can_be_replaced(before in ".{0,40}", after in ".{0,40}", v4: Ipv4Addr, v6: Ipv6Addr) {
            let mut r = replacer();
            for address in [IpAddr::from(v4), IpAddr::from(v6)].into_iter().filter(|ip| !ip.is_loopback() && !ip.is_unspecified()) {
                let text = format!("{before} {address} {after}");
                let expected = r.replaced(&address.to_string());
                let out = r.replaced(&text);
                prop_assert!(out.contains(&format!(" {expected} ")), "{text:?} became {out:?}");
            }
            let _ = r.replace(&format!("{before}\n{after}"));
        }
    }

    /// More addresses than the small range has places for, and none meets another.
    #[test]
    fn stand_ins_do_not_meet() {
        let mut r = replacer();
        let mut seen = HashSet::new();
        for n in 0..200_000u32 {
            assert!(seen.insert(r.v4(Ipv4Addr::from_bits(0x0a00_0000 + n))), "{n}");
        }
    }

    /// No address of a random text survives, whatever is around it.
    #[test]
    fn no_address_survives_its_surroundings() {
        let mut r = replacer();
        let around =
            ["", " ", "\n", "\t", "=", "(", "[", "\"", "'", ",", "/", "x=", "src:", "via ", "->", "@", "\\n", "\u{e9}", "_", "->["];
        for before in around {
            for after in ["", " ", "\n", "]", ":80", "/64", ",", "\"", ".", ": x", "%eth0", "->", "\\n", "\u{e9}", ")", "_"] {
                for address in ["203.0.113.77", "fd12:3456::abcd", "fe80::5054:ff:fe12:3456", "52:54:00:ab:cd:ef"] {
                    let text = format!("{before}{address}{after}");
                    let out = r.replaced(&text);
                    assert!(!out.contains(address), "{text:?} became {out:?}");
                }
            }
        }
    }
}
