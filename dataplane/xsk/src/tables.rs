//! The tables that control publishes and every worker follows.

use std::sync::Arc;
use std::time::Duration;

use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

use crate::published::{Published, Reader};
use crate::topology::Topology;

/// A worker's end of them.
pub(crate) struct Readers {
    pub services: Reader<Services>,
    pub routes: Reader<Routes>,
    pub topology: Reader<Topology>,
}

/// Control's end of those that come from outside; the topology is the ports'.
pub(crate) struct Tables {
    pub services: Published<Services>,
    pub routes: Published<Routes>,
}

impl Tables {
    /// The first ones, and an end for each of so many workers.
    pub fn new(services: Arc<Services>, routes: Arc<Routes>, workers: usize) -> (Tables, Published<Topology>, Vec<Readers>) {
        let (services, service_readers) = Published::new(services, workers);
        let (routes, route_readers) = Published::new(routes, workers);
        let (topology, topology_readers) = Published::new(Arc::new(Topology::default()), workers);
        let readers = service_readers.into_iter().zip(route_readers).zip(topology_readers);
        let readers = readers.map(|((services, routes), topology)| Readers { services, routes, topology }).collect();
        (Tables { services, routes }, topology, readers)
    }

    /// Waits until every worker that counts uses all that was published so far; this long for each of them. False when the time is up.
    pub fn wait(&self, limit: Duration, counts: impl Fn(usize) -> bool) -> bool {
        self.services.wait(self.services.sequence(), limit, &counts) && self.routes.wait(self.routes.sequence(), limit, &counts)
    }
}
