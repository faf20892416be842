//! Lists the Services for `nomagic services`: in pages, each with a bounded number of Services and endpoints, since the control loop waits meanwhile.

use std::collections::{BTreeMap, HashMap};

use nomagic_api::services::{LOOKED_AT_MAX, SERVICES_MAX, Service, ServiceFilter, ServiceState, ServicesPage, WORK_MAX};
use nomagic_table::findings::near_service;
use nomagic_table::listing::{Listing, Said, example_clients};
use nomagic_table::objects::{ENDPOINTS, Kind, NamespacedName};
use nomagic_table::problem::Problem;

use crate::flows::parse_service;
use crate::run::findings::Findings;

/// What a page is read from.
pub struct ServiceSource<'s> {
    pub listing: Listing<'s>,
    /// Problems of the objects and of the table's compilation.
    pub problems: &'s [Problem],
    pub findings: &'s Findings,
}

/// The problems by Service: its own, and those of its slices.
type BySubject<'s> = HashMap<NamespacedName, Vec<&'s Problem>>;

impl ServiceSource<'_> {
    /// The Services that fit, from this one on.
    ///
    /// # Errors
    /// If the filter or `from` has a wrong form, or there is no Service of the one name asked for.
    pub fn page(&self, filter: &ServiceFilter, from: Option<&str>) -> Result<ServicesPage, String> {
        let by_subject = self.problems_by_service();
        if let Some(name) = &filter.service {
            let (namespace, name) = parse_service(name)?;
            return self.only(&NamespacedName { namespace, name }, filter, &by_subject);
        }
        let namespace = filter.namespace.as_deref();
        let first = NamespacedName { namespace: namespace.unwrap_or_default().into(), name: String::new() };
        let start = from.map(cursor).transpose()?.map_or(first.clone(), |from| from.max(first));
        let unknown = self.unknown(&by_subject);
        let keys = merged(
            self.listing.index.services_from(&start).map(|service| &service.key),
            unknown.range(start.clone()..).map(|(key, _)| key),
        );
        let (mut page, mut work) = (ServicesPage::default(), 0);
        for (looked_at, key) in keys.enumerate() {
            if namespace.is_some_and(|namespace| *namespace != key.namespace) {
                break;
            }
            if looked_at >= LOOKED_AT_MAX || page.services.len() >= SERVICES_MAX || work >= WORK_MAX {
                page.next = Some(key.to_string());
                break;
            }
            let (service, seen) = self.describe(key, &unknown, &by_subject, false);
            work += seen;
            page.services.extend(Some(service).filter(|service| !filter.problems || service.needs_attention()));
        }
        Ok(page)
    }

    /// One Service, in full.
    fn only(&self, key: &NamespacedName, filter: &ServiceFilter, by_subject: &BySubject<'_>) -> Result<ServicesPage, String> {
        let unknown = self.unknown(by_subject);
        let index = self.listing.index;
        let known = index.service(key);
        if known.is_none() && !unknown.contains_key(key) {
            return Err(format!("the gateway knows no Service {key}{}", near_service(index, key)));
        }
        let (service, _) = self.describe(key, &unknown, by_subject, true);
        let is_endpoint = |ip| index.slices_of(key).flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.addr == ip);
        let clients = known.map(|service| example_clients(self.listing.table, service, is_endpoint));
        let fits = filter.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace);
        let fits = fits && (!filter.problems || service.needs_attention());
        Ok(ServicesPage { services: if fits { vec![service] } else { Vec::new() }, clients, next: None })
    }

    fn describe(
        &self,
        key: &NamespacedName,
        unknown: &BTreeMap<NamespacedName, ServiceState>,
        by_subject: &BySubject<'_>,
        in_full: bool,
    ) -> (Service, usize) {
        let said = Said { problems: by_subject.get(key).map_or(&[], Vec::as_slice), findings: self.findings.of(key) };
        match (self.listing.index.service(key), unknown.get(key)) {
            (Some(service), _) => self.listing.describe(service, said, in_full),
            (None, state) => (Listing::describe_unknown(key, state.copied().unwrap_or(ServiceState::Missing), said), 1),
        }
    }

    fn problems_by_service(&self) -> BySubject<'_> {
        let mut by_subject = BySubject::new();
        for problem in self.problems {
            if let Some(key) = self.subject(problem) {
                by_subject.entry(key).or_default().push(problem);
            }
        }
        by_subject
    }

    /// The Service that a problem is about: `Service a/b`, or the one of `EndpointSlice a/b-1`.
    fn subject(&self, problem: &Problem) -> Option<NamespacedName> {
        let (kind, name) = problem.object.split_once(' ')?;
        let key = cursor(name).ok().filter(|key| !key.name.is_empty())?;
        match kind {
            // Of an invalid name only the text in quotes is known.
            _ if key.namespace.starts_with('"') => None,
            _ if kind == Kind::Service.to_string() || kind == ENDPOINTS => Some(key),
            _ if kind == Kind::EndpointSlice.to_string() => self.listing.index.slice(&key)?.service.clone(),
            _ => None,
        }
    }

    /// Services without an object: those that could not be read, and those that only slices name.
    fn unknown(&self, by_subject: &BySubject<'_>) -> BTreeMap<NamespacedName, ServiceState> {
        let index = self.listing.index;
        let is_unknown = |key: &&NamespacedName| index.service(key).is_none();
        let missing = self.findings.services().filter(is_unknown).map(|key| (key.clone(), ServiceState::Missing));
        let of_service = |problems: &[&Problem]| problems.iter().any(|p| p.object.starts_with("Service "));
        let unreadable = by_subject.iter().filter(|(key, problems)| is_unknown(key) && of_service(problems));
        missing.chain(unreadable.map(|(key, _)| (key.clone(), ServiceState::Unreadable))).collect()
    }
}

/// Reads a name to go on at: `namespace/name`, with a name that may be empty.
fn cursor(text: &str) -> Result<NamespacedName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => {
            Ok(NamespacedName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("`{}`: not a namespace and a name, such as default/nginx", text.escape_debug())),
    }
}

/// Both sorted sequences as one; what both have comes once.
fn merged<'k>(
    a: impl Iterator<Item = &'k NamespacedName>,
    b: impl Iterator<Item = &'k NamespacedName>,
) -> impl Iterator<Item = &'k NamespacedName> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(of_a), Some(of_b)) if of_a == of_b => {
            b.next();
            a.next()
        }
        (Some(of_a), Some(of_b)) if of_b < of_a => b.next(),
        (None, _) => b.next(),
        _ => a.next(),
    })
}

#[cfg(test)]
mod tests;
