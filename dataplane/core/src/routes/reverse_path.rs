//! Whether a source may come by a port, as the kernel's `rp_filter` says (RFC 3704; fib_validate_source() in net/ipv4/fib_frontend.c).

use super::{RouteKind, RouteQuery, Routes};
use crate::frame::PortId;
use crate::tuple::{Tuple, words_addr};

/// How sources of IPv4 packets are compared with the routes to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReversePath {
    /// Not at all.
    #[default]
    Off,
    /// The route to the source leads out of the port that the packet came in by (`rp_filter` 1).
    Strict,
    /// There is a route to the source (`rp_filter` 2).
    Loose,
}

impl Routes {
    /// Adds how sources are compared, in the order of the ports.
    pub fn with_reverse_path(mut self, checks: impl IntoIterator<Item = ReversePath>) -> Routes {
        self.reverse_path = checks.into_iter().collect();
        self
    }

    /// Whether a packet that came in by a port passes the port's check. A rule for the interface that packets come in by selects nothing here, as in the
    /// kernel, which looks the source up as the destination of a packet of its own.
    #[inline]
    pub fn passes_reverse_path(&self, received: &Tuple, port: PortId) -> bool {
        let check = self.reverse_path.get(usize::from(port.0)).copied().unwrap_or_default();
        check == ReversePath::Off || received.v6 || self.has_reverse_path(check, received, port)
    }

    #[inline(never)]
    fn has_reverse_path(&self, check: ReversePath, received: &Tuple, port: PortId) -> bool {
        let (src, dst, v6, proto) = (received.dst, received.src, received.v6, received.proto);
        let query = RouteQuery { src, dst, v6, port: PortId::NONE, proto, sport: received.dport, dport: received.sport };
        match self.decide(&query, words_addr(dst, v6), &self.rules[usize::from(v6)]) {
            Ok(RouteKind::Unicast(legs)) => check == ReversePath::Loose || legs.iter().any(|leg| leg.port == Some(port)),
            // Only the kernel can tell.
            Ok(RouteKind::Kernel) => true,
            Ok(RouteKind::Local | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Blackhole | RouteKind::Throw) => false,
            Err(resolution) => matches!(resolution, super::Resolution::Kernel { .. }),
        }
    }
}
