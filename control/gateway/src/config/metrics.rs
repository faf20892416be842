//! The metrics.

use serde::Deserialize;

/// What `/metrics` has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MetricsConfig {
    /// A series for each backend of each Service port. Default: true; false: one for each Service port, with the backend `_all`.
    pub backend_series: bool,
}

impl Default for MetricsConfig {
    fn default() -> MetricsConfig {
        MetricsConfig { backend_series: true }
    }
}
