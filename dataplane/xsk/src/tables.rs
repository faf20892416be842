//! The tables that control publishes to every worker.

use std::sync::Arc;
use std::time::Duration;

use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

use crate::published::{Published, Reader};
use crate::topology::Topology;

/// A worker's handles.
pub(crate) struct Readers {
    pub services: Reader<Services>,
    pub routes: Reader<Routes>,
    pub topology: Reader<Topology>,
}

/// Which of the tables published last every live worker uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablesApplied {
    pub services: bool,
    pub routes: bool,
}

/// Control's handles of the services and routes; `Ports` has the topology's.
pub(crate) struct Tables {
    pub services: Published<Services>,
    pub routes: Published<Routes>,
}

impl Tables {
    /// Publishes the first tables, with handles for this many workers.
    pub fn new(services: Arc<Services>, routes: Arc<Routes>, workers: usize) -> (Tables, Published<Topology>, Vec<Readers>) {
        let (services, service_readers) = Published::new(services, workers);
        let (routes, route_readers) = Published::new(routes, workers);
        let (topology, topology_readers) = Published::new(Arc::new(Topology::default()), workers);
        let readers = service_readers.into_iter().zip(route_readers).zip(topology_readers);
        let readers = readers.map(|((services, routes), topology)| Readers { services, routes, topology }).collect();
        (Tables { services, routes }, topology, readers)
    }

    /// Whether every worker that counts uses the latest services, and the latest routes.
    pub fn applied(&self, counts: impl Fn(usize) -> bool) -> TablesApplied {
        TablesApplied {
            services: self.services.applied(&counts) == self.services.sequence(),
            routes: self.routes.applied(&counts) == self.routes.sequence(),
        }
    }

    /// Waits until every worker that counts uses everything published so far. The limit applies to each table. False on timeout.
    pub fn wait(&self, limit: Duration, counts: impl Fn(usize) -> bool) -> bool {
        self.services.wait(self.services.sequence(), limit, &counts) && self.routes.wait(self.routes.sequence(), limit, &counts)
    }
}
