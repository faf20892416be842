//! Limits of the connections to each Service.

use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond};
use nomagic_table::settings::DefaultLimits;
use serde::{Deserialize, Deserializer};

use super::values::WholeVisitor;

/// The limits of Services whose annotations say nothing about them. 0, the default, is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LimitsConfig {
    /// New connections a second that each Service port takes, from all clients together: 0 to 1,000,000.
    #[serde(deserialize_with = "per_second")]
    pub connections_per_second: Option<ConnectionsPerSecond>,
    /// Connections that one client (IPv4 address, IPv6 /64) may have to each Service at a time: 0 to 1,000,000.
    #[serde(deserialize_with = "per_client")]
    pub max_connections_per_client: Option<ConnectionsPerClient>,
}

impl From<LimitsConfig> for DefaultLimits {
    fn from(c: LimitsConfig) -> DefaultLimits {
        DefaultLimits { per_second: c.connections_per_second, per_client: c.max_connections_per_client }
    }
}

fn per_second<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ConnectionsPerSecond>, D::Error> {
    d.deserialize_any(WholeVisitor { min: 0, max: ConnectionsPerSecond::MAX.into() }).map(ConnectionsPerSecond::new)
}

fn per_client<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ConnectionsPerClient>, D::Error> {
    d.deserialize_any(WholeVisitor { min: 0, max: ConnectionsPerClient::MAX.into() }).map(ConnectionsPerClient::new)
}
