//! The derivation, and the order of the sources.

use super::*;

fn config(seed: Option<u64>, seed_file: Option<&Path>) -> HashConfig {
    HashConfig { seed, seed_file: seed_file.map(Path::to_owned) }
}

fn parsed(hash: &HashConfig) -> Result<Option<Seed>, SeedFileError> {
    from_config(hash, Path::new("nomagic.yaml"))
}

/// Computed with openssl: `printf %s SECRET | openssl dgst -sha256 -mac HMAC -macopt 'key:KEY'`.
const FILE_OF_SIXTEEN: u64 = 0xd239_9b42_afe4_4584;
const CLUSTER_OF_UUID: u64 = 0x74f1_b646_c139_325e;

#[test]
fn the_derivation_is_the_same_in_every_version() {
    let secret = b"0123456789abcdef";
    assert_eq!(derive(Purpose::File, secret), Ok(FILE_OF_SIXTEEN));
    assert_eq!(derive(Purpose::Cluster, b"6b1e8c3a-3a52-4b5e-9a0d-1f5b4d2c7e90"), Ok(CLUSTER_OF_UUID));
}

#[test]
fn every_byte_counts_and_white_space_around_does_not() {
    let secret = b"correct horse battery staple";
    let seed = derive(Purpose::File, secret).unwrap();
    for same in [&b"correct horse battery staple\n"[..], b"  correct horse battery staple", b"\r\n\tcorrect horse battery staple \n\n"] {
        assert_eq!(derive(Purpose::File, same), Ok(seed), "{same:?}");
    }
    for at in 0..secret.len() {
        let mut other = secret.to_vec();
        other[at] ^= 1;
        assert_ne!(derive(Purpose::File, &other), Ok(seed), "byte {at}");
    }
    assert_ne!(derive(Purpose::File, b"correct  horse battery staple"), Ok(seed), "white space inside counts");
    assert_ne!(derive(Purpose::Cluster, secret), Ok(seed), "each purpose has its own key");
    assert!(derive(Purpose::File, &[0xff; 16]).is_ok(), "any bytes");
}

#[test]
fn short_secrets_are_refused() {
    assert_eq!(derive(Purpose::File, b" 0123456789abcde\n"), Err(TooShort(15)));
    assert_eq!(derive(Purpose::File, b""), Err(TooShort(0)));
    derive(Purpose::File, b"0123456789abcdef").unwrap();
}

#[test]
fn the_configuration_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("seed");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    for value in [0, 7, u64::MAX] {
        assert_eq!(parsed(&config(Some(value), None)).unwrap(), Some(Seed { value, source: SeedSource::Configured }));
    }
    let value = derive(Purpose::File, b"correct horse battery staple").unwrap();
    assert_eq!(parsed(&config(None, Some(&file))).unwrap(), Some(Seed { value, source: SeedSource::File }));
    assert_eq!(parsed(&config(None, None)).unwrap(), None);
}

#[test]
fn errors_of_the_file_name_field_and_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("short"), "too short\n").unwrap();
    std::fs::write(path("long"), vec![b'x'; SEED_FILE_BYTES_MAX as usize + 1]).unwrap();
    std::fs::write(path("full"), vec![b'x'; SEED_FILE_BYTES_MAX as usize]).unwrap();
    for (name, unreadable, words) in [
        ("none", true, "cannot be read: No such file"),
        ("", true, "cannot be read: not a file"),
        ("short", false, "9 bytes without surrounding white space, at least 16 are required"),
        ("long", false, "longer than 65536 bytes"),
    ] {
        let fault = parsed(&config(None, Some(&path(name)))).unwrap_err();
        let text = fault.error.to_string();
        assert!(text.starts_with("nomagic.yaml: hash.seedFile: ") && text.contains(words), "{text}");
        assert!(text.contains(&*path(name).to_string_lossy()) && fault.unreadable == unreadable, "{text}");
    }
    parsed(&config(None, Some(&path("full")))).unwrap();
    assert!(parsed(&config(None, Some(Path::new("/dev/urandom")))).unwrap_err().unreadable, "it would never end");
}

#[test]
fn the_cluster_comes_before_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let uid = "6b1e8c3a-3a52-4b5e-9a0d-1f5b4d2c7e90";
    let seed = by_default(Some(Ok(uid)), dir.path()).unwrap();
    assert_eq!(seed, Seed { value: CLUSTER_OF_UUID, source: SeedSource::Cluster });
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is stored");
    let random = by_default(None, dir.path()).unwrap();
    assert_eq!(random.source(), SeedSource::Random);
    for uid in [None, Some(Err("403")), Some(Ok("short"))] {
        assert_eq!(by_default(uid, dir.path()).unwrap(), random, "{uid:?}");
    }
}

#[test]
fn debug_output_does_not_show_the_seed() {
    assert_eq!(format!("{:?}", Seed::configured(123_456)), "Seed(Configured)");
}
