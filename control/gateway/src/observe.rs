//! What a gateway tells about itself: health, HTTP, metrics, and Events for the API server.

pub mod events;
pub mod health;
pub mod http;
pub mod metrics;
