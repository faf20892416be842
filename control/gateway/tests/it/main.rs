//! The integration tests of the gateway: one binary, a module a subject. Tests with network namespaces need root.

mod common;

mod affinity_cases;
mod api_latency;
mod api_server;
mod api_traffic;
mod bad_input;
mod cases;
mod configuration_doc;
mod corpus;
mod deploy;
mod drop_in;
mod drop_in_http;
mod e2e;
mod established;
mod events;
mod explain_running;
mod flows;
mod gateway;
mod http;
mod http_gateway;
mod local_pods;
mod local_routes;
mod local_traffic;
mod net;
mod pod;
mod preflight;
mod protocols;
mod reconcile;
mod restart;
mod start;
mod troubleshooting_doc;
mod watch;
mod watch_cases;
