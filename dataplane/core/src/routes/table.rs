//! One table of routes: longest prefix match.

use std::net::IpAddr;

use super::{Route, RouteKind};
use crate::hash::WordMap;
use crate::tuple::mask_addr;

/// The routes of a table, by prefix length, longest first: `(length, network -> route)`.
#[derive(Default, Debug)]
pub(super) struct Table(Vec<(u8, WordMap<IpAddr, RouteKind>)>);

/// The route of a destination.
pub(super) struct Found<'t> {
    /// The length of its prefix.
    pub len: u8,
    pub kind: &'t RouteKind,
}

impl Table {
    pub fn new(mut routes: Vec<Route>) -> Table {
        // Among routes of one prefix the smallest metric wins, as in the kernel.
        routes.sort_by_key(|r| (std::cmp::Reverse(r.prefix.prefix_len()), r.prefix, r.metric));
        routes.dedup_by_key(|r| r.prefix);
        let mut table = Table::default();
        for route in routes {
            let len = route.prefix.prefix_len();
            if table.0.last().is_none_or(|(last, _)| *last != len) {
                table.0.push((len, WordMap::default()));
            }
            if let Some((_, nets)) = table.0.last_mut() {
                nets.insert(route.prefix.addr(), route.kind);
            }
        }
        table
    }

    pub fn lookup(&self, dst: IpAddr) -> Option<Found<'_>> {
        self.0.iter().find_map(|(len, nets)| Some(Found { len: *len, kind: nets.get(&mask_addr(dst, *len))? }))
    }
}
