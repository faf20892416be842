//! The seed of the hash that chooses endpoints, and its source.
//!
//! A client that knows the seed knows which of its source ports lead to which endpoint, and can put its whole load on one. So the seed must
//! be unknown outside and the same on all gateways of a cluster. `hash.seed` and `hash.seedFile` set it. Without them it is derived from
//! the UID of the Namespace kube-system, which only the cluster's members can read; without an API server, or if that refuses, it is random
//! and kept in the state directory.

mod stored;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use nomagic_api::SeedSource;
use nomagic_core::tuple::HashSeed;
use ring::hmac;

use crate::config::HashConfig;
use crate::config::error::ConfigError;

/// Minimum length of a secret without surrounding white space, bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// Maximum size of `hash.seedFile`, bytes.
pub const SEED_FILE_BYTES_MAX: u64 = 64 << 10;

/// A seed and its source. The seed is secret: `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    value: u64,
    source: SeedSource,
}

impl Seed {
    /// The value of `hash.seed`.
    pub fn configured(value: u64) -> Seed {
        Seed { value, source: SeedSource::Configured }
    }

    /// From the content of `hash.seedFile`.
    fn of_file(content: &[u8]) -> Result<Seed, TooShort> {
        derive(Purpose::File, content).map(|value| Seed { value, source: SeedSource::File })
    }

    /// From the UID of the Namespace kube-system.
    fn of_cluster(uid: &str) -> Result<Seed, TooShort> {
        derive(Purpose::Cluster, uid.as_bytes()).map(|value| Seed { value, source: SeedSource::Cluster })
    }

    pub fn source(&self) -> SeedSource {
        self.source
    }

    pub fn hash_seed(&self) -> HashSeed {
        HashSeed::new(self.value)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({:?})", self.source)
    }
}

/// A seed must not tell what it was derived from: the secret may have other uses.
#[derive(Clone, Copy)]
enum Purpose {
    File,
    Cluster,
}

impl Purpose {
    /// The key of the hash. All versions of nomagic must use the same, or an upgrade would part the gateways.
    fn key(self) -> &'static [u8] {
        match self {
            Purpose::File => b"nomagic hash.seedFile",
            Purpose::Cluster => b"nomagic kube-system UID",
        }
    }
}

/// A secret of this many bytes is shorter than [`SECRET_BYTES_MIN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TooShort(usize);

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes without surrounding white space, at least {SECRET_BYTES_MIN} are required", self.0)
    }
}

/// The first 64 bits (big-endian) of HMAC-SHA-256 over the secret without surrounding white space.
fn derive(purpose: Purpose, secret: &[u8]) -> Result<u64, TooShort> {
    let secret = secret.trim_ascii();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(TooShort(secret.len()));
    }
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, purpose.key()), secret);
    Ok(tag.as_ref().iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Why `hash.seedFile` gives no seed.
#[derive(Debug)]
pub struct SeedFileError {
    /// The file may be usable for a gateway, but this process cannot read it.
    pub unreadable: bool,
    pub error: ConfigError,
}

/// The seed that the configuration sets; `None`: it leaves the choice to [`by_default`]. `config_path` is used in messages only.
pub fn from_config(hash: &HashConfig, config_path: &Path) -> Result<Option<Seed>, SeedFileError> {
    let Some(file) = &hash.seed_file else { return Ok(hash.seed.map(Seed::configured)) };
    let fault = |unreadable, what: String| {
        let message = format!("{}: {what}", file.display());
        SeedFileError { unreadable, error: ConfigError::in_field(config_path, "hash.seedFile", message) }
    };
    let content = read(file).map_err(|e| fault(true, format!("cannot be read: {e}")))?;
    if content.len() as u64 > SEED_FILE_BYTES_MAX {
        return Err(fault(false, format!("longer than {SEED_FILE_BYTES_MAX} bytes: is this the secret?")));
    }
    Seed::of_file(&content).map(Some).map_err(|short| fault(false, short.to_string()))
}

/// Reads a file up to the limit and one byte more.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(SEED_FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// The seed that the configuration does not set. `uid` is the cluster's UID, or why it cannot be read; `None` without an API server.
///
/// # Errors
/// If the kernel gives no random numbers.
pub fn by_default(uid: Option<Result<&str, &str>>, state_dir: &Path) -> Result<Seed> {
    let uid =
        uid.map(|uid| uid.map_err(str::to_owned).and_then(|uid| Seed::of_cluster(uid).map_err(|short| format!("its UID has {short}"))));
    match uid {
        Some(Ok(seed)) => return Ok(seed),
        Some(Err(why)) => tracing::warn!(
            "the Namespace kube-system cannot be read, so this gateway uses a random hash seed, and other gateways choose other endpoints for \
             the same flow: {why}. Allow it, or set the same hash.seed or hash.seedFile on all gateways"
        ),
        None => {}
    }
    let value = stored::read_or_create(state_dir)?;
    Ok(Seed { value, source: SeedSource::Random })
}

pub use stored::remove;

#[cfg(test)]
mod tests;
