use std::collections::HashSet;

use super::*;

/// 64-byte UDP from 10.0.0.0/24 to one Service.
pub fn profile() -> Profile {
    Profile {
        targets: vec!["10.109.35.53:53".parse().unwrap()],
        sources: "10.0.0.0/24".parse().unwrap(),
        flows: 100,
        choice: Choice::RoundRobin,
        size: Size::Min,
        protocol: Protocol::Udp,
        new_flows: None,
        seed: 1,
    }
}

#[test]
fn every_field_has_limits_and_errors_that_name_it() {
    profile().check().unwrap();
    type Change = fn(&mut Profile);
    let cases: [(Change, &str); 10] = [
        (|p| p.targets.clear(), "--to: 0 destinations"),
        (|p| p.targets = vec![p.targets[0]; TARGETS_MAX + 1], "--to: 10001 destinations"),
        (|p| p.targets.push("[fd00::1]:53".parse().unwrap()), "not of one family"),
        (|p| p.flows = 0, "--flows 0"),
        (|p| p.flows = FLOWS_MAX + 1, "--flows 1048577"),
        (
            |p| {
                p.flows = 64_513;
                p.sources = "10.0.0.7".parse().unwrap();
            },
            "only 64512 addresses and ports",
        ),
        (|p| p.choice = Choice::Zipf(f64::NAN), "--choice"),
        (|p| p.size = Size::Fixed(63), "give 64"),
        (|p| p.size = Size::Fixed(1519), "to 1518"),
        (|p| p.new_flows = Some(NewFlows { new: 2, frames: 1 }), "--new-flows-per-second"),
    ];
    for (change, words) in cases {
        let mut changed = profile();
        change(&mut changed);
        let error = changed.check().unwrap_err().to_string();
        assert!(error.contains(words), "{error} should say {words}");
    }
}

#[test]
fn the_smallest_frame_depends_on_the_headers() {
    for (from, protocol, least) in [
        ("10.0.0.0/24", Protocol::Udp, 64),
        ("10.0.0.0/24", Protocol::Tcp, 76),
        ("fd00::/64", Protocol::Udp, 84),
        ("fd00::/64", Protocol::SynFlood, 96),
    ] {
        let mut p = profile();
        (p.sources, p.protocol) = (from.parse().unwrap(), protocol);
        assert_eq!(p.size_min(), least);
        p.size = Size::Imix;
        let total: u32 = (0..12).map(|n| p.size_of(n)).sum();
        assert_eq!(total, 7 * least + 4 * 594 + 1518);
        assert_eq!(p.buffer_max(), 1514);
    }
}

#[test]
fn source_ranges() {
    for (text, hosts, first, last) in [
        ("10.0.0.7", 1, "10.0.0.7", "10.0.0.7"),
        ("10.0.0.7/31", 2, "10.0.0.6", "10.0.0.7"),
        ("10.0.0.77/24", 254, "10.0.0.1", "10.0.0.254"),
        ("10.0.0.0/0", (1 << 24) - 2, "0.0.0.1", "0.255.255.254"),
        ("fd00::", 1, "fd00::", "fd00::"),
        ("fd00::ffff/120", 255, "fd00::ff01", "fd00::ffff"),
        ("::/0", (1 << 24) - 1, "::1", "::ff:ffff"),
    ] {
        let prefix: Prefix = text.parse().unwrap();
        assert_eq!(prefix.hosts(), hosts, "{text}");
        assert_eq!(prefix.host(0), first.parse::<IpAddr>().unwrap(), "{text}");
        assert_eq!(prefix.host(hosts - 1), last.parse::<IpAddr>().unwrap(), "{text}");
    }
    let prefix: Prefix = "10.0.0.0/28".parse().unwrap();
    assert_eq!((0..prefix.hosts()).map(|n| prefix.host(n)).collect::<HashSet<_>>().len(), 14);
    for bad in ["10.0.0.0/33", "10.0.0/8", "fd00::/129", "x", "10.0.0.0/"] {
        assert!(bad.parse::<Prefix>().unwrap_err().to_string().contains(bad));
    }
}

#[test]
fn words_of_the_command_line() {
    assert_eq!("imix".parse::<Size>().unwrap(), Size::Imix);
    assert_eq!("512".parse::<Size>().unwrap(), Size::Fixed(512));
    "large".parse::<Size>().unwrap_err();
    assert_eq!("zipf".parse::<Choice>().unwrap(), Choice::Zipf(1.0));
    assert_eq!("zipf:1.2".parse::<Choice>().unwrap(), Choice::Zipf(1.2));
    assert_eq!("uniform".parse::<Choice>().unwrap(), Choice::Uniform);
    assert!("zipf:x".parse::<Choice>().is_err() && "zufall".parse::<Choice>().is_err());
}
