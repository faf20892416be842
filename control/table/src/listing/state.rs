//! The state of a Service as a whole, from those of its addresses.

use nomagic_api::services::{AddressState, ServiceState};

use crate::objects::{IgnoredAs, Service};

/// How many addresses have which fate.
#[derive(Default)]
pub(super) struct Tally {
    served: usize,
    without_endpoints: usize,
    not_served: usize,
}

impl Tally {
    pub(super) fn add(&mut self, state: AddressState) {
        match state {
            AddressState::Served => self.served += 1,
            AddressState::NoEndpoints | AddressState::NoLocalEndpoints => self.without_endpoints += 1,
            // As intended.
            AddressState::LoadBalancer => {}
            AddressState::Taken | AddressState::Kernel | AddressState::Refused | AddressState::OtherFamily | AddressState::NotServed => {
                self.not_served += 1;
            }
        }
    }
}

/// The state, and why if it has a reason of its own.
pub(super) fn of(service: &Service, tally: &Tally) -> (ServiceState, Option<String>) {
    if let Some(ignored) = service.ignored_as() {
        let state = match ignored {
            IgnoredAs::OtherProxy => ServiceState::OtherProxy,
            IgnoredAs::SetAside => ServiceState::SetAside,
            IgnoredAs::Unread => ServiceState::Unreadable,
            IgnoredAs::OverLimit => ServiceState::OverLimit,
        };
        return (state, service.ignored.map(str::to_owned));
    }
    let state = match (tally.served, tally.without_endpoints, tally.not_served) {
        (0, 0, _) => ServiceState::NotServed,
        (0, ..) => ServiceState::NoEndpoints,
        (_, 0, 0) => ServiceState::Served,
        _ => ServiceState::PartlyServed,
    };
    let why = service.ports_unread.then(|| "some of its ports could not be read: these are left to the kernel".to_owned());
    (state, why)
}
