//! Why a region cannot be used.

use super::{CAPACITY_MAX, VERSION};

/// Why a region cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// Fewer words than the capacity needs.
    TooSmall,
    /// The capacity is 0 or beyond [`CAPACITY_MAX`].
    Capacity,
    /// It does not begin with a connection table's magic number.
    Foreign,
    /// The table of another version of this program.
    Version {
        /// The version found.
        found: u64,
    },
    /// The header is torn, or its layout is not this program's.
    Header,
    /// A table for another number of connections.
    OtherCapacity {
        /// Capacity of the table found.
        found: u32,
        /// Wanted capacity.
        wanted: u32,
    },
    /// From another boot of the machine: the clock has restarted since.
    OtherBoot,
}

impl std::fmt::Display for RegionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RegionError::TooSmall => f.write_str("the memory is smaller than the table's capacity needs"),
            RegionError::Capacity => write!(f, "the table's capacity must be between 1 and {CAPACITY_MAX} connections"),
            RegionError::Foreign => f.write_str("it is no connection table"),
            RegionError::Version { found } => write!(f, "it is a connection table of version {found}, this is version {VERSION}"),
            RegionError::Header => f.write_str("its header is torn or of another layout"),
            RegionError::OtherCapacity { found, wanted } => write!(f, "it is for {found} connections, {wanted} are configured"),
            RegionError::OtherBoot => f.write_str("it is from another boot of the machine"),
        }
    }
}

impl std::error::Error for RegionError {}
