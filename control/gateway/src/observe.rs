//! What a gateway reports about itself: health, metrics (both over HTTP), and Events sent to the API server.

pub mod events;
pub mod health;
pub mod http;
pub mod metrics;
pub mod readyz;
