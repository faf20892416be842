//! The union of configuration, file and commands.

use std::path::Path;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn prefix(text: &str) -> Prefix {
    parse_prefix(text).unwrap()
}

fn open(prefixes: &[&str], file: Option<&Path>, earlier: &[(&str, Option<u64>)]) -> DenySources {
    let config = DenyConfig { prefixes: prefixes.iter().map(|p| prefix(p)).collect(), file: file.map(Path::to_owned) };
    DenySources::open(&config, &earlier.iter().map(|(p, until_ns)| (prefix(p), *until_ns)).collect())
}

/// `prefix sources`, with the end of a command in seconds.
fn shown(sources: &DenySources, now_ns: u64) -> Vec<String> {
    let show = |e: DenyEntry| {
        let of: Vec<String> = e.sources.iter().map(ToString::to_string).collect();
        format!("{} {}{}", e.prefix, of.join("+"), e.expires_in_s.map_or(String::new(), |s| format!(" {s}")))
    };
    sources.entries(now_ns, |_| 0).into_iter().map(show).collect()
}

/// The file's first addresses, one a line.
fn write(path: &Path, addresses: u32) {
    let lines: String = (0..addresses).map(|i| format!("{}\n", std::net::Ipv4Addr::from(0x0a00_0000 + i))).collect();
    std::fs::write(path, lines).unwrap();
}

#[test]
fn a_prefix_of_several_sources_counts_once_and_stays_until_the_last_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deny");
    std::fs::write(&path, "192.0.2.0/24\n198.51.100.0/24\n2001:db8::/32\n").unwrap();
    let mut list = open(&["192.0.2.0/24", "192.0.2.0/24", "10.0.0.0/8"], Some(&path), &[]);
    list.add(prefix("192.0.2.0/24"), 5 * SECOND).unwrap();
    list.add(prefix("198.51.100.7"), NO_END_NS).unwrap();
    list.add(prefix("198.51.100.0/24"), 7 * SECOND).unwrap();
    let expected = [
        "10.0.0.0/8 configuration",
        "192.0.2.0/24 configuration+file+command 5",
        "198.51.100.0/24 file+command 7",
        "198.51.100.7/32 command",
        "2001:db8::/32 file",
    ];
    assert_eq!(shown(&list, 1), expected);
    let size = Deny { prefixes: 5, prefixes_max: DENY_PREFIXES_MAX, of_configuration: 2, of_file: 3, of_command: 3 };
    assert_eq!((list.size(), list.list().len()), (size, 5));
    let denied = list.denied();
    let ends = ["10.0.0.0/8", "192.0.2.0/24", "198.51.100.7"].map(|p| denied[&prefix(p)]);
    assert_eq!(ends, [None, Some(5 * SECOND), Some(NO_END_NS)]);

    assert_eq!((list.expire(5 * SECOND - 1), list.expire(5 * SECOND)), (vec![], vec![prefix("192.0.2.0/24")]));
    std::fs::write(&path, "2001:db8::/32\n").unwrap();
    assert!(!list.reload(false) && list.reload(false) && !list.reload(false));
    assert_eq!(shown(&list, 6 * SECOND + 1)[1..3], ["192.0.2.0/24 configuration", "198.51.100.0/24 command 1"]);
    assert_eq!(list.expire(u64::MAX - 1), [prefix("198.51.100.0/24")], "a command without an end has none");
    assert_eq!(
        shown(&list, 0),
        ["10.0.0.0/8 configuration", "192.0.2.0/24 configuration", "198.51.100.7/32 command", "2001:db8::/32 file"]
    );
}

#[test]
fn only_commands_are_taken_back_and_errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deny");
    std::fs::write(&path, "192.0.2.0/24\n").unwrap();
    let mut list = open(&["10.0.0.0/8"], Some(&path), &[]);
    list.add(prefix("192.0.2.0/24"), NO_END_NS).unwrap();
    list.add(prefix("192.0.2.0/24"), 9).unwrap();
    assert_eq!(list.remove(&prefix("192.0.2.0/24")), Ok(()));
    assert_eq!(list.sources_of(&prefix("192.0.2.0/24")), [DenySource::File]);
    for (text, words) in [
        ("192.0.2.0/24", "by the file "),
        ("10.0.0.0/8", "remove it from deny.prefixes and restart"),
        ("10.0.0.0/9", "10.0.0.0/9 is not in the deny list"),
    ] {
        let error = list.remove(&prefix(text)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(list.size().prefixes, 2);
}

#[test]
fn commands_and_the_list_of_a_missing_file_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deny");
    let earlier = [("10.0.0.0/8", None), ("192.0.2.0/24", None), ("198.51.100.7", Some(3 * SECOND)), ("198.51.100.8", Some(NO_END_NS))];
    let commands = ["198.51.100.7/32 command 3", "198.51.100.8/32 command"];
    let list = open(&["10.0.0.0/8"], Some(&path), &earlier);
    assert_eq!(shown(&list, 0), [&["10.0.0.0/8 configuration", "192.0.2.0/24 file"], &commands[..]].concat());
    assert!(list.problems().len() == 1 && list.problems()[0].contains("cannot be read"), "{:?}", list.problems());
    // A file that is not configured any more, and one that can be read, do not need it.
    assert_eq!(shown(&open(&["10.0.0.0/8"], None, &earlier), 0), [&["10.0.0.0/8 configuration"], &commands[..]].concat());
    std::fs::write(&path, "").unwrap();
    assert_eq!(shown(&open(&[], Some(&path), &earlier), 0), commands);
}

#[test]
fn beyond_the_limit_the_files_last_lines_are_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deny");
    write(&path, DENY_PREFIXES_MAX as u32 + 2);
    let mut list = open(&["192.0.2.0/24", "10.0.0.1"], Some(&path), &[]);
    assert_eq!(
        (list.size().prefixes, list.denied().len(), list.size().of_file),
        (DENY_PREFIXES_MAX, DENY_PREFIXES_MAX, DENY_PREFIXES_MAX - 1)
    );
    let problem = |list: &DenySources| list.problems().join("\n");
    assert!(
        problem(&list).contains("3 prefixes do not fit, in lines 65536 to 65538: the deny list has room for 65536 in all"),
        "{}",
        problem(&list)
    );
    list.add(prefix("198.51.100.0/24"), NO_END_NS).unwrap();
    assert_eq!(list.sources_of(&prefix("198.51.100.0/24")), [DenySource::Command], "a command goes before the file");
    assert!(problem(&list).contains("4 prefixes do not fit, in lines 65535 to 65538"), "{}", problem(&list));
    write(&path, 10);
    assert!(!list.reload(false) && list.reload(false) && list.problems().is_empty());
    assert_eq!(list.size().prefixes, 12);
}

#[test]
fn a_list_full_of_commands_refuses_the_next_one() {
    let host = |i: u32| Prefix::host(std::net::Ipv4Addr::from(0x0a00_0000 + i).into());
    let config = DenyConfig { prefixes: vec![host(0), prefix("192.0.2.0/24")], file: None };
    // Commands of an earlier process; the first is about a configured prefix.
    let earlier = (0..DENY_PREFIXES_MAX as u32 - 1).map(|i| (host(i), Some(NO_END_NS))).collect();
    let mut list = DenySources::open(&config, &earlier);
    assert_eq!(list.size().prefixes, DENY_PREFIXES_MAX);
    let error = list.add(prefix("198.51.100.0/24"), NO_END_NS).unwrap_err();
    assert!(error.contains("room for 65536 prefixes. Remove some with `nomagic deny remove`"), "{error}");
    assert_eq!(list.add(host(0), 5), Ok(()), "a new end needs no room");
    assert_eq!(list.add(prefix("192.0.2.0/24"), 5), Ok(()), "nor does a configured prefix");
    list.remove(&host(7)).unwrap();
    assert_eq!(list.add(prefix("198.51.100.0/24"), 5), Ok(()));
    assert_eq!(list.size().prefixes, DENY_PREFIXES_MAX);

    // A new configuration goes before what an earlier process was told.
    let earlier = (0..DENY_PREFIXES_MAX as u32).map(|i| (host(i), Some(NO_END_NS))).collect();
    let list = DenySources::open(&config, &earlier);
    assert_eq!((list.size().prefixes, list.size().of_command), (DENY_PREFIXES_MAX, DENY_PREFIXES_MAX - 1));
    assert!(list.problems()[0].starts_with("deny list: 1 prefixes denied by command do not fit"), "{:?}", list.problems());
}
