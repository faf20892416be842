//! Limits of a Service's connections, from its annotations.

use std::collections::BTreeMap;

use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond};

use crate::problem::Notes;

/// New connections a second that each of the Service's ports takes.
pub const PER_SECOND: &str = "nomagic.io/connections-per-second";
/// Connections that one client may have to the Service at a time.
pub const PER_CLIENT: &str = "nomagic.io/max-connections-per-client";

/// What an annotation says about a limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Annotated<T> {
    /// Nothing, or nothing valid: the configured default counts.
    #[default]
    Absent,
    /// There is no limit.
    Off,
    Limit(T),
}

impl<T> Annotated<T> {
    /// The limit in force.
    pub fn or(self, default: Option<T>) -> Option<T> {
        match self {
            Annotated::Absent => default,
            Annotated::Off => None,
            Annotated::Limit(limit) => Some(limit),
        }
    }
}

/// The limits in a Service's annotations.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LimitAnnotations {
    pub per_second: Annotated<ConnectionsPerSecond>,
    pub per_client: Annotated<ConnectionsPerClient>,
}

impl LimitAnnotations {
    /// Reads the limits; invalid ones are absent.
    pub(super) fn read(annotations: Option<&BTreeMap<String, String>>, notes: &mut Notes) -> LimitAnnotations {
        let text = |name: &str| annotations.and_then(|all| all.get(name)).map(String::as_str);
        LimitAnnotations {
            per_second: limit(PER_SECOND, text(PER_SECOND), ConnectionsPerSecond::MAX, ConnectionsPerSecond::new, notes),
            per_client: limit(PER_CLIENT, text(PER_CLIENT), ConnectionsPerClient::MAX, ConnectionsPerClient::new, notes),
        }
    }
}

fn limit<T>(name: &str, text: Option<&str>, max: u32, new: impl Fn(u64) -> Option<T>, notes: &mut Notes) -> Annotated<T> {
    let Some(text) = text else { return Annotated::Absent };
    // Without the check, a sign would be allowed.
    let number: Option<u64> = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    match number {
        Some(0) => return Annotated::Off,
        Some(number) => {
            if let Some(limit) = new(number) {
                return Annotated::Limit(limit);
            }
        }
        None => {}
    }
    let allowed = format!("a whole number from 0 (no limit) to {max} is allowed; the configured default counts");
    notes.add(format!("metadata.annotations[{name}]"), format!("{text:?}: {allowed}"));
    Annotated::Absent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Origin;

    fn read(name: &str, text: &str) -> (LimitAnnotations, Vec<String>) {
        let mut notes = Notes::new(&Origin::default(), "Service n/a".into());
        let annotations = BTreeMap::from([(name.to_owned(), text.to_owned())]);
        let limits = LimitAnnotations::read(Some(&annotations), &mut notes);
        (limits, notes.finish().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_limit_is_a_number_and_0_is_none() {
        for (text, expected) in [("0", Annotated::Off), ("00", Annotated::Off), ("1", limit_of(1)), ("1000000", limit_of(1_000_000))] {
            let (limits, problems) = read(PER_SECOND, text);
            assert_eq!((limits, problems), (LimitAnnotations { per_second: expected, ..LimitAnnotations::default() }, vec![]), "{text}");
        }
        let (limits, problems) = read(PER_CLIENT, "20");
        assert_eq!((limits.per_client, limits.per_second), (Annotated::Limit(ConnectionsPerClient::new(20).unwrap()), Annotated::Absent));
        assert!(problems.is_empty());
        assert_eq!(read("nomagic.io/other", "x"), (LimitAnnotations::default(), vec![]));
        let mut notes = Notes::new(&Origin::default(), String::new());
        assert_eq!(LimitAnnotations::read(None, &mut notes), LimitAnnotations::default());
    }

    fn limit_of(n: u64) -> Annotated<ConnectionsPerSecond> {
        Annotated::Limit(ConnectionsPerSecond::new(n).unwrap())
    }

    #[test]
    fn an_invalid_annotation_is_named_and_the_default_counts() {
        for name in [PER_SECOND, PER_CLIENT] {
            for text in ["", " ", "-1", "+1", "1.5", "1000001", "99999999999999999999999", "ten", "10/s", "1_000", "\u{664}"] {
                let (limits, problems) = read(name, text);
                let expected = format!("Service n/a: metadata.annotations[{name}]: ");
                assert_eq!((limits, problems.len()), (LimitAnnotations::default(), 1), "{text:?}: {problems:?}");
                assert!(problems[0].starts_with(&expected) && problems[0].ends_with("the configured default counts"), "{problems:?}");
            }
        }
    }

    #[test]
    fn an_annotation_overrides_the_default() {
        let default = Some(5);
        assert_eq!([Annotated::Absent, Annotated::Off, Annotated::Limit(7)].map(|a| a.or(default)), [Some(5), None, Some(7)]);
        assert_eq!([Annotated::Absent, Annotated::Off, Annotated::Limit(7)].map(|a| a.or(None)), [None, None, Some(7)]);
    }
}
