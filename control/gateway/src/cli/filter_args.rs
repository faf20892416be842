//! The filter that `flows`, `trace` and `capture` share.

use std::io;

use nomagic_api::flows::{FlowFilter, FlowState};

use crate::flows::Selection;

/// Selects flows.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FilterArgs {
    /// A Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// A backend: an address, a CIDR, or an address with a port.
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<String>,
    /// A client: an address or a CIDR.
    #[arg(long, value_name = "PREFIX")]
    client: Option<String>,
    /// The port that the client sends to.
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp or sctp.
    #[arg(long)]
    proto: Option<String>,
}

impl FilterArgs {
    /// The filter, with a state.
    ///
    /// # Errors
    /// The argument, and what it may be: the gateway would say the same.
    pub fn filter(&self, state: Option<FlowState>) -> Result<FlowFilter, String> {
        let FilterArgs { service, backend, client, port, proto } = self.clone();
        let filter = FlowFilter { service, backend, client, port, proto, state };
        Selection::parse(&filter)?;
        Ok(filter)
    }
}

/// The exit code of a command that writes until its reader closes the output, as `head` does: that is no failure.
pub(super) fn until_closed(outcome: anyhow::Result<u8>) -> anyhow::Result<u8> {
    match outcome {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(0),
        outcome => outcome,
    }
}
