//! Lists what a Service proxy sets aside by design, such as headless Services: normal, but worth a look when one is missed.

use std::collections::BTreeMap;

use super::missing_services;
use crate::index::Index;

/// Maximum number of names in a line.
const NAMED_MAX: usize = 12;

#[derive(Default)]
struct Group {
    count: usize,
    names: Vec<String>,
}

/// One line for each reason, with the number of objects and the first names. `all_services`: see [`super::findings`].
pub fn set_aside(index: &Index, all_services: bool) -> Vec<String> {
    let mut groups: BTreeMap<(&str, &str), Group> = BTreeMap::new();
    let mut add = |kind, reason, name: String| {
        let group: &mut Group = groups.entry((kind, reason)).or_default();
        group.count += 1;
        if group.names.len() < NAMED_MAX {
            group.names.push(name);
        }
    };
    for service in index.services() {
        service.ignored.into_iter().for_each(|reason| add("Services", reason, service.key.to_string()));
    }
    for slice in index.slices() {
        let (kind, name) = match &slice.service {
            Some(service) if slice.mirrored => (crate::objects::ENDPOINTS, service),
            _ => ("EndpointSlices", &slice.key),
        };
        slice.ignored.into_iter().for_each(|reason| add(kind, reason, name.to_string()));
    }
    if !all_services {
        for slice in missing_services(index).flat_map(|key| index.slices_of(key)) {
            add("EndpointSlices", "their Service does not exist, is headless, or is another proxy's", slice.key.to_string());
        }
    }
    let line = |((kind, reason), group): ((&str, &str), Group)| {
        let more = group.count - group.names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} {kind}: {reason}: {}{more}", group.count, group.names.join(", "))
    };
    groups.into_iter().map(line).collect()
}
