//! A walk over the connection table, in pages: what was seen so far.

use std::collections::BTreeMap;

use nomagic_api::flows::{CountBy, Flow, FlowFilter, FlowsPage};
use nomagic_api::socket::Request;

use super::keys::View;

/// Maximum number of flows of a walk.
pub const FLOWS_SHOWN_MAX: usize = 4_096;
/// Maximum number of groups of a walk; the flows of all others are added up.
pub const GROUPS_SHOWN_MAX: usize = 65_536;

/// What is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    pub filter: FlowFilter,
    /// `None`: the flows themselves.
    pub count_by: Option<CountBy>,
}

/// What a view asks the gateway, beside its status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    Walk(Query),
    /// What happens to a packet of this flow.
    Explain(String),
}

impl Question {
    /// The view's question, if it has one.
    pub fn of(view: &View) -> Option<Question> {
        match view {
            View::Services | View::Backends(_) | View::Reasons | View::Workers | View::Tables => None,
            View::Clients(service) => {
                let filter = FlowFilter { service: service.clone(), ..FlowFilter::default() };
                Some(Question::Walk(Query { filter, count_by: Some(CountBy::Client) }))
            }
            View::Flows(filter) => Some(Question::Walk(Query { filter: filter.clone(), count_by: None })),
            View::Explain(flow) => Some(Question::Explain(flow.clone())),
        }
    }

    /// What a walk looks for.
    pub fn query(&self) -> Option<&Query> {
        match self {
            Question::Walk(query) => Some(query),
            Question::Explain(_) => None,
        }
    }
}

/// How far a walk has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// To this slot.
    UpTo(u32),
    Whole,
    /// As many flows as can be shown; there may be more.
    Full,
}

/// A walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    pub query: Query,
    pub progress: Progress,
    pub flows: Vec<Flow>,
    pub groups: BTreeMap<String, u64>,
    /// Flows of groups beyond the limit.
    pub other: u64,
    /// All flows that fit, as far as they were seen.
    pub matched: u64,
}

impl Walk {
    pub fn new(query: Query) -> Walk {
        Walk { query, progress: Progress::UpTo(0), flows: Vec::new(), groups: BTreeMap::new(), other: 0, matched: 0 }
    }

    /// The next page's request; `None`: the walk is over.
    pub fn request(&self) -> Option<Request> {
        let Progress::UpTo(from) = self.progress else { return None };
        Some(Request::Flows { filter: self.query.filter.clone(), count_by: self.query.count_by, from })
    }

    pub fn take(&mut self, page: FlowsPage) {
        let room = FLOWS_SHOWN_MAX - self.flows.len();
        let is_full = page.flows.len() >= room && self.query.count_by.is_none();
        self.flows.extend(page.flows.into_iter().take(room));
        for (group, flows) in page.groups {
            let has_room = self.groups.len() < GROUPS_SHOWN_MAX;
            match self.groups.get_mut(&group) {
                Some(sum) => *sum += flows,
                None if has_room => drop(self.groups.insert(group, flows)),
                None => self.other += flows,
            }
        }
        (self.other, self.matched) = (self.other + page.other, self.matched + page.matched);
        self.progress = match page.next {
            None => Progress::Whole,
            Some(_) if is_full => Progress::Full,
            Some(next) => Progress::UpTo(next),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::flows::{FLOW_SCHEMA, FlowState};

    fn page(groups: &[(&str, u64)], next: Option<u32>) -> FlowsPage {
        let groups: BTreeMap<String, u64> = groups.iter().map(|(group, flows)| ((*group).into(), *flows)).collect();
        FlowsPage { matched: groups.values().sum(), groups, next, ..FlowsPage::default() }
    }

    #[test]
    fn pages_add_up_until_the_table_ends() {
        let query = Query { filter: FlowFilter::default(), count_by: Some(CountBy::Client) };
        let mut walk = Walk::new(query);
        walk.take(page(&[("10.0.0.1", 3), ("10.0.0.2", 1)], Some(1 << 18)));
        let Some(Request::Flows { from, count_by, .. }) = walk.request() else { panic!("not over") };
        assert_eq!((from, count_by), (1 << 18, Some(CountBy::Client)));
        walk.take(FlowsPage { other: 4, ..page(&[("10.0.0.2", 5)], None) });
        assert_eq!((walk.request(), walk.progress, walk.other, walk.matched), (None, Progress::Whole, 4, 9));
        assert_eq!(walk.groups, BTreeMap::from([("10.0.0.1".into(), 3), ("10.0.0.2".into(), 6)]));
    }

    #[test]
    fn groups_and_flows_are_bounded() {
        let mut walk = Walk::new(Query { filter: FlowFilter::default(), count_by: Some(CountBy::Client) });
        for part in 0..17_u32 {
            let groups = (0..4_096).map(|n| (format!("{}", part * 4_096 + n), 1)).collect();
            walk.take(FlowsPage { groups, matched: 4_096, next: Some(part + 1), ..FlowsPage::default() });
        }
        assert_eq!((walk.groups.len(), walk.other, walk.matched), (GROUPS_SHOWN_MAX, 4_096, 17 * 4_096));

        let flow = |n: usize| Flow {
            schema: FLOW_SCHEMA,
            proto: "TCP".into(),
            client: format!("10.0.0.1:{n}"),
            destination: "10.96.0.1:80".into(),
            service: None,
            backend: "10.1.0.1:80".into(),
            snat: None,
            state: FlowState::Established,
            idle_ms: 0,
            expires_in_ms: 1,
        };
        let mut walk = Walk::new(Query { filter: FlowFilter::default(), count_by: None });
        walk.take(FlowsPage { flows: (0..4_000).map(flow).collect(), next: Some(9), ..FlowsPage::default() });
        assert_eq!(walk.progress, Progress::UpTo(9));
        walk.take(FlowsPage { flows: (0..200).map(flow).collect(), next: Some(10), ..FlowsPage::default() });
        assert_eq!((walk.progress, walk.flows.len(), walk.request()), (Progress::Full, FLOWS_SHOWN_MAX, None));
    }
}
