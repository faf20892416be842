//! Taking over the flows that an earlier process left in the connection table.

use crate::conntrack::Flow;
use crate::services::{Action, Backend, Services};
use crate::tuple::words_addr;

impl Services {
    /// The place of a flow's statistics from now on, see [`Backend::stats`]; 0 when its Service or backend is gone from this table. `None` when the
    /// flow cannot continue: the gateway no longer has its source address and port, so answers would not arrive here.
    pub fn takes_over(&self, flow: &Flow) -> Option<u32> {
        if flow.replaces_source() && !self.snat.gives(words_addr(flow.source, flow.v6), flow.source_port) {
            return None;
        }
        Some(self.stats_of(flow).unwrap_or(0))
    }

    fn stats_of(&self, flow: &Flow) -> Option<u32> {
        let frontend = self.frontend(words_addr(flow.service, flow.v6), flow.service_port, flow.proto)?;
        let known = Backend { addr: words_addr(flow.backend, flow.v6), port: flow.backend_port, weight: 1, stats: 0 };
        let identity = known.identity();
        let found = frontend.actions().into_iter().find_map(|action| match action {
            Action::Forward { pool, .. } => pool.by_identity(identity),
            Action::Reject(_) | Action::Drop(_) => None,
        });
        found.filter(|b| (b.addr, b.port) == (known.addr, known.port)).map(|b| b.stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{AddressKind, Frontend, Limits, Pool, ServicePort, SnatRange};
    use crate::tuple::{HashSeed, Proto, addr_words};
    use std::sync::Arc;

    fn table() -> Services {
        let seed = HashSeed::new(1);
        let mut services = Services::empty(seed);
        let backend = |last: u8, stats| Backend { addr: [192, 168, 0, last].into(), port: 8080, weight: 1, stats };
        // All endpoints for one class of clients, the local one for another.
        let to = |backends| Action::Forward { pool: Arc::new(Pool::new(backends, &seed).unwrap()), snat: false };
        let (all, local) = (to(vec![backend(1, 11), backend(2, 12)]), to(vec![backend(1, 11), backend(3, 13)]));
        let reject = Action::Reject(crate::reason::Reason::NoEndpoints);
        let port = Arc::new(ServicePort {
            namespace: "n".into(),
            name: "s".into(),
            port_name: String::new(),
            port: 80,
            proto: Proto::Tcp,
            affinity: None,
            limits: Limits::default(),
            refused: Arc::default(),
        });
        let frontend = Frontend { port, kind: AddressKind::ClusterIp, pod: reject, node: all, external: local, source_ranges: None };
        services.add_frontend([10, 96, 0, 1].into(), 80, Proto::Tcp, frontend).unwrap();
        let (v4, internal) = (vec![[10, 0, 0, 1].into()], Some([169, 254, 78, 78].into()));
        services.snat = SnatRange { v4, port_first: 61_000, port_last: 62_000, internal_v4: internal, ..SnatRange::default() };
        services
    }

    fn flow(service: [u8; 4], backend: [u8; 4], source: [u8; 4], source_port: u16) -> Flow {
        let words = |a: [u8; 4]| addr_words(a.into()).0;
        Flow {
            proto: Proto::Tcp,
            v6: false,
            announced: false,
            client: words([10, 0, 0, 9]),
            client_port: 1000,
            service: words(service),
            service_port: 80,
            backend: words(backend),
            backend_port: 8080,
            source: words(source),
            source_port,
            stats: 4,
            counted: None,
        }
    }

    #[test]
    fn statistics_are_found_by_service_and_backend() {
        let (t, client) = (table(), [10, 0, 0, 9]);
        let of = |service, backend| t.takes_over(&flow(service, backend, client, 1000));
        let service = [10, 96, 0, 1];
        assert_eq!([1, 2, 3, 4].map(|last| of(service, [192, 168, 0, last])), [Some(11), Some(12), Some(13), Some(0)]);
        assert_eq!(of([10, 96, 0, 2], [192, 168, 0, 1]), Some(0), "a Service that is gone");
        let udp = Flow { proto: Proto::Udp, ..flow(service, [192, 168, 0, 1], client, 1000) };
        assert_eq!(t.takes_over(&udp), Some(0), "another protocol");
    }

    #[test]
    fn sources_that_are_no_longer_given_end() {
        let t = table();
        let of = |source, port| t.takes_over(&flow([10, 96, 0, 1], [192, 168, 0, 1], source, port));
        for (source, port, stays) in [
            ([10, 0, 0, 1], 61_000, true),
            ([10, 0, 0, 1], 62_000, true),
            ([169, 254, 78, 78], 61_500, true),
            ([10, 0, 0, 1], 60_999, false),
            ([10, 0, 0, 1], 62_001, false),
            ([10, 0, 0, 2], 61_000, false),
            ([10, 0, 0, 9], 5, true),
        ] {
            assert_eq!(of(source, port).is_some(), stays, "{source:?}:{port}");
        }
    }
}
